"""The learning-rate schedule."""

from __future__ import annotations

import dataclasses
import math

from gr_jax.errors import UserError

_DECAYS = ("cosine", "linear", "constant", "rsqrt")
_FACTORS = (
    "constant",
    "linear_warmup",
    "linear_decay",
    "rsqrt_decay",
    "rsqrt_normalized_decay",
    "decay_every",
    "cosine_decay",
)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then a decay; or any schedule of t5x.

    `decay` knows the length of the run. `factors` is for recipes from t5x: its rates are those of
    t5x's `utils.create_learning_rate_scheduler` with the same arguments, whatever the length.

    Attributes:
      base: the highest rate (for `rsqrt`, what multiplies 1/sqrt(step)); t5x's
        `base_learning_rate`.
      warmup_steps: steps to reach `base`; a run shorter than five times that warms up for a fifth
        of its steps (but not with `factors`).
      decay: `cosine` or `linear` to `final` at `total_steps`, `constant`, or t5x's `rsqrt`.
      final: where the decay ends, as a fraction of `base`.
      factors: in place of `decay` and `final`, t5x's product of `constant` (`base`),
        `linear_warmup` (step / `warmup_steps`, 1 at most), `rsqrt_decay`
        (1 / sqrt(max(step, `warmup_steps`))), `rsqrt_normalized_decay` (the same, 1 at
        `warmup_steps`), `decay_every` (`decay_factor` per `steps_per_decay`), `cosine_decay`
        (cycles of `steps_per_cycle`, after the warm-up); or `linear_decay` alone (warm-up to
        `base`, then `decay_factor` of it less per step).
      decay_factor: see `factors`, as for the next two.
      steps_per_decay: steps of equal rate.
      steps_per_cycle: steps from one cosine's top to the next.
      step_offset: for `factors`, subtracted from the step: -1_000_000 goes on from there.
      min_learning_rate: for `factors`, the lowest rate.
    """

    base: float = 1e-3
    warmup_steps: int = 200
    decay: str = "cosine"
    final: float = 0.0
    factors: str | None = None
    decay_factor: float = 0.5
    steps_per_decay: int = 20_000
    steps_per_cycle: int = 100_000
    step_offset: int = 0
    min_learning_rate: float = 1e-8

    def __post_init__(self):
        if self.decay not in _DECAYS:
            raise UserError(f"Schedule.decay is {self.decay!r}: choose one of {', '.join(_DECAYS)}")
        if self.factors is not None:
            self._check_factors()

    def _check_factors(self) -> None:
        names = self._names
        if unknown := [name for name in names if name not in _FACTORS]:
            raise UserError(
                f"Schedule.factors has {unknown[0]!r}: multiply any of {', '.join(_FACTORS)}"
            )
        if "linear_decay" in names and {"constant", "linear_warmup"} & set(names):
            raise UserError(
                f"Schedule.factors is {self.factors!r}: linear_decay has the constant and the "
                "warm-up in it; leave those out"
            )
        needs = {
            "warmup_steps": ("linear_warmup", "linear_decay", "rsqrt_decay",
                             "rsqrt_normalized_decay"),
            "steps_per_decay": ("decay_every",),
            "steps_per_cycle": ("cosine_decay",),
        }  # fmt: skip
        for field, factors in needs.items():
            if getattr(self, field) < 1 and set(factors) & set(names):
                raise UserError(
                    f"Schedule.{field} is {getattr(self, field)}: {self.factors!r} needs at least 1"
                )

    @property
    def _names(self) -> list[str]:
        return [name.strip() for name in (self.factors or "").split("*")]

    def warmup(self, total_steps: int) -> int:
        """How many steps of a run of `total_steps` have a rate that still rises."""
        if self.factors is None:
            rising = self.decay != "rsqrt"
            return min(self.warmup_steps, max(total_steps // 5, 1)) if rising else 0
        rising = {"linear_warmup", "linear_decay"} & set(self._names)
        return max(self.warmup_steps + self.step_offset, 0) if rising else 0

    def __call__(self, step: int, total_steps: int) -> float:
        """The rate of `step` (from 0) in a run of `total_steps`."""
        if self.factors is not None:
            return self._product(max(step - self.step_offset, 0))
        if self.decay == "rsqrt":
            return self.base / math.sqrt(max(step, self.warmup_steps, 1))
        warmup = self.warmup(total_steps)
        if step < warmup:
            return self.base * (step + 1) / warmup
        done = (step - warmup) / max(total_steps - warmup, 1)
        fraction = {
            "constant": 1.0,
            "linear": 1.0 - done,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0))),
        }[self.decay]
        return self.base * (self.final + (1.0 - self.final) * fraction)

    def _product(self, step: int) -> float:
        rate, warmup = 1.0, self.warmup_steps
        for name in self._names:
            if name == "constant":
                rate *= self.base
            elif name == "linear_warmup":
                rate *= min(step / warmup, 1.0)
            elif name == "linear_decay":
                rate *= self.base * min(step / warmup, 1.0 + self.decay_factor * (warmup - step))
            elif name == "rsqrt_decay":
                rate /= math.sqrt(max(step, warmup))
            elif name == "rsqrt_normalized_decay":
                rate *= math.sqrt(warmup / max(step, warmup))
            elif name == "decay_every":
                rate *= self.decay_factor ** (step // self.steps_per_decay)
            else:
                cycle = max(step - warmup, 0) / self.steps_per_cycle % 1.0
                rate *= 0.5 * (1.0 + math.cos(math.pi * cycle))
        return max(rate, self.min_learning_rate)
