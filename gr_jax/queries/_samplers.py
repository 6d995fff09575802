"""Samplers of query words: each maps document rows [batch] to word ids [batch, slots].

`NONE` (-1) marks an empty slot. None of them needs a pretrained model. Where training queries
exist, words are drawn as those queries drew theirs (`_asked.py`), otherwise by idf.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from gr_jax.queries._asked import IMPOSSIBLE, AskedLogits, learn_asked_words
from gr_jax.queries._tables import BLANK, NONE, WordTables

Rows = Int[np.ndarray, " batch"]
Slots = Int[np.ndarray, "batch slots"]
_FAR = 10**6  # a position after every word


@dataclasses.dataclass(frozen=True)
class Samplers:
    """The samplers over one corpus.

    Attributes:
      tables: the corpus.
      asked: which words get asked; None where there are no training queries.
      most_terms: content words of a `terms` query at most.
    """

    tables: WordTables
    asked: AskedLogits | None
    most_terms: int = 10

    @classmethod
    def of(cls, tables: WordTables, seed: int, *, most_terms: int = 10) -> Samplers:
        """Learns what there is to learn from the training queries."""
        return cls(tables, learn_asked_words(tables, seed=seed), most_terms)

    @property
    def by_name(self) -> dict[str, Callable[[np.random.Generator, Rows], Slots]]:
        """The samplers that this corpus can have."""
        samplers: dict[str, Callable[[np.random.Generator, Rows], Slots]] = {
            "terms": functools.partial(self.terms, most=self.most_terms),
            "span": functools.partial(self.span, low=4, high=16),
            "cloze": self.cloze,
            "sentence": self.whole_sentence,
        }
        if self.asked is not None:
            samplers["asked"] = self.asked_words
            if len(self.tables.style.skeletons):
                samplers["skeleton"] = self.skeleton
        return samplers

    def terms(
        self, rng: np.random.Generator, rows: Rows, *, fewest: int = 2, most: int = 10
    ) -> Slots:
        """A few content words of a sentence, of two neighbouring ones, or of the whole document.

        Drawn without replacement with weights idf^1.5, in text order or shuffled, with question
        words before and function words between.
        """
        t = self.tables
        batch = len(rows)
        sentence = self._any_sentence(rng, rows)[:, None]
        u = rng.random(batch)[:, None]
        reach = np.where(u < 0.6, 0, np.where(u < 0.85, 1, _FAR))
        after = t.sentence[rows] - sentence
        near = (after <= reach) & ((after >= 0) | (reach == _FAR))
        weight = t.weight[rows]
        noise = rng.gumbel(size=weight.shape)
        score = np.where(near & (weight > 0), noise + 1.5 * np.log(weight + 1e-9), IMPOSSIBLE)
        positions = _best_positions(score, rng.integers(fewest, most + 1, batch), most)
        return self._dress(rng, _maybe_shuffled(rng, self._words_at(rows, positions), 0.5))

    def asked_words(
        self, rng: np.random.Generator, rows: Rows, *, boost: float = 0.4, most: int = 14
    ) -> Slots:
        """Each word of the document joins with the probability that people ask with it."""
        batch = len(rows)
        logits = self._asked_about(rng, rows)
        z = logits + rng.logistic(size=logits.shape) + boost + 0.3 * rng.normal(size=(batch, 1))
        z = np.where(logits > IMPOSSIBLE, z, IMPOSSIBLE)
        positions = _best_positions(z, np.clip((z > 0).sum(axis=1), 2, most), most)
        chosen = self._words_at(rows, positions)
        stop = (chosen != NONE) & self.tables.is_stop[chosen]
        chosen = np.where(stop & (rng.random(chosen.shape) < 0.5), NONE, chosen)
        return self._dress(rng, _maybe_shuffled(rng, chosen, 0.5))

    def skeleton(self, rng: np.random.Generator, rows: Rows) -> Slots:
        """A training query's function words, with words of this document in its blanks."""
        style = self.tables.style
        skeletons = style.skeletons[rng.integers(0, len(style.skeletons), len(rows))]
        blank = skeletons == BLANK
        most = 10
        ids = self.tables.documents[rows]
        logits = self._asked_about(rng, rows)
        logits = np.where(self.tables.is_stop[ids], IMPOSSIBLE, logits)
        score = np.where(logits > IMPOSSIBLE, logits + rng.gumbel(size=logits.shape), IMPOSSIBLE)
        chosen = self._words_at(rows, _best_positions(score, blank.sum(axis=1), most))
        chosen = _packed_left(_maybe_shuffled(rng, chosen, 0.3))
        slot = np.clip(blank.cumsum(axis=1) - 1, 0, most - 1)
        return np.where(blank, np.take_along_axis(chosen, slot, axis=1), skeletons)

    def span(self, rng: np.random.Generator, rows: Rows, *, low: int, high: int) -> Slots:
        """`low` to `high` words as they stand in the document."""
        t = self.tables
        length = np.minimum(rng.integers(low, high + 1, len(rows)), t.lengths[rows])
        start = (rng.random(len(rows)) * (t.lengths[rows] - length + 1)).astype(np.int64)
        offset = np.arange(high)[None]
        at = np.minimum(start[:, None] + offset, t.documents.shape[1] - 1)
        return np.where(offset < length[:, None], t.documents[rows[:, None], at], NONE)

    def cloze(self, rng: np.random.Generator, rows: Rows) -> Slots:
        """A span with some words cut out, as if asked for, after question words."""
        span = self.span(rng, rows, low=7, high=20)
        start = rng.integers(1, 5, len(rows))[:, None]
        stop = start + rng.integers(1, 4, len(rows))[:, None]
        offset = np.arange(span.shape[1])[None]
        span = np.where((offset >= start) & (offset < stop), NONE, span)
        function = (span != NONE) & self.tables.is_stop[span]
        span = np.where(function & (rng.random(span.shape) < 0.3), NONE, span)
        return np.concatenate([self._starts(rng, len(rows)), span], axis=1)

    def whole_sentence(self, rng: np.random.Generator, rows: Rows, *, most: int = 40) -> Slots:
        """One sentence as it is, up to `most` words."""
        t = self.tables
        sentence = self._any_sentence(rng, rows)[:, None]
        first = (t.sentence[rows] == sentence).argmax(axis=1)[:, None]
        at = np.minimum(first + np.arange(most)[None], t.documents.shape[1] - 1)
        inside = np.take_along_axis(t.sentence[rows], at, axis=1) == sentence
        return np.where(inside, np.take_along_axis(t.documents[rows], at, axis=1), NONE)

    def vary(
        self,
        rng: np.random.Generator,
        rows: Rows,
        slots: Slots,
        *,
        title: float = 0.2,
        variant: float = 0.1,
        drop: float = 0.03,
        noise: float = 0.5,
    ) -> Slots:
        """Makes queries less literal.

        Args:
          rng: the source of randomness.
          rows: the documents.
          slots: the queries.
          title: probability that (most of) the title's words join, before or after.
          variant: probability that a word becomes another of its family.
          drop: probability that a word is left out.
          noise: expected number of foreign words, drawn from `QuestionStyle.content_words`.

        Returns:
          The queries, in more slots.
        """
        t, batch = self.tables, len(rows)
        other = t.variants[slots, rng.integers(0, t.variants.shape[1], slots.shape)]
        slots = np.where((slots != NONE) & (rng.random(slots.shape) < variant), other, slots)
        slots = np.where(rng.random(slots.shape) < drop, NONE, slots)
        named = (rng.random((batch, 1)) < title) & (rng.random(t.titles[rows].shape) < 0.8)
        names = np.where(named, t.titles[rows], NONE)
        in_front = rng.random((batch, 1)) < 0.5
        parts = [np.where(in_front, names, NONE), slots, np.where(in_front, NONE, names)]
        if len(foreign := t.style.content_words) and noise:
            extra = foreign[rng.integers(0, len(foreign), (batch, 3))]
            wanted = np.arange(3)[None] < rng.poisson(noise, batch)[:, None]
            parts.insert(2, np.where(wanted, extra, NONE))
        return np.concatenate(parts, axis=1)

    def _any_sentence(self, rng: np.random.Generator, rows: Rows) -> Int[np.ndarray, " batch"]:
        return (rng.random(len(rows)) * self.tables.sentences[rows]).astype(np.int64)

    def _asked_about(
        self, rng: np.random.Generator, rows: Rows
    ) -> Float[np.ndarray, "batch words"]:
        """Log-odds of every word, for a query about one of the document's sentences."""
        assert self.asked is not None
        distance = np.abs(self.tables.sentence[rows] - self._any_sentence(rng, rows)[:, None])
        return np.where(
            distance == 0,
            self.asked.inside[rows],
            np.where(distance == 1, self.asked.beside[rows], self.asked.elsewhere[rows]),
        )

    def _words_at(self, rows: Rows, positions: Int[np.ndarray, "batch slots"]) -> Slots:
        t = self.tables
        inside = np.minimum(positions, t.documents.shape[1] - 1)
        return np.where(positions < _FAR, t.documents[rows[:, None], inside], NONE)

    def _starts(self, rng: np.random.Generator, batch: int) -> Slots:
        starts = self.tables.style.starts
        return starts[rng.integers(0, len(starts), batch)]

    def _dress(
        self, rng: np.random.Generator, chosen: Slots, *, start: float = 0.65, between: float = 0.25
    ) -> Slots:
        """Puts question words before and function words between."""
        batch, k = chosen.shape
        out = np.full((batch, 3 + 2 * k), NONE)
        out[:, :3] = np.where(rng.random((batch, 1)) < start, self._starts(rng, batch), NONE)
        out[:, 3::2] = chosen
        words = self.tables.style.function_words
        if len(words):
            linking = words[rng.integers(0, len(words), chosen.shape)]
            wanted = (chosen != NONE) & (rng.random(chosen.shape) < between)
            out[:, 4::2] = np.where(wanted, linking, NONE)
        return out


