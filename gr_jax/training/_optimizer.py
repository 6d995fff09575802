"""Optimizers: optax's, and t5x's Adafactor."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import optax
import optax.contrib

from gr_jax.errors import UserError
from gr_jax.training._adafactor import Adafactor, adafactor


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Which optimizer, and how fast each kind of parameter moves.

    Attributes:
      name: `adamw`, `adafactor` (t5x's, see `Adafactor`) or `muon` (Jordan et al. 2024): the
        matrices between embedding and output move by the orthogonalised momentum, all else by
        AdamW. Its steps have the size of AdamW's (Liu et al. 2025), so one schedule serves both.
      b1: AdamW's decay of the mean.
      b2: AdamW's decay of the variance.
      weight_decay: decoupled weight decay, times the learning rate; Adafactor has its own.
      clip_norm: gradients are scaled to at most this global norm; None leaves them.
      embedding_rate: learning rate of the token tables, as a multiple of the schedule's. Their rows
        are larger than those of matrices and seldom touched: steps of equal size hardly move them.
      output_rate: the same for the output layer.
      adafactor: Adafactor's own settings.
    """

    name: str = "adamw"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    embedding_rate: float = 1.0
    output_rate: float = 1.0
    adafactor: Adafactor = dataclasses.field(default_factory=Adafactor)

    def __post_init__(self):
        if self.name not in ("adamw", "adafactor", "muon"):
            raise UserError(f"unknown optimizer {self.name!r}: choose adamw, adafactor or muon")
        if self.name == "adafactor" and self.weight_decay:
            raise UserError(
                f"Optimizer.weight_decay is {self.weight_decay}: Adafactor's is "
                "Adafactor.weight_decay_rate, which the learning rate does not multiply"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"Optimizer.clip_norm is {self.clip_norm}: more than 0, or None")

    def make(self) -> optax.GradientTransformationExtraArgs:
        """The transformation of gradients into updates.

        Its `update` takes one more argument, `learning_rate`, 1 by default. Equal optimizers give
        the same object, so that a jitted step is compiled once for them.
        """
        return _transformation(self)


@functools.cache
def _transformation(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    o = optimizer
    if o.name == "adafactor":
        rates = {"embedding": o.embedding_rate, "output": o.output_rate}
        rule = adafactor(o.adafactor, lambda name: rates.get(_kind(name.split("/")), 1.0))
        return rule if o.clip_norm is None else _clipped(rule, o.clip_norm)
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
        return _times_rate(by_kind)
    return _times_rate(optax.chain(optax.clip_by_global_norm(o.clip_norm), by_kind))


def _times_rate(rule: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A rule whose updates are for a learning rate of 1, for any."""

    def update(grads, state, params=None, *, learning_rate=1.0, **_):
        updates, state = rule.update(grads, state, params)
        return jax.tree.map(lambda u: learning_rate * u, updates), state

    return optax.GradientTransformationExtraArgs(rule.init, update)  # pyright: ignore[reportArgumentType]


def _clipped(
    rule: optax.GradientTransformationExtraArgs, norm: float
) -> optax.GradientTransformationExtraArgs:
    """`rule` on clipped gradients; not a chain, so that the state is the rule's own."""
    clip = optax.clip_by_global_norm(norm)

    def update(grads, state, params=None, **extra):
        grads, _ = clip.update(grads, optax.EmptyState())
        return rule.update(grads, state, params, **extra)

    return optax.GradientTransformationExtraArgs(rule.init, update)  # pyright: ignore[reportArgumentType]


def _kinds(params: Any) -> Any:
    """The kind of each parameter, by its name in t5x's tree."""

    def kind(path: tuple[Any, ...], _: Any) -> str:
        return _kind([str(getattr(key, "key", key)) for key in path])

    return jax.tree_util.tree_map_with_path(kind, params)


def _kind(names: Sequence[str]) -> str:
    if names[-1] == "embedding":
        return "embedding"
    if "logits_dense" in names:
        return "output"
    return "matrix" if names[-1] == "kernel" else "other"
