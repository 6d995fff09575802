"""Constrained decoding for t5x: a `decode_fn` that only gives docids.

t5x's own `decoding.beam_search` gives any sequence of tokens. With this in its place, a t5x model
answers with docids of a corpus, best last, as t5x wants them. `gin/t5x/gr_jax.gin` binds it, along
with the tasks of a prepared directory; by itself:

    from __gin__ import dynamic_registration
    import gr_jax.t5x
    from t5x import models

    models.EncoderDecoderModel.decode_fn = @gr_jax.t5x.constrained_beam_search
    gr_jax.t5x.constrained_beam_search.docids = '/corpus/docids'

t5x hands over a function from a token per beam to logits over the whole vocabulary, and a cache
with a row per beam. So every step costs what t5x's own does; `BeamSearch` shares what beams have in
common. Nothing here imports t5x.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from gr_jax.decoding import Score, Trie
from gr_jax.decoding._core import SCORES, search_trie
from gr_jax.docids import EOS_ID, DocidMap, DocidVocabulary
from gr_jax.errors import UserError

NO_ANSWER = -1.0e7  # t5x's score of a place that no sequence has taken

# Entries of a cache that all beams share, by name, as in t5x's `cache_map`.
_SHARED = ("cache_index", "cached_bias", "position_embedder_index")


@struct.dataclass
class DecodingState:
    """What `tokens_to_logits` takes: t5x's class of this name, field by field.

    Attributes:
      cur_index: the step, int32 [].
      sequences: 0, then the tokens so far, then zeros [batch * beam, max_decode_len + 1].
      cur_token: the last token of each [batch * beam, 1].
      cache: the model's, rows of a query's beams side by side.
    """

    cur_index: Array
    sequences: Int[Array, "bm t"]
    cur_token: Int[Array, "bm 1"]
    cache: Any


TokensToLogits = Callable[[Any], tuple[Array, Any]]


class _Docids:
    """The distinct docids of a saved map, each as one "document" of a trie."""

    def __init__(self, directory: str, eos: bool | None, first_tokens: tuple[int, ...] | None):
        docid_map = DocidMap.load(Path(directory))
        if not len(docid_map):
            raise UserError(f"{directory}: the docid map has no document")
        order, shared = docid_map.sorted_order, docid_map.shared_levels
        rows = order[shared < len(docid_map.level_sizes)]
        eos = docid_map.vocabulary.eos if eos is None else eos
        first_tokens = docid_map.first_tokens if first_tokens is None else first_tokens
        try:
            vocabulary = DocidVocabulary(docid_map.level_sizes, eos, first_tokens)
            names = tuple(map(str, range(len(rows))))
            distinct = DocidMap(names, docid_map.codes[rows], docid_map.level_sizes)
            self.trie = Trie.from_docid_map(distinct, vocabulary)
        except ValueError as error:
            raise UserError(f"{directory}: {error}") from error
        self.tokens = vocabulary.encode(distinct.codes)
        self.lengths = distinct.lengths.astype(np.int32)
        self.longest = int(self.lengths.max()) + eos


@functools.lru_cache(maxsize=4)
def _cached(written: Any, *args: Any) -> _Docids:
    return _Docids(*args)


def _load(directory: str, eos: bool | None, first_tokens: Sequence[int] | None) -> _Docids:
    """The docids, read once until the directory is written anew."""
    path = Path(directory).absolute()
    written = None
    if (header := path / "docid_map.json").exists():
        stat = header.stat()
        written = (stat.st_mtime_ns, stat.st_ino)
    first_tokens = None if first_tokens is None else tuple(first_tokens)
    return _cached(written, str(path), eos, first_tokens)


class _T5x:
    """A t5x model as `Model` of `_core`: every row of its cache is decoded in every step."""

    def __init__(self, tokens_to_logits: TokensToLogits, batch: int, beam: int, cache_offset: int):
        self.tokens_to_logits, self.offset = tokens_to_logits, cache_offset
        self.batch, self.beam = batch, beam

    def initial(self, cache: Any, length: int) -> tuple[Any, Array]:
        """The cache with a row per beam, and sequences without a token."""
        cache = _map_cache(lambda x: jnp.repeat(x, self.beam, axis=self.offset), cache)
        return cache, jnp.zeros((self.batch, self.beam, length + 1), jnp.int32)

    def decode(self, state, tokens, parents, step: int):
        """See `Model`; its hidden states are logits."""
        cache, sequences = state
        width = tokens.shape[1]
        # rows that no hypothesis has, repeat the first one's
        spare = ((0, 0), (0, self.beam - width))
        token = jnp.pad(tokens[:, :, 0], spare, mode="edge")  # [batch, beam]
        if parents is not None:
            parents = jnp.pad(parents, spare, mode="edge")
            cache = _map_cache(functools.partial(self._gather, parents=parents), cache)
            sequences = jnp.take_along_axis(sequences, parents[..., None], axis=1)
        sequences = sequences.at[:, :, step].set(token)
        rows = self.batch * self.beam
        logits, cache = self.tokens_to_logits(
            DecodingState(
                cur_index=jnp.array(step, jnp.int32),
                sequences=sequences.reshape(rows, -1),
                cur_token=token.reshape(rows, 1),
                cache=cache,
            )
        )
        # [batch * beam, vocab] -> [batch, width, 1, vocab]
        logits = logits.astype(jnp.float32).reshape(self.batch, self.beam, 1, -1)[:, :width]
        return logits, (cache, sequences)

    def _gather(self, x: Array, parents: Int[Array, "b m"]) -> Array:
        """The parents' rows of an entry of the cache."""
        shape, at = x.shape, self.offset
        x = x.reshape(*shape[:at], self.batch, self.beam, *shape[at + 1 :])
        # one query at a time: of a batch that is split over devices, each gathers from its own
        pick = jax.vmap(functools.partial(jnp.take, axis=at), in_axes=(at, 0), out_axes=at)
        return pick(x, parents).reshape(shape)

    def keep(self, state, new, parents, step: int):
        """See `Model`."""
        return new

    def logits(self, hidden, start: int, size: int | None) -> Array:
        """See `Model`."""
        return hidden[..., start : None if size is None else start + size]

    def log_norm(self, hidden) -> Array:
        """See `Model`."""
        return jax.nn.logsumexp(hidden, axis=-1)


