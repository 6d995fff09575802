"""Beam search over a trie, for any model that gives logits: pure, static shapes, one level a step.

A hypothesis is *live* while something about it is undecided and *finished* when it is a docid. The
live ones of a step compete for the beam. Finished ones wait in a pool, at no cost, where only
better finished ones displace them; so a short docid competes with long ones up to the end.

Ties: of two docids with the same score the lexicographically smaller one (a prefix before its
extensions) comes first, and of two prefixes it is the one kept. For this the beam is held in
lexicographic order and not in order of score: top-k prefers the lower index. Documents that share a
docid come in corpus order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gr_jax.decoding._trie import Trie, TrieShape
from gr_jax.docids import EOS_ID, DocidVocabulary

Score = Literal["full", "level", "children"]
SCORES: tuple[Score, ...] = get_args(Score)

# (tokens of the last step [batch, beam], each one's position in that step's beam [batch, beam]
# (None at step 0), step) -> float32 logits [batch, beam, vocab]
Decode = Callable[[Array, Array | None, int], Array]


def _needs_step(shape: TrieShape, score: Score, level: int, *, leaf: bool) -> bool:
    """Whether a node of `level` (without children if `leaf`) is undecided, that is live."""
    if not leaf:
        return True
    if not shape.eos or score == "children":
        return False  # its end is forced and costs nothing
    # under "level", only the end token is left after the last level
    return score == "full" or level + 1 < len(shape.nodes)


def beam_widths(shape: TrieShape, score: Score, beam: int) -> tuple[int, ...]:
    """Hypotheses that are live in each step: 1 at the root, never more than exist."""
    widths = [1]
    for level, (nodes, inner) in enumerate(zip(shape.nodes, shape.inner, strict=True)):
        live = nodes if _needs_step(shape, score, level, leaf=True) else inner
        width = min(beam, live, widths[-1] * _fan_out(shape, level))
        if not width:
            break
        widths.append(width)
    return tuple(widths)


def decoded_steps(shape: TrieShape, score: Score, widths: tuple[int, ...]) -> int:
    """Steps that need the model: under "children", a tail without a choice has probability 1."""
    steps = len(widths)
    if score == "children" and not shape.eos:
        while steps and _fan_out(shape, steps - 1) <= 1:
            steps -= 1
    return steps


def _fan_out(shape: TrieShape, level: int) -> int:
    return min(shape.fan_outs[level], shape.nodes[level], shape.level_sizes[level])


def _take(x: Array, index: Int[Array, "b m"]) -> Array:
    """[batch, n], [batch, m] -> [batch, m]; indices are in bounds."""
    return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


def _look_up(table: Array, index: Array) -> Array:
    """One entry of a flat trie array per index; indices are in bounds."""
    return table.at[index].get(mode="promise_in_bounds")


def _children(
    trie: Trie, level: int, node: Int[Array, "b m"]
) -> tuple[Int[Array, "b m k"], Bool[Array, "b m k"]]:
    """The nodes of `level` below each beam's node, and which of the `k` places hold one."""
    fan_out = _fan_out(trie.shape, level)
    places = jnp.arange(fan_out, dtype=jnp.int32)
    if level == 0:
        exists = _look_up(trie.codes[0], places) >= 0
        shape = (*node.shape, fan_out)
        return jnp.broadcast_to(places, shape), jnp.broadcast_to(exists, shape)
    first = _look_up(trie.first_child[level - 1], node)
    end = _look_up(trie.first_child[level - 1], node + 1)
    child = first[..., None] + places  # [batch, beam] -> [batch, beam, fan_out]
    exists = child < end[..., None]
    return jnp.where(exists, child, 0), exists


