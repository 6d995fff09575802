"""Optimizers from optax, and the learning-rate schedule."""

from __future__ import annotations

import dataclasses
import math

import optax

from gr_jax.errors import UserError

_DECAYS = ("cosine", "linear", "constant", "rsqrt")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then a decay.

    Attributes:
      base: the highest rate (for `rsqrt`, what multiplies 1/sqrt(step)).
      warmup_steps: steps to reach `base`.
      decay: `cosine` or `linear` to `final` at the last step, `constant`, or t5x's `rsqrt`.
      final: rate at the last step, as a fraction of `base`.
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


def make_optimizer(
    name: str = "adamw",
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """An optax optimizer whose learning rate is an input of every step, not a constant.

    Args:
      name: `adamw` or `adafactor`.
      b1: AdamW's decay of the mean.
      b2: AdamW's decay of the variance.
      weight_decay: AdamW's decoupled weight decay, times the learning rate.
      clip_norm: gradients are scaled to at most this global norm; None leaves them.

    Raises:
      UserError: an unknown name.
    """
    if name == "adamw":
        make = optax.inject_hyperparams(optax.adamw, static_args=("b1", "b2", "weight_decay"))
        optimizer = make(learning_rate=0.0, b1=b1, b2=b2, weight_decay=weight_decay)
    elif name == "adafactor":
        make = optax.inject_hyperparams(
            optax.adafactor,
            static_args=("multiply_by_parameter_scale", "min_dim_size_to_factor"),
        )
        optimizer = make(learning_rate=0.0, multiply_by_parameter_scale=True)
    else:
        raise UserError(f"unknown optimizer {name!r}: choose adamw or adafactor")
    if clip_norm is None:
        return optax.chain(optax.identity(), optimizer)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
