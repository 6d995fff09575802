"""The model against an independent NumPy T5, against itself step by step, and packed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.models import (
    T5Config,
    cross_entropy_loss,
    decode_train,
    encode,
)
from tests.models import numpy_t5
from tests.models.conftest import (
    T5_1_0,
    T5_1_1,
    UMT5,
    jit_logits,
    make_batch,
    parameters_of,
    ragged_examples,
    shift,
)

FAMILIES = (T5_1_1, T5_1_0, UMT5)
LENGTHS = {"source_length": 22, "target_length": 6}


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def padded_batch():
    return make_batch([[pair] for pair in ragged_examples()], source_length=22, target_length=6)


@pytest.mark.parametrize("config", FAMILIES, ids=["t5_1_1", "t5_1_0", "umt5"])
def test_equals_the_numpy_t5_on_padded_rows(config):
    params = parameters_of(config)
    logits = np.asarray(jit_logits(config, params, padded_batch()))
    assert logits.dtype == np.float32
    assert logits.shape == (4, 6, config.output_vocab_size)
    for row, (source, target) in zip(logits, ragged_examples(), strict=True):
        expected = numpy_t5.logits(config, in_float64(params), source, shift(target))
        assert expected.std() > 0.1, "the case says nothing"
        np.testing.assert_allclose(row[: len(target)], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", FAMILIES, ids=["t5_1_1", "t5_1_0", "umt5"])
def test_encode_equals_the_numpy_encoder(config):
    params = parameters_of(config)
    batch = padded_batch()
    encoded = np.asarray(encode(config, params, jnp.asarray(batch["encoder_input_tokens"])))
    for row, (source, _) in zip(encoded, ragged_examples(), strict=True):
        expected = numpy_t5.encode(config, in_float64(params), source)
        np.testing.assert_allclose(row[: len(source)], expected, rtol=1e-4, atol=1e-4)


def test_what_stands_in_padding_is_never_read(config):
    batch = padded_batch()
    params = parameters_of(config)
    clean = np.asarray(jit_logits(config, params, batch))
    noisy = dict(batch)
    for side in ("encoder", "decoder"):
        padding = batch[f"{side}_segment_ids"] == 0
        tokens = batch[f"{side}_input_tokens"].copy()
        tokens[padding] = 5
        noisy[f"{side}_input_tokens"] = tokens
    real = batch["decoder_segment_ids"] > 0
    np.testing.assert_array_equal(np.asarray(jit_logits(config, params, noisy))[real], clean[real])


def test_decoder_is_causal_and_sees_the_whole_source(config):
    params = parameters_of(config)
    source, target = np.arange(1, 7), np.array([3, 4, 5, 6])
    [plain] = jit_logits(config, params, make_batch([[(source, target)]], **LENGTHS))
    changed_target = np.array([3, 4, 9, 6])  # read by the decoder at position 3
    [later] = jit_logits(config, params, make_batch([[(source, changed_target)]], **LENGTHS))
    np.testing.assert_array_equal(plain[:3], later[:3])
    assert np.abs(plain[3] - later[3]).max() > 1e-3
    for i in range(len(source)):
        other = source.copy()
        other[i] = 30
        [seen] = jit_logits(config, params, make_batch([[(other, target)]], **LENGTHS))
        assert (np.abs(seen[:4] - plain[:4]).max(-1) > 1e-4).all(), i


def mean_loss(params, batch, config):
    sums = cross_entropy_loss(
        decode_train(config, params, batch), batch["decoder_target_tokens"], z_loss=1e-2
    )
    return sums.loss / sums.weight


def test_packing_changes_neither_logits_nor_loss_nor_gradients(config):
    params = parameters_of(config)
    pairs = list(ragged_examples())
    apart = padded_batch()
    # the same four examples in two rows, in another order; the third row is all padding
    packed = make_batch(
        [[pairs[2], pairs[0], pairs[1]], [pairs[3]], []], source_length=22, target_length=8
    )
    apart_logits = np.asarray(jit_logits(config, params, apart))
    packed_logits = np.asarray(jit_logits(config, params, packed))
    for row, segment, example in ((0, 1, 2), (0, 2, 0), (0, 3, 1), (1, 1, 3)):
        mine = packed["decoder_segment_ids"][row] == segment
        real = apart["decoder_segment_ids"][example] > 0
        np.testing.assert_allclose(
            packed_logits[row, mine], apart_logits[example, real], rtol=1e-5, atol=1e-5
        )
    value_and_grad = jax.jit(jax.value_and_grad(mean_loss), static_argnums=2)
    loss, gradient = value_and_grad(params, apart, config)
    packed_loss, packed_gradient = value_and_grad(params, packed, config)
    assert abs(loss - packed_loss) < 1e-5
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(packed_gradient), strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_stays_near_float32():
    params = parameters_of(T5_1_1, noise=0.0)
    half = dataclasses.replace(T5_1_1, dtype="bfloat16")
    batch = padded_batch()
    real = batch["decoder_segment_ids"] > 0
    exact = np.asarray(jit_logits(T5_1_1, params, batch))[real]
    rough = jit_logits(half, params, batch)
    assert rough.dtype == jnp.float32
    encoded = encode(half, params, jnp.asarray(batch["encoder_input_tokens"]))
    assert encoded.dtype == jnp.bfloat16
    difference = np.asarray(rough)[real] - exact
    assert 0 < difference.std() < 0.03 * exact.std()
    gradient = jax.jit(jax.grad(mean_loss), static_argnums=2)(params, batch, half)
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {np.dtype("float32")}
    exact_gradient = jax.jit(jax.grad(mean_loss), static_argnums=2)(params, batch, T5_1_1)
    a, b = (
        np.concatenate([np.ravel(g) for g in jax.tree.leaves(tree)])
        for tree in (gradient, exact_gradient)
    )
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.99


class TestDropout:
    config = dataclasses.replace(T5_1_1, dropout_rate=0.3)

    def logits(self, config: T5Config, key):
        return np.asarray(jit_logits(config, parameters_of(T5_1_1), padded_batch(), key))

    def test_off_is_the_plain_model(self):
        off = self.logits(self.config, None)
        np.testing.assert_array_equal(off, self.logits(self.config, None))
        np.testing.assert_array_equal(off, self.logits(T5_1_1, None))

    def test_on_depends_on_the_key_only(self):
        on = self.logits(self.config, jax.random.key(1))
        np.testing.assert_array_equal(on, self.logits(self.config, jax.random.key(1)))
        assert np.abs(on - self.logits(self.config, jax.random.key(2))).max() > 1e-3
        assert np.abs(on - self.logits(self.config, None)).max() > 1e-3
