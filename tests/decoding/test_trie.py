import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gr_jax.decoding._shape import TrieShape, bucket
from gr_jax.decoding._trie import Ranks, Subset, Trie
from gr_jax.docids import DocidMap, DocidVocabulary, docid_map_from_tokens
from gr_jax.errors import UserError
from tests.decoding.reference_search import (
    CODES,
    LEVEL_SIZES,
    LEVELS,
    MOST,
    make_map,
    roomy_shape,
)

settings.register_profile("decoding", deadline=None, derandomize=True)
settings.load_profile("decoding")


@st.composite
def docid_lists(draw, most: int = MOST):
    """Docids of 1 to 5 codes: some extend others, some are there twice."""
    code = st.integers(0, draw(st.integers(0, CODES - 1)))
    shortest = draw(st.sampled_from([1, 1, 3, LEVELS]))
    docid = st.lists(code, min_size=shortest, max_size=LEVELS).map(tuple)
    docids = draw(st.lists(docid, min_size=1, max_size=most - 4))
    docids += draw(st.lists(st.sampled_from(docids), max_size=2))
    docids += [d[:-1] or d for d in draw(st.lists(st.sampled_from(docids), max_size=2))]
    return draw(st.permutations(docids))


def same_tries(one: Trie, other: Trie) -> None:
    assert one.shape == other.shape
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def members(ranks: Ranks, n: int, group=()) -> list[bool]:
    """The mask of a set, from its words."""
    words = np.asarray(ranks.words)[group]
    return [bool(int(words[i // 32]) >> (i % 32) & 1) for i in range(n)]


# --- the same structure in plain Python


class Plain:
    """What a trie of these docids must hold."""

    def __init__(self, docids):
        self.distinct = sorted(set(docids))
        self.levels = []  # stored nodes: prefixes whose parent is branching
        while True:
            level = len(self.levels)
            prefixes = {d[: level + 1] for d in docids if len(d) > level}
            nodes = sorted(p for p in prefixes if not p[:-1] or self.branching(p[:-1]))
            if not nodes:
                break
            self.levels.append(nodes)
        nodes = [n for level in self.levels for n in level]
        tails = [len(n) for n in nodes if not self.branching(n) and self.below(n)[0] != n]
        self.tail_start = min(tails, default=LEVELS)

    def below(self, prefix):
        return [d for d in self.distinct if d[: len(prefix)] == prefix]

    def branching(self, prefix):
        return len(self.below(prefix)) >= 2

    def children(self, level, prefix):
        return [n for n in self.levels[level] if n[:-1] == prefix]


@settings(max_examples=300)
@given(docid_lists())
def test_structure_is_that_of_a_dict(docids):
    trie, plain = Trie.from_docid_map(make_map(docids)), Plain(docids)
    shape, distinct = trie.shape, plain.distinct
    assert len(trie.codes) == len(trie.lows) == len(plain.levels)
    assert len(trie.branching) == len(trie.first_child) == len(plain.levels) - 1
    assert shape.nodes == tuple(map(len, plain.levels))
    for level, nodes in enumerate(plain.levels):
        assert trie.codes[level].tolist() == [n[-1] for n in nodes]
        lows = [distinct.index(plain.below(n)[0]) for n in nodes]
        assert trie.lows[level].tolist() == [*lows, len(distinct)]
        branching = [plain.branching(n) for n in nodes]
        parents = [()] if level == 0 else [n for n in plain.levels[level - 1] if plain.branching(n)]
        counts = [len(plain.children(level, p)) for p in parents]
        assert shape.fan_outs[level] == max(counts)
        if level:
            assert trie.first_child[level - 1].tolist() == np.cumsum([0, *counts]).tolist()
        if level + 1 < len(plain.levels):
            assert members(trie.branching[level], len(nodes)) == branching
            assert shape.branches[level] == sum(branching) > 0
        else:
            assert not any(branching)
    assert int(trie.root_children) == len(plain.levels[0])
    assert shape.tail_start == plain.tail_start
    padded = [(*d, *[0] * (LEVELS - len(d))) for d in distinct]
    assert trie.tails.tolist() == [list(d[plain.tail_start :]) for d in padded]
    assert trie.lengths.tolist() == [len(d) for d in distinct]
    assert shape.ends == tuple(any(len(d) == i + 1 for d in docids) for i in range(LEVELS))
    assert (shape.docids, shape.documents) == (len(distinct), len(docids))
    assert (trie.docid_count, trie.document_count) == (len(distinct), len(docids))
    rows = [[r for r, d in enumerate(docids) if d == docid] for docid in distinct]
    assert trie.documents.tolist() == [r for group in rows for r in group]
    assert shape.unique == (len(distinct) == len(docids)) == (trie.first_document is None)
    if trie.first_document is not None:
        assert np.diff(trie.first_document).tolist() == list(map(len, rows))


def walk(trie: Trie):
    """`(docid, number)` of every docid, found from the root as a search finds them."""
    found, count = [], trie.docid_count

    def visit(level, children, prefix, end):
        for node in children:
            low = int(trie.lows[level][node])
            high = min(int(trie.lows[level][node + 1]), end)
            longer = (*prefix, int(trie.codes[level][node]))
            if high - low == 1:
                found.append((longer + tail(low, level + 1), low))
                continue
            branching = trie.branching[level]
            assert members(branching, node + 1)[node]
            if int(trie.lengths[low]) == level + 1:
                found.append((longer, low))
            b = int(branching.rank(jnp.int32(node)))
            first = trie.first_child[level]
            visit(level + 1, range(int(first[b]), int(first[b + 1])), longer, high)

    def tail(docid, level):
        places = range(level, int(trie.lengths[docid]))
        return tuple(int(trie.tails[docid, i - trie.shape.tail_start]) for i in places)

    visit(0, range(int(trie.root_children)), (), count)
    return found


@settings(max_examples=150)
@given(docid_lists())
def test_a_walk_from_the_root_meets_each_docid_once_padded_or_not(docids):
    docid_map = make_map(docids)
    trie = Trie.from_docid_map(docid_map)
    expected = [(d, i) for i, d in enumerate(sorted(set(docids)))]
    for each in (trie, trie.bucketed(), trie.pad(roomy_shape(docid_map.vocabulary))):
        assert sorted(walk(each)) == expected


@settings(max_examples=300)
@given(docid_lists())
def test_round_trip(docids):
    docid_map = make_map(docids)
    trie = Trie.from_docid_map(docid_map)
    for each in (trie, trie.bucketed(), trie.pad(roomy_shape(docid_map.vocabulary))):
        np.testing.assert_array_equal(each.enumerate(), docid_map.codes)


@settings(max_examples=100)
@given(docid_lists(), st.randoms(use_true_random=False))
def test_order_of_the_input_changes_only_document_rows(docids, random):
    order = list(range(len(docids)))
    random.shuffle(order)
    one = Trie.from_docid_map(make_map(docids))
    other = Trie.from_docid_map(make_map([docids[i] for i in order]))
    assert [docids[r] for r in one.documents] == [docids[order[r]] for r in other.documents]
    same_tries(one, dataclasses.replace(other, documents=one.documents, identity=one.identity))


# --- what it is made of


def test_is_a_pytree_of_arrays_of_the_announced_types():
    trie = Trie.from_docid_map(make_map([(1, 2), (0,), (1, 2), (1, 3, 4)]))
    leaves, structure = jax.tree.flatten(trie)
    assert all(isinstance(x, np.ndarray) for x in leaves)
    assert trie.nbytes == sum(x.nbytes for x in leaves)
    assert jax.tree.unflatten(structure, leaves).shape == trie.shape
    hash(structure)  # what jit needs
    compiled = jax.jit(lambda t: t.lows[0][-1])
    assert int(compiled(trie)) == trie.docid_count


@settings(max_examples=100)
@given(docid_lists())
def test_an_abstract_trie_is_that_of_its_shape(docids):
    docid_map = make_map(docids)
    trie = Trie.from_docid_map(docid_map)
    for each in (trie, trie.bucketed(), trie.pad(roomy_shape(docid_map.vocabulary))):
        abstract = Trie.abstract(each.shape)
        assert jax.tree.structure(abstract) == jax.tree.structure(each)
        for a, b in zip(jax.tree.leaves(abstract), jax.tree.leaves(each), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


def test_codes_are_as_narrow_as_their_level():
    sizes = (256, 257, 65536, 65537, 70000)
    docids = [tuple(s - 1 for s in sizes), (255, 256, 65535, 65536, 5), (255, 256, 65535, 3, 0)]
    docids += [(255, 256, 1), (255, 0), (7, 8, 9, 10, 11)]
    codes = np.full((len(docids), 5), -1)
    for row, docid in zip(codes, docids, strict=True):
        row[: len(docid)] = docid
    docid_map = DocidMap(tuple("abcdef"), codes, sizes)
    trie = Trie.from_docid_map(docid_map)
    assert [c.dtype.name for c in trie.codes] == ["uint8", "uint16", "uint16", "int32", "int32"]
    assert trie.tails.dtype == np.int32 and trie.lengths.dtype == np.uint8
    np.testing.assert_array_equal(trie.enumerate(), codes)
    np.testing.assert_array_equal(trie.bucketed().enumerate(), codes)


def test_a_level_of_70000_codes_is_a_trie_of_one_level():
    codes = np.random.default_rng(0).permutation(70_000)[:, None]
    trie = Trie.from_docid_map(DocidMap(tuple(map(str, range(70_000))), codes, (70_000,)))
    assert trie.shape.nodes == trie.shape.fan_outs == (70_000,) and trie.shape.tail_start == 1
    assert trie.codes[0].dtype == np.int32 and trie.tails.shape == (70_000, 0)
    np.testing.assert_array_equal(trie.codes[0], np.arange(70_000))
    np.testing.assert_array_equal(trie.documents, np.argsort(codes[:, 0]))
    np.testing.assert_array_equal(trie.enumerate(), codes)


def test_more_than_255_levels():
    docids = [[1] * 300, [1] * 299 + [0], [1] * 260, [0]]
    trie = Trie.from_docid_map(docid_map_from_tokens("abcd", docids))
    assert trie.lengths.dtype == np.uint16 and trie.lengths.tolist() == [1, 260, 300, 300]
    assert len(trie.codes) == 300
    assert [[c for c in row if c >= 0] for row in trie.enumerate().tolist()] == docids


def test_one_document_and_none():
    for docid, tail_start in (((3,), LEVELS), ((3, 4, 5), 1)):
        trie = Trie.from_docid_map(make_map([docid]))
        assert trie.shape.nodes == (1,) and trie.shape.tail_start == tail_start
        assert trie.enumerate().tolist() == [[*docid, *[-1] * (LEVELS - len(docid))]]
    empty = Trie.from_docid_map(DocidMap((), np.zeros((0, 2), np.int32), (4, 4)))
    assert (empty.docid_count, empty.document_count, empty.shape.docids) == (0, 0, 1)
    assert empty.enumerate().shape == (0, 2) and empty.documents.tolist() == [-1]


def test_a_vocabulary_of_its_own():
    docid_map = make_map([(2, 2), (3,)])
    for vocabulary in (
        DocidVocabulary(LEVEL_SIZES, eos=True),
        DocidVocabulary(LEVEL_SIZES, eos=False, first_tokens=(0,) * LEVELS),
    ):
        trie = Trie.from_docid_map(docid_map, vocabulary)
        assert trie.shape.vocabulary == vocabulary
        np.testing.assert_array_equal(trie.enumerate(), docid_map.codes)
    assert Trie.from_docid_map(docid_map).shape.vocabulary == docid_map.vocabulary


@pytest.mark.parametrize(
    ("docids", "vocabulary", "message"),
    [
        ([(2, 2), (2,)], DocidVocabulary(LEVEL_SIZES), "end token"),
        ([(2, 2)], DocidVocabulary((7,) * LEVELS), "levels"),
        ([(2, 1)], DocidVocabulary(LEVEL_SIZES, first_tokens=(0,) * LEVELS), "level 1"),
    ],
)
def test_a_vocabulary_that_cannot_spell_the_docids_is_refused(docids, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        Trie.from_docid_map(make_map(docids), vocabulary)


# --- sizes


def test_buckets_are_few_and_near():
    grid = {m << k for m in range(8, 17) for k in range(9, 24)} | {1 << k for k in range(6, 13)}
    steps = sorted(grid)
    for n in [*range(300), 1000, 4096, 4097, 65_535, 65_536, 65_537, 10_000_000]:
        assert bucket(n) == next(s for s in steps if s >= n)
        assert bucket(bucket(n)) == bucket(n)
        assert n <= 4096 or bucket(n) <= n * 1.125


@settings(max_examples=100)
@given(docid_lists())
def test_padding_keeps_what_is_there(docids):
    docid_map = make_map(docids)
    trie = Trie.from_docid_map(docid_map)
    same_tries(trie, trie.pad(trie.shape))
    big = trie.pad(roomy_shape(docid_map.vocabulary))
    assert (big.docid_count, big.document_count) == (trie.docid_count, trie.document_count)
    assert big.shape == roomy_shape(docid_map.vocabulary)
    for level, (low, codes) in enumerate(zip(big.lows, big.codes, strict=True)):
        real = len(trie.codes[level]) if level < len(trie.codes) else 0
        assert (low[real:] == trie.docid_count).all() and not codes[real:].any()
        if level < len(trie.codes):
            np.testing.assert_array_equal(codes[:real], trie.codes[level])
        if level + 1 < len(big.codes):
            branching = members(big.branching[level], MOST + 8 if level else CODES)
            assert not any(branching[real:])
            below = len(trie.codes[level + 1]) if level + 1 < len(trie.codes) else 0
            assert (np.diff(big.first_child[level]) >= 0).all()
            assert big.first_child[level][0] == 0 and big.first_child[level][-1] == below
    assert (big.documents[len(docids) :] == -1).all()
    assert not big.lengths[trie.docid_count :].any() and not big.tails[trie.docid_count :].any()
    larger = trie.shape.bucketed().joined(big.shape)
    same_tries(trie.pad(larger), trie.bucketed().pad(larger))
    same_tries(trie.pad(larger), big.pad(larger))


def test_buckets_of_a_trie():
    rng = np.random.default_rng(0)
    sizes = (20, 300, 40)

    def trie(n):
        codes = np.unique(rng.integers(0, sizes, (2 * n, 3)), axis=0)
        codes = rng.permutation(codes)[:n]
        return Trie.from_docid_map(DocidMap(tuple(map(str, range(n))), codes, sizes))

    one, other = trie(2000), trie(2010)
    assert one.shape != other.shape and one.bucketed().shape == other.bucketed().shape
    shape = one.bucketed().shape
    assert shape.docids == shape.documents == 2048 and shape.fan_outs == (20, 128, 16)
    assert all(p == bucket(n) for n, p in zip(one.shape.nodes, shape.nodes, strict=True))
    assert one.shape.unique and not shape.unique and shape.vocabulary == one.shape.vocabulary
    np.testing.assert_array_equal(one.bucketed().enumerate(), one.enumerate())
    np.testing.assert_array_equal(other.pad(shape).enumerate(), other.enumerate())


def random_docids(seed, n, levels=8, size=256):
    """Docids of four codes up to `levels`, and their map's level sizes."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, size, (n, levels))
    codes[np.arange(levels) >= rng.integers(4, levels + 1, n)[:, None]] = -1
    return codes, (size,) * levels


@pytest.mark.parametrize("seed", range(3))
def test_twenty_refreshes_have_two_shapes_at_most(seed):
    """Of one in a hundred documents each; the last levels hold a handful of nodes, or none."""
    n, churn = 10_000, 100
    codes, sizes = random_docids(seed, n + 20 * churn)
    exact, shapes = set(), set()
    for first in range(0, 20 * churn, churn):
        part = codes[first : first + n]
        shape = Trie.from_docid_map(DocidMap(tuple(map(str, range(n))), part, sizes)).shape
        assert shape.bucketed().holds(shape)
        exact.add(shape)
        shapes.add(shape.bucketed())
    assert len(exact) > 10 and len(shapes) <= 2


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"nodes": (4, 6), "branches": (4,), "fan_outs": (4, 2)}, {}),  # the last level has gone
        ({"tail_start": 2}, {"tail_start": 3}),  # a prefix of a second code has one docid
        ({"unique": True}, {"unique": False}),
        ({"docids": 30}, {"docids": 34}),
        ({"fan_outs": (4, 2, 2)}, {"fan_outs": (4, 9, 16)}),
        ({"ends": (False, False, True, False, True)}, {"ends": (False, False, True, True, True)}),
    ],
)
def test_a_shape_does_not_change_with_a_document(change, changed):
    """What one document more or less can change of a trie, the padded trie does not show."""
    vocabulary = DocidVocabulary((16,) * 5)
    shape = TrieShape(
        *(vocabulary, (4, 6, 2), (4, 1), (4, 2, 2), (False, False, False, False, True)),
        **{"tail_start": 2, "docids": 32, "documents": 32, "unique": True},
    )
    one, other = shape._replace(**change), shape._replace(**changed)
    assert one != other and one.bucketed() == other.bucketed()


def test_large_tries_keep_what_a_shared_docid_costs():
    vocabulary = DocidVocabulary((256,) * 4)
    sizes = ((256, 60_000, 100_000), (256, 60_000), (256, 256, 99), (False,) * 3 + (True,))
    many = TrieShape(vocabulary, *sizes, 2, 2_000_000, 2_000_000, True)
    assert many.bucketed().unique
    assert not many._replace(documents=2_000_001, unique=False).bucketed().unique


def test_atomic_docids_are_as_many_as_codes_or_not():
    """A search of all codes looks none up, so that no other trie may have its shape."""

    def shape(documents, codes):
        rows = np.arange(documents)[:, None]
        names = tuple(map(str, range(documents)))
        return Trie.from_docid_map(DocidMap(names, rows, (codes,))).shape

    full, almost, few = shape(128, 128), shape(127, 128), shape(70, 200)
    assert full.bucketed().docids == 128 == full.bucketed().nodes[0]
    assert almost.bucketed().docids == 256 == almost.bucketed().nodes[0]
    assert few.bucketed().docids == 128
    assert not full.holds(almost) and not almost.bucketed().joined(full).holds(full)


def test_joined_shapes_hold_both():
    tries = [
        Trie.from_docid_map(make_map(docids))
        for docids in ([(0,), (1, 2, 3)], [(0, 1), (0, 1), (0, 0, 4), (2, 0, 1), (2, 0, 2)])
    ]
    joined = tries[0].shape.joined(tries[1].shape)
    assert joined == tries[1].shape.joined(tries[0].shape)
    for trie in tries:
        np.testing.assert_array_equal(trie.pad(joined).enumerate(), trie.enumerate())


def test_pad_refuses_what_does_not_fit():
    trie = Trie.from_docid_map(make_map([(0, 1), (0, 0, 4), (2, 0, 1), (0, 0, 4)]))
    shape = trie.shape
    same_tries(trie, trie.pad(shape))
    changes = [
        {"vocabulary": DocidVocabulary(LEVEL_SIZES, eos=True)},
        {"nodes": (1, 2)},
        {"nodes": (2,), "branches": (), "fan_outs": (2,)},
        {"branches": (0,)},
        {"branches": ()},
        {"fan_outs": (1, 2)},
        {"fan_outs": (2, 2, 2)},
        {"ends": (False,) * LEVELS},
        {"tail_start": shape.tail_start + 1},
        {"docids": 2},
        {"documents": 3},
        {"unique": True},
    ]
    for change in changes:
        with pytest.raises(ValueError, match="does not fit"):
            trie.pad(shape._replace(**change))


# --- ranks and subsets


@settings(max_examples=100)
@given(st.lists(st.booleans(), max_size=130), st.integers(0, 70))
def test_ranks_are_cumulative_sums(bits, more):
    mask = np.array(bits, bool)
    ranks = Ranks.from_mask(mask)
    assert ranks.words.dtype == np.uint32 and ranks.counts.dtype == np.int32
    assert ranks.words.shape == ranks.counts.shape == (math.ceil(len(bits) / 32) + 1,)
    expected = np.cumsum([0, *bits])
    index = np.arange(len(bits) + 1, dtype=np.int32)
    np.testing.assert_array_equal(ranks.rank(index), expected)
    assert ranks.rank(index).dtype == jnp.int32
    grown = ranks._grown(len(bits) + more)
    again = Ranks.from_mask(np.pad(mask, (0, more)))
    jax.tree.map(np.testing.assert_array_equal, grown, again)


def test_ranks_of_groups():
    masks = np.random.default_rng(0).random((3, 100)) < 0.5
    stacked = jax.tree.map(lambda *x: np.stack(x), *map(Ranks.from_mask, masks))
    expected = np.pad(np.cumsum(masks, axis=1), ((0, 0), (1, 0)))
    index = np.random.default_rng(1).integers(0, 101, (5, 3, 4))
    group = np.arange(3)[:, None]
    ranks = jax.jit(Ranks.rank)(stacked, index, group)
    np.testing.assert_array_equal(ranks, expected[group, index])


def plain_subset(docids, keep):
    """Allowed numbers, and the kept rows of each docid."""
    distinct = sorted(set(docids))
    rows = [[r for r, d in enumerate(docids) if d == docid and keep[r]] for docid in distinct]
    return [i for i, group in enumerate(rows) if group], rows


def check_subset(subset: Subset, group: int, trie: Trie, docids, keep) -> None:
    numbers, rows = plain_subset(docids, keep)
    mask = members(subset.allowed, trie.shape.docids, group)
    assert [i for i, m in enumerate(mask) if m] == numbers
    index = np.arange(trie.shape.docids + 1)
    ranks = subset.allowed.rank(index, np.int32(group))
    np.testing.assert_array_equal(ranks, np.cumsum([0, *mask]))
    select = subset.select[group].tolist()
    assert select == numbers + [0] * (len(select) - len(numbers)) and len(select) > 0
    assert (subset.first_document is None) == (subset.documents is None) == trie.shape.unique
    if subset.first_document is not None and subset.documents is not None:
        kept = [r for r_of in rows for r in r_of]
        documents = subset.documents[group].tolist()
        assert documents == kept + [-1] * (len(documents) - len(kept))
        counts = [len(r) for r in rows] + [0] * (trie.shape.docids - len(rows))
        assert subset.first_document[group].tolist() == np.cumsum([0, *counts]).tolist()


@settings(max_examples=150)
@given(docid_lists(), st.data())
def test_subsets_are_those_of_brute_force(docids, data):
    docid_map = make_map(docids)
    masks = st.lists(st.booleans(), min_size=len(docids), max_size=len(docids))
    first, second = data.draw(masks), data.draw(masks)
    nothing = [False] * len(docids)
    trie = Trie.from_docid_map(docid_map)
    for each in (trie, trie.bucketed(), trie.pad(roomy_shape(docid_map.vocabulary))):
        one = each.subset(np.array(first))
        check_subset(one, 0, each, docids, first)
        rows = np.flatnonzero(second)[::-1]  # in any order
        both = Subset.stack([one, each.subset(rows), each.subset(np.array(nothing))])
        for group, keep in enumerate((first, second, nothing)):
            check_subset(both, group, each, docids, keep)


def test_a_capacity_gives_equal_shapes():
    trie = Trie.from_docid_map(make_map([(0,), (1,), (1,), (2, 3)]))
    shapes = [
        [x.shape for x in jax.tree.leaves(trie.subset(np.array(rows), capacity=4))]
        for rows in ([], [0], [0, 1, 2, 3])
    ]
    assert shapes[0] == shapes[1] == shapes[2]
    with pytest.raises(ValueError, match="capacity"):
        trie.subset(np.array([0, 1, 3]), capacity=2)


def test_filters_of_any_size_have_few_capacities():
    n = 10_000
    codes = np.stack(np.unravel_index(np.arange(n), (100, 100)), axis=1)
    trie = Trie.from_docid_map(DocidMap(tuple(map(str, range(n))), codes, (100, 100))).bucketed()
    rows = np.arange(n)
    shapes = {
        kept: tuple(x.shape for x in jax.tree.leaves(trie.subset(rows[:kept])))
        for kept in (*range(13), 256, 257, 900, 3000, 5000, n)
    }
    assert len({shapes[kept] for kept in (*range(13), 256)}) == 1
    assert len(set(shapes.values())) == 4  # 256, 1024, 4096 and all
    assert trie.subset(rows).select.shape[1] == trie.shape.docids == 10_240


@pytest.mark.parametrize(
    "keep",
    [np.ones(3, bool), np.ones((2, 2), bool), np.array([2]), np.array([-1]), np.array([0.5])],
)
def test_subsets_of_other_documents_are_refused(keep):
    trie = Trie.from_docid_map(make_map([(0,), (1,)])).pad(
        roomy_shape(DocidVocabulary(LEVEL_SIZES))
    )
    with pytest.raises(ValueError):
        trie.subset(keep)


def test_only_subsets_of_one_trie_are_stacked():
    one, other, like_one = (
        Trie.from_docid_map(make_map(d)).subset(np.array([0]))
        for d in ([(1,)], [(1,), (1,)], [(2,)])
    )
    for subsets in ([], [one, other], [one, like_one]):
        with pytest.raises(ValueError, match="one trie"):
            Subset.stack(subsets)


def test_a_subset_knows_its_trie():
    docids = [(0, 1), (0, 2), (3, 4)]
    trie = Trie.from_docid_map(make_map(docids))
    subset = trie.subset(np.array([0]))
    subset.check(Trie.from_docid_map(make_map(docids)))  # of the same map
    for others in (docids[::-1], docids[:2], [*docids[:2], (3, 5)]):
        with pytest.raises(UserError, match="of another docid map: choose"):
            subset.check(Trie.from_docid_map(make_map(others)))
    renamed = dataclasses.replace(make_map(docids), doc_ids=("d0", "d1", "new"))
    with pytest.raises(UserError, match="of another docid map"):
        subset.check(Trie.from_docid_map(renamed))
    with pytest.raises(UserError, match="room for another number"):
        subset.check(trie.pad(roomy_shape(trie.shape.vocabulary)))


# --- files

SHARED = [(1, 2, 3), (0,), (1, 2, 3), (1, 3, 4), (1,), (5, 5, 5, 5, 5)]
MANY = [(a, b, c) for a in range(6) for b in range(6) for c in range(3)]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("docids", [SHARED, MANY, [(2,)], [(a,) for a in range(6)]])
def test_save_and_load(tmp_path, docids, mmap):
    docid_map = make_map(docids)
    trie = Trie.from_docid_map(docid_map, DocidVocabulary(LEVEL_SIZES, True, (2,) * LEVELS))
    for each in (trie, trie.bucketed(), jax.device_put(trie)):
        each.save(tmp_path / "trie", docid_map.fingerprint)
        again = Trie.load(tmp_path / "trie", fingerprint=docid_map.fingerprint, mmap=mmap)
        same_tries(again, each)
        np.testing.assert_array_equal(again.enumerate(), docid_map.codes)
        assert Trie.load(tmp_path / "trie", verify=False).shape == each.shape
        documents: Any = again.documents
        assert isinstance(documents.base, np.memmap) == mmap
    assert [p.name for p in tmp_path.iterdir()] == ["trie"]


def saved(folder: Path) -> list[str]:
    trie = Trie.from_docid_map(make_map(SHARED))
    trie.save(folder, "f" * 64)
    return sorted(p.name for p in folder.iterdir())


def refused(folder: Path, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        Trie.load(folder, **options)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value) and "build the trie again" in str(caught.value)


def test_each_file_cut_or_missing_is_refused_by_name(tmp_path):
    folder = tmp_path / "trie"
    names = saved(folder)
    assert len(names) == 1 + len(jax.tree.leaves(Trie.from_docid_map(make_map(SHARED))))
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        for size in (0, 5, 100, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:size])
            for mmap in (True, False):
                refused(folder, name, mmap=mmap, verify=False)
        path.unlink()
        refused(folder, name)
        path.write_bytes(whole)
    assert Trie.load(folder).document_count == len(SHARED)


def test_each_file_changed_is_refused_by_name(tmp_path):
    folder = tmp_path / "trie"
    names = saved(folder)
    for name in names:
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
        refused(folder, name)
        if name.endswith(".npy"):
            for other in (np.zeros(3, np.float32), np.zeros(77, np.int32), np.array(["a"])):
                np.save(path, other)
                refused(folder, name, verify=False)
        path.write_bytes(whole)
    assert Trie.load(folder).document_count == len(SHARED)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"format": 3', '"format": 2'),
        ('"format": 3', '"format": "3"'),
        ('"format"', '"formal"'),
        ('"tail_start"', '"tail_end"'),
        ('"docids": 5', '"docids": 6'),
        ('"eos": true', '"eos": false'),
        ('"shape"', '"form"'),
        ("{", "["),
    ],
)
def test_a_changed_header_is_refused(tmp_path, old, new):
    saved(tmp_path / "trie")
    path = tmp_path / "trie" / "trie.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    refused(tmp_path / "trie", "trie.json")


@pytest.mark.parametrize(
    "text", ["", "1", "[]", "null", "{}", '{"format": 3, "checksum": 0}', "[" * 100_000]
)
def test_another_header_is_refused(tmp_path, text):
    saved(tmp_path / "trie")
    (tmp_path / "trie" / "trie.json").write_text(text)
    refused(tmp_path / "trie", "trie.json")


def test_the_trie_of_another_map_and_no_trie_are_refused(tmp_path):
    saved(tmp_path / "trie")
    refused(tmp_path / "trie", "fffffff", fingerprint="0" * 64)
    shutil.rmtree(tmp_path / "trie")
    refused(tmp_path / "trie", "there is no trie here; build the trie again")


def test_a_trie_that_cannot_be_written_is_one_line(tmp_path):
    trie = Trie.from_docid_map(make_map(SHARED))
    (tmp_path / "file").write_text("")
    for place in (Path("/proc/trie"), Path("/proc/none/trie"), tmp_path / "file" / "trie"):
        with pytest.raises(UserError, match=r"choose another directory|cannot be written") as error:
            trie.save(place, "f" * 64)
        assert "\n" not in str(error.value)


_KILLED = """
import os, pathlib, signal, sys
import numpy as np
from gr_jax.decoding._trie import Trie
from gr_jax.docids import docid_map_from_tokens
save, left = np.save, int(sys.argv[2])
def killed(*args, **kwargs):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    return save(*args, **kwargs)
np.save = killed
Trie.from_docid_map(docid_map_from_tokens(["x"], [(1, 2)])).save(pathlib.Path(sys.argv[1]), "new")
"""


def test_a_killed_save_leaves_the_old_trie(tmp_path):
    saved(tmp_path / "trie")
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, tmp_path / "trie", "3"],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "it was killed while it wrote"
    assert Trie.load(tmp_path / "trie", fingerprint="f" * 64).document_count == len(SHARED)
    saved(tmp_path / "trie")
    assert [p.name for p in tmp_path.iterdir()] == ["trie"]


def test_the_header_can_be_read_by_people(tmp_path):
    saved(tmp_path / "trie")
    header = json.loads((tmp_path / "trie" / "trie.json").read_text())
    assert header["fingerprint"] == "f" * 64 and header["format"] == 3
    assert header["shape"]["docids"] == 5 and header["shape"]["documents"] == 6
    assert header["shape"]["vocabulary"]["level_sizes"] == list(LEVEL_SIZES)


# --- changed maps


@settings(max_examples=150)
@given(docid_lists(), docid_lists(), st.data())
def test_tries_of_changed_maps_are_those_of_new_maps(docids, more, data):
    eos = make_map(docids).vocabulary.eos
    assume(eos or make_map(docids + more).prefix_free)
    one = make_map(docids).extended([f"e{i}" for i in range(len(more))], make_map(more).codes)

    def same(map_, docids):
        vocabulary = dataclasses.replace(map_.vocabulary, eos=eos)
        new = Trie.from_docid_map(make_map(docids), vocabulary)
        changed = Trie.from_docid_map(map_)
        assert changed.shape == new.shape
        same_tries(dataclasses.replace(changed, identity=new.identity), new)

    same(one, docids + more)
    keep = data.draw(st.lists(st.booleans(), min_size=len(one), max_size=len(one)))
    if any(keep):
        less = one.without(d for d, k in zip(one.doc_ids, keep, strict=True) if not k)
        same(less, [d for d, k in zip(docids + more, keep, strict=True) if k])


# --- size


def test_a_large_map_is_built_without_a_loop_over_documents():
    rng = np.random.default_rng(0)
    n = 200_000
    codes = rng.integers(0, 256, (n, 8))
    codes[np.arange(8) >= rng.integers(4, 9, n)[:, None]] = -1
    docid_map = DocidMap(tuple(map(str, range(n))), codes, (256,) * 8)
    start = time.process_time()
    trie = Trie.from_docid_map(docid_map)
    assert time.process_time() - start < 2
    assert trie.nbytes < 24 * n
    np.testing.assert_array_equal(trie.enumerate(), docid_map.codes)
    start = time.process_time()
    trie.subset(rng.random(n) < 0.5)
    assert time.process_time() - start < 0.3
