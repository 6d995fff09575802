"""From the metrics of steps to the rows of a log: a period's means and rates."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.data import PackedBatch
from gr_jax.errors import UserError
from gr_jax.models import LossSums
from gr_jax.training._failures import FailureDetector
from gr_jax.training._goodput import Ledger
from gr_jax.training._metrics import MetricsWriter
from gr_jax.training._step import StepMetrics, TrainState


class Progress(Protocol):
    """Told about training as it goes, for a progress bar."""

    def __call__(self, step: int, total_steps: int, scalars: dict[str, float]) -> None:
        """Called every `log_period` steps and at the last one."""
        ...


class Reporter:
    """Collects a period's metrics on the device and writes their means.

    Nothing is fetched before a period ends or a checkpoint is due, so that the device never waits;
    a step that failed is found then.
    """

    def __init__(
        self,
        *,
        period: int,
        total_steps: int,
        tasks: Sequence[str],
        detect: FailureDetector,
        failed: Callable[[int, str], UserError],
        ledger: Ledger,
        metrics: MetricsWriter | None,
        progress: Progress | None,
        flops: Callable[[PackedBatch], float],
        peak_flops: float | None,
    ):
        """Reports on a run.

        Args:
          period: steps between rows.
          total_steps: there is a row at the last one too.
          tasks: names of the mixture's tasks, in their order.
          detect: is shown every step.
          failed: makes the error that ends the run at a step, for a reason.
          ledger: of the run's time.
          metrics: where rows go; None on the processes that write nothing.
          progress: told as well.
          flops: model FLOPs of a batch's step.
          peak_flops: of all devices together, per second; None where it is not known.
        """
        self._period = period
        self._total = total_steps
        self._tasks = tasks
        self._detect = detect
        self._failed = failed
        self._ledger = ledger
        self._metrics = metrics
        self._progress = progress
        self._flops = flops
        self._peak = peak_flops
        self._pending: list[tuple[int, PackedBatch, StepMetrics]] = []
        self._values: list[StepMetrics] = []
        self._since = time.perf_counter()
        self._rate = 0.0

    def __call__(self, done: int, batch: PackedBatch, metrics: StepMetrics, rate: float) -> None:
        """Takes what step `done` (from 1) gave."""
        self._pending.append((done, batch, metrics))
        self._rate = rate
        if done % self._period == 0 or done == self._total:
            self._flush(done)

    def check(self, done: int, state: TrainState) -> None:
        """Refuses to go on to a save after a step that failed.

        The losses say so only one step later where a parameter is not a number: each is of the
        parameters before its step.
        """
        self._fetch()
        if not np.isfinite(_sum(state.params)):
            raise self._failed(done, "a parameter is not a number after the update")

    def _fetch(self) -> None:
        new = self._pending[len(self._values) :]
        for (step, _, _), values in zip(new, jax.device_get([m for *_, m in new]), strict=True):
            if reason := self._detect(step, values):
                raise self._failed(step, reason)
            self._values.append(values)

    def _flush(self, done: int) -> None:
        self._fetch()
        scalars = self._means() | self._rates()
        self._pending, self._values, self._since = [], [], time.perf_counter()
        if self._metrics:
            self._metrics.write(done, scalars)
        if self._progress:
            self._progress(done, self._total, scalars)

    def _means(self) -> dict[str, float]:
        """Over the period's target tokens; a task without any is left out."""
        sums = LossSums(*np.sum([v.sums for v in self._values], axis=0, dtype=np.float64))
        tokens = max(sums.weight.sum(), 1.0)
        scalars = {
            "loss": sums.loss.sum() / tokens,
            "z_loss": sums.z_loss.sum() / tokens,
            "accuracy": sums.correct.sum() / tokens,
            "gradient_norm": np.mean([v.gradient_norm for v in self._values]),
            "learning_rate": self._rate,
        }
        for task, loss, correct, weight in zip(
            self._tasks, sums.loss, sums.correct, sums.weight, strict=True
        ):
            if weight:
                scalars[f"loss/{task}"] = loss / weight
                scalars[f"accuracy/{task}"] = correct / weight
        return {name: float(value) for name, value in scalars.items()}

    def _rates(self) -> dict[str, float]:
        batches = [batch for _, batch, _ in self._pending]
        seconds = max(time.perf_counter() - self._since, 1e-9)
        real = sum(b.tokens for b in batches)
        room = sum(b.rows * b.arrays["encoder_input_tokens"].shape[1] for b in batches)
        scalars = {
            "examples_per_second": sum(b.examples for b in batches) / seconds,
            "tokens_per_second": real / seconds,
            "padding_fraction": 1.0 - real / room,
            "steps_per_second": len(batches) / seconds,
        }
        spent = self._ledger.record()
        if self._peak:
            training = max(spent["step"] + spent.get("data", 0.0), 1e-9)
            flops = sum(map(self._flops, batches))
            scalars["model_flops_utilisation"] = flops / training / self._peak
        return scalars | {"goodput": self._ledger.goodput}


@jax.jit
def _sum(tree: Any) -> jax.Array:
    return jnp.stack([x.sum() for x in jax.tree.leaves(tree)]).sum()
