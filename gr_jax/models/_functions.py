"""A model as pure functions over a parameter tree: all that the rest of gr_jax sees of T5."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gr_jax.models._config import T5Config
from gr_jax.models._t5 import T5

Parameters = Any
# Per decoder layer: the encoder's keys and values, each [batch, source, heads, head_dim].
CrossCache = tuple[tuple[Array, Array], ...]
# Per decoder layer: keys and values of past steps, each [batch, beam, steps, heads, head_dim].
SelfCache = tuple[tuple[Array, Array], ...]


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


def encode_cross(
    config: T5Config, parameters: Parameters, tokens: Int[Array, "b s"]
) -> tuple[CrossCache, Bool[Array, "b s"]]:
    """Encodes the sources and projects them for every decoder layer, once per query."""
    encoded = encode(config, parameters, tokens)
    return _apply(config, parameters, "cross", encoded), tokens > 0


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


def decode_step(
    config: T5Config,
    parameters: Parameters,
    tokens: Int[Array, "b m"],
    step: int,
    cross: CrossCache,
    source_mask: Bool[Array, "b s"],
    past: SelfCache | None,
) -> tuple[Float[Array, "b m v"], tuple[tuple[Array, Array], ...]]:
    """One decoder step for `m` beams per query.

    Args:
      config: the model.
      parameters: its parameters.
      tokens: the tokens chosen at the previous step (0, the start token, at step 0).
      step: the position being predicted, a Python int: shapes differ per step.
      cross: from `encode_cross`; shared by the beams, never copied.
      source_mask: from `encode_cross`.
      past: each beam's own keys and values of the steps before this one; None at step 0.

    Returns:
      float32 logits [batch, beam, target vocabulary], and per layer this step's key and value,
      each [batch, beam, heads, head_dim], for the caller to keep.
    """
    return _apply(config, parameters, "step", tokens, step, cross, source_mask, past)
