"""The one exception that users are meant to see, and what becomes of others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


class UserError(Exception):
    """A mistake in what the user gave: input, flag or configuration.

    The message is one line that names the file (and line) and the mend. Entry points print it after
    `error: ` and exit with status 2; no traceback is shown.
    """


@contextlib.contextmanager
def damage(path: Any, what: str) -> Iterator[None]:
    """Turns what a library raises for a file that is missing or cut into one line.

    Orbax raises anything, TensorStore and msgpack ValueError, JSON and files what they like.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = reason if len(reason) <= 200 else f"{reason[:200]}..."
        raise UserError(f"{path}: {what} ({reason})") from error
