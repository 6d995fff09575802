"""A profiler trace of some steps, for TensorBoard and XProf."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import jax

from gr_jax.errors import damage
from gr_jax.files import disk_errors
from gr_jax.training._goodput import Ledger


class StepTrace:
    """Traces the steps asked for into `directory`/plugins/profile/<time>/.

    The device has nothing to do when a trace begins and when it ends, so that it holds those steps
    and no other. It is written as well when the run ends before its last step.
    """

    def __init__(self, steps: tuple[int, int] | None, directory: Path, ledger: Ledger):
        """`steps` are the first one (from 1) and how many, None for no trace."""
        first, number = steps or (1, 0)
        self._steps = range(first, first + number)
        self._directory = directory
        self._ledger = ledger
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self._stop()

    def before(self, number: int, state: Any) -> None:
        """Begins to trace if step `number` (from 1), which starts from `state`, is asked for."""
        if number in self._steps and not self._running:
            jax.block_until_ready(state)
            with self._ledger.spent("profile"), disk_errors(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
                jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, number: int, state: Any) -> None:
        """Ends the trace if `number`, which made `state`, is the last step asked for."""
        if self._running and number + 1 not in self._steps:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        self._running = False
        with self._ledger.spent("profile"), damage(self._directory, "no trace could be written"):
            jax.profiler.stop_trace()