def _step_scores(
    trie: Trie,
    score: Score,
    step: int,
    logits: Float[Array, "b m v"] | None,
    child: Int[Array, "b m k"] | None,
    exists: Bool[Array, "b m k"] | None,
    ends: Bool[Array, "b m"] | None,
) -> tuple[Float[Array, "b m k"] | None, Float[Array, "b m"] | None]:
    """Log-probability of each child and of ending, normalised as `score` says; -inf if invalid.

    `child` and `exists` are None after the last level; `ends`, which beams may end, is None where
    none may; `logits` is None where nothing is left to choose.
    """
    if logits is None:
        assert exists is not None
        return jnp.where(exists, 0.0, -jnp.inf), None
    shape = trie.shape
    offsets = DocidVocabulary(shape.level_sizes, shape.eos).offsets
    after_last = step == len(shape.level_sizes)
    offset = 0 if after_last else int(offsets[step])
    picked = None  # logits of the children
    if child is not None:
        fan_out = child.shape[-1]
        if step == 0 and shape.dense_root:
            picked = logits[..., offset : offset + fan_out]
        else:
            token = _look_up(trie.codes[step], child) + offset
            picked = jnp.take_along_axis(logits, token, axis=2, mode="clip")
    eos = logits[..., EOS_ID]

    if score == "full":
        norm = jax.nn.logsumexp(logits, axis=-1)
    elif score == "level":
        norm = jnp.full(logits.shape[:-1], -jnp.inf)
        if not after_last:
            level = logits[..., offset : offset + shape.level_sizes[step]]
            norm = jax.nn.logsumexp(level, axis=-1)
        if shape.eos and step > 0:
            norm = jnp.logaddexp(norm, eos)
    else:
        norm = jnp.full(logits.shape[:-1], -jnp.inf)
        if picked is not None:
            norm = jax.nn.logsumexp(picked, axis=-1, where=exists)
        if ends is not None:
            norm = jnp.logaddexp(norm, jnp.where(ends, eos, -jnp.inf))

    # a log-probability is never above 0, whatever the rounding: the certificate rests on it
    down = None
    if picked is not None and exists is not None:
        down = jnp.where(exists, jnp.minimum(picked - norm[..., None], 0), -jnp.inf)
    end = None if ends is None else jnp.where(ends, jnp.minimum(eos - norm, 0), -jnp.inf)
    return down, end


class _Pool:
    """Finished docids: of each step at most the `size` best, since no other can be among them."""

    def __init__(self, trie: Trie, size: int):
        self.trie, self.size = trie, size
        self.entries: list[tuple[Array, Array]] = []  # (scores, docids), each [batch, n]

    def add(self, level: int, scores: Float[Array, "b n"], node: Int[Array, "b n"]) -> None:
        """Adds the docids that end at these nodes (in lexicographic order) of `level`."""
        ending = self.trie.docids[level]
        assert ending is not None
        if scores.shape[1] > self.size:
            scores, index = jax.lax.top_k(scores, self.size)
            node = _take(node, index)
        self.entries.append((scores, _look_up(ending, node)))

    def best(self) -> tuple[Float[Array, "b n"], Int[Array, "b n"]]:
        """The best scores, descending, and their docids; ties by docid; -inf where none."""
        scores = jnp.concatenate([s for s, _ in self.entries], axis=1)
        docids = jnp.concatenate([d for _, d in self.entries], axis=1)
        negative, docids = jax.lax.sort((-scores, docids), num_keys=2)
        return -negative[:, : self.size], docids[:, : self.size]


def _documents(
    trie: Trie, scores: Float[Array, "b n"], docids: Int[Array, "b n"], k: int
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """Ranked docids -> ranked documents: all of a docid's, in corpus order; -1, -inf after them."""
    found = scores > -jnp.inf
    docids = jnp.where(found, docids, 0)
    if trie.first_document is None:
        rows, valid = _look_up(trie.documents, docids), found
    else:
        first = _look_up(trie.first_document, docids)
        count = jnp.where(found, _look_up(trie.first_document, docids + 1) - first, 0)
        end = jnp.cumsum(jnp.minimum(count, k), axis=1)  # [batch, docids]
        place = jnp.arange(k, dtype=jnp.int32)
        # the docid of a place is the first one whose documents end after it: [batch, k]
        rank = jax.vmap(lambda e: jnp.searchsorted(e, place, side="right"))(end)
        valid = place < end[:, -1:]
        rank = jnp.minimum(rank, docids.shape[1] - 1)
        start = _take(end - jnp.minimum(count, k), rank)
        rows = jnp.where(valid, _take(first, rank) + place - start, 0)
        rows, scores = _look_up(trie.documents, rows), _take(scores, rank)
    missing = max(k - rows.shape[1], 0)
    rows = jnp.pad(jnp.where(valid, rows, -1), ((0, 0), (0, missing)), constant_values=-1)
    scores = jnp.where(valid, scores, -jnp.inf)
    return rows, jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)


