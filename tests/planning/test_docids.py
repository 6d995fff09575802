"""Shapes of tries that are not built, against those of tries that are."""

import numpy as np
import pytest

from gr_jax.decoding import Trie
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.planning import random_docids


@pytest.mark.parametrize(
    ("documents", "levels", "codes"), [(5000, 4, 16), (300, 3, 32), (9, 1, 64)]
)
def test_random_docids_have_the_expected_shape(documents, levels, codes):
    expected = random_docids(documents, levels, codes)
    rng = np.random.default_rng(0)
    ids = np.sort(rng.choice(codes**levels, documents, replace=False))
    rows = (ids[:, None] // codes ** np.arange(levels)[::-1] % codes).astype(np.int32)
    made = Trie.from_docid_map(DocidMap(tuple(map(str, range(documents))), rows, (codes,) * levels))
    actual, served = made.shape, made.bucketed().shape
    assert expected.vocabulary == served.vocabulary
    assert expected.tail_start == served.tail_start
    assert len(expected.nodes) == len(served.nodes)
    for ours, theirs in zip(
        (*expected.nodes, *expected.branches), (*actual.nodes, *actual.branches), strict=False
    ):  # rounded up as a served trie's sizes are
        assert 0.8 * theirs - 8 <= ours <= max(128, 2.4 * theirs)
    assert (expected.docids, expected.unique) == (served.docids, served.unique)


def test_more_documents_than_docids():
    with pytest.raises(UserError, match="2 levels of 4 codes name 16 documents at most"):
        random_docids(17, 2, 4)
