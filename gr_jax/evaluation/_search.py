"""What the search costs in quality: its answers beside those of scoring every document."""

from __future__ import annotations

import dataclasses

import numpy as np

_DEPTH = 10  # of a ranking, what people see of it

SEARCH_NOTE = (
    "certified: the share of queries whose ranking is proven to be the best of all documents, in "
    "order; beam recall: the share of the ten best documents, known from scoring every one, that "
    "the search finds (- where that was not measured; a little below 1 may be rounding only)."
)
"""The figures of `SearchQuality` for people."""


@dataclasses.dataclass(frozen=True)
class SearchQuality:
    """How near the search of a split came to scoring every document.

    Attributes:
        certified: The share of queries whose ranking is certainly exact, by the search's own sums.
        beam_recall: See the function of that name; None where it was not measured. In bfloat16,
            adding up in another order moves scores by a tenth: it may be .998 of an exact search.
    """

    certified: float
    beam_recall: float | None


def beam_recall(rows: np.ndarray, scores: np.ndarray) -> float:
    """The mean share of the ten best documents that are among the first ten of a search.

    Of fewer documents than ten, all are the best. Any of several documents with the tenth-best
    score counts as one of the ten.

    Args:
        rows: What was found, best first, as columns of `scores`; -1 where there is nothing
            [queries, k].
        scores: The score of every document [queries, documents].
    """
    depth = min(_DEPTH, scores.shape[1])
    found = rows[:, :depth]
    least = np.partition(scores, -depth, axis=1)[:, -depth, None]
    good = np.take_along_axis(scores, np.maximum(found, 0), axis=1) >= least
    return float(np.mean(np.sum(good & (found >= 0), axis=1) / depth))
