"""Document embeddings to cluster: TF-IDF + truncated SVD, or a file made elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gr_jax.corpus import Corpus
from gr_jax.errors import UserError


def tfidf_svd_embeddings(
    corpus: Corpus, *, dimensions: int = 128, seed: int = 0
) -> Float[np.ndarray, "n d"]:
    """Latent semantic analysis: log-scaled TF-IDF of title and text, reduced by truncated SVD.

    Args:
      corpus: the documents.
      dimensions: width asked for; small corpora give fewer.
      seed: of the randomised SVD.

    Returns:
      float32 [documents, dimensions] of unit length (zero where a document has no known word).
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    texts = [document.body for document in corpus.documents]
    vectorizer = TfidfVectorizer(
        sublinear_tf=True,
        stop_words="english",
        min_df=2 if len(texts) > 50 else 1,
        token_pattern=r"(?u)\b\w+\b",
        max_features=200_000,
    )
    try:
        tfidf: Any = vectorizer.fit_transform(texts)
    except ValueError:  # nothing but stop words: every document looks alike
        return np.zeros((len(texts), 1), np.float32)
    dimensions = min(dimensions, min(tfidf.shape) - 1)
    if dimensions < 1:
        return np.asarray(tfidf.todense(), np.float32)
    with np.errstate(invalid="ignore"):  # the variance of identical documents, which is not read
        reduced = TruncatedSVD(dimensions, random_state=seed).fit_transform(tfidf)
    return np.asarray(normalize(reduced), np.float32)


def load_embeddings(path: Path, documents: int) -> Float[np.ndarray, "n d"]:
    """Reads a `.npy` of one row per document, in corpus order.

    Raises:
      UserError: not a numeric 2-D array with `documents` finite rows.
    """
    path = Path(path)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such embeddings file") from error
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a .npy array ({error})") from error
    if array.ndim != 2 or not array.shape[1] or not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"{path}: expected floats [documents, dimensions], found {array.dtype} {array.shape}"
        )
    if len(array) != documents:
        raise UserError(
            f"{path}: {len(array)} rows for {documents} documents; embed the corpus's documents "
            "in the order of corpus.jsonl (documents without text left out)"
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is refused below
        array = np.asarray(array, np.float32)
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise UserError(f"{path}: row {int(np.argmin(finite))} is not finite")
    return array
