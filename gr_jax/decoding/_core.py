"""Beam search over a trie, for any model that gives logits: pure, static shapes, one level a step.

A hypothesis is *live* while something about it is undecided and *finished* when it is a docid whose
score is known. The live ones of a step compete for the beam. Finished ones wait in a pool, at no
cost, where only better finished ones displace them; so a short docid competes with long ones up to
the end. Nothing is computed for what is already decided:

- under `children`, a prefix with one docid below it is finished at once: its tail is forced;
- a live prefix that scores less than the k-th finished docid is dead, since scores only fall;
- the model runs on as many beams as are live in some query (rounded up to a few static widths), and
  not at all when none is;
- when every live prefix has one docid below it, all the tails go through the model in one pass.

None of this changes an answer.

Ties: of two docids with the same score the lexicographically smaller one (a prefix before its
extensions) comes first, and of two prefixes it is the one kept. For this the beam is held in
lexicographic order and not in order of score: top-k prefers the lower index. Documents that share a
docid come in corpus order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from gr_jax.decoding._atomic import rank_atomic
from gr_jax.decoding._trie import Subset, Trie, TrieShape
from gr_jax.docids import EOS_ID

Score = Literal["full", "level", "children"]
SCORES: tuple[Score, ...] = get_args(Score)
Ends = Literal["all", "ranked"]

_MOST_TAIL_ROWS = 1024  # queries x beams x tokens up to which one pass over the tails beats steps
_FEW_BRANCHING = 0.05  # of all docids: the first level with fewer is where tails begin
_NARROWED_FROM = 32  # beams from which a step is compiled for narrower widths too


class Model(Protocol):
    """A decoder that keeps what it needs of earlier steps in an opaque, immutable state."""

    def decode(
        self, state: Any, tokens: Int[Array, "b m q"], parents: Int[Array, "b m"] | None, step: int
    ) -> tuple[Any, Any]:
        """Takes the tokens that follow each beam's prefix.

        Args:
          state: after the step before; the initial one at step 0.
          tokens: decoder inputs of steps `step` to `step + q - 1`.
          parents: each beam's place among the beams of the step before; None at step 0.
          step: a Python int.

        Returns:
          Hidden states [batch, beam, q, ...] for `logits`, and what `keep` takes.
        """
        ...

    def keep(self, state: Any, new: Any, parents: Int[Array, "b m"] | None, step: int) -> Any:
        """The state after a step of one token; what was not decoded of it is zeros in `new`."""
        ...

    def logits(self, hidden: Any, start: int, size: int | None) -> Float[Array, "b m q v"]:
        """float32 logits of `size` tokens from `start` on; of all if None."""
        ...

    def log_norm(self, hidden: Any) -> Float[Array, "b m q"]:
        """`logsumexp` of the logits of all tokens."""
        ...


class _Live(NamedTuple):
    """The beam: prefixes of one length in lexicographic order, dead places last.

    Attributes:
      total: log-probability of the prefix, -inf in a dead place.
      node: its place in the trie's level, if it is branching.
      low: number of its first docid.
      high: number behind its last docid.
      token: its last token.
      parents: its place in the beam before; None for the root.
    """

    total: Float[Array, "b m"]
    node: Int[Array, "b m"]
    low: Int[Array, "b m"]
    high: Int[Array, "b m"]
    token: Int[Array, "b m"]
    parents: Int[Array, "b m"] | None


class _Pool(NamedTuple):
    """The best finished docids so far: scores, descending, and numbers, ties by number."""

    scores: Float[Array, "b k"]
    docids: Int[Array, "b k"]

    def add(self, scores: Float[Array, "b n"], docids: Callable[[Array], Array]) -> _Pool:
        """With more docids, in lexicographic order; `docids` numbers those of given indices."""
        size = self.scores.shape[1]
        index = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
        if scores.shape[1] > size:
            scores, index = jax.lax.top_k(scores, size)
        scores = jnp.concatenate([self.scores, scores], axis=1)
        numbers = jnp.concatenate([self.docids, docids(index)], axis=1)
        negative, numbers = jax.lax.sort((-scores, numbers), num_keys=2)
        return _Pool(-negative[:, :size], numbers[:, :size])


class _Result(NamedTuple):
    pool: _Pool
    dropped: Float[Array, " b"]  # best score of a prefix that fell out of the beam
    finite: Bool[Array, " b"]  # whether all that was scored so far has a log-probability


def _take(x: Array, index: Int[Array, "b m"]) -> Array:
    """[batch, n], [batch, m] -> [batch, m]; indices are in bounds."""
    return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


def _look_up(table: Array, index: Array) -> Array:
    """One entry of a flat trie array per index; indices are in bounds."""
    return table.at[index].get(mode="promise_in_bounds")


def _fan_out(shape: TrieShape, step: int) -> int:
    return max(shape.fan_outs[step], 1) if step < len(shape.nodes) else 1


def _most_live(shape: TrieShape, score: Score, step: int) -> int:
    """Prefixes of `step + 1` codes that can be live, at most."""
    levels = len(shape.vocabulary.level_sizes)
    if score == "children":
        return shape.branches[step] if step < len(shape.branches) else 0
    # with an end token, a prefix that may end is undecided too; but under "level", the end after
    # the last level is forced and costs nothing
    first = step if shape.vocabulary.eos and (score == "full" or step + 1 < levels) else step + 1
    return shape.docids if any(shape.ends[first:]) else 0


def beam_widths(shape: TrieShape, score: Score, beam: int) -> tuple[int, ...]:
    """Hypotheses that are live in each step: 1 at the root, never more than can exist."""
    widths = [1]
    for step in range(len(shape.vocabulary.level_sizes)):
        width = min(beam, _most_live(shape, score, step), widths[-1] * _fan_out(shape, step))
        if not width:
            break
        widths.append(width)
    return tuple(widths)


def _tail_step(shape: TrieShape, score: Score, widths: tuple[int, ...], batch: int) -> int | None:
    """The step at which to try all tails in one pass: the first with hardly a branching prefix."""
    if score == "children":
        return None  # a tail costs nothing
    for step in range(1, len(widths) - 1):
        branching = shape.branches[step - 1] if step <= len(shape.branches) else 0
        left = len(widths) - step
        few = (
            batch * widths[step] * left <= _MOST_TAIL_ROWS
            and branching < _FEW_BRANCHING * shape.docids
        )
        if few and step >= shape.tail_start:
            return step
    return None


def _buckets(width: int) -> tuple[int, ...]:
    """Numbers of beams for which a step is compiled; 0 stands for no step."""
    if width < _NARROWED_FROM:
        return (0, width)
    return (0, -(-width // 8), -(-width // 2), width)


class _Search:
    """One search while it is traced."""

    def __init__(
        self,
        trie: Trie,
        model: Model,
        batch: int,
        subset: Subset | None,
        group: Int[Array, " b"] | None,
        *,
        beam: int,
        k: int,
        score: Score,
        ends: Ends,
        whole: bool,
        mesh: Mesh | None = None,
    ):
        self.trie, self.model, self.batch, self.score = trie, model, batch, score
        self.beam, self.ends, self.whole, self.mesh = beam, ends, whole, mesh
        self.subset, self.group, self.legal = subset, None, jnp.ones((batch,), bool)
        if (subset is None) != (group is None):
            raise ValueError("a subset and the group of each query come together")
        if subset is not None and group is not None:
            # a query with a group that is not there, or one of other documents, gets no answer
            self.group = jnp.clip(group, 0, subset.groups - 1)
            self.legal = (group == self.group) & jnp.all(subset.identity == trie.identity)
        self.vocabulary = trie.shape.vocabulary
        self.levels = len(self.vocabulary.level_sizes)
        self.k = min(k, trie.shape.documents)
        self.size = min(k, trie.shape.docids)
        self.widths = beam_widths(trie.shape, score, beam)
        self.tail_step = None if whole else _tail_step(trie.shape, score, self.widths, batch)

    # --- the corpus, or the part of it that the request allows ------------------------------------

    def _before(self, docid: Array) -> Array:
        """How many allowed docids come before a number [batch, ...]."""
        if self.subset is None:
            return docid
        group = self.group
        assert group is not None
        return self.subset.allowed.rank(docid, group.reshape(-1, *(1,) * (docid.ndim - 1)))

    def _only(self, low: Array) -> Array:
        """The first allowed docid from `low` on, for a range that has one."""
        if self.subset is None:
            return low
        group = self.group
        assert group is not None
        place = self._before(low)
        group = jnp.broadcast_to(group.reshape(-1, *(1,) * (low.ndim - 1)), low.shape)
        return self.subset.select.at[group, place].get(mode="clip")

    # --- one step ---------------------------------------------------------------------------------

    def _children(self, step: int, live: _Live) -> tuple[Array, ...]:
        """Candidates below each beam: code, node, low, high, exists; each [batch, beam, fan_out].

        Beams with several docids below them have their children in the trie's level, the others
        have one candidate: the next code of their docid.
        """
        trie, shape = self.trie, self.trie.shape
        code = node = None
        low, high = live.low[..., None], live.high[..., None]
        exists = None
        branching = live.high - live.low > 1  # [batch, beam]
        if step < len(shape.nodes) and shape.nodes[step]:
            if step == 0:
                start = jnp.zeros_like(live.node)
                end = jnp.broadcast_to(trie.root_children, start.shape)
                branching = jnp.ones_like(branching)
            else:
                number = trie.branching[step - 1].rank(jnp.where(branching, live.node, 0))
                start = _look_up(trie.first_child[step - 1], number)
                end = _look_up(trie.first_child[step - 1], number + 1)
            places = jnp.arange(_fan_out(shape, step), dtype=jnp.int32)
            node = start[..., None] + places  # [batch, beam] -> [batch, beam, fan_out]
            exists = (node < end[..., None]) & branching[..., None]
            node = jnp.where(exists, node, 0)
            code = _look_up(trie.codes[step], node).astype(jnp.int32)
            last = node + 1 == end[..., None]
            below = _look_up(trie.lows[step], node)
            above = jnp.where(last, high, _look_up(trie.lows[step], node + 1))
            low = jnp.where(branching[..., None], below, low)
            high = jnp.where(branching[..., None], above, high)
        if step >= shape.tail_start:
            column = step - shape.tail_start
            tail = trie.tails.at[live.low, column].get(mode="promise_in_bounds").astype(jnp.int32)
            longer = _look_up(trie.lengths, live.low).astype(jnp.int32) > step
            first = ~branching & longer & (live.total > -jnp.inf)
            if code is None or exists is None or node is None:
                code, exists, node = tail[..., None], first[..., None], low
            else:
                alone = ~branching[..., None]
                code = jnp.where(alone, tail[..., None], code)
                place = jnp.arange(code.shape[-1]) == 0
                exists = jnp.where(alone, first[..., None] & place, exists)
        assert code is not None and node is not None and exists is not None
        low, high = (jnp.broadcast_to(x, code.shape) for x in (low, high))
        if self.subset is not None:
            exists &= self._before(high) > self._before(low)
        return code, node, low, high, exists

    def _may_end(self, step: int, live: _Live) -> Bool[Array, "b m"] | None:
        """Which prefixes of `step` codes are docids, where that costs an end token."""
        shape = self.trie.shape
        if not shape.vocabulary.eos or not step or not shape.ends[step - 1]:
            return None
        ends = _look_up(self.trie.lengths, live.low).astype(jnp.int32) == step
        if self.subset is not None:
            ends &= self._before(live.low + 1) > self._before(live.low)
        return ends & (live.total > -jnp.inf)

    def _decided(self, step: int, low: Array, high: Array) -> Array | None:
        """Which prefixes of `step + 1` codes are finished; None if none can be."""
        shape = self.trie.shape
        if self.score == "children":
            if self.subset is None:
                return high - low == 1
            return self._before(high) - self._before(low) == 1
        if shape.vocabulary.eos:
            forced = self.score == "level" and step + 1 == self.levels
            return jnp.ones(low.shape, bool) if forced else None
        if not shape.ends[step]:
            return None
        return _look_up(self.trie.lengths, low).astype(jnp.int32) == step + 1

    def _logits(
        self, step: int, hidden: Any, eos: bool
    ) -> tuple[Float[Array, "b m size"] | None, Float[Array, "b m"] | None]:
        """Of the level's codes, None after the last level; and of the end token, if asked for."""
        level = None
        if step < self.levels:
            offset, size = int(self.vocabulary.offsets[step]), self.vocabulary.level_sizes[step]
            level = self.model.logits(hidden, offset, size)[:, :, 0]
        return level, self.model.logits(hidden, EOS_ID, 1)[:, :, 0, 0] if eos else None

    def _log_probabilities(
        self,
        step: int,
        hidden: Any,
        code: Int[Array, "b m k"] | None,
        exists: Bool[Array, "b m k"] | None,
        ends: Bool[Array, "b m"] | None,
    ) -> tuple[Float[Array, "b m k"] | None, Float[Array, "b m"] | None, Bool[Array, "b m"]]:
        """Of each candidate and of ending, normalised as the score says; -inf if invalid.

        `code` and `exists` are None after the last level; `ends` is None where nothing may end.
        Last, which beams have finite logits: one that is not makes their norm so too.
        """
        needs_eos = ends is not None or (self.score == "level" and step > 0)
        level, eos = self._logits(step, hidden, needs_eos and self.vocabulary.eos)
        picked = norm = None
        if code is not None and level is not None:
            picked = jnp.take_along_axis(level, code, axis=2, mode="promise_in_bounds")
        if self.score == "full":
            norm = self.model.log_norm(hidden)[:, :, 0]
        elif self.score == "level":
            norm = _level_norm(level, eos)
        else:
            if picked is not None:
                norm = jax.nn.logsumexp(picked, axis=-1, where=exists)
            if ends is not None and eos is not None:
                end_logit = jnp.where(ends, eos, -jnp.inf)
                norm = end_logit if norm is None else jnp.logaddexp(norm, end_logit)
        assert norm is not None
        # a log-probability is never above 0, whatever the rounding: the certificate rests on it
        down = end = None
        if picked is not None and exists is not None:
            down = jnp.where(exists, jnp.minimum(picked - norm[..., None], 0), -jnp.inf)
        if ends is not None and eos is not None:
            end = jnp.where(ends, jnp.minimum(eos - norm, 0), -jnp.inf)
        return down, end, jnp.isfinite(norm)

    def _step(
        self, step: int, state: Any, live: _Live, result: _Result
    ) -> tuple[Any, _Live | None, _Result]:
        """Decodes one token of every live prefix, and chooses the next ones."""
        pool, dropped, finite = result
        width = live.total.shape[1]
        is_last = not any(self.trie.shape.ends[step:])
        candidates = None if is_last else self._children(step, live)
        ends = self._may_end(step, live)

        kept = step + 1 < len(self.widths)

        def run(beams: int):
            def head(x):
                return None if x is None else x[:, :beams]

            parents = head(live.parents)
            hidden, new = self.model.decode(state, live.token[:, :beams, None], parents, step)
            new = new if kept else None
            if beams < width:  # a whole beam's may have any form
                new = jax.tree.map(lambda x: _pad_beams(x, width, 0), new)
            code, exists = (None, None) if candidates is None else (candidates[0], candidates[4])
            *scores, sound = self._log_probabilities(
                step, hidden, head(code), head(exists), head(ends)
            )
            return (
                jax.tree.map(lambda x: _pad_beams(x, width, -jnp.inf), tuple(scores)),
                new,
                jnp.all(sound | (live.total[:, :beams] == -jnp.inf), axis=1),
            )

        if step > self._first_finish():
            buckets = (0, width) if self.whole else _buckets(width)
            count = jnp.max(jnp.sum(live.total > -jnp.inf, axis=1))
            shapes = jax.eval_shape(lambda: run(width))
            branches = [lambda b=b: run(b) if b else _nothing(shapes) for b in buckets]
            chosen = jnp.sum(count > jnp.array(buckets[:-1], jnp.int32))
            (down, end), new, sound = jax.lax.switch(chosen, branches)
        else:
            (down, end), new, sound = run(width)
        finite &= sound
        if kept:
            state = self.model.keep(state, new, live.parents, step)

        total = None
        if down is not None:
            # [batch, beam, fan_out] -> [batch, beam * fan_out], in lexicographic order
            total = (live.total[..., None] + down).reshape(self.batch, -1)
        if end is not None:
            end = live.total + end
            if self.ends == "ranked" and total is not None:
                end, dropped = self._ranked(end, total, dropped)
            pool = pool.add(end, lambda index: _take(live.low, index))
        if total is None or candidates is None:
            return state, None, _Result(pool, dropped, finite)
        code, node, low, high, _ = (x.reshape(self.batch, -1) for x in candidates)
        decided = self._decided(step, low, high)
        if decided is not None:
            finished = jnp.where(decided, total, -jnp.inf)
            pool = pool.add(finished, lambda index: self._only(_take(low, index)))
            total = jnp.where(decided, -jnp.inf, total)
        if step + 1 >= len(self.widths):
            return state, None, _Result(pool, dropped, finite)
        # "less", not "not more": a tie with the k-th is decided by docid
        total = jnp.where(total < pool.scores[:, -1:], -jnp.inf, total)
        width = self.widths[step + 1]
        best, index = jax.lax.top_k(total, min(width + 1, total.shape[1]))
        if best.shape[1] > width:
            dropped = jnp.maximum(dropped, best[:, width])
        index = index[:, :width]
        dead = best[:, :width] == -jnp.inf
        # lexicographic order (see "Ties" above), the dead behind
        index = jnp.sort(jnp.where(dead, index + total.shape[1], index), axis=1)
        dead = index >= total.shape[1]
        index = jnp.where(dead, index - total.shape[1], index)
        live = _Live(
            total=jnp.where(dead, -jnp.inf, _take(total, index)),
            node=_take(node, index),
            low=_take(low, index),
            high=_take(high, index),
            token=_take(code, index) + int(self.vocabulary.offsets[step]),
            parents=index // (total.shape[1] // live.total.shape[1]),
        )
        return state, live, _Result(pool, dropped, finite)

    def _ranked(
        self, end: Float[Array, "b m"], total: Float[Array, "b n"], dropped: Float[Array, " b"]
    ) -> tuple[Float[Array, "b m"], Float[Array, " b"]]:
        """The ends that are among the `beam` best candidates of their step; see `search_trie`."""
        every = jnp.concatenate([end, total], axis=1)
        if every.shape[1] <= self.beam:
            return end, dropped
        least = jax.lax.top_k(every, self.beam)[0][:, -1:]
        lost = jnp.where(end < least, end, -jnp.inf)
        return jnp.where(end < least, -jnp.inf, end), jnp.maximum(dropped, lost.max(axis=1))

    def _first_finish(self) -> int:
        """The first step at whose end a docid can be finished, or a prefix be dead."""
        shape = self.trie.shape
        if self.score == "children":
            return 0
        first = next(i for i, ends in enumerate(shape.ends) if ends)
        return first + shape.vocabulary.eos

    def _tails(self, step: int, state: Any, live: _Live, result: _Result) -> _Result:
        """Finishes every live prefix, each of which has one docid below it, in one pass."""
        trie, vocabulary = self.trie, self.vocabulary
        length = _look_up(trie.lengths, live.low).astype(jnp.int32)
        last = len(self.widths) - 1  # the last step that the model runs
        columns = slice(step - trie.shape.tail_start, None)
        # [batch, beam, levels - step]
        codes = _look_up(trie.tails, live.low)[..., columns].astype(jnp.int32)
        tokens = codes + jnp.array(vocabulary.offsets[step:], jnp.int32)
        inputs = jnp.concatenate([live.token[..., None], tokens], axis=2)[..., : last + 1 - step]
        hidden, _ = self.model.decode(state, inputs, live.parents, step)
        total = live.total
        norms = self.model.log_norm(hidden) if self.score == "full" else None
        finite = result.finite
        for i, now in enumerate(range(step, last + 1)):
            one = jax.tree.map(lambda x, i=i: x[:, :, i : i + 1], hidden)
            level, eos = self._logits(now, one, vocabulary.eos)
            norm = _level_norm(level, eos) if norms is None else norms[:, :, i]
            finite &= jnp.all(jnp.isfinite(norm) | (live.total == -jnp.inf), axis=1)
            if level is not None:
                code = codes[..., i : i + 1]
                logit = jnp.take_along_axis(level, code, axis=2, mode="clip")[..., 0]
                total += jnp.where(now < length, jnp.minimum(logit - norm, 0), 0)
            if eos is not None:
                total += jnp.where(now == length, jnp.minimum(eos - norm, 0), 0)
        pool = result.pool.add(total, lambda i: _take(live.low, i))
        return _Result(pool, result.dropped, finite)

    def run(self, state: Any, asked: Bool[Array, " b"] | None) -> tuple[Array, Array, Array]:
        """See `search_trie`."""
        if self.levels == 1 and not self.vocabulary.eos:
            pool, dropped, finite = self._atomic(state)
        else:
            root = self._root(asked)
            pool, dropped, finite = self._rest(0, state, root, self._nobody(), self.tail_step)
        rows, scores = self._documents(pool)
        # "above", not "equal": a tie with something unseen would be decided by docid
        exact = (scores[:, -1] > dropped) | (dropped == -jnp.inf)
        answered = finite & self.legal
        rows = jnp.where(answered[:, None], rows, -1)
        return rows, jnp.where(answered[:, None], scores, jnp.nan), exact & answered

    def _root(self, asked: Bool[Array, " b"] | None) -> _Live:
        """The prefix of no code: dead if no document is allowed, or nothing is asked."""
        zeros = jnp.zeros((self.batch, 1), jnp.int32)
        # behind the last node stands the number of docids, without padding
        high = zeros + self.trie.lows[0][-1]
        alive = self._before(high) > 0
        if asked is not None:
            alive &= asked[:, None]
        return _Live(jnp.where(alive, 0.0, -jnp.inf), zeros, zeros, high, zeros, None)

    def _nobody(self) -> _Result:
        """Nothing is finished, nothing dropped."""
        shape = (self.batch, self.size)
        pool = _Pool(jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32))
        return _Result(pool, jnp.full((self.batch,), -jnp.inf), jnp.ones((self.batch,), bool))

    def _atomic(self, state: Any) -> _Result:
        """One step over all docids of one code; see `rank_atomic`."""
        hidden, _ = self.model.decode(state, jnp.zeros((self.batch, 1, 1), jnp.int32), None, 0)
        scores, docids, finite = rank_atomic(
            self.trie,
            self.model.logits(hidden, 0, None)[:, 0, 0],
            score=self.score,
            k=self.size,
            subset=self.subset,
            group=self.group,
            mesh=self.mesh,
        )
        return self._nobody()._replace(pool=_Pool(scores, docids), finite=finite)

    def _rest(
        self, step: int, state: Any, live: _Live, result: _Result, tail_step: int | None
    ) -> _Result:
        """Everything from a step on."""
        while True:
            if step == tail_step:
                alone = (live.high - live.low == 1) | (live.total == -jnp.inf)
                tails = functools.partial(self._tails, step, state, live, result)
                steps = functools.partial(self._rest, step, state, live, result, None)
                return jax.lax.cond(jnp.all(alone), tails, steps)
            state, following, result = self._step(step, state, live, result)
            if following is None:
                return result
            live, step = following, step + 1

    def _documents(self, pool: _Pool) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
        """Ranked docids -> ranked documents: all of a docid's, in corpus order; then -1, -inf."""
        first_document, documents = self.trie.first_document, self.trie.documents
        found = pool.scores > -jnp.inf
        docids = jnp.where(found, pool.docids, 0)
        if first_document is None:
            return jnp.where(found, _look_up(documents, docids), -1), pool.scores
        group = jnp.zeros((self.batch, 1), jnp.int32)
        first_document, documents = first_document[None], documents[None]
        if self.subset is not None and self.group is not None:
            assert self.subset.first_document is not None and self.subset.documents is not None
            first_document, documents = self.subset.first_document, self.subset.documents
            group = self.group[:, None]
        first = first_document[group, docids]
        count = jnp.where(found, first_document[group, docids + 1] - first, 0)
        return rank_documents(pool.scores, first, count, lambda i: documents[group, i], self.k)