def search_trie(
    trie: Trie, decode: Decode, batch: int, *, beam: int, k: int, score: Score
) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Array]:
    """Ranks the documents of a trie for each query; to be traced by `jax.jit`.

    Args:
      trie: the valid docids.
      decode: the model; called once for each of `decoded_steps`, with `beam_widths` beams.
      batch: number of queries.
      beam: live hypotheses per query.
      k: documents per query.
      score: over what the probabilities of a step are normalised.

    Returns:
      rows [batch, k], -1 where there is none; log-probabilities [batch, k], descending, -inf where
      there is none; and whether the k documents are certainly the best of the whole corpus
      [batch].
    """
    shape = trie.shape
    offsets = DocidVocabulary(shape.level_sizes, shape.eos).offsets
    widths = beam_widths(shape, score, beam)
    steps = decoded_steps(shape, score, widths)
    pool = _Pool(trie, min(k, shape.docids))
    # the best score of a prefix that fell out of the beam: no docid below it can score higher
    dropped = jnp.full((batch,), -jnp.inf)
    total = jnp.zeros((batch, 1))
    node = tokens = jnp.zeros((batch, 1), jnp.int32)
    parents = None
    for step in range(len(widths)):
        logits = None
        if step < steps:
            logits = decode(tokens, parents, step).astype(jnp.float32)
        after_last = step == len(shape.nodes) or not shape.nodes[step]
        child = exists = ends = None
        if not after_last:
            child, exists = _children(trie, step, node)
        ending = trie.docids[step - 1] if step else None
        if shape.eos and ending is not None:
            ends = _look_up(ending, node) >= 0
        down, end = _step_scores(trie, score, step, logits, child, exists, ends)
        if end is not None:
            pool.add(step - 1, total + end, node)
        if down is None or child is None:
            break

        fan_out = down.shape[-1]
        # [batch, beam, fan_out] -> [batch, beam * fan_out], in lexicographic order
        candidates = (total[..., None] + down).reshape(batch, -1)
        flat_child = child.reshape(batch, -1)
        if shape.leaves[step] and not _needs_step(shape, score, step, leaf=True):
            if not shape.inner[step]:
                pool.add(step, candidates, flat_child)
                break
            first = trie.first_child[step]
            leaf = _look_up(first, flat_child) == _look_up(first, flat_child + 1)
            pool.add(step, jnp.where(leaf, candidates, -jnp.inf), flat_child)
            candidates = jnp.where(leaf, -jnp.inf, candidates)
        width = widths[step + 1]
        live = (
            shape.nodes[step] if _needs_step(shape, score, step, leaf=True) else shape.inner[step]
        )
        if min(live, candidates.shape[1]) > width:
            best, index = jax.lax.top_k(candidates, width + 1)
            dropped = jnp.maximum(dropped, best[:, width])
            index = index[:, :width]
        else:
            _, index = jax.lax.top_k(candidates, width)
        index = jnp.sort(index, axis=1)  # see "Ties" above
        total = _take(candidates, index)
        parents = index // fan_out
        node = _take(flat_child, index)
        # places that no prefix took hold node 0 with score -inf
        node = jnp.where(total > -jnp.inf, node, 0)
        tokens = _look_up(trie.codes[step], node) + int(offsets[step])
    rows, scores = _documents(trie, *pool.best(), k)
    # "above", not "equal": a tie with something unseen would be decided by docid
    exact = (scores[:, -1] > dropped) | (dropped == -jnp.inf)
    return rows, scores, exact
