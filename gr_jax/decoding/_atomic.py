"""Docids of one code: one step over all of them, no beam, and nothing is dropped."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gr_jax.decoding._trie import Subset, Trie

_BLOCKS = 64  # of neighbouring tokens among which the best are found one by one, then merged


def rank_atomic(
    trie: Trie,
    logits: Float[Array, "b v"],
    *,
    score: str,
    k: int,
    subset: Subset | None,
    group: Int[Array, " b"] | None,
    mesh: Mesh | None,
) -> tuple[Float[Array, "b k"], Int[Array, "b k"], Bool[Array, " b"]]:
    """The best docids of a trie of one level without an end token.

    Everything is as wide as the output layer and in its order, which is that of docids: the layer
    is neither copied nor, on a mesh, moved between devices.

    Args:
      trie: the valid docids.
      logits: float32, of all target tokens.
      score: over what the probabilities are normalised; see `search_trie`.
      k: docids per query.
      subset: the documents that may be returned; all if None.
      group: which of the subset's groups each query may see.
      mesh: whose `model` axis the logits are split over; None on a single device.

    Returns:
      log-probabilities, descending, -inf where there is none; numbers of docids, ties by number;
      and whether a query's logits are finite.
    """
    vocabulary, tokens = trie.shape.vocabulary, logits.shape[1]
    code = jnp.arange(tokens, dtype=jnp.int32) - int(vocabulary.offsets[0])
    number = _numbers(trie, code)
    exists = number >= 0
    if subset is not None and group is not None:
        known = jnp.maximum(number, 0)
        words = subset.allowed.words.at[group].get()[:, known >> 5]
        exists = exists & ((words >> (known & 31).astype(jnp.uint32)) & 1).astype(bool)
    exists = jnp.broadcast_to(exists, logits.shape)
    level = (code >= 0) & (code < vocabulary.level_sizes[0])
    where: Any = {"full": None, "level": level, "children": exists}[score]
    norm = jax.nn.logsumexp(logits, axis=-1, where=where)
    scores = jnp.where(exists, jnp.minimum(logits - norm[:, None], 0), -jnp.inf)
    best, token = _best(scores, k, mesh)
    finite = jnp.isfinite(norm) | ~exists.any(axis=1)  # of nothing, the norm is -inf
    return best, number.at[token].get(mode="promise_in_bounds"), finite


def _numbers(trie: Trie, code: Int[Array, " v"]) -> Int[Array, " v"]:
    """The docid whose code a token spells, -1 where there is none."""
    codes, count = trie.codes[0].astype(jnp.int32), trie.lows[0][-1]

    def complete() -> Array:
        return jnp.where((code >= 0) & (code < count), code, -1)

    def with_holes() -> Array:
        number = jnp.arange(len(codes), dtype=jnp.int32)
        token = jnp.where(number < count, codes - code[0], len(code))  # padding is dropped
        return jnp.full(len(code), -1, jnp.int32).at[token].set(number, mode="drop")

    # codes are distinct and in order: if the last of n is n - 1, none is left out
    last = codes[jnp.maximum(count - 1, 0)]
    return jax.lax.cond(last == count - 1, complete, with_holes)


def _best(
    scores: Float[Array, "b n"], k: int, mesh: Mesh | None
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """`jax.lax.top_k`, of each shard by itself, then merged."""
    if mesh is None:
        return _best_in_blocks(scores, k)
    shards = mesh.shape["model"]
    layout = PartitionSpec(tuple(axis for axis in mesh.axis_names if axis != "model"), "model")

    def own(scores: Array) -> tuple[Array, Array]:
        width = scores.shape[1]
        best, index = _best_in_blocks(scores, min(k, width))
        return best, index + width * jax.lax.axis_index("model")

    padding = -scores.shape[1] % shards
    scores = jnp.pad(scores, ((0, 0), (0, padding)), constant_values=-jnp.inf)
    ranked = jax.shard_map(own, mesh=mesh, in_specs=layout, out_specs=layout)
    # [batch, n] -> [batch, shards * k]; of ties the lower shard's comes first
    best, index = ranked(scores)
    best, place = jax.lax.top_k(best, k)
    return best, jnp.take_along_axis(index, place, axis=1, mode="promise_in_bounds")


def _best_in_blocks(
    scores: Float[Array, "b n"], k: int
) -> tuple[Float[Array, "b k"], Int[Array, "b k"]]:
    """`jax.lax.top_k`, in blocks: ties are the lower index's, too."""
    batch, n = scores.shape
    if n < _BLOCKS * k:
        return jax.lax.top_k(scores, k)
    size = -(-n // _BLOCKS)
    blocks = jnp.pad(scores, ((0, 0), (0, size * _BLOCKS - n)), constant_values=-jnp.inf)
    # [batch, n] -> [batch, blocks, size] -> [batch, blocks, k]
    best, index = jax.lax.top_k(blocks.reshape(batch, _BLOCKS, size), k)
    index = index + size * jnp.arange(_BLOCKS, dtype=jnp.int32)[:, None]
    best, place = jax.lax.top_k(best.reshape(batch, -1), k)
    index = index.reshape(batch, -1)
    return best, jnp.take_along_axis(index, place, axis=1, mode="promise_in_bounds")
