"""The oracle: the log-probability of every docid, teacher-forced, nothing pruned.

It shares the model with beam search and nothing else: no trie, no top-k, histories that move.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gr_jax.decoding._arguments import checked_source, refuse_infinite
from gr_jax.decoding._beam import SearchResult
from gr_jax.decoding._core import SCORES, Score
from gr_jax.docids import EOS_ID, DocidMap, DocidVocabulary
from gr_jax.errors import UserError
from gr_jax.models import (
    CrossCache,
    InferenceWeights,
    Past,
    decode_block,
    encode_cross,
    output_logits,
)

_QUERIES = 8  # scored together
_MEMORY = 1 << 28  # bytes that the keys, values and logits of one block may take, roughly
_SMALLEST = 32  # sizes are rounded up to this times a power of two, to compile few shapes


@jax.jit
def _encode(weights: InferenceWeights, source: Int[Array, "b s"]) -> CrossCache:
    return encode_cross(weights, source)


@functools.partial(jax.jit, static_argnames=("step",))
def _step(
    weights: InferenceWeights,
    cross: CrossCache,
    past: tuple[Array, ...] | None,
    tokens: Array,
    parents: Array,
    allowed: Array | np.ndarray | None,
    row_node: Array,
    row_token: Array,
    total: Float[Array, "b r"],
    *,
    step: int,
):
    """Decodes the prefixes of one step and adds each row's token to its total.

    Prefix `i` ends with `tokens[i]` and extends prefix `parents[i]` of the step before. Row `r`
    goes on from prefix `row_node[r]` with `row_token[r]`; 0 is a row that has ended. A step is
    normalised over the tokens that are `allowed`, all if None.

    Returns:
      the totals [batch, rows], and per layer the keys and values of each prefix
      [batch, prefixes, step + 1, 2, heads, head_dim].
    """
    batch, prefixes = len(cross.mask), len(tokens)
    history = None
    if past is not None:
        # [batch, prefixes before, step, ...] -> [batch, prefixes, step, ...]
        past = tuple(x[:, parents] for x in past)
        slots = [x.reshape(batch, prefixes * step, *x.shape[3:]) for x in past]
        own = jnp.arange(prefixes * step).reshape(prefixes, step)
        history = Past(slots, jnp.broadcast_to(own, (batch, prefixes, step)))
    tokens = jnp.broadcast_to(tokens[:, None], (batch, prefixes, 1))
    hidden, new = decode_block(weights, tokens, step, cross, history)
    logits = output_logits(weights, hidden)[:, :, 0]
    if past is not None:
        new = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=2), past, new)
    norm = jax.nn.logsumexp(logits, axis=-1, where=allowed)  # [batch, prefixes]
    gain = logits[:, row_node, row_token] - norm[:, row_node]  # [batch, rows]
    return total + jnp.where(row_token > 0, gain, 0), new


def _bucket(n: int) -> int:
    return _SMALLEST << ((n - 1) // _SMALLEST).bit_length()


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, (0, size - len(x)))


class _Table:
    """Docids as tokens in sorted order, where the rows of a prefix stand side by side."""

    def __init__(self, vocab: int, docid_map: DocidMap, vocabulary: DocidVocabulary, score: Score):
        self.order = docid_map.sorted_order
        self.tokens = vocabulary.encode(docid_map.codes[self.order])  # [documents, steps]
        self.vocabulary, self.score, self.vocab = vocabulary, score, vocab
        # prefix[r, t]: number of the prefix of t tokens that row r has, among all of that length
        changes = self.tokens[1:] != self.tokens[:-1]
        changes = np.logical_or.accumulate(changes, axis=1)[:, :-1]
        self.prefix = np.zeros(self.tokens.shape, np.int32)
        self.prefix[1:, 1:] = np.cumsum(changes, axis=0)

    def allowed(self, step: int, low: int, high: int, size: int) -> np.ndarray | None:
        """Tokens over which prefixes `low` to `high` of a step are normalised."""
        if self.score == "full":
            return None
        if self.score == "level":
            allowed = np.zeros(self.vocab, bool)
            if step < len(self.vocabulary.level_sizes):
                start = self.vocabulary.offsets[step]
                allowed[start : start + self.vocabulary.level_sizes[step]] = True
            allowed[EOS_ID] = self.vocabulary.eos and step > 0
            return allowed
        # what follows these prefixes anywhere in the corpus: [prefixes, vocab]
        allowed = np.zeros((size, self.vocab), bool)
        rows = slice(
            np.searchsorted(self.prefix[:, step], low),
            np.searchsorted(self.prefix[:, step], high, side="right"),
        )
        allowed[self.prefix[rows, step] - low, self.tokens[rows, step]] = True
        allowed[:, 0] = False
        return allowed


def _score_block(
    weights: InferenceWeights, table: _Table, cross: CrossCache, rows: slice, size: int
) -> np.ndarray:
    """Totals [batch, rows] of some neighbouring rows, in arrays of `size` rows."""
    tokens, prefix = table.tokens[rows], table.prefix[rows]
    total, past = jnp.zeros((len(cross.mask), size)), None
    before = np.zeros(len(tokens), np.int32)  # each row's prefix in the step before
    for step in range(tokens.shape[1]):
        alive = tokens[:, step] > 0
        if not alive.any():
            break
        numbers, first, node = np.unique(prefix[:, step], return_index=True, return_inverse=True)
        width = _bucket(len(numbers)) if step else 1
        last = tokens[first, step - 1] if step else np.zeros(1, np.int32)
        total, past = _step(
            weights,
            cross,
            past,
            _pad(last, width),
            _pad(before[first], width),
            table.allowed(step, numbers[0], numbers[-1], width),
            _pad(node.astype(np.int32), size),
            _pad(tokens[:, step], size),
            total,
            step=step,
        )
        before = node.astype(np.int32)
    return np.asarray(total)[:, : len(tokens)]


def _blocks(
    weights: InferenceWeights, table: _Table, source: Int[np.ndarray, "n s"]
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Some queries, some neighbouring rows of the table, and their scores [queries, rows]."""
    config, (documents, steps) = weights.config, table.tokens.shape
    n = len(source)
    batch = min(n, _QUERIES)
    # what one more docid costs: its prefixes after the first, each with logits, keys and values
    kept = 2 * config.num_decoder_layers * config.num_heads * config.head_dim
    one = 4 * batch * ((steps - 1) * (kept + table.vocab) + 4)
    size = min(_bucket(documents), max(_bucket(_MEMORY // max(one, 1)) // 2, _SMALLEST))
    for i in range(0, n, _QUERIES):
        queries = source[i : i + _QUERIES]
        cross = _encode(weights, np.pad(queries, ((0, batch - len(queries)), (0, 0))))
        for start in range(0, documents, size):
            rows = slice(start, min(start + size, documents))
            scores = _score_block(weights, table, cross, rows, size)[: len(queries)]
            refuse_infinite(scores, config.dtype)
            yield slice(i, i + len(queries)), rows, scores


def score_all(
    weights: InferenceWeights,
    docid_map: DocidMap,
    source_tokens: Int[np.ndarray, "n s"],
    score: Score = "children",
    vocabulary: DocidVocabulary | None = None,
) -> Float[np.ndarray, "n documents"]:
    """Log-probability of every document's docid, for every query.

    A prefix is decoded once per block of neighbouring docids, not once per docid. The cost is still
    that of the corpus, not of a beam: for tests, and for corpora where that is bearable. A block's
    memory is bounded, whatever the corpus; what is returned is not: see `find_best`.

    Args:
      weights: the model.
      docid_map: the corpus.
      source_tokens: token ids [n, length]; 0 is padding.
      score: the normalisation, as in `BeamSearch`.
      vocabulary: the tokens of the codes; None for those of the map.

    Returns:
      float32 natural logarithms [n, documents], documents by row of `docid_map`.

    Raises:
      UserError: an unknown score, tokens that are none, or scores that are not finite.
    """
    source, table = _prepared(weights, docid_map, source_tokens, score, vocabulary)
    out = np.empty((len(source), len(docid_map)), np.float32)
    for queries, rows, scores in _blocks(weights, table, source):
        out[queries, table.order[rows]] = scores
    return out


def find_best(
    weights: InferenceWeights,
    docid_map: DocidMap,
    source_tokens: Int[np.ndarray, "n s"],
    score: Score = "children",
    vocabulary: DocidVocabulary | None = None,
    *,
    k: int,
) -> SearchResult:
    """The k best documents for every query, of `score_all` without all scores at a time.

    Equal scores are in the order of docids, then of the corpus, as those of `BeamSearch` are.

    Args:
      weights: the model.
      docid_map: the corpus.
      source_tokens: token ids [n, length]; 0 is padding.
      score: the normalisation, as in `BeamSearch`.
      vocabulary: the tokens of the codes; None for those of the map.
      k: documents per query; of a smaller corpus, all.

    Returns:
      `rows` and `scores` [n, min(k, documents)]; `beam` is the number of documents.

    Raises:
      UserError: as `score_all`.
    """
    source, table = _prepared(weights, docid_map, source_tokens, score, vocabulary)
    n, documents = len(source), len(docid_map)
    k = min(k, documents)
    places = np.zeros((n, k), np.int64)  # in sorted order
    best = np.zeros((n, k), np.float32)
    for queries, rows, scores in _blocks(weights, table, source):
        known = min(rows.start, k)  # which come first in sorted order, too
        new = np.broadcast_to(np.arange(rows.start, rows.stop), scores.shape)
        together = np.concatenate([best[queries, :known], scores], axis=1)
        order = np.argsort(-together, axis=1, kind="stable")[:, :k]
        found = np.concatenate([places[queries, :known], new], axis=1)
        places[queries, : order.shape[1]] = np.take_along_axis(found, order, axis=1)
        best[queries, : order.shape[1]] = np.take_along_axis(together, order, axis=1)
    return SearchResult(
        rows=table.order[places],
        scores=best,
        exact=np.ones(n, bool),
        beam=np.full(n, documents, np.int32),
    )


def _prepared(
    weights: InferenceWeights,
    docid_map: DocidMap,
    source_tokens: Int[np.ndarray, "n s"],
    score: Score,
    vocabulary: DocidVocabulary | None,
) -> tuple[np.ndarray, _Table]:
    if score not in SCORES:
        raise UserError(f"unknown score {score!r}: choose one of {', '.join(SCORES)}")
    vocab = weights.config.output_vocab_size
    table = _Table(vocab, docid_map, vocabulary or docid_map.vocabulary, score)
    return checked_source(source_tokens, len(weights.encoder.embedding)), table
