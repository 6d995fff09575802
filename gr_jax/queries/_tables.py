"""A corpus as arrays of word ids, which the samplers read with vectorised numpy."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from gr_jax.corpus import Corpus, words

# A sentence ends at . ! ? ; before something that starts a sentence; footnote marks may follow.
_SENTENCE_END = re.compile(r"(?<=[.!?;])(?:\[[^\]]*\])?\s+(?=[A-Z0-9\"(\'])")
_MIN_SENTENCE_WORDS = 4  # a shorter one joins the next
_WORD_WITH_CASE = re.compile(r"[^\W_]+")
_MAX_TITLE_WORDS = 8
_MAX_DOCUMENT_WORDS = 256
_VARIANTS = 4
NONE = -1  # no word here
MIN_QUERIES = 200  # with fewer training queries there is no learning how people ask

STOP_WORDS = frozenset(
    """a about above after again against all also an and any are as at be because been before being
    below between both but by can could did do does done down during each few for from further get
    had has have having he her here him his how i if in into is it its just least less like made
    make many may me might more most much must my no nor not now of off on once one ones only or
    other our out over own per same shall she should so some still such than that the their them
    then there these they this those through to too under until up us use used using very via was
    we were what when where which while who whom whose why will with within without would you
    your""".split()
)

# Commonest English suffixes, longest first, to find words of one family.
_SUFFIXES = tuple(
    sorted(
        """ations ation ments ment ingly ings ing edly ies ied ers er ors or ed es ly s e ion ions
        al""".split(),
        key=lambda suffix: (-len(suffix), suffix),
    )
)


def stem(word: str) -> str:
    """`word` without its commonest suffix, if at least four letters are left."""
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word


@dataclasses.dataclass(frozen=True)
class QuestionStyle:
    """How the users of a corpus phrase their queries, as word ids.

    Attributes:
      skeletons: [n, words] queries with their content words blanked out to -2, padded with -1.
      starts: [n, 3] first words of queries that are function words, padded with -1.
      function_words: function words, as often as queries have them.
      content_words: content words, as often as queries (or, without queries, documents) have them.
    """

    skeletons: Int[np.ndarray, "n words"]
    starts: Int[np.ndarray, "n 3"]
    function_words: Int[np.ndarray, " m"]
    content_words: Int[np.ndarray, " k"]


# Where a corpus has no training queries: how people start to ask for something.
_DEFAULT_STARTS = (
    "how do i",
    "how do i",
    "how can i",
    "how to",
    "how to",
    "what is the",
    "what is",
    "what are the",
    "what does",
    "which",
    "who was the",
    "who",
    "when did the",
    "when was",
    "where is",
    "where",
    "why",
    "is there a",
    "i want to",
    "i need to",
    "find the",
    "get the",
    "the",
    "a",
    "way to",
    "can i",
)
BLANK = -2


class WordTables:
    """Words, sentences and word statistics of a corpus and its training queries.

    Attributes:
      vocabulary: the words, by id.
      documents: [documents, words] word ids, `NONE` after the end.
      sentence: [documents, words] index of the sentence that each word stands in.
      capital: [documents, words] whether the word is written like a name.
      lengths: [documents] number of words.
      sentences: [documents] number of sentences.
      titles: [documents, 8] word ids of the title.
      idf: [vocabulary] inverse document frequency (BM25's).
      is_stop: [vocabulary] whether a word is a function word.
      queries: the training queries, as lists of word ids.
      query_rows: [queries] the document that each training query asks for.
    """

    def __init__(self, corpus: Corpus, training: Iterable[tuple[str, int]] = ()):
        """Reads the corpus and (query text, document row) pairs."""
        ids: dict[str, int] = {}

        def word_id(word: str) -> int:
            return ids.setdefault(word, len(ids))

        n = len(corpus)
        self.documents = np.full((n, _MAX_DOCUMENT_WORDS), NONE, np.int32)
        self.sentence = np.full_like(self.documents, NONE)
        self.capital = np.zeros(self.documents.shape, bool)
        self.titles = np.full((n, _MAX_TITLE_WORDS), NONE, np.int32)
        for row, document in enumerate(corpus.documents):
            for i, word in enumerate(words(document.title)[:_MAX_TITLE_WORDS]):
                self.titles[row, i] = word_id(word)
            self._read(row, document.text or document.title, word_id)
        self.lengths = (self.documents >= 0).sum(axis=1)
        self.sentences = self.sentence.max(axis=1, initial=0) + 1
        training = list(training)
        self.queries = [[word_id(w) for w in words(text)] for text, _ in training]
        self.query_rows = np.array([row for _, row in training], np.int64)
        self._start_ids = [[word_id(w) for w in s.split()] for s in _DEFAULT_STARTS]
        self.vocabulary: Sequence[str] = list(ids)
        self.is_stop: Bool[np.ndarray, " v"] = np.array([w in STOP_WORDS for w in ids], bool)

    def _read(self, row: int, text: str, word_id) -> None:
        position = sentence = 0
        for part in _SENTENCE_END.split(text):
            matches = list(_WORD_WITH_CASE.finditer(part))
            for i, match in enumerate(matches[: _MAX_DOCUMENT_WORDS - position]):
                word = match.group()
                # case folding may split or change a word: keep its first piece's id
                folded = words(word) or [word]
                self.documents[row, position] = word_id(folded[0])
                self.sentence[row, position] = sentence
                # the first word of a sentence is written large whatever it is
                self.capital[row, position] = word[0].isupper() and (
                    i > 0 or folded[0] not in STOP_WORDS
                )
                position += 1
            sentence += len(matches) >= _MIN_SENTENCE_WORDS
            if position >= _MAX_DOCUMENT_WORDS:
                break

    @functools.cached_property
    def document_counts(self) -> Int[np.ndarray, " v"]:
        """In how many documents each word stands, body and title together."""
        counts = np.zeros(len(self.vocabulary), np.int64)
        for body, title in zip(self.documents, self.titles, strict=True):
            present = np.unique(np.concatenate([body, title]))
            counts[present[present >= 0]] += 1
        return counts

    @functools.cached_property
    def idf(self) -> Float[np.ndarray, " v"]:
        """log(1 + (N - df + .5) / (df + .5)), df counting body and title."""
        n, df = len(self.documents), self.document_counts
        return np.log(1 + (n - df + 0.5) / (df + 0.5))

    @functools.cached_property
    def weight(self) -> Float[np.ndarray, "n words"]:
        """Idf of the content words of each document, 0 elsewhere."""
        content = (self.documents >= 0) & ~self.is_stop[self.documents]
        return np.where(content, self.idf[self.documents], 0.0)

    @functools.cached_property
    def variants(self) -> Int[np.ndarray, "v 4"]:
        """For each word some others of its family (`play`: plays, played, player), or itself."""
        families = collections.defaultdict(list)
        for i, word in enumerate(self.vocabulary):
            if not self.is_stop[i] and word.isalpha():
                families[stem(word)].append(i)
        table = np.tile(np.arange(len(self.vocabulary))[:, None], (1, _VARIANTS))
        for family in families.values():
            for position, i in enumerate(family):
                others = family[position + 1 :] + family[:position]
                if others:
                    table[i] = [others[j % len(others)] for j in range(_VARIANTS)]
        return table

    @functools.cached_property
    def query_counts(self) -> Int[np.ndarray, " v"]:
        """How often each word stands in the training queries."""
        flat = [w for query in self.queries for w in query]
        return np.bincount(flat, minlength=len(self.vocabulary)).astype(np.int64)

    @functools.cached_property
    def style(self) -> QuestionStyle:
        """Learnt from the training queries; a general one where there are hardly any."""
        if sum(bool(query) for query in self.queries) < MIN_QUERIES:
            starts = np.array([[*s, NONE, NONE, NONE][:3] for s in self._start_ids])
            function = np.array([w for s in self._start_ids for w in s])
            return QuestionStyle(
                skeletons=np.zeros((0, 1), np.int64),
                starts=starts,
                function_words=function,
                # people also use words that their document does not: any of the corpus's
                content_words=np.repeat(
                    np.arange(len(self.vocabulary)), self.document_counts * ~self.is_stop
                ),
            )
        return _learn_style(self.queries, self.query_counts, self.is_stop)


def _learn_style(
    queries: Sequence[Sequence[int]],
    counts: Int[np.ndarray, " v"],
    is_stop: Bool[np.ndarray, " v"],
    *,
    frequent: int = 200,
    longest: int = 24,
) -> QuestionStyle:
    function = is_stop.copy()
    function[np.argsort(-counts, kind="stable")[:frequent]] = True
    function &= counts > 0
    skeletons, starts = [], []
    for query in queries:
        blanked = [w if function[w] else BLANK for w in query]
        if 4 <= len(query) <= longest and 1 <= blanked.count(BLANK) <= 10:
            skeletons.append(blanked + [NONE] * (longest - len(query)))
        if query:
            opening = list(itertools.takewhile(lambda w: is_stop[w], query[1:3]))
            starts.append([query[0], *opening, NONE, NONE][:3])
    ids = np.arange(len(counts))
    return QuestionStyle(
        skeletons=np.array(skeletons, np.int64).reshape(-1, longest),
        starts=np.array(starts, np.int64).reshape(-1, 3),
        function_words=np.repeat(ids, counts * is_stop),
        content_words=np.repeat(ids, counts * ~is_stop),
    )
