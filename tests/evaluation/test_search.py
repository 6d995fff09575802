import numpy as np
import pytest

from gr_jax.evaluation import beam_recall

# 13 documents, the best one last
SCORES = np.stack([np.arange(13.0), np.arange(13.0)]) - 20


def rows(*rankings: list[int]) -> np.ndarray:
    """Rankings of one length, the rest of each -1."""
    found = np.full((len(rankings), max(map(len, rankings))), -1)
    for row, ranking in zip(found, rankings, strict=True):
        row[: len(ranking)] = ranking
    return found


BEST = list(range(12, 2, -1))


@pytest.mark.parametrize(
    ("found", "recall"),
    [
        (rows(BEST, BEST), 1.0),
        (rows(BEST[::-1], BEST), 1.0),  # whatever their order
        (rows([*BEST[:9], 0], BEST), 0.95),
        (rows([*BEST[:9], 0, 3], BEST), 0.95),  # the eleventh is not looked at
        (rows([12], BEST), 0.55),  # nothing else was found
        (rows([], [12, 11]), 0.1),
    ],
)
def test_the_share_of_the_ten_best(found, recall):
    assert beam_recall(found, SCORES) == pytest.approx(recall)


def test_few_documents_are_all_the_best():
    scores = np.asarray([[-1.0, -3.0, -2.0]])
    assert beam_recall(rows([0, 2, 1]), scores) == 1.0
    assert beam_recall(rows([0, 2]), scores) == pytest.approx(2 / 3)


def test_any_of_equal_documents_may_be_the_tenth():
    scores = np.asarray([[*range(20, 11, -1), 5.0, 5.0, 4.0]])
    first = list(range(9))
    assert beam_recall(rows([*first, 9]), scores) == 1.0
    assert beam_recall(rows([*first, 10]), scores) == 1.0
    assert beam_recall(rows([*first, 11]), scores) == pytest.approx(0.9)