def rank_documents(
    scores: Float[Array, "b n"],
    first: Int[Array, "b n"],
    count: Int[Array, "b n"],
    documents: Callable[[Array], Array],
    k: int,
) -> tuple[Int[Array, "b k"], Float[Array, "b k"]]:
    """The documents of ranked groups: `count` ones from `first` on of each, k in all."""
    count = jnp.minimum(count, k)
    end = jnp.cumsum(count, axis=1)
    place = jnp.arange(k, dtype=jnp.int32)
    # the group of a place is the first one whose documents end after it: [batch, k]
    rank = jax.vmap(lambda e: jnp.searchsorted(e, place, side="right"))(end)
    valid = place < end[:, -1:]
    rank = jnp.minimum(rank, scores.shape[1] - 1)
    index = jnp.where(valid, _take(first, rank) + place - _take(end - count, rank), 0)
    return jnp.where(valid, documents(index), -1), jnp.where(valid, _take(scores, rank), -jnp.inf)


def _level_norm(
    level: Float[Array, "b m size"] | None, eos: Float[Array, "b m"] | None
) -> Float[Array, "b m"]:
    """`logsumexp` of what a level allows; one of them is there."""
    if level is None:
        assert eos is not None
        return eos
    norm = jax.nn.logsumexp(level, axis=-1)
    return norm if eos is None else jnp.logaddexp(norm, eos)


