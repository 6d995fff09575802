"""Where a run's wall time went, over all its restarts: a ledger that a kill does not harm.

Goodput is the share of the time since the run first started that went into steps which are part of
the result. A step that was done again after a kill counts once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import numpy as np

from gr_jax.files import atomic_file, disk_errors

LEDGER = "goodput.jsonl"

KINDS = {
    "step": "steps that count",
    "redone": "steps that were lost and done again",
    "data": "the device waiting for a batch",
    "compile": "the first step of each batch shape, which compiles",
    "checkpoint": "waiting for a save",
    "profile": "starting and writing a trace",
    "init": "parameters: made, or read from a checkpoint",
    "down": "not running: from the last sign of life to the next start",
}
"""What wall time goes into."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A stretch of one process's time.

    Attributes:
      end: seconds since the epoch.
      first: steps done before it.
      last: steps done after it.
      seconds: by kind; together they are its length. A process's first interval, and no other,
        has `init`.
    """

    end: float
    first: int
    last: int
    seconds: Mapping[str, float]

    @property
    def begin(self) -> float:
        """Seconds since the epoch."""
        return self.end - sum(self.seconds.values())


def account(history: Sequence[Interval], resumed_at: int | None = None) -> dict[str, float]:
    """Seconds of each of `KINDS`, from the first interval's beginning to the last one's end.

    Args:
      history: in the order of time. A run that goes on from step `s` does again what was done
        beyond `s`: of an interval that `s` cuts, its steps' share of the time.
      resumed_at: the step that it goes on from after all that; None if it does not.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    kept = math.inf if resumed_at is None else resumed_at
    following: Interval | None = None
    for interval in reversed(history):
        for kind, spent in interval.seconds.items():
            seconds[kind] += spent
        steps = interval.last - interval.first
        lost = interval.last - max(min(interval.last, kept), interval.first)
        if lost:
            redone = interval.seconds.get("step", 0.0) * lost / steps
            seconds["step"] -= redone
            seconds["redone"] += redone
        # one process's intervals have no gaps; a clock that was set back makes no time
        if following and "init" in following.seconds:
            seconds["down"] += max(following.begin - interval.end, 0.0)
        following, kept = interval, min(kept, interval.first)
    return seconds


def share(seconds: Mapping[str, float]) -> float:
    """The goodput: the steps' part of all seconds; 0 before there are any."""
    total = sum(seconds.values())
    return seconds["step"] / total if total else 0.0


def read_goodput(directory: Path) -> dict[str, float]:
    """`account` of the ledger in `directory`, MODEL_DIR/train; all 0 where there is none."""
    return account(_read(Path(directory) / LEDGER))


def describe_goodput(seconds: Mapping[str, float]) -> str:
    """One line for people: the goodput, and what the time went into."""
    parts = ", ".join(f"{kind} {spent:,.1f}" for kind, spent in seconds.items() if spent >= 0.05)
    return f"goodput {share(seconds):.0%} of {sum(seconds.values()):,.1f} s: {parts}"


def _read(path: Path) -> list[Interval]:
    """The intervals of a ledger; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    history = []
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            history.append(Interval(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return history


class Ledger:
    """Keeps the time of this process, and appends it to what earlier ones spent.

    The time from its making to `resume` is the initialisation's.

    Attributes:
      done: steps of the run; the loop counts here.
      seconds: `account` of the whole run until the last `record`.
    """

    def __init__(self, directory: Path | None):
        """Nothing is written before `resume`; None writes nothing at all."""
        self._path = None if directory is None else Path(directory) / LEDGER
        self._stream: IO[str] | None = None
        self._shapes: set[Any] = set()
        self._spent: dict[str, float] = {}
        self._since = time.perf_counter()
        self._first = self.done = 0
        self.seconds = dict.fromkeys(KINDS, 0.0)

    @property
    def goodput(self) -> float:
        """Of the whole run until the last `record`."""
        return share(self.seconds)

    def resume(self, first: int) -> None:
        """Begins to keep time, `first` steps being done."""
        self._first = self.done = first
        history = []
        if self._path is not None:
            with disk_errors(self._path):
                history = _read(self._path)
                with atomic_file(self._path) as temporary:
                    temporary.write_text("".join(map(_line, history)), "utf-8")
                self._stream = self._path.open("a", encoding="utf-8")
        self.seconds = account(history, resumed_at=first)
        if history:
            begun = time.time() - (time.perf_counter() - self._since)
            self.seconds["down"] += max(begun - history[-1].end, 0.0)
        self.record(rest="init")

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """What is done within is of this kind, and no part of a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self._spent[kind] = self._spent.get(kind, 0.0) + elapsed

    def compiling(self, arrays: Mapping[str, np.ndarray]) -> AbstractContextManager[None]:
        """`spent("compile")` for arrays of new shapes; nothing for others."""
        shapes = tuple(array.shape for array in arrays.values())
        if shapes in self._shapes:
            return contextlib.nullcontext()
        self._shapes.add(shapes)
        return self.spent("compile")

    def record(self, *, rest: str = "step") -> Mapping[str, float]:
        """Writes down the time since the last call.

        Args:
          rest: the kind of what was not `spent` on something else.

        Returns:
          Its seconds by kind.
        """
        now, seconds = time.perf_counter(), self._spent
        others = sum(seconds.values())
        seconds[rest] = seconds.get(rest, 0.0) + max(now - self._since - others, 0.0)
        interval = Interval(time.time(), self._first, self.done, seconds)
        self._spent, self._since, self._first = {}, now, self.done
        for kind, spent in seconds.items():
            self.seconds[kind] += spent
        self._write(interval)
        return seconds

    def close(self) -> None:
        """Writes down what is left, and closes the file."""
        if self._stream is not None:
            with contextlib.closing(self._stream):
                self.record(rest="step" if self.done > self._first else "checkpoint")

    def _write(self, interval: Interval) -> None:
        if self._stream is not None and self._path is not None:
            with disk_errors(self._path):
                self._stream.write(_line(interval))
                self._stream.flush()


def _line(interval: Interval) -> str:
    record = dataclasses.asdict(interval)
    record["end"] = round(interval.end, 3)
    record["seconds"] = {kind: round(spent, 4) for kind, spent in interval.seconds.items()}
    return json.dumps(record) + "\n"
