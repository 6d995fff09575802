"""Which words of a passage people ask with: a logistic model learnt from training queries."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from gr_jax.queries._tables import MIN_QUERIES, WordTables

_SUFFIX_FEATURES = ("ing", "ed", "ly", "tion", "s")
_SHARED = 7  # features that also interact with "stands in the sentence that is asked about"
_MAX_ROWS = 250_000
IMPOSSIBLE = -99.0  # log-odds of a position without a word


@dataclasses.dataclass(frozen=True)
class AskedLogits:
    """Log-odds that a word of a document stands in a query about one of its sentences.

    Attributes:
      inside: [documents, words] for words of that sentence.
      beside: [documents, words] for words of a neighbouring sentence.
      elsewhere: [documents, words] for all others.
    """

    inside: Float[np.ndarray, "n words"]
    beside: Float[np.ndarray, "n words"]
    elsewhere: Float[np.ndarray, "n words"]


def learn_asked_words(tables: WordTables, *, seed: int = 0) -> AskedLogits | None:
    """Fits the model; None where there are too few training queries to learn from.

    A query is taken to be about the sentence of its document with which it shares most idf.
    """
    if len(tables.queries) < MIN_QUERIES:
        return None
    from sklearn.linear_model import LogisticRegression

    rates = _query_log_ratio(tables)
    suffixes = np.array(
        [[w.endswith(s) for s in _SUFFIX_FEATURES] for w in tables.vocabulary], np.float64
    )
    features, labels = [], []
    for query, row in zip(tables.queries, tables.query_rows, strict=True):
        n = tables.lengths[row]
        if not n:  # a document of nothing but punctuation
            continue
        ids = tables.documents[row, :n]
        hit = np.isin(ids, query)
        shared = np.bincount(tables.sentence[row, :n], weights=hit * tables.idf[ids])
        features.append(_features(tables, rates, suffixes, row, int(shared.argmax())))
        labels.append(hit)
    if not features:
        return None
    x, y = np.concatenate(features), np.concatenate(labels)
    if y.all() or not y.any():
        return None
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    chosen = np.random.default_rng(seed).permutation(len(y))[:_MAX_ROWS]
    fitted = LogisticRegression(max_iter=100).fit((x[chosen] - mean) / scale, y[chosen])
    weights = fitted.coef_[0] / scale
    intercept = fitted.intercept_[0] - weights @ mean
    plain = x.shape[1] - 2 - _SHARED
    logits = AskedLogits(*(np.full(tables.documents.shape, IMPOSSIBLE) for _ in range(3)))
    for row, n in enumerate(tables.lengths):
        f = _features(tables, rates, suffixes, row, sentence=-9)
        base = f @ weights + intercept
        logits.elsewhere[row, :n] = base
        logits.beside[row, :n] = base + weights[plain + 1]
        logits.inside[row, :n] = base + weights[plain] + f[:, :_SHARED] @ weights[plain + 2 :]
    return logits


def _query_log_ratio(tables: WordTables) -> Float[np.ndarray, " v"]:
    """Log of a word's share of the queries over its share of the corpus, smoothed."""
    corpus = np.bincount(
        tables.documents[tables.documents >= 0], minlength=len(tables.vocabulary)
    ).astype(np.float64)
    queries = tables.query_counts.astype(np.float64)
    return np.log((queries + 0.05) / max(queries.sum(), 1)) - np.log(
        (corpus + 0.5) / max(corpus.sum(), 1)
    )


def _features(
    tables: WordTables,
    rates: Float[np.ndarray, " v"],
    suffixes: Float[np.ndarray, "v s"],
    row: int,
    sentence: int,
) -> Float[np.ndarray, "words f"]:
    """Features of a document's words, given the sentence that is asked about."""
    n = tables.lengths[row]
    ids = tables.documents[row, :n]
    idf = tables.idf[ids]
    capital = tables.capital[row, :n].astype(np.float64)
    distance = np.abs(tables.sentence[row, :n] - sentence)
    texts = [tables.vocabulary[i] for i in ids]
    shared = np.stack(
        [
            idf,
            idf**2 / 5,
            np.log(np.bincount(ids)[ids]) if n else np.zeros(0),
            capital,
            np.array([t[0].isdigit() for t in texts], np.float64),
            np.array([len(t) for t in texts]) / 10.0,
            tables.is_stop[ids].astype(np.float64),
        ],
        axis=1,
    )
    others = np.stack(
        [
            np.isin(ids, tables.titles[row]).astype(np.float64),
            rates[ids],
            rates[ids] * idf,
            idf * capital,
            np.arange(n) / max(n, 1),
        ],
        axis=1,
    )
    inside = (distance == 0).astype(np.float64)[:, None]
    beside = (distance == 1).astype(np.float64)[:, None]
    return np.concatenate([shared, others, suffixes[ids], inside, beside, shared * inside], axis=1)