def _pad_beams(x: Array, width: int, value: float) -> Array:
    """[batch, beam, ...] -> [batch, width, ...]."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, width - x.shape[1])
    return jnp.pad(x, padding, constant_values=value)


def _nothing(shapes: Any) -> Any:
    """What a step gives when nothing is live."""
    scores, new, finite = shapes
    return (
        jax.tree.map(lambda s: jnp.full(s.shape, -jnp.inf, s.dtype), scores),
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), new),
        jnp.ones(finite.shape, bool),
    )


def search_trie(
    trie: Trie,
    model: Model,
    state: Any,
    batch: int,
    *,
    beam: int,
    k: int,
    score: Score,
    subset: Subset | None = None,
    group: Int[Array, " b"] | None = None,
    ends: Ends = "all",
    whole: bool = False,
    asked: Bool[Array, " b"] | None = None,
    mesh: Mesh | None = None,
) -> tuple[Int[Array, "b k"], Float[Array, "b k"], Array]:
    """Ranks the documents of a trie for each query; to be traced by `jax.jit`.

    Args:
      trie: the valid docids.
      model: the decoder.
      state: the decoder's initial state.
      batch: number of queries.
      beam: live hypotheses per query.
      k: documents per query.
      score: over what the probabilities of a step are normalised.
      subset: the documents that may be returned; all if None.
      group: which of the subset's groups each query may see [batch]; with `subset` only.
      ends: whether every docid that a live prefix can end as is kept, or only if its end is ranked
        among the `beam` best candidates of its step, prefixes included. "all" never has a worse
        document at a rank; "ranked" is Hugging Face's rule (and its greedy search at `beam` 1).
      whole: only decode whole beams, one token at a time; for a model that cannot do less.
      asked: which queries are none of the batch's padding, for which nothing is found, and no step
        is made; all if None.
      mesh: whose `model` axis the target vocabulary is split over, and queries over the others;
        None on a single device.

    Returns:
      rows [batch, k], -1 where there is none; log-probabilities [batch, k], descending, -inf where
      there is none; and whether the k documents are certainly the best of the whole corpus, as this
      program adds up [batch]. A query whose logits are not finite, whose group is not one of the
      subset's, or whose subset is another trie's has no row, only NaN for scores, and is not
      certain.
    """
    settings: Any = {"beam": beam, "k": k, "score": score, "ends": ends, "whole": whole}
    search = _Search(trie, model, batch, subset, group, mesh=mesh, **settings)
    rows, scores, exact = search.run(state, asked)
    missing = ((0, 0), (0, k - rows.shape[1]))
    scores = jnp.pad(scores, missing, constant_values=-np.inf)
    return (
        jnp.pad(rows, missing, constant_values=-1),
        jnp.where(jnp.isnan(scores[:, :1]), jnp.nan, scores),
        exact,
    )
