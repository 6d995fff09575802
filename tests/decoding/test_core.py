"""The search itself against a plain one, with a model that is a hash: thousands of cases."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.decoding import Subset, Trie
from gr_jax.decoding import _core as core_module
from gr_jax.decoding._core import SCORES, search_trie
from gr_jax.docids import DocidMap, DocidVocabulary
from tests.decoding.reference_search import (
    CODES,
    FULL,
    LEVEL_SIZES,
    LEVELS,
    MOST,
    HashModel,
    docid_lists,
    hash_logits_of,
    make_map,
    reference_search,
    roomy_shape,
)

settings.register_profile("decoding", deadline=None, derandomize=True)
settings.load_profile("decoding")

K = 7
BEAMS = (2, 40)


@functools.partial(jax.jit, static_argnames=("beam", "k", "score"))
def hash_search(trie, seeds, scale, *, beam, k, score):
    model, state = HashModel(scale), seeds[:, None]
    return search_trie(trie, model, state, len(seeds), beam=beam, k=k, score=score)


@functools.partial(jax.jit, static_argnames=("beam", "k", "score"))
def shortcut_search(trie, seeds, scale, *, beam, k, score):
    """Like `hash_search`, with every shortcut that a larger search takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(core_module, "_FEW_BRANCHING", 2.0)
        patch.setattr(core_module, "_NARROWED_FROM", 2)
        model, state = HashModel(scale), seeds[:, None]
        return search_trie(trie, model, state, len(seeds), beam=beam, k=k, score=score)


def search(docids, seed, scale, *, beam, score, k=K):
    """Rows, scores, certificate of one query; the trie is padded to the shape of all cases."""
    docid_map = make_map(docids)
    eos = docid_map.vocabulary.eos
    trie = Trie.from_docid_map(docid_map).pad(roomy_shape(docid_map.vocabulary))
    seeds = np.array([seed], np.uint32)
    rows, scores, exact = hash_search(trie, seeds, np.float32(scale), beam=beam, k=k, score=score)
    return np.asarray(rows)[0], np.asarray(scores)[0], bool(exact[0]), eos


def check_valid(rows, scores, docids, k, *, complete):
    found = rows[rows >= 0].tolist()
    assert len(set(found)) == len(found), "a duplicate"
    assert all(r < len(docids) for r in found)
    assert (rows[len(found) :] == -1).all() and (scores[len(found) :] == -np.inf).all()
    assert np.isfinite(scores[: len(found)]).all() and (scores[: len(found)] <= 0).all()
    assert (np.diff(scores[: len(found)]) <= 0).all()
    if complete:
        assert len(found) == min(k, len(docids))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("prefix_free", [True, False])
@settings(max_examples=100)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 8.0, 40.0]))
def test_equals_a_search_over_a_dict(score, prefix_free, data, seed, scale):
    docids = data.draw(docid_lists(prefix_free))
    logits_of = hash_logits_of(seed, scale)
    for beam in BEAMS:
        rows, scores, exact, eos = search(docids, seed, scale, beam=beam, score=score)
        expected, pruned = reference_search(docids, logits_of, beam=beam, k=K, score=score, eos=eos)
        assert rows[rows >= 0].tolist() == [row for _, row in expected]
        np.testing.assert_allclose(
            scores[rows >= 0], [s for s, _ in expected], rtol=2e-6, atol=2e-5
        )
        check_valid(rows, scores, docids, K, complete=beam >= K)
        if not pruned:
            assert exact, "nothing was pruned"
        if exact:
            best, _ = reference_search(docids, logits_of, beam=FULL, k=K, score=score, eos=eos)
            assert rows[rows >= 0].tolist() == [row for _, row in best], "a false certificate"
        if beam >= len(docids):
            assert exact


@pytest.mark.parametrize("score", ["full", "level"])
@settings(max_examples=60)
@given(docids=docid_lists())
def test_equal_logits_give_the_order_of_docids(score, docids):
    for beam in BEAMS:
        rows, scores, _, eos = search(docids, 0, 0.0, beam=beam, score=score)
        expected, _ = reference_search(
            docids, hash_logits_of(0, 0.0), beam=beam, k=K, score=score, eos=eos
        )
        assert rows[rows >= 0].tolist() == [row for _, row in expected]
        check_valid(rows, scores, docids, K, complete=beam >= K)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("prefix_free", [True, False])
