"""Beam search with a T5: from source tokens to ranked documents in one compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gr_jax.decoding._arguments import checked_source, groups_of, refuse_infinite, whole_number
from gr_jax.decoding._core import SCORES, Ends, Score, beam_widths, search_trie
from gr_jax.decoding._shape import power_of_two
from gr_jax.decoding._trie import Subset, Trie
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import (
    CrossCache,
    InferenceWeights,
    Past,
    decode_block,
    encode_cross,
    output_log_norm,
    output_logits,
)

_SHORTEST_SOURCE = 16  # smallest source bucket, in tokens


class SearchResult(NamedTuple):
    """Ranked documents of `n` queries.

    Attributes:
      rows: documents, best first, as rows of the `DocidMap` [n, k]; -1 where there are fewer.
      scores: their log-probabilities, natural logarithm [n, k]; -inf where there are fewer.
      exact: whether the k documents are certainly the best of the whole corpus, in order, by the
        sums of this search: in float32 that is but for differences in the last bits; in bfloat16
        and int8, whose roundings differ with a program's shapes, see docs/decoding.md [n].
      beam: the width of the beam that gave the answer [n].
    """

    rows: Int[np.ndarray, "n k"]
    scores: Float[np.ndarray, "n k"]
    exact: Bool[np.ndarray, " n"]
    beam: Int[np.ndarray, " n"]


class _History(NamedTuple):
    """Keys and values of the steps so far: written once, never moved.

    Attributes:
      slots: per layer [batch, slots, 2, heads, head_dim].
      ancestry: the slots of each beam's prefix, the last token's excepted [batch, beam, step - 1];
        None before step 1.
    """

    slots: tuple[Array, ...]
    ancestry: Int[Array, "b m t"] | None


class _Decoder:
    """The T5 as `Model` of `_core`."""

    def __init__(
        self,
        weights: InferenceWeights,
        cross: CrossCache,
        widths: tuple[int, ...],
        masked: bool,
    ):
        self.weights, self.cross, self.widths, self.masked = weights, cross, widths, masked

    def initial(self) -> _History:
        """Room for every step but the last, whose keys and values are never read."""
        c = self.weights.config
        shape = (len(self.cross.mask), sum(self.widths[:-1]), 2, c.num_heads, c.head_dim)
        return _History(tuple(jnp.zeros(shape, c.dtype) for _ in self.weights.decoder.layers), None)

    def decode(self, state: _History, tokens, parents, step: int):
        """See `Model`."""
        past = None
        if parents is not None:
            used = sum(self.widths[:step])
            steps = np.repeat(np.arange(step), self.widths[:step]) if self.masked else None
            slots = [x[:, :used] for x in state.slots] if self.masked else state.slots
            past = Past(slots, self._ancestry(state, parents, step), steps)
        hidden, new = decode_block(self.weights, tokens, step, self.cross, past)
        return hidden, tuple(x[:, :, 0] for x in new)

    def keep(self, state: _History, new, parents, step: int) -> _History:
        """See `Model`."""
        start = sum(self.widths[:step])
        slots = tuple(
            jax.lax.dynamic_update_slice_in_dim(x, y, start, axis=1)
            for x, y in zip(state.slots, new, strict=True)
        )
        return _History(slots, None if parents is None else self._ancestry(state, parents, step))

    def _ancestry(self, state: _History, parents, step: int) -> Int[Array, "b m t"]:
        """The slots of the prefixes of step `step`: [batch, beam, step]."""
        own = parents[..., None] + sum(self.widths[: step - 1])
        if state.ancestry is None:
            return own
        # [batch, beam before, step - 1] -> [batch, beam, step - 1]
        inherited = jnp.take_along_axis(
            state.ancestry, parents[..., None], axis=1, mode="promise_in_bounds"
        )
        return jnp.concatenate([inherited, own], axis=-1)

    def logits(self, hidden, start: int, size: int | None) -> Array:
        """See `Model`."""
        return output_logits(self.weights, hidden, start, size)

    def log_norm(self, hidden) -> Array:
        """See `Model`."""
        return output_log_norm(self.weights, hidden)


@functools.cache
def _program(platform: str) -> Callable[..., tuple[Array, Array, Array]]:
    """The search, compiled for a platform once per shape and setting."""

    def search(
        weights: InferenceWeights,
        trie: Trie,
        source: Int[Array, "b s"],
        subset: Subset | None,
        group: Int[Array, " b"] | None,
        *,
        beam: int,
        k: int,
        score: Score,
        ends: Ends,
        mesh: Mesh | None = None,
    ) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Array]:
        batch = len(source)
        # gathering each beam's history is fast but on TPUs, where one product under a mask is
        masked = platform == "tpu"
        widths = beam_widths(trie.shape, score, beam)
        decoder = _Decoder(weights, encode_cross(weights, source), widths, masked)
        return search_trie(
            trie,
            decoder,
            decoder.initial(),
            batch,
            beam=beam,
            k=k,
            score=score,
            subset=subset,
            group=group,
            ends=ends,
            asked=jnp.any(source != 0, axis=1),
            mesh=mesh,
        )

    return jax.jit(search, static_argnames=("beam", "k", "score", "ends", "mesh"))


class BeamSearch:
    """Answers queries with documents that exist.

    Scores are log-probabilities of docids, normalised in each step over the whole target vocabulary
    (`full`: the model's own probabilities, what Hugging Face computes), over the codes of the
    level, plus the end token after the first level if the vocabulary has one (`level`), or over
    what the trie allows after the prefix (`children`: a distribution over the corpus, in which
    what is forced costs nothing).

    The k documents may be fewer than asked (and than the corpus has) only if `beam < k`. Equal
    scores are ordered by docid, lexicographically, a prefix before its extensions; documents with
    the same docid, in corpus order.

    The search runs where the weights lie. Weights made of parameters that are sharded over a mesh
    (`gr_jax.training.Partitioner`) stay so: queries are then split over all mesh
    axes but `model`, and every device has the whole trie.

    Attributes:
      weights: the model, on the device or the mesh.
      trie: the valid docids, on the same.
      sharding: how a batch of queries is laid out over the mesh; None on a single device.
      beam: live prefixes per query; finished docids take no place among them.
      k: documents per query.
      score: the normalisation.
      ends: which docids that end in a step are kept: "all", or with "ranked" those among the
        `beam` best candidates of the step, which is Hugging Face's rule.
      batch_size: most queries in one call of the compiled program; over a mesh, rounded up to a
        multiple of its `data` axis.
    """

    def __init__(
        self,
        weights: InferenceWeights,
        docids: DocidMap | Trie,
        *,
        beam: int = 10,
        k: int = 10,
        score: Score = "children",
        ends: Ends = "all",
        batch_size: int = 32,
    ):
        beam, k = whole_number("beam", beam), whole_number("k", k)
        batch_size = whole_number("batch_size", batch_size)
        if score not in SCORES:
            raise UserError(f"unknown score {score!r}: choose one of {', '.join(SCORES)}")
        if ends not in get_args(Ends):
            raise UserError(f"unknown ends {ends!r}: choose one of {', '.join(get_args(Ends))}")
        trie = docids if isinstance(docids, Trie) else Trie.from_docid_map(docids).bucketed()
        tokens, known = trie.shape.vocabulary.size, weights.config.output_vocab_size
        if known < tokens:
            raise UserError(
                f"the model has {known} target tokens, the docids {tokens}: search with the docids "
                "that it was trained on"
            )
        self.weights, self.beam, self.k, self.score = weights, beam, k, score
        self.ends, self.batch_size = ends, batch_size
        self.sharding, self._mesh, everywhere = None, None, None
        if isinstance(lies := weights.decoder.norm.sharding, NamedSharding):
            batch_axes = tuple(axis for axis in lies.mesh.axis_names if axis != "model")
            self.sharding = NamedSharding(lies.mesh, PartitionSpec(batch_axes))
            everywhere = NamedSharding(lies.mesh, PartitionSpec())
            self._mesh = lies.mesh if "model" in lies.mesh.shape else None
        self.trie, self._everywhere = jax.device_put(trie, everywhere), everywhere

    def run(
        self,
        source: Int[Array, "b s"],
        *,
        beam: int | None = None,
        subset: Subset | None = None,
        group: Int[Array, " b"] | None = None,
    ) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Array]:
        """One call of the compiled program, device to device; compiled once per [batch, source].

        Args:
          source: token ids on the device [batch, source], laid out as `sharding`; 0 is padding.
          beam: another width than the search's own.
          subset: the documents that may be returned; all if None.
          group: the group of `subset` that each query may see [batch]; with `subset` only, and
            needed unless it has one.

        Returns:
          The first three fields of `SearchResult`, on the device. What `search` refuses by its
          values is not seen here: a query whose group is not one of the subset's, whose subset is
          another trie's or whose scores are not finite has no row, scores of NaN, and is not exact.

        Raises:
          UserError: a group without a subset, or none for a subset of several.
        """
        if group is None and subset is not None and subset.groups == 1:
            group = jnp.zeros(len(source), jnp.int32)
        if (group is None) != (subset is None):
            raise UserError("a subset of several groups and group= come together: give both")
        platform = next(iter(source.devices())).platform
        return _program(platform)(
            self.weights,
            self.trie,
            source,
            subset,
            group,
            beam=beam or self.beam,
            k=self.k,
            score=self.score,
            ends=self.ends,
            mesh=self._mesh,
        )

    def search(
        self,
        source_tokens: Int[np.ndarray, "n s"],
        *,
        subset: Subset | None = None,
        group: Int[np.ndarray, " n"] | None = None,
        exact: bool = False,
        most_beam: int = 1024,
    ) -> SearchResult:
        """Ranks the documents for each query.

        Queries go through in batches of like length; of each, the numbers of queries and of tokens
        are rounded up to powers of two, so that few programs are compiled.

        Args:
          source_tokens: token ids [n, length]; 0 is padding, at the end. For a query without any
            token nothing is found.
          subset: the documents that may be returned (`Trie.subset`); all if None.
          group: for a stack of subsets, which of them each query may see [n].
          exact: ask again, with a beam twice as wide, what is not certainly exact, until it is or
            the beam was as wide as `most_beam`; `SearchResult.exact` tells which.
          most_beam: see `exact`.

        Returns:
          Results on the host, in the order of the queries.

        Raises:
          UserError: tokens or groups that are none, a subset of another trie, or scores that are
            not finite.
        """
        source = checked_source(source_tokens, len(self.weights.encoder.embedding))
        groups = groups_of(subset, group, self.trie, len(source))
        most_beam = whole_number("most_beam", most_beam)
        if subset is not None:
            subset = jax.device_put(subset, self._everywhere)
        beam = self.beam
        result = self._ranked(source, beam, subset, groups)
        while exact and beam < most_beam and not result.exact.all():
            beam = min(beam * 2, most_beam)
            open_ = np.flatnonzero(~result.exact)
            of_open = None if groups is None else groups[open_]
            again = self._ranked(source[open_], beam, subset, of_open)
            for old, new in zip(result, again, strict=True):
                old[open_] = new
        return result

    def _ranked(
        self,
        source: Int[np.ndarray, "n s"],
        beam: int,
        subset: Subset | None,
        group: Int[np.ndarray, " n"] | None,
    ) -> SearchResult:
        n = len(source)
        if not n:
            rows, beams = np.zeros((0, self.k), np.int32), np.zeros(0, np.int32)
            return SearchResult(rows, rows.astype(np.float32), beams.astype(bool), beams)
        places = np.arange(1, source.shape[1] + 1)
        lengths = np.max(np.where(source != 0, places, 1), axis=1, initial=1)
        order = np.argsort(lengths, kind="stable")
        put = functools.partial(jax.device_put, device=self.sharding)
        answers = []  # all batches are under way before the first answer is awaited
        most = self._shard(self.batch_size)
        for start in range(0, n, most):
            chosen = order[start : start + most]
            size = min(self._shard(power_of_two(len(chosen))), most)
            longest = int(lengths[chosen[-1]])
            padded = np.zeros((size, max(power_of_two(longest), _SHORTEST_SOURCE)), np.int32)
            padded[: len(chosen), :longest] = source[chosen, :longest]
            groups = None
            if group is not None:
                groups = put(np.pad(group[chosen], (0, size - len(chosen))))
            answers.append(self.run(put(padded), beam=beam, subset=subset, group=groups))
        fields = []
        for parts in zip(*jax.device_get(answers), strict=True):
            # only the last batch has rows of padding
            found = np.concatenate(parts)[:n]
            field = np.empty_like(found)
            field[order] = found
            fields.append(field)
        result = SearchResult(*fields, beam=np.full(n, beam, np.int32))
        refuse_infinite(result.scores, self.weights.config.dtype)
        return result

    def _shard(self, queries: int) -> int:
        """So many queries, or a few more, for every shard to have as many."""
        shards = 1
        if self.sharding is not None:
            shards = self.sharding.mesh.size // self.sharding.mesh.shape.get("model", 1)
        return -(-queries // shards) * shards
