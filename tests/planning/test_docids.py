"""Shapes of tries that are not built, against those of tries that are."""

import numpy as np
import pytest

from gr_jax.decoding import Trie
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.planning import random_docids


@pytest.mark.parametrize(
    ("documents", "levels", "codes"),
    [(60_000, 4, 32), (5000, 4, 16), (300, 3, 32), (9, 1, 64)],
)
def test_random_docids_have_the_expected_shape(documents, levels, codes):
    expected = random_docids(documents, levels, codes)
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(codes**levels, documents, replace=False))
    rows = (ids[:, None] // codes ** np.arange(levels)[::-1] % codes).astype(np.int32)
    made = Trie.from_docid_map(DocidMap(tuple(map(str, range(documents))), rows, (codes,) * levels))
    served = made.bucketed().shape
    assert expected.vocabulary == served.vocabulary
    assert expected.tail_start == served.tail_start
    assert len(expected.nodes) == len(served.nodes)
    for ours, theirs in zip(
        (*expected.nodes, *expected.branches), (*served.nodes, *served.branches), strict=True
    ):  # both rounded up, so one size apart at most: up to 4096 these are powers of two
        most = 1.2 if theirs > 4096 else 2
        assert theirs / most <= ours <= theirs * most
    assert (expected.docids, expected.unique) == (served.docids, served.unique)


def test_more_documents_than_docids():
    with pytest.raises(UserError, match="2 levels of 4 codes name 16 documents at most"):
        random_docids(17, 2, 4)
