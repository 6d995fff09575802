"""The training loop: batches in, checkpoints and metrics out, resumable at any step."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.profiler import StepTraceAnnotation

from gr_jax import distributed
from gr_jax.data import Batches, PackedBatch
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import T5Config, training_flops
from gr_jax.training._checkpoints import Checkpoints, RunIdentity
from gr_jax.training._failures import FailureDetector, failure
from gr_jax.training._goodput import Ledger
from gr_jax.training._metrics import MetricsWriter
from gr_jax.training._optimizer import Optimizer
from gr_jax.training._partitioning import Partitioner, Partitioning, write_model_info
from gr_jax.training._peak import peak_flops
from gr_jax.training._profile import StepTrace
from gr_jax.training._reporter import Progress, Reporter
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

_POLL_SECONDS = 0.005  # how exactly a wait for data is known where the device has work first


class Interrupted(Exception):
    """The user or the scheduler asked to stop; a checkpoint of the last step is on disk."""


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
        (12 at least, after the warm-up); 0 never does, because most jumps heal and small losses
        jump often. A loss or gradient that is not a number always stops it.
      profile_steps: (first step, number of steps) to write a profiler trace of, steps counted from
        1; in MODEL_DIR/train/plugins/profile, for TensorBoard and XProf. None for none.
      peak_flops: dense FLOP/s of one device, which model FLOPs utilisation is relative to; None for
        its bfloat16 peak, where that is known.
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
    profile_steps: tuple[int, int] | None = None
    peak_flops: float | None = None
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
        steps = self.profile_steps
        if steps is not None and not (
            isinstance(steps, tuple | list)
            and len(steps) == 2
            and all(isinstance(n, int) and n > 0 for n in steps)
        ):
            raise UserError(
                f"TrainConfig.profile_steps is {steps!r}: the first step (from 1) and how many, "
                "(100, 5) for instance, or None"
            )
        if self.peak_flops is not None and not 0 < self.peak_flops < math.inf:
            raise UserError(
                f"TrainConfig.peak_flops is {self.peak_flops}: a positive number, or None for "
                "the device's own"
            )
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
    directory = Path(model_dir) / "train"
    writes = distributed.is_first()
    ledger = Ledger(directory if writes else None)
    optimizer = config.optimizer.make()
    tasks = tuple(task.name for task in batches.cache.tasks)
    run_step = step_function(config, model, optimizer, partitioner, docid_map, num_tasks=len(tasks))
    identity = RunIdentity(
        docid_fingerprint=docid_fingerprint,
        model=model.to_json(),
        seed=config.seed,
        total_steps=total_steps,
        training=_what_decides(config, batches, start),
    )
    checkpoints = Checkpoints(model_dir, keep=config.keep)
    try:
        state = _first_state(config, model, optimizer, partitioner, checkpoints, identity, start)
        if writes:
            write_model_info(Path(model_dir) / "model-info.txt", model, state.params)
        first = int(state.step)
        if first == total_steps:
            return state

        def failed(step: int, reason: str) -> UserError:
            checkpoints.wait()
            saved = checkpoints.latest_step
            return failure(
                model_dir, step, reason, saved=saved, batches=batches, docid_map=docid_map
            )

        with contextlib.ExitStack() as opened:
            metrics = MetricsWriter(directory, first_step=first) if writes else None
            if metrics:
                opened.callback(metrics.close)
            opened.callback(ledger.close)
            ledger.resume(first)
            traced = config.profile_steps if writes else None
            trace = opened.enter_context(StepTrace(traced, directory, ledger))
            stop = opened.enter_context(_stop_signals())
            reporter = Reporter(
                period=config.log_period,
                total_steps=total_steps,
                tasks=tasks,
                detect=FailureDetector(config.spike_factor, config.schedule.warmup(total_steps)),
                failed=failed,
                ledger=ledger,
                metrics=metrics,
                progress=progress,
                flops=functools.partial(_flops, model),
                peak_flops=_peak_flops(config, partitioner),
            )
            step_metrics = None
            for step, coming in _prefetched(_own(batches, partitioner), first, total_steps):
                batch = _arrived(coming, step_metrics, ledger)
                rate = config.schedule(step, total_steps)
                done = step + 1
                trace.before(done, state)
                with ledger.compiling(batch.arrays), StepTraceAnnotation("train", step_num=done):
                    state, step_metrics = run_step(state, batch.arrays, rate)
                trace.after(done, state)
                ledger.done = done
                reporter(done, batch, step_metrics, rate)
                stopping = stop.requested(done)
                if done % config.save_period == 0 or done == total_steps or stopping:
                    reporter.check(done, state)
                    with ledger.spent("checkpoint"):
                        checkpoints.save(done, state, identity)
                if stopping and done < total_steps:
                    with ledger.spent("checkpoint"):
                        checkpoints.wait()
                    raise Interrupted(f"stopped at step {done} of {total_steps}")
            with ledger.spent("checkpoint"):
                checkpoints.wait()
    finally:
        checkpoints.close()
    return state


def _first_state(
    config: TrainConfig,
    model: T5Config,
    optimizer: Any,
    partitioner: Partitioner,
    checkpoints: Checkpoints,
    identity: RunIdentity,
    start: Start | None,
) -> TrainState:
    """The newest checkpoint's, or that of a run that begins."""
    ema = config.ema_decay > 0
    # a network's file system may not show all hosts the same
    latest = distributed.from_first("the newest checkpoint", lambda: checkpoints.latest_step)
    if latest is None:
        return init_state(model, optimizer, partitioner, seed=config.seed, ema=ema, start=start)
    with distributed.together("going on"):
        checkpoints.wait_for(latest)
    return checkpoints.restore(
        latest, abstract_state(model, optimizer, partitioner, ema=ema), identity
    )


