"""T5 as the search wants it: weights fused and converted once, many beams per query.

The training forward pass (`_t5.py`) is the definition; this is the same function of the same
parameters, arranged for search (`_prepare.py`). What beams share is never copied: the encoder's
keys and values exist once per query, and the keys and values of a decoder step are written once and
never moved.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gr_jax.models._config import T5Config
from gr_jax.models._layers import MASKED, RMS_EPSILON, activation, relative_position_bucket

Precision = Literal["float32", "bfloat16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


_LOGITS_TOGETHER = 1 << 23  # logits that are held at once, at most
_FEW_ROWS = 48  # up to so many, CPUs multiply faster with the weights on the left


class Quantized(NamedTuple):
    """A matrix as int8 with one scale per output: `values * scale[..., None]`."""

    values: Int[Array, "*o i"]
    scale: Float[Array, "*o"]


Weight = Array | Quantized  # [*outputs, inputs]: each output's weights side by side


class SelfAttention(NamedTuple):
    """`joined` is heads * head_dim."""

    norm: Array  # [embed]
    qkv: Weight  # [3, joined, embed]
    out: Weight  # [embed, joined]


class CrossAttention(NamedTuple):
    """The query's side; the keys' and values' is `InferenceWeights.cross`."""

    norm: Array  # [embed]
    query: Weight  # [joined, embed]
    out: Weight  # [embed, joined]


class FeedForward(NamedTuple):
    """The block after attention."""

    norm: Array  # [embed]
    wi: Weight  # [activations, mlp, embed]
    wo: Weight  # [embed, mlp]


class EncoderLayer(NamedTuple):
    """One encoder layer."""

    own: SelfAttention
    mlp: FeedForward


class DecoderLayer(NamedTuple):
    """One decoder layer."""

    own: SelfAttention
    other: CrossAttention
    mlp: FeedForward


class Stack(NamedTuple):
    """Encoder or decoder."""

    embedding: Array  # [vocab, embed]
    layers: tuple[Any, ...]
    norm: Array  # [embed]
    bias: Array  # relative position biases [1 or layers, heads, buckets]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["encoder", "cross", "decoder", "head"],
    meta_fields=["config"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class InferenceWeights:
    """What answers queries: made from parameters by `prepare_inference`; a pytree.

    Attributes:
      config: the model; its `dtype` is that of activations here.
      encoder: the encoder.
      cross: keys and values of the encoder's output for all layers [2 * layers, joined, embed].
      decoder: the decoder.
      head: the output layer [target vocab, embed].
    """

    config: T5Config
    encoder: Stack
    cross: Weight
    decoder: Stack
    head: Weight


class CrossCache(NamedTuple):
    """The encoder's output as the decoder attends to it: one per query, shared by its beams.

    Attributes:
      keys_values: per layer, keys and values [2, batch, source, heads, head_dim].
      mask: which source positions are tokens [batch, source].
    """

    keys_values: tuple[Array, ...]
    mask: Bool[Array, "b s"]


class Past(NamedTuple):
    """Keys and values of earlier steps, and which of them each beam descends from.

    Attributes:
      slots: per layer, keys and values of every hypothesis of every step so far
        [batch, slots, 2, heads, head_dim].
      ancestry: the slot of each beam's own prefix of 0, 1, ... tokens [batch, beam, steps].
      steps: the step of each slot, to attend to all slots under a mask (the form for TPUs); None
        to gather each beam's own ones.
    """

    slots: Sequence[Array]
    ancestry: Int[Array, "b m t"]
    steps: np.ndarray | None = None


def _matmul(x: Float[Array, "*b i"], w: Weight, dtype: Any = None) -> Float[Array, "*b *o"]:
    """The product over the last axes of both, in `dtype` (that of `x` if None)."""
    dtype = dtype or x.dtype
    values = w.values.astype(x.dtype) if isinstance(w, Quantized) else w
    rows, contract = x.reshape(-1, x.shape[-1]), (((1,), (1,)), ((), ()))

    def right(rows, columns):
        return jax.lax.dot_general(rows, columns, contract, preferred_element_type=dtype)

    def left(rows, columns):
        return jax.lax.dot_general(columns, rows, contract, preferred_element_type=dtype).T

    def eight(rows, columns):
        return right(jnp.broadcast_to(rows, (8, rows.shape[1])), columns)[:1]

    def stacked(rows, values):
        # What a mesh needs: if stacked matrices became one, every device would have to gather its
        # part of it from the others. CPUs would copy the weights for it.
        contract = (((1,), (values.ndim - 1,)), ((), ()))
        return jax.lax.dot_general(rows, values, contract, preferred_element_type=dtype)

    def on_cpu(rows, values):
        product = right
        if len(rows) == 1:
            # XLA's CPU kernel for a bfloat16 matrix times a vector is ten times slower
            product = eight if rows.dtype == jnp.bfloat16 else right
        elif len(rows) <= _FEW_ROWS:
            product = left
        columns = values.reshape(-1, values.shape[-1])
        return product(rows, columns).reshape(len(rows), *values.shape[:-1])

    y = jax.lax.platform_dependent(rows, values, cpu=on_cpu, default=stacked)
    y = y.reshape(*x.shape[:-1], *values.shape[:-1])
    return y * w.scale.astype(dtype) if isinstance(w, Quantized) else y


def _norm(x: Float[Array, "*b d"], scale: Float[Array, " d"]) -> Float[Array, "*b d"]:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + RMS_EPSILON)
    return (y * scale).astype(x.dtype)


