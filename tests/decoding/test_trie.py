import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.decoding import Trie
from gr_jax.docids import DocidMap, docid_map_from_tokens
from tests.decoding.reference_search import LEVELS, docid_lists, make_map, trie_shape

settings.register_profile("decoding", deadline=None, derandomize=True)
settings.load_profile("decoding")


@settings(max_examples=300)
@given(docid_lists())
def test_round_trip(docids):
    docid_map = make_map(docids)
    trie = Trie.from_docid_map(docid_map)
    np.testing.assert_array_equal(trie.enumerate(), docid_map.codes)
    padded = trie.pad(trie_shape(docid_map.vocabulary.eos))
    np.testing.assert_array_equal(padded.enumerate(), docid_map.codes)


@settings(max_examples=200)
@given(docid_lists())
def test_structure_is_that_of_a_dict(docids):
    trie = Trie.from_docid_map(make_map(docids))
    distinct = sorted(set(docids))
    documents = np.asarray(trie.documents).tolist()
    for level in range(LEVELS):
        prefixes = sorted({d[: level + 1] for d in docids if len(d) > level})
        assert np.asarray(trie.codes[level]).tolist() == [p[-1] for p in prefixes]
        ends = trie.docids[level]
        assert (ends is not None) == any(len(d) == level + 1 for d in docids)
        if ends is not None:
            expected = [distinct.index(p) if p in distinct else -1 for p in prefixes]
            assert np.asarray(ends).tolist() == expected
        assert trie.shape.nodes[level] == len(prefixes)
        if level + 1 < LEVELS:
            first = np.asarray(trie.first_child[level])
            below = {d[: level + 2] for d in docids if len(d) > level + 1}
            counts = [sum(b[:-1] == p for b in below) for p in prefixes]
            assert np.diff(first).tolist() == counts
            assert first[0] == 0 and first[-1] == trie.shape.nodes[level + 1]
            assert trie.shape.fan_outs[level + 1] == max(counts, default=0)
            assert trie.shape.inner[level] == sum(c > 0 for c in counts)
    by_docid = [[r for r, d in enumerate(docids) if d == docid] for docid in distinct]
    assert documents == [r for rows in by_docid for r in rows]
    assert trie.shape.unique == (len(distinct) == len(docids))
    if trie.first_document is not None:
        counts = np.diff(np.asarray(trie.first_document)).tolist()
        assert counts == [len(rows) for rows in by_docid]


@settings(max_examples=100)
@given(docid_lists(), st.randoms(use_true_random=False))
def test_order_of_the_input_changes_only_document_rows(docids, random):
    order = list(range(len(docids)))
    random.shuffle(order)
    one = Trie.from_docid_map(make_map(docids))
    other = Trie.from_docid_map(make_map([docids[i] for i in order]))
    assert one.shape == other.shape
    for field in ("codes", "first_child", "docids", "first_document"):
        jax.tree.map(np.testing.assert_array_equal, getattr(one, field), getattr(other, field))


def test_is_a_pytree_of_int32_arrays():
    trie = Trie.from_docid_map(make_map([(1, 2), (0,), (1, 2), (1, 3, 4)]))
    leaves, structure = jax.tree.flatten(trie)
    assert all(isinstance(x, np.ndarray) and x.dtype == np.int32 for x in leaves)
    assert trie.nbytes == sum(x.nbytes for x in leaves)
    again = jax.tree.unflatten(structure, leaves)
    assert again.shape == trie.shape
    hash(structure)  # what jit needs


def test_one_document_and_none():
    trie = Trie.from_docid_map(docid_map_from_tokens(["a"], [[3]]))
    assert trie.shape.nodes == (1,) and trie.enumerate().tolist() == [[3]]
    with pytest.raises(ValueError, match="at least one document"):
        Trie.from_docid_map(DocidMap((), np.zeros((0, 2), np.int32), (4, 4)))


def test_pad_refuses_a_smaller_shape():
    big = Trie.from_docid_map(docid_map_from_tokens("abc", [[0, 1], [1, 1], [2, 0]]))
    small = Trie.from_docid_map(docid_map_from_tokens("abc", [[0, 1], [0, 0], [2, 0]]))
    with pytest.raises(ValueError, match="does not fit"):
        big.pad(small.shape)


def test_a_large_map_is_built_without_a_loop_over_documents():
    rng = np.random.default_rng(0)
    n = 200_000
    codes = rng.integers(0, 256, (n, 6))
    codes[np.arange(6) >= rng.integers(3, 7, n)[:, None]] = -1
    docid_map = DocidMap(tuple(map(str, range(n))), codes, (256,) * 6)
    assert docid_map.vocabulary.max_tokens >= 6  # its cached properties are not what is timed
    start = time.process_time()
    trie = Trie.from_docid_map(docid_map)
    assert time.process_time() - start < 2
    np.testing.assert_array_equal(trie.enumerate(), docid_map.codes)
