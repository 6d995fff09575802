"""Metrics to TensorBoard and to `metrics.jsonl`, without TensorFlow."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path

from gr_jax.errors import UserError
from gr_jax.files import atomic_file, disk_errors


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl`; a last line cut by a kill is left out."""
    if not Path(path).exists():
        return []
    rows = []
    for line in Path(path).read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class MetricsWriter:
    """Appends scalars by step; a resumed run first drops the steps that it will do again."""

    def __init__(self, directory: Path, *, first_step: int):
        """Opens `directory`/metrics.jsonl and an event file beside it."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
            SessionLog,  # pyright: ignore[reportAttributeAccessIssue]
        )

        self._path = Path(directory) / "metrics.jsonl"
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            kept = [row for row in read_metrics(self._path) if row["step"] <= first_step]
            with atomic_file(self._path) as temporary:
                temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), "utf-8")
            self._stream = self._path.open("a", encoding="utf-8")
            # not a SummaryWriter: its thread loses events at a kill and hangs on a full disk
            self._events = EventsWriter(str(self._path.parent / "events"))
            start = SessionLog(status=SessionLog.START)
            purge = Event(wall_time=time.time(), step=first_step + 1, session_log=start)
            self._events.write_event(purge)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one row.

        Raises:
          UserError: a value is not a number: training has diverged.
        """
        from tensorboardX.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorboardX.summary import scalar

        for name, value in scalars.items():
            if not math.isfinite(value):
                raise UserError(
                    f"training diverged: {name} is {value} at step {step}; lower the learning rate "
                    f"(the last checkpoint in {self._path.parent.parent} is good)"
                )
        with disk_errors(self._path):
            self._stream.write(json.dumps({"step": step, **scalars}) + "\n")
            self._stream.flush()
            for name, value in scalars.items():
                self._events.write_event(
                    Event(wall_time=time.time(), step=step, summary=scalar(name, value))
                )
            self._events.flush()

    def close(self) -> None:
        """Flushes and closes both files."""
        with disk_errors(self._path), contextlib.closing(self._events), self._stream:
            pass
