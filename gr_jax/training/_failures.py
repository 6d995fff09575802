"""What stops a run: a loss or a gradient that is not a number, or a loss that jumps."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from gr_jax import distributed
from gr_jax.data import Batches
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.files import atomic_file
from gr_jax.training._step import StepMetrics

SPIKE_WINDOW = 50  # steps whose median loss is what a jump is measured by
LEAST_LOSSES = 12  # of them, from which on there is a median to measure by
_NAMED = 4  # examples in the message; the file has all


class FailureDetector:
    """Sees every step's metrics, in order, some time after the step.

    A loss has jumped when it is more than `spike_factor` times the median of the losses before it:
    `SPIKE_WINDOW` of them, or as many as there are after the warm-up, but `LEAST_LOSSES`. The
    median and not the mean, so that one earlier outlier hides nothing; a run that goes on counts
    anew.
    """

    def __init__(self, spike_factor: float, warmup_steps: int):
        """`spike_factor` 0 lets losses jump; `warmup_steps` are those of `Schedule.warmup`."""
        self._factor = spike_factor
        self._warmup = warmup_steps
        self._losses = collections.deque(maxlen=SPIKE_WINDOW)

    def __call__(self, step: int, metrics: StepMetrics) -> str | None:
        """What is wrong with `step` (from 1), or None."""
        for name in ("loss", "gradient_norm"):
            value = float(getattr(metrics, name))
            if not math.isfinite(value):
                return f"{name} is {value}"
        if not self._factor or step <= self._warmup:
            return None
        loss = float(metrics.loss)
        if len(self._losses) >= LEAST_LOSSES:
            usual = float(np.median(self._losses))
            if loss > self._factor * usual:
                return f"loss is {loss:.4g}, {loss / usual:.1f} times its recent median"
        self._losses.append(loss)
        return None


def failure(
    model_dir: Path,
    step: int,
    reason: str,
    *,
    saved: int | None,
    batches: Batches,
    docid_map: DocidMap | None,
) -> UserError:
    """The error that ends a run, with the batch's examples in `failed_batch.json`.

    A parameter that the step before made infinite is a loss that is not a number now, so the file
    has the examples of that step too.

    Args:
      model_dir: where the file goes.
      step: that failed, from 1.
      reason: what is wrong.
      saved: step of the newest checkpoint, made before anything failed, or None.
      batches: of the run.
      docid_map: to name the documents, where there is one.
    """
    path = Path(model_dir) / "failed_batch.json"
    examples = _examples(batches, step - 1, docid_map)
    record = {
        "step": step,
        "reason": reason,
        "checkpoint": None if saved is None else f"checkpoint_{saved}",
        "examples": examples,
        "examples_of_the_step_before": (
            _examples(batches, step - 2, docid_map) if step > 1 else []
        ),
    }
    if distributed.is_first():
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    named = ", ".join(
        f"{e['task']}/{e['example']}" + (f" ({e['document']})" if "document" in e else "")
        for e in examples[:_NAMED]
    )
    return UserError(
        f"training diverged: {reason} at step {step}; look at the batch ({named}, ...: all "
        f"{len(examples)} examples in {path}), or lower the learning rate: "
        f"{_lower_rate(Path(model_dir), saved)}"
    )


def _lower_rate(model_dir: Path, saved: int | None) -> str:
    """How: a run with another learning rate is another run, which has a directory of its own."""
    if saved is None:
        return "nothing was saved yet, so the same MODEL_DIR takes another Schedule.base"
    checkpoint = str(model_dir / f"checkpoint_{saved}")
    return (
        f"to begin at {checkpoint}, the last good checkpoint, give the same command a smaller "
        f"Schedule.base, another MODEL_DIR, INITIAL_CHECKPOINT_PATH = {checkpoint!r}, "
        "DOCID_TABLES = 'checkpoint' and INITIAL_OPTIMIZER = 'checkpoint'"
    )


def _examples(batches: Batches, step: int, docid_map: DocidMap | None) -> list[dict[str, Any]]:
    """Task, number in the task (from 0) and document of each example of `step` (from 0)."""
    examples = batches.examples(step)
    targets = [cache.example("targets", number).tobytes() for cache, number in examples]
    documents: dict[bytes, str] = {}
    if docid_map is not None:
        wanted = set(targets)
        for doc_id, row in zip(docid_map.doc_ids, docid_map.tokens, strict=True):
            if (target := row[row > 0].tobytes()) in wanted:
                documents.setdefault(target, doc_id)
    return [
        {"task": cache.name, "example": number}
        | ({"document": documents[target]} if target in documents else {})
        for (cache, number), target in zip(examples, targets, strict=True)
    ]
