"""A model as pure functions over a parameter tree: all that the rest of gr_jax sees of T5."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from gr_jax.models._config import T5Config
from gr_jax.models._t5 import T5

Parameters = Any


def _init(config: T5Config, key: Array):
    ones = jnp.ones((1, 2), jnp.int32)
    return T5(config).init(key, ones, ones, ones, ones)["params"]


def init_parameters(config: T5Config, key: Array) -> Parameters:
    """Random parameters of a T5, float32, in t5x's tree. Jit it with `out_shardings`."""
    return nn.unbox(_init(config, key))


def logical_axes(config: T5Config) -> Parameters:
    """The tree of `init_parameters` with a `PartitionSpec` of logical axis names per leaf."""
    boxed = jax.eval_shape(lambda: _init(config, jax.random.key(0)))
    return nn.get_partition_spec(boxed)


def count_parameters(parameters: Parameters) -> int:
    """Number of scalars in a tree of arrays or of shapes."""
    return sum(x.size for x in jax.tree.leaves(parameters))


def _apply(config: T5Config, parameters: Parameters, method: str, *args, **kwargs) -> Any:
    return T5(config).apply({"params": parameters}, *args, method=method, **kwargs)


def encode(
    config: T5Config, parameters: Parameters, tokens: Int[Array, "b s"]
) -> Float[Array, "b s d"]:
    """Encodes one source per row; token 0 is padding."""
    return _apply(config, parameters, "encode", tokens, (tokens > 0).astype(jnp.int32))


def decode_train(
    config: T5Config,
    parameters: Parameters,
    batch: dict[str, Int[Array, "b _"]],
    dropout_key: Array | None = None,
) -> Float[Array, "b t v"]:
    """Teacher-forced logits of a (packed) batch.

    Args:
      config: the model.
      parameters: its parameters.
      batch: `encoder_input_tokens`, `encoder_segment_ids` [rows, source length] and
        `decoder_input_tokens`, `decoder_segment_ids` [rows, target length]; segment 0 is padding.
      dropout_key: a PRNG key; None switches dropout off.

    Returns:
      float32 logits [rows, target length, target vocabulary].
    """
    return T5(config).apply(
        {"params": parameters},
        batch["encoder_input_tokens"],
        batch["encoder_segment_ids"],
        batch["decoder_input_tokens"],
        batch["decoder_segment_ids"],
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )  # pyright: ignore[reportReturnType]
