"""Documents as indexing examples."""

from __future__ import annotations

from collections.abc import Iterator

from gr_jax.corpus import Corpus


def document_chunks(corpus: Corpus, *, words: int = 48) -> Iterator[tuple[str, int]]:
    """Yields (chunk, document row): overlapping windows of each document's title and text.

    Args:
      corpus: the documents.
      words: white-space separated words per window; windows start half a window apart, and the last
        one ends with the document.
    """
    for row, document in enumerate(corpus.documents):
        parts = document.body.split()
        last = max(len(parts) - words, 0)
        starts = [*range(0, last, max(words // 2, 1)), last]
        for start in starts:
            yield " ".join(parts[start : start + words]), row