def _best_positions(
    score: Float[np.ndarray, "batch words"], count: Int[np.ndarray, " batch"], most: int
) -> Int[np.ndarray, "batch most"]:
    """The `count` best-scored positions of each row, in text order; `_FAR` fills up."""
    most = min(most, score.shape[1])
    index = np.argpartition(-score, most - 1, axis=1)[:, :most]
    value = np.take_along_axis(score, index, axis=1)
    order = np.argsort(-value, axis=1, kind="stable")
    index = np.take_along_axis(index, order, axis=1)
    value = np.take_along_axis(value, order, axis=1)
    wanted = (np.arange(most)[None] < count[:, None]) & (value > IMPOSSIBLE / 2)
    return np.sort(np.where(wanted, index, _FAR), axis=1)


def _maybe_shuffled(rng: np.random.Generator, slots: Slots, probability: float) -> Slots:
    chosen = rng.random(len(slots))[:, None] < probability
    order = rng.random(slots.shape).argsort(axis=1)
    return np.where(chosen, np.take_along_axis(slots, order, axis=1), slots)


def _packed_left(slots: Slots) -> Slots:
    """Words before empty slots, in their order."""
    order = np.argsort(slots == NONE, axis=1, kind="stable")
    return np.take_along_axis(slots, order, axis=1)