@settings(max_examples=60)
@given(data=st.data(), scale=st.sampled_from([1.0, 8.0, 40.0]))
def test_shortcuts_change_no_answer(score, prefix_free, data, scale):
    """Tails in one pass, narrower steps, skipped steps, dead prefixes; several queries at once."""
    docid_map = make_map(data.draw(docid_lists(prefix_free)))
    trie = Trie.from_docid_map(docid_map).pad(roomy_shape(docid_map.vocabulary))
    seeds = np.arange(3, dtype=np.uint32)
    beam, k = (2, 2) if prefix_free == (score == "level") else (9, 3)  # seconds to compile, each
    plain, short = (
        search_function(trie, seeds, np.float32(scale), beam=beam, k=k, score=score)
        for search_function in (hash_search, shortcut_search)
    )
    np.testing.assert_array_equal(plain[0], short[0])
    np.testing.assert_allclose(plain[1], short[1], rtol=1e-6, atol=1e-5)
    np.testing.assert_array_equal(plain[2], short[2])


@functools.partial(jax.jit, static_argnames=("beam", "k", "score"))
def subset_search(trie, seeds, subset, group, *, beam, k, score):
    model, state = HashModel(np.float32(8)), seeds[:, None]
    settings = {"beam": beam, "k": k, "score": score, "subset": subset, "group": group}
    return search_trie(trie, model, state, len(seeds), **settings)


@pytest.mark.parametrize(
    ("prefix_free", "score"),
    [(True, "full"), (False, "level"), (True, "children"), (False, "children")],
)
@settings(max_examples=60)
@given(data=st.data())
def test_a_subset_is_searched_like_a_trie_of_its_own(score, prefix_free, data):
    docids = data.draw(docid_lists(prefix_free))
    docid_map = make_map(docids)
    shape = roomy_shape(docid_map.vocabulary)
    trie = Trie.from_docid_map(docid_map).pad(shape)
    flags = st.lists(st.booleans(), min_size=len(docids), max_size=len(docids))
    masks = [np.array(data.draw(flags)) for _ in range(2)] + [np.zeros(len(docids), bool)]
    subset = Subset.stack([trie.subset(mask, capacity=MOST) for mask in masks])
    seeds = np.arange(3, dtype=np.uint32)
    rows, scores, exact = subset_search(
        trie, seeds, subset, np.array([0, 1, 2], np.int32), beam=2, k=K, score=score
    )
    assert (np.asarray(rows[2]) == -1).all() and exact[2], "an empty subset has no answer"
    for q, mask in enumerate(masks):
        kept = np.flatnonzero(mask)
        # what is taken out may have been the only docid that another one extends, or all there was
        part = docid_map.without(f"d{i}" for i in np.flatnonzero(~mask))
        part = Trie.from_docid_map(part).pad(shape)
        own = hash_search(part, seeds[q : q + 1], np.float32(8), beam=2, k=K, score=score)
        expected = [kept[r] if r >= 0 else -1 for r in own[0][0].tolist()]
        assert rows[q].tolist() == expected
        np.testing.assert_allclose(scores[q], own[1][0], rtol=1e-6)
        assert exact[q] == own[2][0]


def test_a_group_that_is_not_there_and_a_foreign_subset_give_nothing():
    """In the compiled program too, where nothing can be raised: a filter must not fail open."""
    docids = [(a, b) for a in range(3) for b in range(3)]
    vocabulary = make_map(docids).vocabulary
    trie, foreign = (
        Trie.from_docid_map(make_map(d)).pad(roomy_shape(vocabulary))
        for d in (docids, docids[::-1])
    )
    seeds = np.arange(3, dtype=np.uint32)

    def answer(of, group):
        subset = Subset.stack([of.subset(np.arange(i, i + 3), capacity=MOST) for i in (0, 3, 6)])
        group = np.array(group, np.int32)
        return subset_search(trie, seeds, subset, group, beam=2, k=K, score="full")

    rows, scores, exact = answer(trie, [0, 7, -5])
    assert sorted(rows[0].tolist()) == [-1] * (K - 3) + [0, 1, 2]
    assert (rows[1:] == -1).all() and np.isnan(scores[1:]).all() and not exact[1:].any()
    rows, scores, exact = answer(foreign, [0, 1, 2])
    assert (rows == -1).all() and np.isnan(scores).all() and not exact.any()


