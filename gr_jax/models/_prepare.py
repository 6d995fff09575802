"""From a model's parameters to what answers queries, one weight after the other.

A model's float32 parameters need twice the memory of its bfloat16 weights: they are asked for by
name, each when its turn comes, and forgotten, so that they are never all on the devices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from gr_jax.errors import UserError
from gr_jax.models._config import T5Config
from gr_jax.models._inference import (
    PRECISIONS,
    CrossAttention,
    DecoderLayer,
    EncoderLayer,
    FeedForward,
    InferenceWeights,
    Precision,
    Quantized,
    SelfAttention,
    Stack,
    Weight,
)
from gr_jax.models._layout import LAYER_AXIS, scanned_name

Parameters = Any
ReadParameter = Callable[[str], Array]


def prepare_inference(
    config: T5Config,
    parameters: Parameters | ReadParameter,
    precision: Precision | None = None,
) -> InferenceWeights:
    """Arranges a model's parameters for decoding; they may be sharded.

    Args:
      config: the model.
      parameters: its float32 parameters, in either layout; or what reads one of them by its name in
        the unscanned layout (`encoder/layers_3/mlp/wo/kernel`). It is asked for all layers of one
        kind before the next kind, and each of its arrays is dropped when its weight is made.
      precision: of weights and activations. `int8` keeps all matrices as 8-bit integers with a
        scale per output; token tables and activations are bfloat16 then. None takes
        `config.dtype`. Norms, softmax and scores are float32 always.

    Raises:
      UserError: an unknown precision.
    """
    if precision is None:
        precision = config.dtype  # pyright: ignore[reportAssignmentType]
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    read = parameters if callable(parameters) else _reader(parameters)
    return _Preparation(config, read, precision).weights()  # pyright: ignore[reportArgumentType]


def _reader(parameters: Parameters) -> ReadParameter:
    leaves: dict[str, Any] = flatten_dict(parameters, sep="/")

    def read(name: str) -> Array:
        if name in leaves:
            return jnp.asarray(leaves[name])
        scanned, layer = scanned_name(name)
        return jax.lax.dynamic_index_in_dim(leaves[scanned], layer, LAYER_AXIS, keepdims=False)

    return read


class _Preparation:
    """Reads the parameters of a model and makes its weights."""

    def __init__(self, config: T5Config, read: ReadParameter, precision: Precision):
        self.read, self.precision = read, precision
        self.dtype = "bfloat16" if precision == "int8" else precision
        self.config = dataclasses.replace(config, dtype=self.dtype)

    def weights(self) -> InferenceWeights:
        """All of them; first what needs the most beside itself while it is made."""
        c = self.config
        shared = c.target_vocab_size is None
        source = "token_embedder/embedding"
        target = source if shared else "target_embedder/embedding"
        cross, head, table = self._cross(), self._head(target), self._table(source)
        return InferenceWeights(
            config=c,
            encoder=self._stack("encoder", table, self._encoder_layers()),
            cross=cross,
            decoder=self._stack(
                "decoder",
                table if shared else self._table(target),
                self._decoder_layers(),
            ),
            head=head,
        )

    def _cross(self) -> Weight:
        """[2 * layers, joined, embed]."""
        parts = self._each("decoder", "encoder_decoder_attention", ("key", "value"))
        return _below_each_other(parts) if parts else jnp.zeros((0,), self.dtype)

    def _head(self, table: str) -> Weight:
        """[target vocab, embed]."""
        if self.config.logits_via_embedding:
            return _tied_head(self.read(table), precision=self.precision)
        return _weight(self.read("decoder/logits_dense/kernel"), precision=self.precision)

    def _table(self, name: str) -> Array:
        """[vocab, embed]."""
        return self.read(name).astype(self.dtype)

    def _stack(self, name: str, table: Array, layers: list[Any]) -> Stack:
        owners = self._layers(name) if self.config.relpos_per_layer else [name]
        biases = [self.read(f"{owner}/relpos_bias/rel_embedding") for owner in owners]
        none = jnp.zeros((0, self.config.num_heads, self.config.relpos_buckets))
        norm = self.read(f"{name}/{name}_norm/scale")
        return Stack(table, tuple(layers), norm, _stacked(biases) if biases else none)

    def _encoder_layers(self) -> list[EncoderLayer]:
        own = self._own("encoder", "attention", "pre_attention_layer_norm")
        return [EncoderLayer(*parts) for parts in zip(own, self._mlp("encoder"), strict=True)]

    def _decoder_layers(self) -> list[DecoderLayer]:
        owns = self._own("decoder", "self_attention", "pre_self_attention_layer_norm")
        of = "encoder_decoder_attention"
        norms = self._norms("decoder", "pre_cross_attention_layer_norm")
        others = zip(
            norms, self._each("decoder", of, "query"), self._each("decoder", of, "out"), strict=True
        )
        return [
            DecoderLayer(own, CrossAttention(*other), mlp)
            for own, other, mlp in zip(owns, others, self._mlp("decoder"), strict=True)
        ]

    def _own(self, stack: str, attention: str, norm: str) -> list[SelfAttention]:
        qkv = self._each(stack, attention, ("query", "key", "value"))
        out = self._each(stack, attention, "out")
        parts = zip(self._norms(stack, norm), qkv, out, strict=True)
        return [SelfAttention(*part) for part in parts]

    def _mlp(self, stack: str) -> list[FeedForward]:
        count = len(self.config.mlp_activations)
        names = ("wi",) if count == 1 else tuple(f"wi_{i}" for i in range(count))
        wi, wo = self._each(stack, "mlp", names), self._each(stack, "mlp", "wo")
        parts = zip(self._norms(stack, "pre_mlp_layer_norm"), wi, wo, strict=True)
        return [FeedForward(*part) for part in parts]

    def _layers(self, stack: str) -> list[str]:
        return [f"{stack}/layers_{i}" for i in range(getattr(self.config, f"num_{stack}_layers"))]

    def _norms(self, stack: str, name: str) -> list[Array]:
        """[embed] per layer."""
        return [self.read(f"{layer}/{name}/scale") for layer in self._layers(stack)]

    def _each(self, stack: str, module: str, kernels: str | tuple[str, ...]) -> list[Weight]:
        """Per layer, the weight of a kernel [outputs, inputs], or of several [n, ...]."""

        def made(layer: str) -> Weight:  # what it has read goes when it returns
            read = jax.tree.map(lambda name: self.read(f"{layer}/{module}/{name}/kernel"), kernels)
            # waited for: else the next ones would be there before these are gone
            return jax.block_until_ready(_weight(read, precision=self.precision))

        return [made(layer) for layer in self._layers(stack)]


@functools.partial(jax.jit, static_argnames="precision")
def _weight(kernel: Array | tuple[Array, ...], *, precision: Precision) -> Weight:
    """[inputs, outputs] -> [outputs, inputs]; of several, side by side, [n, outputs, inputs]."""
    w = jnp.swapaxes(jnp.stack(kernel) if isinstance(kernel, tuple) else kernel, -1, -2)
    return _quantize(w) if precision == "int8" else w.astype(precision)


@functools.partial(jax.jit, static_argnames="precision")
def _tied_head(table: Float[Array, "v d"], *, precision: Precision) -> Weight:
    return _weight(table.T / np.sqrt(table.shape[1]), precision=precision)


@jax.jit
def _below_each_other(parts: list[Weight]) -> Weight:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


_stacked = jax.jit(jnp.stack)


def _quantize(w: Float[Array, "*o i"]) -> Quantized:
    scale = jnp.max(jnp.abs(w), axis=-1) / 127
    scale = jnp.where(scale > 0, scale, 1)
    return Quantized(jnp.round(w / scale[..., None]).astype(jnp.int8), scale)
