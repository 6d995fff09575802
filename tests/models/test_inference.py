"""The decoder of the search is the training forward pass, whatever its arrangement."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.errors import UserError
from gr_jax.models import (
    PRECISIONS,
    Past,
    T5Config,
    decode_block,
    encode_cross,
    output_logits,
    prepare_inference,
)
from gr_jax.models._inference import Quantized
from gr_jax.models._layout import stack_layers
from tests.models.conftest import (
    T5_1_1,
    jit_logits,
    make_batch,
    parameters_of,
    ragged_examples,
)

BEAMS, STEPS = 3, 5
jit_cross = jax.jit(encode_cross)


def sources_and_inputs():
    rng = np.random.default_rng(3)
    sources = [source for source, _ in ragged_examples()]
    chosen = rng.integers(1, 24, (len(sources), BEAMS, STEPS)).astype(np.int32)
    inputs = np.pad(chosen, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    tokens = np.zeros((len(sources), 22), np.int32)
    for row, source in zip(tokens, sources, strict=True):
        row[: len(source)] = source
    return sources, tokens, chosen, inputs


def teacher_forced(config, params):
    """Logits of the training forward pass [query, beam, step, vocab]."""
    sources, _, chosen, _ = sources_and_inputs()
    rows = [[(s, c)] for s, of_query in zip(sources, chosen, strict=True) for c in of_query]
    batch = make_batch(rows, source_length=22, target_length=6)
    forced = np.asarray(jit_logits(config, params, batch))
    return forced.reshape(len(sources), BEAMS, 6, -1)[:, :, :STEPS]


def decode(weights, blocks, form):
    """Logits [query, beam, step, vocab], decoded in blocks of tokens, with slots out of order."""
    _, tokens, _, inputs = sources_and_inputs()
    cross = jit_cross(weights, tokens)
    found, kept, step = [], None, 0
    order = np.random.default_rng(4).permutation(BEAMS * STEPS)
    for size in blocks:
        past = None
        if kept is not None:
            # the slot of (beam, step) is anywhere: only the ancestry says where
            place = order[: BEAMS * step].argsort().argsort()
            slots = []
            for x in kept:
                flat = x.reshape(len(tokens), BEAMS * step, *x.shape[3:])
                slots.append(jnp.zeros_like(flat).at[:, place].set(flat))
            ancestry = np.broadcast_to(place.reshape(BEAMS, step), (len(tokens), BEAMS, step))
            steps = np.zeros(BEAMS * step, int)
            steps[place] = np.tile(np.arange(step), BEAMS)
            past = Past(slots, jnp.asarray(ancestry), steps if form == "masked" else None)
        block = jnp.asarray(inputs[:, :, step : step + size])
        hidden, new = decode_block(weights, block, step, cross, past)
        found.append(output_logits(weights, hidden))
        kept = (
            new
            if kept is None
            else jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), kept, new)
        )
        step += size
    return np.concatenate(found, axis=2)


@pytest.mark.parametrize("form", ["gathered", "masked"])
@pytest.mark.parametrize("blocks", [(1,) * STEPS, (1, 1, 3), (STEPS,)])
def test_equals_teacher_forcing_for_beams_of_one_encoder(config, blocks, form):
    params = parameters_of(config)
    weights = prepare_inference(config, params, "float32")
    forced = teacher_forced(config, params)
    found = decode(weights, blocks, form)
    np.testing.assert_allclose(found, forced, rtol=1e-4, atol=1e-4)
    assert np.abs(found[:, 0, 1:] - found[:, 1, 1:]).max() > 0.1, "beams are not told apart"


@pytest.mark.parametrize(("name", "form"), [("t5_tiny", "masked"), ("umt5_tiny", "gathered")])
def test_the_scanned_layout_is_searched_like_the_other(name, form):
    apart = T5Config.from_name(name, 40)
    scanned = dataclasses.replace(apart, scan_layers=True, remat="full")
    params = parameters_of(apart, noise=0.1)
    stacked = stack_layers(params)
    forced = teacher_forced(scanned, stacked)
    found = decode(prepare_inference(scanned, stacked, "float32"), (1, 1, 3), form)
    np.testing.assert_allclose(found, forced, rtol=1e-4, atol=1e-4 * np.abs(forced).max())
    assert np.abs(found[:, 0, 1:] - found[:, 1, 1:]).max() > 0.1, "beams are not told apart"
    # the layout is read off the tree
    for a, b in zip(
        jax.tree.leaves(prepare_inference(scanned, stacked)),
        jax.tree.leaves(prepare_inference(apart, params)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_slice_of_the_output_layer(config):
    params = parameters_of(config)
    for precision in ("float32", "int8"):
        weights = prepare_inference(config, params, precision)
        x = jax.random.normal(jax.random.key(0), (2, 3, config.emb_dim), weights.config.dtype)
        whole = output_logits(weights, x)
        assert whole.dtype == jnp.float32
        np.testing.assert_allclose(output_logits(weights, x, 5, 7), whole[..., 5:12], rtol=1e-5)


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "float32"])
def test_low_precision_stays_near_float32(precision):
    params = parameters_of(T5_1_1, noise=0.0)
    exact = teacher_forced(T5_1_1, params)
    weights = prepare_inference(T5_1_1, params, precision)
    difference = decode(weights, (1,) * STEPS, "gathered") - exact
    assert 0 < difference.std() < 0.05 * exact.std()
    full = prepare_inference(T5_1_1, params)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(w)) for w in (weights, full)]
    assert sizes[0] < 0.6 * sizes[1]


def test_int8_is_exact_for_integers_times_a_scale():
    weights = prepare_inference(T5_1_1, parameters_of(T5_1_1), "int8")
    head = weights.head
    assert isinstance(head, Quantized)
    again = np.round(
        np.asarray(head.values * head.scale[:, None]) / np.asarray(head.scale)[:, None]
    )
    np.testing.assert_array_equal(again, head.values)
    kernel = parameters_of(T5_1_1)["decoder"]["logits_dense"]["kernel"].T
    error = np.abs(np.asarray(head.values * head.scale[:, None]) - kernel)
    assert (error <= np.asarray(head.scale)[:, None] * 0.5001).all()
    zero = jax.tree.map(np.zeros_like, parameters_of(T5_1_1))
    leaves = jax.tree.leaves(prepare_inference(T5_1_1, zero, "int8"))
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in leaves)


def test_unknown_precision_is_told():
    with pytest.raises(UserError, match="unknown precision 'int4'"):
        prepare_inference(T5_1_1, parameters_of(T5_1_1), "int4")  # pyright: ignore[reportArgumentType]