@settings(max_examples=60)
@given(
    docids=st.lists(st.tuples(*[st.integers(0, 5)] * 3), min_size=1, max_size=20, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_beam_of_one_is_greedy(docids, seed):
    rows, _, _, _ = search(docids, seed, 4.0, beam=1, score="full")
    logits_of, prefix = hash_logits_of(seed, 4.0), ()
    while prefix not in docids:
        codes = {d[len(prefix)] for d in docids if d[: len(prefix)] == prefix}
        first, logits = 2 + CODES * len(prefix), logits_of(prefix)
        prefix += (max(codes, key=lambda c: logits[first + c]),)
    assert docids[rows[0]] == prefix


def test_certificate_is_often_given_and_never_for_a_tie():
    rng = np.random.default_rng(0)
    docids = [tuple(d) for d in np.unique(rng.integers(0, 3, (MOST, 4)), axis=0).tolist()]
    certified = [search(docids, s, 20.0, beam=2, score="level")[2] for s in range(100)]
    assert not any(certified), "a beam of 2 cannot rank 7 documents of one length"
    certified = [search(docids, s, 6.0, beam=2, score="children", k=1)[2] for s in range(100)]
    assert 30 < sum(certified) < 100
    full = [(a, b) for a in range(4) for b in range(4)]
    assert not search(full, 0, 0.0, beam=2, score="children")[2]


def test_ties_of_a_complete_tree_under_children():
    docids = [(a, b) for a in range(4) for b in range(4)]
    order = np.random.default_rng(0).permutation(len(docids))
    shuffled = [docids[i] for i in order]
    rows, scores, _, _ = search(shuffled, 0, 0.0, beam=40, score="children")
    assert [shuffled[r] for r in rows] == docids[:K]
    np.testing.assert_allclose(scores, np.log(1 / 16), rtol=1e-6)


def test_documents_of_one_docid_come_in_corpus_order_and_are_cut_at_k():
    docids = [(0,), (1, 1), (1, 1), (0,), (1, 1), (2,)]
    for k in (2, K):
        rows, scores, exact, _ = search(docids, 5, 8.0, beam=40, score="full", k=k)
        expected, _ = reference_search(
            docids, hash_logits_of(5, 8.0), beam=FULL, k=k, score="full", eos=False
        )
        assert rows[rows >= 0].tolist() == [r for _, r in expected] and exact
        assert len(rows) == k and len(scores) == k


def test_extreme_logits_stay_finite():
    docids = [(0,), (0, 1), (1, 2), (1, 3), (2,), (2, 2, 2)]
    for score in SCORES:
        rows, scores, _, _ = search(docids, 3, 1e4, beam=2, score=score)
        check_valid(rows, scores, docids, K, complete=False)
        assert len(rows[rows >= 0]) >= 2


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_logits_that_are_not_finite_give_nothing_and_no_certificate(scale):
    docids = [(0,), (0, 1), (1, 2), (1, 3), (2,), (2, 2, 2)]
    for score in SCORES:
        rows, scores, exact, _ = search(docids, 3, scale, beam=2, score=score)
        assert (rows == -1).all() and np.isnan(scores).all() and not exact
    # and when all that is left goes through the model in one pass
    trie = Trie.from_docid_map(make_map(docids)).pad(roomy_shape(make_map(docids).vocabulary))
    seeds = np.arange(3, dtype=np.uint32)
    rows, scores, exact = shortcut_search(trie, seeds, np.float32(scale), beam=9, k=3, score="full")
    assert (rows == -1).all() and np.isnan(scores).all() and not exact.any()


def test_an_empty_corpus_has_an_empty_answer():
    """As it is, in the arrays of a larger one, and behind a beam or one step."""
    docid_map = make_map([(0, 1), (0,)])
    nobody = docid_map.without(docid_map.doc_ids)
    empty = Trie.from_docid_map(nobody)
    atomic = Trie.from_docid_map(DocidMap((), np.zeros((0, 1)), (CODES,)))
    assert empty.document_count == 0 and empty.enumerate().shape == (0, LEVELS)
    for trie in (empty, empty.bucketed(), empty.pad(roomy_shape(docid_map.vocabulary)), atomic):
        rows, scores, exact = hash_search(
            trie, np.zeros(1, np.uint32), np.float32(8), beam=2, k=K, score="children"
        )
        assert (rows == -1).all() and (scores == -np.inf).all() and exact.all()
    subset = empty.subset(np.zeros(0, bool))
    assert subset.groups == 1 and not np.asarray(subset.allowed.words).any()


def test_exact_shapes_give_what_padded_shapes_give():
    """Also the slice at a dense root, tries without collisions, and tails without a choice."""
    rng = np.random.default_rng(1)
    cases = [
        ("full", [(a,) for a in range(CODES)]),  # atomic: one slice
        ("level", [(1, a, b) for a in range(3) for b in range(2)]),  # a root that is not dense
        ("children", [(a, b, 2, 3) for a in range(3) for b in range(4)]),  # a tail without choice
        ("children", [(a, b, 2, *[3] * (a % 2)) for a in range(3) for b in range(4)]),
        ("level", [(0,), (0, 1), (0, 1, 2)]),
        ("full", [(4,) * LEVELS]),
        ("children", [(4,) * LEVELS]),  # nothing to choose: the model is not asked
    ]
    seeds = np.array(rng.integers(0, 2**32, 1), np.uint32)
    scale = np.float32(8)
    for score, docids in cases:
        docid_map = make_map(docids)
        trie = Trie.from_docid_map(docid_map)
        padded = trie.pad(roomy_shape(docid_map.vocabulary))
        one = hash_search(trie, seeds, scale, beam=2, k=K, score=score)
        other = hash_search(padded, seeds, scale, beam=2, k=K, score=score)
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_allclose(one[1], other[1], atol=1e-5)


def test_the_trie_is_an_argument():
    """Another corpus of the same shape uses the same program, and gives its own answers."""
    shape = roomy_shape(DocidVocabulary(LEVEL_SIZES))
    tries = [Trie.from_docid_map(make_map(d)).pad(shape) for d in ([(0, 1)], [(1, 1), (2, 2)])]
    jax.clear_caches()
    for trie, expected in zip(tries, ([0], [0, 1]), strict=True):
        seeds = jnp.zeros(1, jnp.uint32)
        rows, _, _ = hash_search(trie, seeds, np.float32(1), beam=2, k=2, score="full")
        assert sorted(r for r in rows[0].tolist() if r >= 0) == expected
    programs: Any = hash_search
    assert programs._cache_size() == 1


class CountingModel(HashModel):
    """Tells `steps` of each step that it is asked for."""

    def __init__(self, scale, steps):
        super().__init__(scale)
        self.steps = steps

    def decode(self, state, tokens, parents, step):
        jax.debug.callback(lambda _, step=step: self.steps.append(step), tokens)
        return super().decode(state, tokens, parents, step)


def test_padding_finds_nothing_and_keeps_no_step_alive():
    """A query in a padded batch has the steps, and the answer, of that query alone."""
    codes = np.unique(np.random.default_rng(0).integers(0, CODES, (23, 4)), axis=0)
    trie = Trie.from_docid_map(make_map([tuple(row) for row in codes.tolist()]))
    steps = []

    @jax.jit
    def search_asked(trie, seeds, asked):
        model = CountingModel(np.float32(30), steps)
        settings: Any = {"beam": 4, "k": 2, "score": "children", "asked": asked}
        return search_trie(trie, model, seeds[:, None], len(seeds), **settings)

    def run(seeds, asked):
        steps.clear()
        found = jax.device_get(search_asked(trie, np.array(seeds, np.uint32), np.array(asked)))
        jax.effects_barrier()
        return found, sorted(steps)

    more = 0
    for seed in range(12):
        padding = [0, 99, 5]
        alone, needed = run([seed, seed, seed, seed], [True] * 4)
        padded, made = run([seed, *padding], [True, False, False, False])
        _, others = run([seed, *padding], [True] * 4)
        assert made == needed
        more += others != needed
        for one, other in zip(alone, padded, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
        assert (padded[0][1:] == -1).all() and (padded[1][1:] == -np.inf).all()
    assert more, "padding would have made a step"
