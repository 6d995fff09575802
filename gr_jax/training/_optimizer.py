"""Optimizers from optax, and the learning-rate schedule."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import optax
import optax.contrib

from gr_jax.errors import UserError

_DECAYS = ("cosine", "linear", "constant", "rsqrt")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then a decay.

    Attributes:
      base: the highest rate (for `rsqrt`, what multiplies 1/sqrt(step)).
      warmup_steps: steps to reach `base`.
      decay: `cosine` or `linear` to `final` at `total_steps`, `constant`, or t5x's `rsqrt`.
      final: where the decay ends, as a fraction of `base`.
    """

    base: float = 1e-3
    warmup_steps: int = 200
    decay: str = "cosine"
    final: float = 0.0

    def __post_init__(self):
        if self.decay not in _DECAYS:
            raise UserError(f"Schedule.decay is {self.decay!r}: choose one of {', '.join(_DECAYS)}")

    def __call__(self, step: int, total_steps: int) -> float:
        """The rate of `step` (from 0) in a run of `total_steps`."""
        warmup = min(self.warmup_steps, max(total_steps // 5, 1))
        if self.decay == "rsqrt":
            return self.base / math.sqrt(max(step, self.warmup_steps, 1))
        if step < warmup:
            return self.base * (step + 1) / warmup
        done = (step - warmup) / max(total_steps - warmup, 1)
        fraction = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))),
        }[self.decay]
        return self.base * (self.final + (1.0 - self.final) * fraction)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Which optax optimizer, and how fast each kind of parameter moves.

    Attributes:
      name: `adamw`, `adafactor` (Shazeer and Stern 2018) or `muon` (Jordan et al. 2024): the
        matrices between embedding and output move by the orthogonalised momentum, all else by
        AdamW. Its steps have the size of AdamW's (Liu et al. 2025), so one schedule serves both.
      b1: AdamW's decay of the mean.
      b2: AdamW's decay of the variance.
      weight_decay: decoupled weight decay, times the learning rate; not for Adafactor.
      clip_norm: gradients are scaled to at most this global norm; None leaves them.
      embedding_rate: learning rate of the token tables, as a multiple of the schedule's. Their rows
        are larger than those of matrices and seldom touched: steps of equal size hardly move them.
      output_rate: the same for the output layer.
    """

    name: str = "adamw"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    embedding_rate: float = 1.0
    output_rate: float = 1.0

    def __post_init__(self):
        if self.name not in ("adamw", "adafactor", "muon"):
            raise UserError(f"unknown optimizer {self.name!r}: choose adamw, adafactor or muon")

    def make(self) -> optax.GradientTransformation:
        """The transformation of gradients into updates for a learning rate of 1.

        Equal optimizers give the same object, so that a jitted step is compiled once for them.
        """
        return _transformation(self)


@functools.cache
def _transformation(optimizer: Optimizer) -> optax.GradientTransformation:
    o = optimizer
    if o.name == "adafactor":
        rule = optax.adafactor(learning_rate=None)
    else:
        rule = optax.adamw(1.0, b1=o.b1, b2=o.b2, weight_decay=o.weight_decay)
    matrix = rule
    if o.name == "muon":
        matrix = optax.contrib.muon(
            1.0,
            weight_decay=o.weight_decay,
            adam_b1=o.b1,
            adam_b2=o.b2,
            consistent_rms=0.2,
        )
    by_kind = optax.partition(
        {
            "embedding": optax.chain(rule, optax.scale(o.embedding_rate)),
            "output": optax.chain(rule, optax.scale(o.output_rate)),
            "matrix": matrix,
            "other": rule,
        },
        _kinds,
    )
    if o.clip_norm is None:
        return by_kind
    return optax.chain(optax.clip_by_global_norm(o.clip_norm), by_kind)


def _kinds(params: Any) -> Any:
    """The kind of each parameter, by its name in t5x's tree."""

    def kind(path: tuple[Any, ...], _: Any) -> str:
        names = [str(getattr(key, "key", key)) for key in path]
        if names[-1] == "embedding":
            return "embedding"
        if "logits_dense" in names:
            return "output"
        return "matrix" if names[-1] == "kernel" else "other"

    return jax.tree_util.tree_map_with_path(kind, params)
