"""Beam search with a T5: from source tokens to ranked documents in one compiled program."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gr_jax.decoding._core import SCORES, Score, beam_widths, decoded_steps, search_trie
from gr_jax.decoding._trie import Trie
from gr_jax.docids import DocidMap, DocidVocabulary
from gr_jax.models import T5Config, decode_step, encode_cross

Parameters = Any
_SHORTEST_SOURCE = 16  # smallest source bucket, in tokens


class SearchResult(NamedTuple):
    """Ranked documents of `n` queries.

    Attributes:
      rows: documents, best first, as rows of the `DocidMap` [n, k]; -1 where there are fewer.
      scores: their log-probabilities, natural logarithm [n, k]; -inf where there are fewer.
      exact: whether the k documents are certainly the best of the whole corpus, in order [n].
    """

    rows: Int[np.ndarray, "n k"]
    scores: Float[np.ndarray, "n k"]
    exact: np.ndarray


class _CachedDecoder:
    """The decoder while a search is traced: `Decode` of `_core`, with its caches.

    Keys and values of the encoder exist once per query, whatever the beam. Those of a step are
    written once and never moved: `ancestry` says where each beam's own history stands.
    """

    def __init__(
        self,
        config: T5Config,
        params: Parameters,
        source: Int[Array, "b s"],
        widths: tuple[int, ...],
    ):
        self.config, self.params, self.widths = config, params, widths
        self.cross, self.source_mask = encode_cross(config, params, source)
        # per layer, keys and values of every step but the last, whose are never read
        shape = (len(source), sum(widths[:-1]), 2, config.num_heads, config.head_dim)
        self.history = [jnp.zeros(shape, config.dtype) for _ in range(config.num_decoder_layers)]
        self.ancestry = jnp.zeros((len(source), 1, 0), jnp.int32)  # [batch, beam, step]

    def __call__(
        self, tokens: Int[Array, "b m"], parents: Int[Array, "b m"] | None, step: int
    ) -> Float[Array, "b m v"]:
        """Logits of one step; see `Decode`."""
        past = None
        if parents is not None:
            # [batch, beam before, step - 1] -> [batch, beam, step]
            inherited = jnp.take_along_axis(
                self.ancestry, parents[..., None], axis=1, mode="promise_in_bounds"
            )
            own = parents + sum(self.widths[: step - 1])
            self.ancestry = jnp.concatenate([inherited, own[..., None]], axis=-1)
            past = tuple(self._own_history(layer) for layer in self.history)
        logits, new = decode_step(
            self.config, self.params, tokens, step, self.cross, self.source_mask, past
        )
        if step + 1 < len(self.widths):
            start = sum(self.widths[:step])
            self.history = [
                jax.lax.dynamic_update_slice_in_dim(layer, jnp.stack(kv, axis=2), start, axis=1)
                for layer, kv in zip(self.history, new, strict=True)
            ]
        return logits

    def _own_history(self, layer: Array) -> tuple[Array, Array]:
        """[batch, slots, 2, heads, d] -> keys and values [batch, beam, step, heads, d]."""
        own = jax.vmap(lambda x, i: x.at[i].get(mode="promise_in_bounds"))(layer, self.ancestry)
        return own[:, :, :, 0], own[:, :, :, 1]


@functools.partial(jax.jit, static_argnames=("config", "beam", "k", "score"))
def _program(
    params: Parameters,
    trie: Trie,
    source: Int[Array, "b s"],
    *,
    config: T5Config,
    beam: int,
    k: int,
    score: Score,
) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Array]:
    widths = beam_widths(trie.shape, score, beam)
    widths = widths[: decoded_steps(trie.shape, score, widths)]
    decoder = _CachedDecoder(config, params, source, widths)
    return search_trie(trie, decoder, len(source), beam=beam, k=k, score=score)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class BeamSearch:
    """Answers queries with documents that exist.

    Scores are log-probabilities of docids, normalised in each step over the whole target vocabulary
    (`full`: the model's own probabilities), over the codes of the level, plus the end token after
    the first level if the vocabulary has one (`level`), or over what the trie allows after the
    prefix (`children`).

    The k documents may be fewer than asked (and than the corpus has) only if `beam < k`. Equal
    scores are ordered by docid, lexicographically, a prefix before its extensions; documents with
    the same docid, in corpus order.

    Attributes:
      config: the model.
      trie: the valid docids, on the device.
      beam: live prefixes per query; finished docids take no place among them.
      k: documents per query.
      score: the normalisation.
      batch_size: most queries in one call of the compiled program.
    """

    def __init__(
        self,
        config: T5Config,
        docids: DocidMap | Trie,
        *,
        beam: int = 10,
        k: int = 10,
        score: Score = "full",
        batch_size: int = 32,
    ):
        if min(beam, k, batch_size) < 1:
            raise ValueError(f"beam {beam}, k {k} and batch_size {batch_size} must be at least 1")
        if score not in SCORES:
            raise ValueError(f"unknown score {score!r}: choose one of {', '.join(SCORES)}")
        trie = docids if isinstance(docids, Trie) else Trie.from_docid_map(docids)
        tokens = DocidVocabulary(trie.shape.level_sizes, trie.shape.eos).size
        if config.output_vocab_size < tokens:
            raise ValueError(
                f"the model has {config.output_vocab_size} target tokens, the docids {tokens}"
            )
        self.config, self.beam, self.k, self.score = config, beam, k, score
        self.batch_size = batch_size
        self.trie = jax.device_put(trie)

    def run(
        self, params: Parameters, source: Int[Array, "b s"]
    ) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Array]:
        """One call of the compiled program, device to device; compiled once per [batch, source].

        Args:
          params: the model's parameters, on the device.
          source: token ids on the device [batch, source]; 0 is padding.

        Returns:
          The fields of `SearchResult`, on the device.
        """
        return _program(
            params,
            self.trie,
            source,
            config=self.config,
            beam=self.beam,
            k=self.k,
            score=self.score,
        )

    def search(self, params: Parameters, source_tokens: Int[np.ndarray, "n s"]) -> SearchResult:
        """Ranks the documents for each query.

        Queries go through in batches; the numbers of queries and of tokens are rounded up to powers
        of two, so that few programs are compiled.

        Args:
          params: the model's parameters, on the device.
          source_tokens: token ids [n, length]; 0 is padding, at the end.

        Returns:
          Results on the host, in the order of the queries.
        """
        source = np.asarray(source_tokens, np.int32)
        n = len(source)
        if not n:
            empty = np.zeros((0, self.k))
            return SearchResult(empty.astype(np.int32), empty.astype(np.float32), np.zeros(0, bool))
        used = np.flatnonzero(source.any(axis=0))
        longest = int(used[-1]) + 1 if len(used) else 1
        length = max(_power_of_two(longest), _SHORTEST_SOURCE)
        batch = min(_power_of_two(n), self.batch_size)
        padded = np.zeros((-(-n // batch) * batch, length), np.int32)
        padded[:n, :longest] = source[:, :longest]
        # all batches are under way before the first answer is awaited
        answers = [
            self.run(params, jax.device_put(padded[i : i + batch]))
            for i in range(0, len(padded), batch)
        ]
        rows, scores, exact = (
            np.concatenate(parts)[:n] for parts in zip(*jax.device_get(answers), strict=True)
        )
        return SearchResult(rows, scores, exact)