def encode_cross(weights: InferenceWeights, tokens: Int[Array, "b s"]) -> CrossCache:
    """Encodes sources (0 is padding) and projects them for every decoder layer, once per query."""
    c, mask = weights.config, tokens > 0
    x = weights.encoder.embedding[tokens]  # [batch, source, embed]
    positions = np.arange(tokens.shape[1])
    bias = _relative_bias(weights, weights.encoder, positions, positions, bidirectional=True)
    # [1 or layers, batch, heads, source, source]
    bias = jnp.where(mask[:, None, None, :], bias.swapaxes(1, 2)[:, None], MASKED)
    for i, layer in enumerate(weights.encoder.layers):
        # [batch, source, 3, heads, head_dim]
        qkv = _matmul(_norm(x, layer.own.norm), layer.own.qkv).reshape(
            *tokens.shape, 3, c.num_heads, c.head_dim
        )
        query, key, value = (qkv[:, :, part] for part in range(3))
        scores = jnp.einsum("bqhe,bkhe->bhqk", query, key).astype(jnp.float32)
        scores = scores + bias[i % len(bias)]  # the one bias, or the layer's
        mixed = jnp.einsum("bhqk,bkhe->bqhe", jax.nn.softmax(scores).astype(x.dtype), value)
        x = x + _matmul(mixed.reshape(*tokens.shape, -1), layer.own.out)
        x = x + _feed_forward(x, layer.mlp, c)
    if not weights.decoder.layers:
        return CrossCache((), mask)
    joined = _matmul(_norm(x, weights.encoder.norm), weights.cross)
    # [batch, source, 2 * layers, joined] -> [layers, 2, batch, source, heads, head_dim]
    layers = len(weights.decoder.layers)
    joined = joined.reshape(*tokens.shape, layers, 2, c.num_heads, c.head_dim)
    return CrossCache(tuple(joined.transpose(2, 3, 0, 1, 4, 5)), mask)


