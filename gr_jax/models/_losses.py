"""Losses over docid tokens. A new loss is one more function with this signature."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LossSums(NamedTuple):
    """Sums over the real target tokens of a batch; divide by `weight` for means.

    Scalars, or one for each task of the mixture.

    Attributes:
      loss: cross-entropy with label smoothing, plus z-loss, in nats.
      z_loss: the part of `loss` that is z-loss.
      correct: number of tokens whose most probable value is the target.
      weight: number of real target tokens.
    """

    loss: Float[Array, "*tasks"]
    z_loss: Float[Array, "*tasks"]
    correct: Float[Array, "*tasks"]
    weight: Float[Array, "*tasks"]


def cross_entropy_loss(
    logits: Float[Array, "b t v"],
    targets: Int[Array, "b t"],
    *,
    allowed: Bool[Array, "b t v"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    tasks: Int[Array, "b t"] | None = None,
    num_tasks: int = 0,
) -> LossSums:
    """t5x's loss: smoothed cross-entropy + `z_loss` * log(Z)^2; target 0 is padding.

    The smoothed loss is shifted by the entropy of the smoothed target, as in t5x, so that a perfect
    prediction costs 0.

    Args:
      logits: of each target.
      targets: tokens.
      allowed: the tokens that exist for each target, the target (but not padding) among them and
        never none: all sums and the best prediction are over these. None allows all.
      label_smoothing: mass spread over the other tokens.
      z_loss: weight of log(Z)^2.
      tasks: which task each target is of, from 1; 0 in padding. None for scalars.
      num_tasks: number of tasks, where there are `tasks`.
    """
    weights = (targets > 0).astype(jnp.float32)
    # not logsumexp's `where`, whose gradient keeps one more array of this size
    scores = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        high, low, others = 1.0 - label_smoothing, label_smoothing, logits.shape[-1] - 1
        if allowed is None:
            low /= others
        else:
            # where the target is the only token, there is nothing to spread the mass over
            others = allowed.sum(axis=-1) - 1
            high = jnp.where(others > 0, high, 1.0)
            low = jnp.where(others > 0, low / jnp.maximum(others, 1), 0.0)
        loss = log_z - (high - low) * picked - low * logits.sum(axis=-1, where=allowed)
        loss += high * jnp.log(high) + others * low * jnp.log(low + 1e-20)
    else:
        loss = log_z - picked
    regulariser = z_loss * jnp.square(log_z)
    correct = scores.argmax(-1) == targets

    def total(values: Float[Array, "b t"]) -> Float[Array, "*tasks"]:
        if tasks is None:
            return values.sum()
        of_task = tasks[..., None] == jnp.arange(1, num_tasks + 1)
        # not a product: a loss that is not a number stays with its task
        return jnp.where(of_task, values[..., None], 0.0).sum(axis=(0, 1))

    return LossSums(
        loss=total((loss + regulariser) * weights),
        z_loss=total(regulariser * weights),
        correct=total(correct * weights),
        weight=total(weights),
    )