def _map_cache(function: Callable[[Array], Array], cache: Any) -> Any:
    """A cache with its rows changed, and what all rows share left as it is."""

    def changed(path: tuple[Any, ...], x: Array) -> Array:
        shared = path and getattr(path[-1], "key", None) in _SHARED
        return x if shared else function(x)

    return jax.tree.map_with_path(changed, cache)


def constrained_beam_search(
    inputs: Int[Array, "b t"],
    cache: Mapping[str, Any],
    tokens_to_logits: TokensToLogits,
    eos_id: int = EOS_ID,
    num_decodes: int = 4,
    alpha: float = 0.0,
    max_decode_len: int | None = None,
    decode_rng: Array | None = None,
    cache_offset: int = 0,
    *,
    docids: str,
    eos: bool | None = None,
    first_tokens: Sequence[int] | None = None,
    score: Score = "full",
) -> tuple[Int[Array, "b n t"], Float[Array, "b n"]]:
    """A beam search over docids, in the place of t5x's `decoding.beam_search`.

    The beam is `num_decodes` wide; docids that are finished take no place in it. The docids become
    constants of the compiled program, since t5x has no way to hand them to it. Prompts are not
    supported: of `inputs`, only the shape is used. (There is no `initial_index`, so t5x does not
    prefill one either.)

    Args:
      inputs: [batch, max_decode_len]; see above.
      cache: the model's, with a row per query; behind the layers' axis if `cache_offset` is 1.
      tokens_to_logits: takes a `DecodingState` of `batch * num_decodes` rows; returns logits
        [batch * num_decodes, vocab] and the cache.
      eos_id: the end token, which is 1 in docid vocabularies.
      num_decodes: sequences per query, and width of the beam.
      alpha: t5x's brevity penalty; only 0, since docids are ranked by their probability.
      max_decode_len: length of the sequences; that of `inputs` if None.
      decode_rng: not used.
      cache_offset: axis of the rows in the cache's entries.
      docids: directory of a saved `DocidMap`.
      eos: whether the model was trained to end docids with the end token, whose probability then
        counts; None as the map has it.
      first_tokens: the token of code 0 of each level; None as the map has it: unless it says
        otherwise, levels one after another, from 2.
      score: over what the probabilities of a step are normalised, as in `BeamSearch`.

    Returns:
      sequences [batch, num_decodes, max_decode_len]: the tokens of a docid, the end token (whether
      trained or not, if there is room for it), zeros; the best last. And their log-probabilities
      [batch, num_decodes]. Documents with the same docid are one sequence. Where there are fewer
      docids than `num_decodes`, or fewer found, the first sequences are zeros with a score of
      -1e7, as t5x has it.

    Raises:
      UserError: the directory has no docid map, or the settings and it do not agree.
    """
    del decode_rng
    if eos_id != EOS_ID:
        raise UserError(f"eos_id is {eos_id}: the end token of docids is {EOS_ID}")
    if alpha != 0:
        raise UserError(f"alpha is {alpha}: docids are ranked by probability, with alpha 0")
    if score not in SCORES:
        raise UserError(f"unknown score {score!r}: choose one of {', '.join(SCORES)}")
    known = _load(docids, eos, first_tokens)
    batch, length = inputs.shape
    room = length  # in the cache too
    if max_decode_len is not None:
        length, room = max_decode_len, min(max_decode_len, length)
    if room < known.longest:
        raise UserError(
            f"{docids}: docids have up to {known.longest} tokens, and there is room for {room}: "
            "raise task_feature_lengths of the targets"
        )
    model = _T5x(_checked(tokens_to_logits, known, docids), batch, num_decodes, cache_offset)
    rows, scores, _ = search_trie(
        jax.tree.map(jnp.asarray, known.trie),
        model,
        model.initial(cache, length),
        batch,
        beam=num_decodes,
        k=num_decodes,
        score=score,
        whole=True,
    )
    found = rows >= 0
    rows = jnp.where(found, rows, 0)
    # [docids, levels or levels + 1] -> [batch, num_decodes, length]
    table = known.tokens[:, :length]
    sequences = jnp.pad(jnp.asarray(table)[rows], ((0, 0), (0, 0), (0, length - table.shape[1])))
    end = jnp.arange(length) == jnp.asarray(known.lengths)[rows][..., None]
    sequences = jnp.where(end, EOS_ID, sequences)
    sequences = jnp.where(found[..., None], sequences, 0)
    scores = jnp.where(found, scores, NO_ANSWER)
    return jnp.flip(sequences, axis=1), jnp.flip(scores, axis=1)


def _checked(tokens_to_logits: TokensToLogits, known: _Docids, directory: str) -> TokensToLogits:
    """The same function, refused if the model lacks tokens."""

    def checked(state):
        logits, cache = tokens_to_logits(state)
        size = known.trie.shape.vocabulary.size
        if logits.shape[-1] < size:
            raise UserError(
                f"{directory}: the model has {logits.shape[-1]} target tokens, the docids {size}"
            )
        return logits, cache

    return checked
