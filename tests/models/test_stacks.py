"""Layers in one scanned subtree, and computed again in the backward pass: the same function."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from gr_jax.models import T5Config, cross_entropy_loss, decode_train
from gr_jax.models._layout import stack_layers, unstack_layers
from tests.models.conftest import (
    T5_1_0,
    UMT5,
    jit_logits,
    make_batch,
    parameters_of,
    ragged_examples,
)

BATCH: Any = make_batch([[pair] for pair in ragged_examples()], source_length=22, target_length=6)
APART = {
    "t5_1_0": dataclasses.replace(T5_1_0, num_encoder_layers=3),
    "umt5": dataclasses.replace(UMT5, num_encoder_layers=3),
}


def loss(params, config: T5Config, dropout_key=None):
    sums = cross_entropy_loss(
        decode_train(config, params, BATCH, dropout_key),
        BATCH["decoder_target_tokens"],
        z_loss=1e-2,
    )
    return sums.loss / sums.weight


value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)


@pytest.mark.parametrize(
    ("name", "scan", "remat"),
    [
        ("t5_1_0", True, "minimal"),
        ("umt5", True, "none"),
        ("umt5", False, "minimal"),
        ("umt5", False, "full"),
        ("umt5", True, "full"),
    ],
)
def test_loss_and_gradients_are_those_of_layers_apart(name, scan, remat):
    plain = APART[name]
    config = dataclasses.replace(plain, scan_layers=scan, remat=remat)
    params = parameters_of(plain)
    expected, expected_gradient = value_and_grad(params, plain)
    found, gradient = value_and_grad(stack_layers(params) if scan else params, config)
    assert found == pytest.approx(float(expected), rel=1e-6)
    gradient = unstack_layers(gradient)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        scale = np.abs(b).max()
        assert scale > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("name", APART)
def test_logits_are_those_of_layers_apart(name):
    params = parameters_of(APART[name])
    scanned = dataclasses.replace(APART[name], scan_layers=True)
    expected = np.asarray(jit_logits(APART[name], params, BATCH))
    found = np.asarray(jit_logits(scanned, stack_layers(params), BATCH))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_dropout_of_scanned_layers_is_the_keys_and_the_same_when_computed_again():
    config = dataclasses.replace(UMT5, dropout_rate=0.5, scan_layers=True, remat="full")
    params = stack_layers(parameters_of(UMT5))
    losses = [float(value_and_grad(params, config, jax.random.key(k))[0]) for k in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
    exact, gradient = value_and_grad(params, config, jax.random.key(1))
    # computed again, the dropped activations are the same ones: the gradient is the loss's own
    kept = dataclasses.replace(config, remat="none")
    plain, plain_gradient = value_and_grad(params, kept, jax.random.key(1))
    assert exact == pytest.approx(float(plain), rel=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


# --- what is kept for the backward pass -----------------------------------------------------------


def lowered(scan: bool, remat: str):
    config = dataclasses.replace(APART["umt5"], scan_layers=scan, remat=remat)
    params = parameters_of(APART["umt5"])
    return jax.jit(jax.grad(loss), static_argnums=1).lower(
        stack_layers(params) if scan else params, config
    )


@pytest.mark.parametrize("scan", [False, True], ids=["apart", "scanned"])
def test_less_memory_the_more_is_computed_again(scan):
    def temporary_bytes(remat: str) -> int:
        memory: Any = lowered(scan, remat).compile().memory_analysis()
        return memory.temp_size_in_bytes

    bytes_of = {remat: temporary_bytes(remat) for remat in ("none", "minimal", "full")}
    assert bytes_of["full"] < 0.8 * bytes_of["minimal"] < 0.6 * bytes_of["none"]


def test_minimal_computes_attention_again_and_no_product_with_a_parameter():
    products = {n: lowered(False, n).as_text().count("dot_general") for n in ("none", "minimal")}
    # scores and weighted values of 3 encoder layers and, twice, of 2 decoder layers
    assert products["minimal"] - products["none"] == 2 * 3 + 4 * 2
    # full: 7 products with parameters in an encoder layer, 11 in a decoder layer; but the last of a
    # layer has no use in the backward pass
    full = lowered(False, "full").as_text().count("dot_general")
    assert full - products["minimal"] == 3 * 6 + 2 * 10
