"""T5 as the decoder wants it: weights fused and converted once, many beams per query.

The training forward pass (`_t5.py`) is the definition; this is the same function of the same
parameters, arranged for search. What beams share is never copied: the encoder's keys and values
exist once per query, and the keys and values of a decoder step are written once and never moved.
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

from gr_jax.errors import UserError
from gr_jax.models._config import T5Config
from gr_jax.models._layers import MASKED, RMS_EPSILON, activation, relative_position_bucket
from gr_jax.models._t5 import T5

Parameters = Any
Precision = Literal["float32", "bfloat16", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Quantized(NamedTuple):
    """A matrix as int8 with one scale per output column: `values * scale`."""

    values: Int[Array, "i *o"]
    scale: Float[Array, "*o"]


Weight = Array | Quantized


class LayerWeights(NamedTuple):
    """One decoder layer; `joined` is heads * head_dim."""

    self_norm: Array  # [embed]
    qkv: Weight  # [embed, 3, joined]
    self_out: Weight  # [joined, embed]
    cross_norm: Array
    cross_query: Weight  # [embed, joined]
    cross_out: Weight
    mlp_norm: Array
    wi: Weight  # [embed, activations, mlp]
    wo: Weight  # [mlp, embed]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["encoder", "cross", "layers", "norm", "bias", "embedding", "head"],
    meta_fields=["config"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class InferenceWeights:
    """What answers queries: made from parameters by `prepare_inference`; a pytree.

    Attributes:
      config: the model; its `dtype` is that of activations here.
      encoder: parameters of the encoder and its token table, as in training's tree.
      cross: keys and values of the encoder's output for all layers [embed, 2 * layers, joined].
      layers: the decoder's layers.
      norm: the decoder's last norm [embed].
      bias: the decoder's relative position biases [heads, buckets].
      embedding: the target table [target vocab, embed].
      head: the output layer [embed, target vocab].
    """

    config: T5Config
    encoder: Parameters
    cross: Weight
    layers: tuple[LayerWeights, ...]
    norm: Array
    bias: Array
    embedding: Array
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


def prepare_inference(
    config: T5Config, parameters: Parameters, precision: Precision | None = None
) -> InferenceWeights:
    """Arranges a model's parameters for decoding; they may be sharded.

    Args:
      config: the model.
      parameters: its float32 parameters.
      precision: of weights and activations. `int8` keeps the decoder's matrices as 8-bit integers
        with a scale per column; activations and the encoder are bfloat16 then. None takes
        `config.dtype`. Norms, softmax and scores are float32 always.

    Raises:
      UserError: an unknown precision.
    """
    if precision is None:
        precision = config.dtype  # pyright: ignore[reportAssignmentType]
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    return _prepare(parameters, config=config, precision=precision)  # pyright: ignore[reportArgumentType]


@functools.partial(jax.jit, static_argnames=("config", "precision"))
def _prepare(parameters: Parameters, *, config: T5Config, precision: Precision) -> InferenceWeights:
    dtype = "bfloat16" if precision == "int8" else precision
    config = dataclasses.replace(config, dtype=dtype)
    weight = _quantize if precision == "int8" else lambda w: w.astype(dtype)

    def kernels(*modules: dict[str, Any]) -> list[Array]:
        return [module["kernel"] for module in modules]

    decoder = parameters["decoder"]
    layers, cross = [], []
    for i in range(config.num_decoder_layers):
        layer = decoder[f"layers_{i}"]
        own, other, mlp = (
            layer[name] for name in ("self_attention", "encoder_decoder_attention", "mlp")
        )
        cross += kernels(other["key"], other["value"])
        gates = kernels(*(mlp[name] for name in sorted(mlp) if name.startswith("wi")))
        layers.append(
            LayerWeights(
                self_norm=layer["pre_self_attention_layer_norm"]["scale"],
                qkv=weight(jnp.stack(kernels(own["query"], own["key"], own["value"]), axis=1)),
                self_out=weight(own["out"]["kernel"]),
                cross_norm=layer["pre_cross_attention_layer_norm"]["scale"],
                cross_query=weight(other["query"]["kernel"]),
                cross_out=weight(other["out"]["kernel"]),
                mlp_norm=layer["pre_mlp_layer_norm"]["scale"],
                wi=weight(jnp.stack(gates, axis=1)),
                wo=weight(mlp["wo"]["kernel"]),
            )
        )
    shared = config.target_vocab_size is None
    table = parameters["token_embedder" if shared else "target_embedder"]["embedding"]
    if config.logits_via_embedding:
        head = table.T / np.sqrt(config.emb_dim)
    else:
        head = decoder["logits_dense"]["kernel"]
    encoder = {name: parameters[name] for name in ("encoder", "token_embedder")}
    return InferenceWeights(
        config=config,
        # vectors are norms' scales, which stay float32
        encoder=jax.tree.map(lambda x: x.astype(dtype) if x.ndim > 1 else x, encoder),
        cross=weight(jnp.stack(cross, axis=1)) if cross else jnp.zeros((0,)),
        layers=tuple(layers),
        norm=decoder["decoder_norm"]["scale"],
        bias=decoder["relpos_bias"]["rel_embedding"],
        embedding=table.astype(dtype),
        head=weight(head),
    )


def _quantize(w: Float[Array, "i *o"]) -> Quantized:
    scale = jnp.max(jnp.abs(w), axis=0) / 127
    scale = jnp.where(scale > 0, scale, 1)
    return Quantized(jnp.round(w / scale).astype(jnp.int8), scale)


def _matmul(x: Float[Array, "*b i"], w: Weight, dtype: Any = None) -> Float[Array, "*b *o"]:
    """`x @ w` over the last axis of `x` and the first of `w`, in `dtype` (that of `x` if None)."""
    dtype = dtype or x.dtype
    values = w.values.astype(x.dtype) if isinstance(w, Quantized) else w
    y = jax.lax.dot_general(
        x, values, (((x.ndim - 1,), (0,)), ((), ())), preferred_element_type=dtype
    )
    return y * w.scale.astype(dtype) if isinstance(w, Quantized) else y


def _norm(x: Float[Array, "*b d"], scale: Float[Array, " d"]) -> Float[Array, "*b d"]:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + RMS_EPSILON)
    return (y * scale).astype(x.dtype)


def encode_cross(weights: InferenceWeights, tokens: Int[Array, "b s"]) -> CrossCache:
    """Encodes sources (0 is padding) and projects them for every decoder layer, once per query."""
    c = weights.config
    mask = tokens > 0
    encoded = T5(c).apply(
        {"params": weights.encoder}, tokens, mask.astype(jnp.int32), method="encode"
    )
    if not weights.layers:
        return CrossCache((), mask)
    joined = _matmul(encoded, weights.cross)  # pyright: ignore[reportArgumentType]
    # [batch, source, 2 * layers, joined] -> [layers, 2, batch, source, heads, head_dim]
    joined = joined.reshape(*tokens.shape, len(weights.layers), 2, c.num_heads, c.head_dim)
    joined = joined.transpose(2, 3, 0, 1, 4, 5)
    return CrossCache(tuple(joined), mask)


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
    x = weights.embedding[tokens]  # [batch, beam, q, embed]
    bias = _self_bias(weights, step, tokens.shape[2], past)
    mine = _own_slots(past)
    kept = []
    for i, layer in enumerate(weights.layers):
        h = _norm(x, layer.self_norm)
        # [batch, beam, q, embed] -> [batch, beam, q, 3, heads, head_dim]
        qkv = _matmul(h, layer.qkv).reshape(*x.shape[:3], 3, c.num_heads, c.head_dim)
        slots = None if past is None else past.slots[i]
        mixed = _self_attention(qkv, slots, past, mine, bias)
        x = x + _matmul(mixed.reshape(*x.shape[:3], -1), layer.self_out)
        kept.append(qkv[:, :, :, 1:])
        h = _matmul(_norm(x, layer.cross_norm), layer.cross_query)
        mixed = _cross_attention(h, cross.keys_values[i], cross.mask)
        x = x + _matmul(mixed, layer.cross_out)
        x = x + _matmul(_gated(_matmul(_norm(x, layer.mlp_norm), layer.wi), c), layer.wo)
    return _norm(x, weights.norm), tuple(kept)


def output_logits(
    weights: InferenceWeights,
    x: Float[Array, "*b d"],
    start: int = 0,
    size: int | None = None,
) -> Float[Array, "*b v"]:
    """float32 logits of `size` neighbouring tokens from `start` on, of all by default."""
    head = weights.head
    if size is not None:
        # jnp slicing: dtype and structure of a quantized head are kept
        head = jax.tree.map(lambda w: w[..., start : start + size], head)
    return _matmul(x, head, jnp.float32)


def _gated(hidden: Float[Array, "*b a f"], config: T5Config) -> Float[Array, "*b f"]:
    """The product of the activated input projections."""
    parts = [activation(name)(hidden[..., i, :]) for i, name in enumerate(config.mlp_activations)]
    return functools.reduce(jnp.multiply, parts)


def _self_bias(weights: InferenceWeights, step: int, q: int, past: Past | None) -> Array:
    """Relative position biases [q, heads, keys], masked where a key comes after the query."""
    c = weights.config
    own = np.arange(step, step + q)
    before = np.arange(step) if past is None or past.steps is None else past.steps
    keys = np.concatenate([before if past is not None else own[:0], own])
    distance = keys[None, :] - own[:, None]  # [q, keys]
    buckets = relative_position_bucket(
        np.minimum(distance, 0),
        bidirectional=False,
        num_buckets=c.relpos_buckets,
        max_distance=c.relpos_max_distance,
    )
    bias = weights.bias.astype(jnp.float32)[:, buckets]  # [heads, q, keys]
    return jnp.where(distance[:, None] > 0, MASKED, bias.transpose(1, 0, 2))


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
    query, key, value = (qkv[:, :, :, i] for i in range(3))
    # [batch, beam, q, heads, keys]
    scores = jnp.einsum("bmqhe,bmkhe->bmqhk", query, key).astype(jnp.float32)
    if past is None or slots is None:
        weights = jax.nn.softmax(scores + bias, axis=-1).astype(query.dtype)
        return jnp.einsum("bmqhk,bmkhe->bmqhe", weights, value)
    if mine is None:
        # [batch, slots, 2, heads, e] -> [batch, beam, steps, 2, heads, e]
        own = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(slots, past.ancestry)
        before = jnp.einsum("bmqhe,bmkhe->bmqhk", query, own[:, :, :, 0])
    else:
        own = slots
        before = jnp.einsum("bmqhe,bshe->bmqhs", query, slots[:, :, 0])
    before = before.astype(jnp.float32)
    n = before.shape[-1]
    before = before + bias[..., :n]
    if mine is not None:
        before = jnp.where(mine[:, :, None, None, :], before, MASKED)
    scores = jnp.concatenate([before, scores + bias[..., n:]], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    if mine is None:
        mixed = jnp.einsum("bmqhk,bmkhe->bmqhe", weights[..., :n], own[:, :, :, 1])
    else:
        mixed = jnp.einsum("bmqhs,bshe->bmqhe", weights[..., :n], own[:, :, 1])
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
