"""BM25: the canary that tells whether a data set was read right, and the opponent."""

from __future__ import annotations

import contextlib
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gr_jax.errors import UserError

if TYPE_CHECKING:
    from gr_jax.corpus import Corpus, QuerySet

_WARM_UP_QUERIES = 5


class BM25:
    """BM25 over title and text: Lucene's variant, k1 = 1.5, b = 0.75, English stop words.

    These are the defaults of bm25s. Documents with equal scores rank in the order of the corpus,
    and documents that share no word with the query are not ranked.
    """

    def __init__(self, corpus: Corpus, stemmer: str | None = None):
        """Builds the index.

        Args:
            corpus: The documents.
            stemmer: A Snowball stemmer of PyStemmer, such as "english"; None for whole words.

        Raises:
            UserError: If the corpus has no document or the stemmer is unknown.
        """
        if not corpus.documents:
            raise UserError(f"the corpus {corpus.name!r} has no document: BM25 cannot index it")
        self._doc_ids = [document.doc_id for document in corpus.documents]
        self._stemmer = _load_stemmer(stemmer)
        words = self._words([f"{d.title} {d.text}" for d in corpus.documents])
        self._index = _load_bm25s().BM25()
        if any(words):  # bm25s cannot index a corpus without any word
            self._index.index(words, show_progress=False)
        else:
            self._index = None

    def search(self, queries: Sequence[str], k: int = 100) -> list[list[tuple[str, float]]]:
        """Ranks documents for each query.

        Args:
            queries: The texts.
            k: How many documents to return at most.

        Returns:
            Up to k (document id, score) pairs for each query, best first; fewer where fewer
            documents share a word with the query, none where no word of it is known.
        """
        return [self._best(words, k) for words in self._words(queries)]

    def rank(
        self, query_set: QuerySet, k: int = 100
    ) -> tuple[dict[str, list[tuple[str, float]]], float]:
        """Ranks documents for a whole query set, one query at a time, as a user would wait.

        Args:
            query_set: The queries.
            k: How many documents to return for each query at most.

        Returns:
            The run, and the median milliseconds from a query's text to its ranked documents,
            measured after a warm-up.

        Raises:
            UserError: If the query set is empty.
        """
        if not query_set.queries:
            raise UserError(f"the query set {query_set.name!r} has no query: nothing to rank")
        for query in query_set.queries[:_WARM_UP_QUERIES]:
            self.search([query.text], k)
        run, seconds = {}, []
        for query in query_set.queries:
            start = time.perf_counter()
            run[query.query_id] = self.search([query.text], k)[0]
            seconds.append(time.perf_counter() - start)
        return run, 1000 * statistics.median(seconds)

    @property
    def index_bytes(self) -> int:
        """The size of the index's arrays (without its vocabulary and the document ids)."""
        if self._index is None:
            return 0
        return sum(self._index.scores[name].nbytes for name in ("data", "indices", "indptr"))

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        """The words that count, of each text."""
        return _load_bm25s().tokenize(
            list(texts),
            stopwords="en",
            stemmer=self._stemmer,
            return_ids=False,
            show_progress=False,
        )

    def _best(self, words: list[str], k: int) -> list[tuple[str, float]]:
        """The best documents for one query's words."""
        ids = self._index.get_tokens_ids(words) if self._index is not None else []
        if self._index is None or not ids or k < 1:
            return []
        scores = self._index.get_scores_from_ids(ids)  # [documents]
        found = np.flatnonzero(scores > 0)  # in the order of the corpus, which breaks ties
        if len(found) > k:
            least = np.partition(scores[found], -k)[-k]
            found = found[scores[found] >= least]
        found = found[np.argsort(-scores[found], kind="stable")[:k]]
        return [(self._doc_ids[i], float(scores[i])) for i in found]


def _load_stemmer(language: str | None) -> Any:
    """PyStemmer's stemmer of a language."""
    if language is None:
        return None
    import Stemmer

    try:
        return Stemmer.Stemmer(language)
    except KeyError:
        names = ", ".join(Stemmer.algorithms())
        raise UserError(f"unknown stemmer {language!r}: use one of {names}") from None


def _load_bm25s() -> Any:
    """Imports bm25s without what its import does beside: a JAX computation and debug logging."""
    if "bm25s" not in sys.modules:
        with _hidden_jax():
            import bm25s
        logging.getLogger("bm25s").setLevel(logging.WARNING)
    import bm25s

    return bm25s


@contextlib.contextmanager
def _hidden_jax() -> Iterator[None]:
    """Makes `import jax` fail inside the block.

    bm25s, where it finds JAX, runs a top-k on it while it is imported. That would claim the
    accelerator for a process that only counts words, and on several hosts it would come before
    `jax.distributed.initialize`, which then refuses to run. Without JAX it uses numpy.
    """
    missing = object()
    jax: Any = sys.modules.get("jax", missing)
    sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if jax is missing:
            del sys.modules["jax"]
        else:
            sys.modules["jax"] = jax
