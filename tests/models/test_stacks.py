"""Layers in one scanned subtree, and computed again in the backward pass: the same function."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from gr_jax.models import T5Config, cross_entropy_loss, decode_train
from gr_jax.models._layout import stack_layers, unstack_layers
from tests.models.conftest import (
    T5_1_0,
    UMT5,
    make_batch,
    parameters_of,
    ragged_examples,
)

BATCH: Any = make_batch([[pair] for pair in ragged_examples()], source_length=22, target_length=6)
APART = {
    "t5_1_0": dataclasses.replace(T5_1_0, num_encoder_layers=2),
    "umt5": dataclasses.replace(UMT5, num_encoder_layers=3),
}


def loss(params, config: T5Config, dropout_key=None):
    logits = decode_train(config, params, BATCH, dropout_key)
    sums = cross_entropy_loss(logits, BATCH["decoder_target_tokens"], z_loss=1e-2)
    return sums.loss / sums.weight, logits


value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)


stacked = functools.cache(lambda name: jax.jit(stack_layers)(parameters_of(APART[name])))


def arguments(name: str, scan: bool, remat: str) -> tuple[Any, T5Config]:
    config = dataclasses.replace(APART[name], scan_layers=scan, remat=remat)
    return (stacked(name) if scan else parameters_of(APART[name])), config


@functools.cache
def compiled(name: str, scan: bool, remat: str) -> Any:
    return value_and_grad.lower(*arguments(name, scan, remat)).compile()


def run(name: str, scan: bool, remat: str):
    """Loss, logits, and the gradient with the layers apart."""
    params, _ = arguments(name, scan, remat)
    (value, logits), gradient = compiled(name, scan, remat)(params)
    return float(value), np.asarray(logits), jax.jit(unstack_layers)(gradient)


def assert_same_gradients(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.abs(b).max()
        assert scale > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(
    ("name", "scan", "remat"),
    [
        ("t5_1_0", True, "minimal"),
        pytest.param("umt5", True, "none", marks=pytest.mark.slow),
        pytest.param("umt5", True, "minimal", marks=pytest.mark.slow),
        ("umt5", True, "full"),
        pytest.param("umt5", False, "minimal", marks=pytest.mark.slow),
        ("umt5", False, "full"),
    ],
)
def test_logits_loss_and_gradients_are_those_of_layers_apart(name, scan, remat):
    expected, expected_logits, expected_gradient = run(name, False, "none")
    value, logits, gradient = run(name, scan, remat)
    assert value == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(logits, expected_logits, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradient, expected_gradient)


def test_dropout_of_scanned_layers_is_the_keys_and_the_same_when_computed_again():
    params, config = arguments("umt5", True, "none")
    config = dataclasses.replace(config, dropout_rate=0.5)
    values, gradients = [], []
    for remat, key in (("full", 1), ("full", 1), ("full", 2), ("none", 1)):
        config = dataclasses.replace(config, remat=remat)
        (value, _), gradient = value_and_grad(params, config, jax.random.key(key))
        values.append(float(value))
        gradients.append(gradient)
    assert values[0] == values[1] != values[2]
    assert values[0] == pytest.approx(values[3], rel=1e-6)
    assert_same_gradients(gradients[0], gradients[3])


# --- what is kept for the backward pass -----------------------------------------------------------


@pytest.mark.parametrize("scan", [False, True], ids=["apart", "scanned"])
def test_less_memory_the_more_is_computed_again(scan):
    bytes_of = {
        remat: compiled("umt5", scan, remat).memory_analysis().temp_size_in_bytes
        for remat in ("none", "minimal", "full")
    }
    assert bytes_of["full"] < 0.8 * bytes_of["minimal"] < 0.6 * bytes_of["none"]


def test_minimal_computes_attention_again_and_no_product_with_a_parameter():
    products = {
        remat: value_and_grad.lower(*arguments("umt5", False, remat)).as_text().count("dot_general")
        for remat in ("none", "minimal", "full")
    }
    # scores and weighted values of 3 encoder layers and, twice, of 2 decoder layers
    assert products["minimal"] - products["none"] == 2 * 3 + 4 * 2
    # full: 7 products with parameters in an encoder layer, 11 in a decoder layer; but the last of a
    # layer has no use in the backward pass
    assert products["full"] - products["minimal"] == 3 * 6 + 2 * 10
