"""Losses over docid tokens. A new loss is one more function with this signature."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class LossSums(NamedTuple):
    """Sums over the real target tokens of a batch; divide by `weight` for means.

    Attributes:
      loss: cross-entropy with label smoothing, plus z-loss, in nats.
      z_loss: the part of `loss` that is z-loss.
      correct: number of tokens whose most probable value is the target.
      weight: number of real target tokens.
    """

    loss: Float[Array, ""]
    z_loss: Float[Array, ""]
    correct: Float[Array, ""]
    weight: Float[Array, ""]


def cross_entropy_loss(
    logits: Float[Array, "b t v"],
    targets: Int[Array, "b t"],
    *,
    allowed: Bool[Array, "b t v"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
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
    return LossSums(
        loss=((loss + regulariser) * weights).sum(),
        z_loss=(regulariser * weights).sum(),
        correct=(correct * weights).sum(),
        weight=weights.sum(),
    )
