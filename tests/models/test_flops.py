"""Model FLOPs against the products that the programs of small models hold."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from gr_jax.models import (
    T5Config,
    decode_train,
    decoding_flops,
    init_parameters,
    recomputation_flops,
    training_flops,
)

ROWS, SOURCE, TARGET = 3, 10, 4
MODEL = T5Config(
    vocab_size=30,
    target_vocab_size=40,
    emb_dim=8,
    num_heads=3,
    head_dim=5,
    mlp_dim=12,
    num_encoder_layers=3,
    num_decoder_layers=2,
    dropout_rate=0.0,
)


def product_flops(jaxpr) -> int:
    """FLOPs of all `dot_general`s of a program, those of a loop's body times its length."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * inner * equation.outvars[0].aval.size
        times = equation.params.get("length", 1)
        for value in equation.params.values():
            inner_jaxpr = getattr(value, "jaxpr", value)
            if hasattr(inner_jaxpr, "eqns"):
                total += times * product_flops(inner_jaxpr)
    return total


def counted(config: T5Config) -> int:
    """Of the program of loss and gradients."""
    shapes = jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))
    batch = {
        f"{side}_{what}": jax.ShapeDtypeStruct((ROWS, length), jnp.int32)
        for side, length in (("encoder", SOURCE), ("decoder", TARGET))
        for what in ("input_tokens", "segment_ids")
    }
    loss = lambda p, b: jnp.square(decode_train(config, p, b)).sum()  # noqa: E731
    return product_flops(jax.make_jaxpr(jax.grad(loss))(shapes, batch).jaxpr)


@pytest.mark.parametrize(
    "differences",
    [
        {},
        {"scan_layers": True},
        {"mlp_activations": ("relu",), "logits_via_embedding": True},
        {"target_vocab_size": None},
    ],
    ids=["t5_1_1", "scanned", "t5_1_0", "shared vocabulary"],
)
def test_training_is_what_the_program_of_the_gradients_multiplies(differences):
    config = dataclasses.replace(MODEL, **differences)
    flops = training_flops(config, rows=ROWS, input_length=SOURCE, target_length=TARGET)
    assert flops == counted(config)


@pytest.mark.parametrize(("remat", "least"), [("none", 1.0), ("minimal", 0.4), ("full", 0.7)])
def test_what_is_computed_again_is_not_the_models(remat, least):
    config = dataclasses.replace(MODEL, remat=remat)
    sizes = {"rows": ROWS, "input_length": SOURCE, "target_length": TARGET}
    assert training_flops(config, **sizes) == training_flops(MODEL, **sizes)
    # at most: what a backward pass does not need is not computed twice, the last product for one
    again = recomputation_flops(config, **sizes)
    assert least * again <= counted(config) - counted(MODEL) <= again


def test_six_operations_per_parameter_and_token_where_attention_is_small():
    config = T5Config.from_name("t5_1_1_xxl", target_vocab_size=2176)
    flops = training_flops(config, rows=512, input_length=128, target_length=8)
    params = jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))
    sizes = {name: sum(x.size for x in jax.tree.leaves(params[name])) for name in params}
    # a decoder layer's keys and values of the encoder's output are per source token
    cross = 24 * 2 * 4096 * 4096
    tokens = 128 * (sizes["encoder"] + cross) + 8 * (sizes["decoder"] - cross)
    assert flops == pytest.approx(6 * 512 * tokens, rel=0.02)


def test_a_search_with_one_beam_is_a_third_of_training_on_the_same_tokens():
    # no head and no attention to compare: the causal half is not computed step by step
    flops = decoding_flops(MODEL, rows=ROWS, input_length=SOURCE, widths=[1] * TARGET)
    trained = training_flops(MODEL, rows=ROWS, input_length=SOURCE, target_length=TARGET)
    later = ROWS * MODEL.num_decoder_layers * 4 * 15 * sum(range(TARGET))
    assert flops == trained / 3 - later


def test_beams_share_the_encoder_and_have_the_logits_they_need():
    search = functools.partial(decoding_flops, MODEL, rows=ROWS, input_length=SOURCE)
    one = search(widths=[1])
    none = search(widths=[])
    assert search(widths=[7]) == none + 7 * (one - none)
    sliced = search(widths=[1], outputs=[16])
    assert one - sliced == ROWS * 2 * MODEL.emb_dim * (40 - 16)