def decode_block(
    weights: InferenceWeights,
    tokens: Int[Array, "b m q"],
    step: int,
    cross: CrossCache,
    past: Past | None,
) -> tuple[Float[Array, "b m q d"], tuple[Array, ...]]:
    """Runs the decoder over the next `q` tokens of each beam.

    Args:
      weights: the model.
      tokens: decoder inputs of steps `step` to `step + q - 1`: the tokens chosen in the step
        before each (0, the start token, at step 0).
      step: a Python int: shapes differ per step.
      cross: from `encode_cross`; shared by the beams, never copied.
      past: what each beam attends to beside these tokens; None at step 0.

    Returns:
      What `output_logits` takes [batch, beam, q, embed], and per layer the keys and values of these
      tokens [batch, beam, q, 2, heads, head_dim], for the caller to keep.
    """
    c = weights.config
    x = weights.decoder.embedding[tokens]  # [batch, beam, q, embed]
    bias = _self_bias(weights, step, tokens.shape[2], past)
    mine = _own_slots(past)
    kept = []
    for i, layer in enumerate(weights.decoder.layers):
        qkv = _matmul(_norm(x, layer.own.norm), layer.own.qkv)
        # [batch, beam, q, 3, joined] -> [batch, beam, q, 3, heads, head_dim]
        qkv = qkv.reshape(*x.shape[:3], 3, c.num_heads, c.head_dim)
        slots = None if past is None else past.slots[i]
        mixed = _self_attention(qkv, slots, past, mine, bias[i % len(bias)])
        x = x + _matmul(mixed.reshape(*x.shape[:3], -1), layer.own.out)
        kept.append(qkv[:, :, :, 1:])
        query = _matmul(_norm(x, layer.other.norm), layer.other.query)
        mixed = _cross_attention(query, cross.keys_values[i], cross.mask)
        x = x + _matmul(mixed, layer.other.out)
        x = x + _feed_forward(x, layer.mlp, c)
    return _norm(x, weights.decoder.norm), tuple(kept)


def output_logits(
    weights: InferenceWeights,
    x: Float[Array, "*b d"],
    start: int = 0,
    size: int | None = None,
) -> Float[Array, "*b v"]:
    """float32 logits of `size` neighbouring tokens from `start` on, of all by default."""
    head = weights.head
    if size is not None:
        head = jax.tree.map(lambda w: w[start : start + size], head)  # a quantized one's scale too
    return _matmul(x, head, jnp.float32)


