"""The training loop: batches in, checkpoints and metrics out, resumable at any step."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from gr_jax.data import Batches
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.training._checkpoints import Checkpoints, RunIdentity
from gr_jax.training._failures import FailureDetector, failure
from gr_jax.training._metrics import MetricsWriter
from gr_jax.training._optimizer import Optimizer
from gr_jax.training._partitioning import Partitioner, Partitioning, write_model_info
from gr_jax.training._restriction import SOFTMAXES, Softmax, make_restriction
from gr_jax.training._schedule import Schedule
from gr_jax.training._step import (
    Start,
    StepMetrics,
    TrainState,
    abstract_state,
    init_state,
    train_step,
)


class Interrupted(Exception):
    """The user or the scheduler asked to stop; a checkpoint of the last step is on disk."""


class Progress(Protocol):
    """Told about training as it goes, for a progress bar."""

    def __call__(self, step: int, total_steps: int, scalars: dict[str, float]) -> None:
        """Called every `log_period` steps and at the last one."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
      steps: length of the run; None derives it from `minutes`.
      minutes: training time to aim for when `steps` is None: a few steps are timed first.
      schedule: of the learning rate.
      optimizer: how gradients become steps.
      softmax: what the softmax is over: the whole target vocabulary (`full`), the codes of the
        level (`level`) or the tokens that continue the prefix of some docid (`children`). A model
        is best searched with the score of the same name.
      label_smoothing: mass spread over the tokens that the softmax is over.
      z_loss: weight of log(Z)^2; t5x's `Z_LOSS`, 1e-4 in its recipes.
      loss_normalizing_factor: what the sum of the target tokens' losses is divided by before its
        gradient is taken; None for the number of target tokens, t5x's `NUM_REAL_TARGET_TOKENS`.
        t5x's None divides by nothing: that is 1 here. Metrics are means whatever it is.
      ema_decay: of the parameter average that is decoded with; 0 for none.
      save_period: steps between checkpoints.
      keep: checkpoints kept; None keeps all.
      log_period: steps between metrics.
      microbatches: parts that a step's rows are worked through in, one after the other: the
        gradients are the whole batch's, and the activations in memory are a part's.
      spike_factor: stops the run when a loss is more than this many times the median of the last 50
        (after the warm-up); 0 never does, because most jumps heal and small losses jump often. A
        loss or gradient that is not a number always stops it.
      partitioning: how the run is spread over its devices.
      seed: of initialisation, example order and dropout.
    """

    steps: int | None = None
    minutes: float | None = None
    schedule: Schedule = dataclasses.field(default_factory=Schedule)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    softmax: Softmax = "full"
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_normalizing_factor: float | None = None
    ema_decay: float = 0.0
    save_period: int = 500
    keep: int | None = 2
    log_period: int = 20
    microbatches: int = 1
    spike_factor: float = 0.0
    partitioning: Partitioning = dataclasses.field(default_factory=Partitioning)
    seed: int = 0

    def __post_init__(self):
        for name in (
            "steps", "save_period", "keep", "log_period", "microbatches"
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"TrainConfig.{name} is {value}: at least 1 is needed")
        factor = self.loss_normalizing_factor
        if factor is not None and not (isinstance(factor, int | float) and 0 < factor < math.inf):
            raise UserError(
                f"TrainConfig.loss_normalizing_factor is {factor!r}: a positive number, or None "
                "for the number of real target tokens"
            )
        if self.spike_factor and not self.spike_factor > 1:
            raise UserError(f"TrainConfig.spike_factor is {self.spike_factor}: more than 1, or 0")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UserError(f"TrainConfig.minutes is {self.minutes}: a positive number is needed")
        if self.softmax not in SOFTMAXES:
            raise UserError(
                f"TrainConfig.softmax is {self.softmax!r}: choose one of {', '.join(SOFTMAXES)}"
            )
        if not 0 <= self.seed < 2**31:
            raise UserError(f"TrainConfig.seed is {self.seed}: 0 to 2**31 - 1 will do")


def train(
    config: TrainConfig,
    model: T5Config,
    batches: Batches,
    partitioner: Partitioner,
    model_dir: Path,
    *,
    total_steps: int,
    docid_fingerprint: str,
    docid_map: DocidMap | None = None,
    start: Start | None = None,
    progress: Progress | None = None,
) -> TrainState:
    """Trains to `total_steps`, from the newest checkpoint in `model_dir` if there is one.

    The result does not depend on where or how often the run was interrupted. Any softmax but `full`
    needs the `docid_map`. `start` is where a run begins that does not at random parameters.

    Returns:
      The final state, also saved as `checkpoint_<total_steps>`.

    Raises:
      Interrupted: SIGINT or SIGTERM; the state is saved.
      UserError: the directory holds another run's checkpoints, the disk is full, the rows do not
        divide by `microbatches`, or training failed (see `TrainConfig.spike_factor`): the batch is
        in `failed_batch.json`.
    """
    optimizer = config.optimizer.make()
    run_step = step_function(config, model, optimizer, partitioner, docid_map)
    identity = RunIdentity(
        docid_fingerprint=docid_fingerprint,
        model=model.to_json(),
        seed=config.seed,
        total_steps=total_steps,
        training=_what_decides(config, batches, start),
    )
    checkpoints = Checkpoints(model_dir, keep=config.keep)
    try:
        ema = config.ema_decay > 0
        if (latest := checkpoints.latest_step) is None:
            state = init_state(
                model, optimizer, partitioner, seed=config.seed, ema=ema, start=start
            )
        else:
            shapes = abstract_state(model, optimizer, partitioner, ema=ema)
            state = checkpoints.restore(latest, shapes, identity)
        write_model_info(Path(model_dir) / "model-info.txt", model, state.params)
        first = int(state.step)
        metrics = MetricsWriter(Path(model_dir) / "train", first_step=first)

        def failed(step: int, reason: str) -> UserError:
            checkpoints.wait()
            saved = checkpoints.latest_step
            return failure(
                model_dir, step, reason, saved=saved, batches=batches, docid_map=docid_map
            )

        reporter = _Reporter(config, metrics, total_steps, progress, failed)
        try:
            with _stop_signals() as stopped:
                for step, batch in _prefetched(batches, first, total_steps):
                    rate = config.schedule(step, total_steps)
                    state, step_metrics = run_step(state, batch.arrays, rate)
                    done = step + 1
                    reporter(done, batch, step_metrics, rate)
                    if done % config.save_period == 0 or done == total_steps or stopped.is_set():
                        reporter.check(done, state)
                        checkpoints.save(done, state, identity)
                    if stopped.is_set() and done < total_steps:
                        checkpoints.wait()
                        raise Interrupted(f"stopped at step {done} of {total_steps}")
        finally:
            metrics.close()
    finally:
        checkpoints.close()
    return state


def _what_decides(config: TrainConfig, batches: Batches, start: Start | None = None) -> str:
    """The settings, beside model and seed, that the trained parameters depend on, as JSON."""
    settings = dataclasses.asdict(config)
    kept = (
        "schedule", "optimizer", "softmax", "label_smoothing", "z_loss", "loss_normalizing_factor",
        "ema_decay",
    )  # fmt: skip
    decides = {name: settings[name] for name in kept}
    decides |= {"batch_size": batches.batch_size, "initial": start.origin if start else None}
    return json.dumps(decides, sort_keys=True)


def step_function(
    config: TrainConfig,
    model: T5Config,
    optimizer: Any,
    partitioner: Partitioner,
    docid_map: DocidMap | None = None,
) -> Callable[[TrainState, dict[str, np.ndarray], float], tuple[TrainState, Any]]:
    """`train_step` with all but state, batch and learning rate filled in."""
    dropout_key = jax.device_put(jax.random.key(config.seed + 1), partitioner.replicated)
    restriction = jax.device_put(
        make_restriction(config.softmax, docid_map), partitioner.replicated
    )

    def run(state: TrainState, arrays: dict[str, np.ndarray], rate: float):
        with jax.set_mesh(partitioner.mesh):
            return train_step(
                state,
                partitioner.put_batch(arrays),
                np.float32(rate),
                dropout_key,
                restriction,
                config=model,
                optimizer=optimizer,
                rules=partitioner.rules,
                label_smoothing=config.label_smoothing,
                z_loss=config.z_loss,
                loss_normalizing_factor=config.loss_normalizing_factor,
                ema_decay=config.ema_decay,
                microbatches=config.microbatches,
            )

    return run


def measure_steps(
    config: TrainConfig,
    model: T5Config,
    batches: Batches,
    partitioner: Partitioner,
    docid_map: DocidMap | None = None,
    *,
    timed: int = 12,
) -> float:
    """Seconds per step: the median of `timed` steps of a throw-away state, after compiling."""
    optimizer = config.optimizer.make()
    state = init_state(model, optimizer, partitioner, seed=0, ema=config.ema_decay > 0)
    run_step = step_function(config, model, optimizer, partitioner, docid_map)
    seconds = []
    for step in range(timed + 4):
        start = time.perf_counter()
        state, _ = run_step(state, batches(step).arrays, 1e-6)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[4:]))


def _prefetched(batches: Batches, first: int, total: int, ahead: int = 2) -> Iterator[Any]:
    """Batches `first` to `total`, made in another thread a little ahead of the device."""
    with concurrent.futures.ThreadPoolExecutor(1, "batches") as pool:
        pending = [pool.submit(batches, s) for s in range(first, min(first + ahead, total))]
        try:
            for step in range(first, total):
                if step + ahead < total:
                    pending.append(pool.submit(batches, step + ahead))
                yield step, pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


class _Reporter:
    """Collects a period's metrics on the device and writes their means.

    Nothing is fetched before a period ends or a checkpoint is due, so that the device never waits;
    a step that failed is found then.
    """

    def __init__(self, config, metrics, total_steps, progress, failed):
        self._period = config.log_period
        self._metrics: MetricsWriter = metrics
        self._total = total_steps
        self._progress = progress
        self._failed: Callable[[int, str], UserError] = failed
        self._detect = FailureDetector(config.spike_factor, config.schedule.warmup_steps)
        self._pending: list[tuple[int, Any, Any]] = []
        self._values: list[StepMetrics] = []
        self._since = time.perf_counter()
        self._rate = 0.0

    def __call__(self, done: int, batch: Any, step_metrics: Any, rate: float) -> None:
        self._pending.append((done, batch, step_metrics))
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
        values = self._values
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        real = sum(b.tokens for _, b, _ in self._pending)
        room = sum(b.arrays["encoder_input_tokens"].size for _, b, _ in self._pending)
        scalars = {
            name: float(np.mean([getattr(v, name) for v in values]))
            for name in ("loss", "z_loss", "accuracy", "gradient_norm")
        }
        scalars |= {
            "learning_rate": self._rate,
            "examples_per_second": sum(b.examples for _, b, _ in self._pending) / seconds,
            "tokens_per_second": real / seconds,
            "padding_fraction": 1.0 - real / room,
            "steps_per_second": len(values) / seconds,
        }
        self._metrics.write(done, scalars)
        self._pending, self._values, self._since = [], [], now
        if self._progress:
            self._progress(done, self._total, scalars)


@jax.jit
def _sum(tree: Any) -> jax.Array:
    return jnp.stack([x.sum() for x in jax.tree.leaves(tree)]).sum()


class _stop_signals:
    """While entered, SIGINT and SIGTERM set an event instead of killing; a second one kills."""

    def __enter__(self) -> threading.Event:
        self._event = threading.Event()
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self._event

    def _handle(self, number, frame):
        if self._event.is_set():
            raise KeyboardInterrupt
        self._event.set()

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
