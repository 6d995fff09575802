"""What people see while a command runs."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

from absl import logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from gr_jax.errors import UserError


def quiet_libraries() -> None:
    """Silences the logs of gin, Orbax and TensorFlow: what goes wrong there is raised as well."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = _only_ours


def print_error(error: BaseException) -> None:
    """Prints a user's mistake, on one line."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


def guarded(command: Callable[[], int | None], *, stopped: str = "stopped") -> int | None:
    """Runs a command; returns its exit status.

    Args:
      command: returns a status. A `UserError` of it is one line and status 2; memory that does not
        suffice is one line too, and status 1, that of a crash; Ctrl-C and SIGTERM, a scheduler's
        word for it, are status 130.
      stopped: what these two print.
    """
    quiet_libraries()
    try:
        with _terminated_as_interrupted():
            return command()
    except UserError as error:
        print_error(error)
        return 2
    except MemoryError as error:
        wanted = f" ({error})" if str(error) else ""
        print_error(MemoryError(f"this machine's memory does not suffice{wanted}"))
        return 1
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        return 130


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, unless something else is done with it already."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _only_ours(unraisable: Any) -> None:
    """Reports an exception that nobody can catch, but for those of Orbax's abandoned reads.

    It reads arrays in coroutines; once one of them has failed and said so, each of the others
    reports for itself, thousands of lines for one damaged file.
    """
    abandoned = isinstance(unraisable.object, types.CoroutineType)
    if not abandoned and "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def hidden_stderr() -> Iterator[None]:
    """Hides what C++ libraries write to standard error while they load; shows it if they fail."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as hidden:
        saved = os.dup(2)
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            os.dup2(saved, 2)
            hidden.seek(0)
            os.write(2, hidden.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def describe_metrics(scalars: dict[str, float]) -> str:
    """A row of `metrics.jsonl` as a line for people."""
    tasks = [
        f"{name.removeprefix('loss/')} {value:.3f}"
        for name, value in scalars.items()
        if name.startswith("loss/")
    ]
    parts = [
        f"loss {scalars['loss']:.3f}" + (f" ({', '.join(tasks)})" if len(tasks) > 1 else ""),
        f"gradient norm {scalars['gradient_norm']:.3g}",
        f"learning rate {scalars['learning_rate']:.3g}",
        f"{scalars['examples_per_second']:,.0f} examples/s",
        f"{scalars['tokens_per_second']:,.0f} tokens/s",
        f"{scalars['padding_fraction']:.0%} padding",
        f"goodput {scalars['goodput']:.0%}",
    ]
    if "model_flops_utilisation" in scalars:
        parts.append(f"{scalars['model_flops_utilisation']:.1%} MFU")
    return ", ".join(parts)


class Reporter:
    """Lines as stages begin, and a progress bar while the model trains.

    On a terminal the bar moves in place; otherwise a line is printed every half minute.
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        quiet: bool = False,
        quiet_seconds: float = 30.0,
    ):
        """Reports to `console`, standard error by default: standard output is for results.

        Args:
          console: where to.
          quiet: report nothing: there is another process that does.
          quiet_seconds: between two lines about training.
        """
        self.console = console or Console(file=sys.stderr, highlight=False, quiet=quiet)
        self._quiet = quiet_seconds
        self._last = float("-inf")
        self._bar: Progress | None = None
        self._task = None

    def log(self, line: str) -> None:
        """Prints a line."""
        self.console.print(line, markup=False, soft_wrap=True)

    def progress(self, step: int, total_steps: int, scalars: dict[str, float]) -> None:
        """Shows how training goes; see `gr_jax.training.Progress`."""
        if not self.console.is_terminal:
            now = time.monotonic()
            if now - self._last >= self._quiet or step == total_steps:
                self._last = now
                left = (total_steps - step) / max(scalars["steps_per_second"], 1e-9)
                figures = describe_metrics(scalars)
                self.log(f"step {step:,}/{total_steps:,}: {figures}, {left / 60:.1f} min left")
            return
        figures = f"loss {scalars['loss']:.3f}, {scalars['examples_per_second']:,.0f} examples/s"
        if "model_flops_utilisation" in scalars:
            figures += f", {scalars['model_flops_utilisation']:.1%} MFU"
        if self._bar is None:
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task("training", total=total_steps, figures="")
        assert self._task is not None
        self._bar.update(self._task, completed=step, figures=figures)
        if step == total_steps:
            self.close()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