def output_log_norm(weights: InferenceWeights, x: Float[Array, "b m *q d"]) -> Array:
    """`logsumexp` of the logits of all tokens [batch, beam, ...], some beams at a time.

    All logits of a wide beam together would not fit into caches (nor, on accelerators, into little
    memory): the beams are split, not the vocabulary, which may be sharded.
    """
    beams = x.shape[1]
    size = (x.size // x.shape[-1]) * weights.config.output_vocab_size
    parts = min(-(-size // _LOGITS_TOGETHER), beams)
    width = -(-beams // parts)
    return jnp.concatenate(
        [
            jax.nn.logsumexp(output_logits(weights, x[:, i : i + width]), axis=-1)
            for i in range(0, beams, width)
        ],
        axis=1,
    )


def _feed_forward(x: Float[Array, "*b d"], mlp: FeedForward, config: T5Config) -> Array:
    hidden = _matmul(_norm(x, mlp.norm), mlp.wi)  # [..., activations, mlp]
    parts = [activation(name)(hidden[..., i, :]) for i, name in enumerate(config.mlp_activations)]
    return _matmul(functools.reduce(jnp.multiply, parts), mlp.wo)


def _relative_bias(
    weights: InferenceWeights,
    stack: Stack,
    queries: np.ndarray,
    keys: np.ndarray,
    *,
    bidirectional: bool,
) -> Float[Array, "n q h k"]:
    """float32 biases of each of the stack's tables for static positions."""
    buckets = relative_position_bucket(
        keys[None, :] - queries[:, None],
        bidirectional=bidirectional,
        num_buckets=weights.config.relpos_buckets,
        max_distance=weights.config.relpos_max_distance,
    )
    return stack.bias.astype(jnp.float32)[:, :, buckets].swapaxes(1, 2)


def _self_bias(weights: InferenceWeights, step: int, q: int, past: Past | None) -> Array:
    """Relative position biases [1 or layers, q, heads, keys], masked where a key comes later."""
    own = np.arange(step, step + q)
    before = np.arange(step) if past is None or past.steps is None else past.steps
    keys = np.concatenate([before if past is not None else own[:0], own])
    bias = _relative_bias(weights, weights.decoder, own, keys, bidirectional=False)
    return jnp.where((keys[None, :] > own[:, None])[:, None], MASKED, bias)


def _own_slots(past: Past | None) -> Bool[Array, "b m s"] | None:
    """Which slots are each beam's own, if it attends to all of them under a mask."""
    if past is None or past.steps is None:
        return None
    # a slot is its own beam's at one step at most
    return (past.ancestry[..., None] == np.arange(len(past.steps))).any(axis=2)


def _self_attention(
    qkv: Float[Array, "b m q 3 h e"],
    slots: Float[Array, "b s 2 h e"] | None,
    past: Past | None,
    mine: Bool[Array, "b m s"] | None,
    bias: Float[Array, "q h k"],
) -> Float[Array, "b m q h e"]:
    """Each beam attends to its own history and, causally, to its new tokens."""
    if mine is not None and slots is not None:
        return _masked_attention(qkv, slots, mine, bias)
    query, new = qkv[:, :, :, 0], qkv[:, :, :, 1:]
    if past is not None and slots is not None:
        # [batch, slots, 2, heads, e] -> [batch, beam, steps, 2, heads, e]
        own = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(slots, past.ancestry)
        new = jnp.concatenate([own, new], axis=2)
    # Every query has keys of its own, so there is no large product here, only many tiny ones, at
    # which compilers are bad: sums of elementwise products are faster.
    key, value = (new[:, :, None, :, i] for i in range(2))  # [batch, beam, 1, keys, heads, e]
    scores = (query[:, :, :, None] * key).astype(jnp.float32).sum(axis=-1)
    # [batch, beam, q, keys, heads]
    weights = jax.nn.softmax(scores + bias.transpose(0, 2, 1), axis=3).astype(query.dtype)
    return (weights[..., None] * value).sum(axis=3)


def _masked_attention(
    qkv: Float[Array, "b m q 3 h e"],
    slots: Float[Array, "b s 2 h e"],
    mine: Bool[Array, "b m s"],
    bias: Float[Array, "q h k"],
) -> Float[Array, "b m q h e"]:
    """The same over all slots at once: those of other beams get a weight of exactly 0."""
    query, key, value = (qkv[:, :, :, i] for i in range(3))
    n = slots.shape[1]
    # [batch, beam, q, heads, slots] and [batch, beam, q, heads, q]
    before = jnp.einsum("bmqhe,bshe->bmqhs", query, slots[:, :, 0]).astype(jnp.float32)
    before = jnp.where(mine[:, :, None, None, :], before + bias[..., :n], MASKED)
    scores = jnp.einsum("bmqhe,bmkhe->bmqhk", query, key).astype(jnp.float32) + bias[..., n:]
    scores = jnp.concatenate([before, scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    mixed = jnp.einsum("bmqhs,bshe->bmqhe", weights[..., :n], slots[:, :, 1])
    return mixed + jnp.einsum("bmqhk,bmkhe->bmqhe", weights[..., n:], value)


def _cross_attention(
    query: Float[Array, "b m q hd"],
    keys_values: Float[Array, "2 b s h e"],
    mask: Bool[Array, "b s"],
) -> Float[Array, "b m q hd"]:
    """Every beam of a query attends to the one copy of the encoder's keys and values."""
    keys, values = keys_values
    rows = query.reshape(len(mask), -1, *keys.shape[-2:])  # [batch, beam * q, heads, e]
    scores = jnp.einsum("brhe,bshe->bhrs", rows, keys).astype(jnp.float32)
    scores = jnp.where(mask[:, None, None, :], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return jnp.einsum("bhrs,bshe->brhe", weights, values).reshape(query.shape)
