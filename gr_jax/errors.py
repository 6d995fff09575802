"""The one exception that users are meant to see."""


class UserError(Exception):
    """A mistake in what the user gave: input, flag or configuration.

    The message is one line that names the file (and line) and the mend. Entry points print it after
    `error: ` and exit with status 2; no traceback is shown.
    """
