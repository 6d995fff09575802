"""Losses over docid tokens. A new loss is one more function with this signature."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> LossSums:
    """t5x's loss: smoothed cross-entropy + `z_loss` * log(Z)^2; target 0 is padding.

    The smoothed loss is shifted by the entropy of the smoothed target, as in t5x, so that a perfect
    prediction costs 0.
    """
    vocab = logits.shape[-1]
    weights = (targets > 0).astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    if label_smoothing:
        high, low = 1.0 - label_smoothing, label_smoothing / (vocab - 1)
        loss = log_z - (high - low) * picked - low * logits.sum(-1)
        loss += high * jnp.log(high) + (vocab - 1) * low * jnp.log(low + 1e-20)
    else:
        loss = log_z - picked
    regulariser = z_loss * jnp.square(log_z)
    correct = logits.argmax(-1) == targets
    return LossSums(
        loss=((loss + regulariser) * weights).sum(),
        z_loss=(regulariser * weights).sum(),
        correct=(correct * weights).sum(),
        weight=weights.sum(),
    )
