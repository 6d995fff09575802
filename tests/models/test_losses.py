"""The loss against the formula, a token at a time."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.models import cross_entropy_loss


def plain_sums(logits, targets, smoothing, z_weight):
    loss = z_loss = correct = weight = 0.0
    vocab = logits.shape[-1]
    for row, target_row in zip(logits, targets, strict=True):
        for scores, target in zip(row, target_row, strict=True):
            if target == 0:
                continue
            log_z = math.log(sum(math.exp(s) for s in scores))
            wanted = [smoothing / (vocab - 1)] * vocab
            wanted[target] = 1 - smoothing
            # the divergence from the wanted distribution: 0 at best
            for w, s in zip(wanted, scores, strict=True):
                if w:
                    loss += w * (math.log(w) - (s - log_z))
            z_loss += z_weight * log_z**2
            correct += int(np.argmax(scores) == target)
            weight += 1
    return loss + z_loss, z_loss, correct, weight


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("z_weight", [0.0, 1e-2])
def test_equals_the_formula(smoothing, z_weight):
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((3, 4, 7))).astype(np.float32)
    targets = rng.integers(1, 7, (3, 4))
    targets[0, 2:] = targets[2, :] = 0
    targets[1, 1] = logits[1, 1].argmax() or 1
    found = cross_entropy_loss(
        jnp.asarray(logits), jnp.asarray(targets), label_smoothing=smoothing, z_loss=z_weight
    )
    np.testing.assert_allclose(
        np.array(found), plain_sums(logits, targets, smoothing, z_weight), rtol=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_wanted_distribution_costs_nothing(smoothing):
    wanted = np.full((1, 1, 5), smoothing / 4 or 1e-9, np.float32)
    wanted[..., 2] = 1 - smoothing
    found = cross_entropy_loss(jnp.log(wanted), jnp.array([[2]]), label_smoothing=smoothing)
    assert abs(float(found.loss)) < 1e-5 and found.correct == 1


def test_padding_has_no_gradient_and_an_empty_batch_no_loss():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 5)), jnp.float32)
    targets = jnp.array([[1, 2, 0], [0, 0, 0]])
    gradient = jax.grad(lambda x: cross_entropy_loss(x, targets, z_loss=0.1).loss)(logits)
    real = targets > 0
    assert (np.abs(np.asarray(gradient)).max(-1) > 0).tolist() == real.tolist()
    assert np.array(cross_entropy_loss(logits, targets * 0, z_loss=0.1)).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_is_t5xs(smoothing):
    """t5x writes its own: (1 + 2 z log Z) softmax - target, not what it would be derived to."""
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((2, 3, 6))).astype(np.float32)
    targets, weight = rng.integers(1, 6, (2, 3)), 0.05
    found = jax.grad(
        lambda x: (
            cross_entropy_loss(
                x, jnp.asarray(targets), label_smoothing=smoothing, z_loss=weight
            ).loss
        )
    )(jnp.asarray(logits))
    wanted = np.where(np.arange(6) == targets[..., None], 1 - smoothing, smoothing / 5)
    exponentials = np.exp(logits.astype(np.float64))
    total = exponentials.sum(-1, keepdims=True)
    expected = (1 + 2 * weight * np.log(total)) * exponentials / total - wanted
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