def _arrived(coming: Future[PackedBatch], last: StepMetrics | None, ledger: Ledger) -> PackedBatch:
    """The batch, when it is there: time that the device waits for it is the data's."""
    while last is not None and not (coming.done() or last.loss.is_ready()):  # pyright: ignore
        concurrent.futures.wait([coming], timeout=_POLL_SECONDS)  # the device has work to do
    with ledger.spent("data"):
        return coming.result()


def _flops(model: T5Config, batch: PackedBatch) -> float:
    return training_flops(
        model,
        rows=batch.rows,
        input_length=batch.arrays["encoder_input_tokens"].shape[1],
        target_length=batch.arrays["decoder_target_tokens"].shape[1],
    )


def _peak_flops(config: TrainConfig, partitioner: Partitioner) -> float | None:
    """Of all devices together; None where a device's is neither known nor given."""
    devices = partitioner.mesh.devices.flat
    of_one = config.peak_flops or peak_flops(devices[0].device_kind)
    return None if of_one is None else of_one * len(devices)


def _what_decides(config: TrainConfig, batches: Batches, start: Start | None = None) -> str:
    """The settings, beside model and seed, that the trained parameters depend on, as JSON."""
    settings = dataclasses.asdict(config)
    kept = (
        "schedule", "optimizer", "softmax", "label_smoothing", "z_loss", "loss_normalizing_factor",
        "ema_decay",
    )  # fmt: skip
    decides = {name: settings[name] for name in kept}
    decides |= {
        "batch_size": batches.batch_size,
        "row_length": batches.row_length,
        "max_per_row": batches.max_targets if batches.pack else 1,
        # some thousand reads all over the files: one host is enough
        "examples": distributed.from_first("the examples", lambda: batches.cache.fingerprint),
        "initial": start.origin if start else None,
    }
    return json.dumps(decides, sort_keys=True)


def step_function(
    config: TrainConfig,
    model: T5Config,
    optimizer: Any,
    partitioner: Partitioner,
    docid_map: DocidMap | None = None,
    *,
    num_tasks: int = 0,
) -> Callable[[TrainState, dict[str, np.ndarray], float], tuple[TrainState, Any]]:
    """`train_step` with all but state, batch and learning rate filled in."""
    # made in place, and put there from the host: other processes' devices take no local array
    make_key = jax.jit(jax.random.key, static_argnums=0, out_shardings=partitioner.replicated)
    dropout_key = make_key(config.seed + 1)
    restriction = jax.device_put(
        jax.tree.map(np.asarray, make_restriction(config.softmax, docid_map)),
        partitioner.replicated,
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
                partitioner=partitioner,
                label_smoothing=config.label_smoothing,
                z_loss=config.z_loss,
                loss_normalizing_factor=config.loss_normalizing_factor,
                ema_decay=config.ema_decay,
                microbatches=config.microbatches,
                num_tasks=num_tasks,
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
    run_step = step_function(
        config, model, optimizer, partitioner, docid_map, num_tasks=len(batches.cache.tasks)
    )
    own, seconds = _own(batches, partitioner), []
    for step in range(timed + 4):
        start = time.perf_counter()
        state, _ = run_step(state, own(step).arrays, 1e-6)
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[4:]))


def _own(batches: Batches, partitioner: Partitioner) -> Callable[[int], PackedBatch]:
    """Batches of which a process makes no more rows than its devices hold."""
    if jax.process_count() == 1:
        return batches
    return functools.partial(
        batches.shards, shards=partitioner.own_shards, of=partitioner.data_parallel
    )


def _prefetched(
    batches: Callable[[int], PackedBatch], first: int, total: int, ahead: int = 2
) -> Iterator[tuple[int, Future[PackedBatch]]]:
    """Batches `first` to `total`, being made in another thread a little ahead of the device."""
    with concurrent.futures.ThreadPoolExecutor(1, "batches") as pool:
        pending = [pool.submit(batches, s) for s in range(first, min(first + ahead, total))]
        try:
            for step in range(first, total):
                if step + ahead < total:
                    pending.append(pool.submit(batches, step + ahead))
                yield step, pending.pop(0)
        finally:
            for future in pending:
                future.cancel()


class _stop_signals:
    """While entered, SIGINT and SIGTERM ask to stop instead of killing; a second SIGINT kills.

    Of several processes one is enough: JAX's preemption service has caught SIGTERM since it began,
    tells the others, and finds a step that none of them has done yet.
    """

    def __enter__(self) -> Self:
        self._asked = False
        self._old = {}
        self._alone = jax.process_count() == 1
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def requested(self, step: int) -> bool:
        """Whether to stop after `step`; to be asked after every step."""
        if self._alone:
            return self._asked
        return multihost_utils.reached_preemption_sync_point(step)

    def _handle(self, number, frame):
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt  # a scheduler may repeat itself, a person means it
        self._asked = True
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
