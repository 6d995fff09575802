"""Beam search with a T5 against the oracle, and the oracle against teacher forcing."""

import dataclasses
import functools
import re
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.decoding import BeamSearch, SearchResult, Subset, Trie, find_best, score_all
from gr_jax.decoding import _atomic as atomic_module
from gr_jax.decoding import _beam as beam_module
from gr_jax.decoding import _exact as exact_module
from gr_jax.decoding._core import SCORES
from gr_jax.docids import DocidMap, docid_map_from_tokens
from gr_jax.errors import UserError
from gr_jax.models import T5Config, decode_train, init_parameters, prepare_inference
from tests.decoding.reference_search import (
    MOST,
    VOCAB,
    docid_lists,
    make_map,
    reference_search,
    roomy_shape,
)

settings.register_profile("decoding", deadline=None, derandomize=True)
settings.load_profile("decoding")

CONFIG = T5Config(
    vocab_size=40,
    target_vocab_size=VOCAB,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
QUERIES, K = 2, 6
# docids of several lengths, prefixes of others among them, and a collision
MIXED = [(0,), (0, 1), (0, 1, 2), (3, 3), (3, 4), (3, 4), (5, 0, 0, 0, 0), (5, 0, 0, 0, 1), (2,)]


@functools.cache
def params():
    return init_parameters(CONFIG, jax.random.key(0))


@functools.cache
def weights():
    return prepare_inference(CONFIG, params())


def sources(seed=0, n=QUERIES):
    rng = np.random.default_rng(seed)
    source = rng.integers(1, CONFIG.vocab_size, (n, 9))
    source[np.arange(9) >= rng.integers(3, 10, n)[:, None]] = 0
    return source


def padded_search(docid_map, **settings):
    trie = Trie.from_docid_map(docid_map).pad(roomy_shape(docid_map.vocabulary))
    return BeamSearch(weights(), trie, **settings)


_forward = jax.jit(decode_train, static_argnums=0)


def teacher_forced(docid_map, source):
    """Logits of the training forward pass [queries, documents, steps, vocab]."""
    tokens = np.zeros((MOST, 6), np.int32)
    tokens[: len(docid_map), : docid_map.tokens.shape[1]] = docid_map.tokens
    n = len(source)
    encoder = np.repeat(np.pad(source, ((0, 0), (0, 7))), MOST, axis=0)
    decoder = np.tile(np.pad(tokens, ((0, 0), (1, 0)))[:, :-1], (n, 1))
    batch = {
        "encoder_input_tokens": encoder,
        "encoder_segment_ids": (encoder > 0).astype(np.int32),
        "decoder_input_tokens": decoder,
        "decoder_segment_ids": np.ones_like(decoder),
    }
    logits = np.asarray(_forward(CONFIG, params(), batch), np.float64)
    return logits.reshape(n, MOST, 6, VOCAB)[:, : len(docid_map)]


def plain_ranking(docid_map, docids, source, score, *, beam=10**6, k=MOST):
    """`reference_search` on the training forward pass, per query."""
    rankings = []
    for logits in teacher_forced(docid_map, source):
        at = {d[:i]: logits[r, i] for r, d in enumerate(docids) for i in range(len(d) + 1)}
        ranked, _ = reference_search(
            docids, at.__getitem__, beam=beam, k=k, score=score, eos=docid_map.vocabulary.eos
        )
        rankings.append(ranked)
    return rankings


@pytest.mark.parametrize(
    "score", ["full", pytest.param("level", marks=pytest.mark.slow), "children"]
)
@settings(max_examples=8)
@given(docids=docid_lists(), seed=st.integers(0, 99))
def test_oracle_and_search_equal_teacher_forcing(score, docids, seed):
    docid_map, source = make_map(docids), sources(seed)
    oracle = score_all(weights(), docid_map, source, score)
    everything = padded_search(docid_map, beam=MOST, k=MOST, score=score).search(source)
    assert everything.exact.all()
    for q, expected in enumerate(plain_ranking(docid_map, docids, source, score)):
        brute = np.empty(len(docids))
        brute[[r for _, r in expected]] = [s for s, _ in expected]
        np.testing.assert_allclose(oracle[q], brute, rtol=1e-5, atol=1e-5)
        rows = everything.rows[q, : len(docids)]
        assert sorted(rows) == list(range(len(docids)))
        assert (everything.rows[q, len(docids) :] == -1).all()
        np.testing.assert_allclose(
            everything.scores[q, : len(docids)], oracle[q, rows], rtol=1e-5, atol=1e-5
        )
        # the order is the oracle's wherever rounding cannot turn it
        assert (np.diff(oracle[q, rows]) <= 1e-5).all()


@pytest.mark.parametrize(
    ("docids", "score"),
    [
        ([(0,)], "children"),
        ([(3,), (1,), (5,)], "level"),
        ([(a, b) for a in range(5) for b in range(4)], "full"),
        ([(a, b, c) for a in range(4) for b in range(3) for c in range(3)], "children"),
        ([(0, 1, 2, 3, 4), (0, 1, 2, 3, 5)], "children"),
        ([(0, 1), (0, 1, 2), (4, 4, 4)], "level"),
    ],
    ids=["one", "short", "two levels", "three levels", "long", "mixed"],
)
def test_a_trie_with_room_is_searched_as_the_oracle_ranks(docids, score):
    """As `BeamSearch` takes a map: levels and docids that there is only room for change nothing."""
    docid_map, source = make_map(docids), sources(1)
    oracle = find_best(weights(), docid_map, source, score, k=4)
    found = BeamSearch(weights(), docid_map, beam=8, k=4, score=score).search(source, exact=True)
    there = oracle.rows.shape[1]
    assert found.exact.all() and (found.rows[:, there:] == -1).all()
    np.testing.assert_array_equal(found.rows[:, :there], oracle.rows)
    np.testing.assert_allclose(found.scores[:, :there], oracle.scores, rtol=1e-5, atol=1e-5)


@settings(max_examples=8)
@given(docids=docid_lists(), seed=st.integers(0, 99))
def test_a_small_beam_equals_a_plain_one(docids, seed):
    score = "children"
    docid_map, source = make_map(docids), sources(seed)
    result = padded_search(docid_map, beam=3, k=K, score=score).search(source)
    oracle = np.sort(score_all(weights(), docid_map, source, score), axis=1)[:, ::-1]
    plain = plain_ranking(docid_map, docids, source, score, beam=3, k=K)
    for q, expected in enumerate(plain):
        found = result.rows[q] >= 0
        assert result.rows[q][found].tolist() == [r for _, r in expected]
        np.testing.assert_allclose(
            result.scores[q][found], [s for s, _ in expected], rtol=1e-5, atol=1e-5
        )
        if result.exact[q]:
            best = oracle[q, : found.sum()]
            assert found.sum() == min(K, len(docids))
            np.testing.assert_allclose(result.scores[q][found], best, rtol=1e-5, atol=1e-5)


def test_a_query_is_answered_alike_in_any_company():
    search = padded_search(make_map(MIXED), beam=3, k=K)
    source = sources(n=3)
    together = search.search(source)  # a batch of 4
    search.batch_size = 2  # two batches
    apart = search.search(source[::-1])
    np.testing.assert_array_equal(together.rows, apart.rows[::-1])
    np.testing.assert_allclose(together.scores, apart.scores[::-1], rtol=1e-5)
    np.testing.assert_array_equal(together.exact, apart.exact[::-1])


def test_padding_of_the_source_changes_nothing():
    search = padded_search(make_map(MIXED), beam=3, k=K)
    source = sources()
    short = search.search(source)
    wide = np.pad(source, ((0, 0), (0, 40)))
    for x, y in zip(short, search.search(wide), strict=True):
        np.testing.assert_array_equal(x, y)  # the padding is cut off
    rows, scores, _ = search.run(jax.numpy.asarray(wide[:, :32], jax.numpy.int32))
    np.testing.assert_array_equal(short.rows, rows)
    np.testing.assert_allclose(short.scores, scores, rtol=1e-5)
    none = search.search(source[:0])
    assert none.rows.shape == none.scores.shape == (0, K) and none.exact.shape == (0,)


def test_no_transfer_and_no_second_compilation():
    search = padded_search(make_map(MIXED), beam=3, k=K)
    search.search(sources())
    programs: Any = beam_module._program("cpu")
    compiled = programs._cache_size()
    on_device = jax.device_put(np.pad(sources(1), ((0, 0), (0, 7))).astype(np.int32))
    with jax.transfer_guard("disallow"):
        rows, _, _ = search.run(on_device)
    assert rows.shape == (QUERIES, K)
    search.search(sources(2)[:, :5])
    padded_search(make_map([*MIXED, (1, 1)]), beam=3, k=K).search(sources(3))
    assert programs._cache_size() == compiled


def test_oracle_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    docids = [tuple(rng.integers(0, 6, rng.integers(1, 5)).tolist()) for _ in range(60)]
    docid_map, source = make_map(docids), sources()
    whole = score_all(weights(), docid_map, source, "children")
    monkeypatch.setattr(exact_module, "_MEMORY", 0)
    blocks = score_all(weights(), docid_map, source, "children")
    np.testing.assert_allclose(whole, blocks, rtol=1e-5, atol=1e-5)
    distinct = sorted({d: r for r, d in enumerate(docids)}.values())
    np.testing.assert_allclose(np.exp(whole[:, distinct]).sum(axis=1), 1, rtol=1e-5)


def test_atomic_docids_and_the_users_mistakes():
    docid_map = docid_map_from_tokens([f"d{i}" for i in range(VOCAB - 2)], [[i] for i in range(30)])
    oracle = score_all(weights(), docid_map, sources())
    result = BeamSearch(weights(), docid_map, beam=1, k=40).search(sources())
    np.testing.assert_array_equal(result.rows[:, :30], np.argsort(-oracle, axis=1, kind="stable"))
    assert (result.rows[:, 30:] == -1).all() and result.exact.all()
    diverged = jax.tree.map(lambda x: x * np.nan, weights())
    with pytest.raises(
        UserError, match="not finite for 2 of 2 queries: the checkpoint has diverged"
    ):
        BeamSearch(diverged, docid_map, beam=1, k=40).search(sources())
    with pytest.raises(UserError, match="not finite"):
        score_all(diverged, docid_map, sources())


def test_mistakes_are_one_line():
    docid_map = make_map(MIXED)
    search: Any = padded_search(docid_map, beam=np.int64(3), k=K)
    assert search.beam == 3 and type(search.beam) is int
    cases: list[tuple[str, Any]] = [
        ("target tokens", lambda: BeamSearch(weights(), docid_map_from_tokens(["a"], [[40]]))),
        ("unknown score", lambda: padded_search(docid_map, score="best")),
        ("unknown score", lambda: score_all(weights(), docid_map, sources(), "best")),  # pyright: ignore
        ("unknown ends", lambda: padded_search(docid_map, ends="best")),
        *(
            (f"{name} is {value!r}: a whole number of at least 1", lambda n=name, v=value:
             padded_search(docid_map, **{n: v}))
            for name in ("beam", "k", "batch_size")
            for value in (0, True, 2.0, 2.5, "2", None)
        ),
        ("put a single query into a list", lambda: search.search(sources()[0])),
        ("whole numbers", lambda: search.search(sources() + 0.5)),
        ("token 40 is not one of the model's 40", lambda: search.search([[40, 1]])),
        ("token -5 is not one of the model's 40", lambda: search.search([[-5, 1]])),
        ("token 40", lambda: score_all(weights(), docid_map, np.array([[40]]))),
        ("most_beam is 2.0", lambda: search.search(sources(), most_beam=2.0)),
    ]  # fmt: skip
    for message, mistake in cases:
        with pytest.raises(UserError, match=re.escape(message)) as caught:
            mistake()
        assert "\n" not in str(caught.value)


def test_groups_and_subsets_that_are_none_of_the_tries_are_refused():
    search = padded_search(make_map(MIXED), beam=3, k=K)
    one = search.trie.subset(np.arange(3))
    two = Subset.stack([one, search.trie.subset(np.arange(3, 6))])
    foreign = padded_search(make_map(MIXED[::-1]), beam=3, k=K).trie.subset(np.arange(3))
    cases: list[tuple[Any, Any, str]] = [
        (None, [0, 1], "there is none: give subset="),
        (two, None, "2 groups: give each query's with group="),
        (two, [0, 7], "group 7 is not one of the subset's, 0 to 1"),
        (two, [0, -5], "group -5 is not one"),
        (two, [0.0, 1.0], "a whole number for each of 2 queries"),
        (two, [True, False], "a whole number for each of 2 queries"),
        (two, [0], "a whole number for each of 2 queries"),
        (two, [[0, 1]], "a whole number for each of 2 queries"),
        (foreign, None, "of another docid map"),
        (
            Trie.from_docid_map(make_map(MIXED)).bucketed().subset(np.arange(3)),
            None,
            "room for another",
        ),
    ]
    for subset, group, message in cases:
        with pytest.raises(UserError, match=re.escape(message)):
            search.search(sources(), subset=subset, group=group)
    on_device = jax.device_put(np.pad(sources(), ((0, 0), (0, 7))).astype(np.int32))
    for subset, group in ((None, np.zeros(2, np.int32)), (two, None)):
        with pytest.raises(UserError, match="give both"):
            search.run(on_device, subset=subset, group=group)  # pyright: ignore[reportArgumentType]


def test_one_query_that_is_not_finite_is_seen():
    """The others' answers stay what they are; a search refuses to answer at all."""
    search = padded_search(make_map(MIXED), beam=3, k=K)
    source = np.ones((2, 16), np.int32)
    source[1, 3] = 39
    whole = search.run(jax.device_put(source))
    embedding = weights().encoder.embedding.at[39].set(np.nan)
    search.weights = dataclasses.replace(
        weights(), encoder=weights().encoder._replace(embedding=embedding)
    )
    rows, scores, exact = search.run(jax.device_put(source))
    np.testing.assert_array_equal(rows[0], whole[0][0])
    np.testing.assert_array_equal(scores[0], whole[1][0])
    assert (rows[1] == -1).all() and np.isnan(scores[1]).all() and not exact[1]
    with pytest.raises(UserError, match="not finite for 1 of 2 queries"):
        search.search(source, exact=True)


def test_the_last_beam_is_the_widest_that_is_allowed(monkeypatch):
    search = padded_search(make_map(MIXED), beam=3, k=1)
    beams: list[int] = []

    def open_(source, beam, subset, group):
        beams.append(beam)
        rows = np.zeros((len(source), 1), np.int32)
        exact = np.zeros(len(source), bool)
        return SearchResult(rows, rows.astype(np.float32), exact, np.full(len(source), beam))

    monkeypatch.setattr(search, "_ranked", open_)
    for most, expected in ((2, [3]), (3, [3]), (5, [3, 5]), (12, [3, 6, 12]), (13, [3, 6, 12, 13])):
        beams.clear()
        result = search.search(sources(), exact=True, most_beam=most)
        assert beams == expected and (result.beam == expected[-1]).all()


def test_the_form_for_tpus_answers_as_the_one_for_cpus():
    """One product over all slots under a mask, in the place of gathered histories."""
    search = padded_search(make_map(MIXED), beam=3, k=K)
    source = jax.device_put(np.pad(sources(), ((0, 0), (0, 7))).astype(np.int32))
    programs = (beam_module._program(platform) for platform in ("cpu", "tpu"))
    cpu, tpu = (
        program(
            search.weights, search.trie, source, None, None, beam=3, k=K, score="full", ends="all"
        )
        for program in programs
    )
    np.testing.assert_array_equal(cpu[0], tpu[0])
    assert (np.asarray(cpu[0]) >= 0).any(axis=1).all()
    np.testing.assert_allclose(cpu[1], tpu[1], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(cpu[2], tpu[2])


def test_atomic_docids_with_holes_in_a_larger_trie():
    """More places than codes, and yet a code without a document."""
    table = np.delete(np.arange(18), 5)
    docid_map = DocidMap(tuple(f"d{i}" for i in table), table[:, None], (18,))
    trie = Trie.from_docid_map(docid_map).bucketed()
    assert trie.shape.docids > 18
    found = BeamSearch(weights(), trie, beam=1, k=17).search(sources())
    oracle = score_all(weights(), docid_map, sources())
    np.testing.assert_array_equal(found.rows, np.argsort(-oracle, axis=1, kind="stable"))
    np.testing.assert_allclose(found.scores, -np.sort(-oracle, axis=1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("codes", [VOCAB - 2, 17])
def test_atomic_docids_in_blocks_with_ties_and_subsets(monkeypatch, score, codes):
    """Shared docids, codes without a document, blocks that do not divide; also of a subset."""
    monkeypatch.setattr(atomic_module, "_BLOCKS", 4)
    jax.clear_caches()  # the blocks are no argument of the compiled program
    rng = np.random.default_rng(codes)
    table = np.concatenate([rng.permutation(VOCAB - 2)[:codes], [3, 3]])
    docid_map = DocidMap(tuple(f"d{i}" for i in range(len(table))), table[:, None], (VOCAB - 2,))
    oracle = score_all(weights(), docid_map, sources(), score)
    # by score, then docid, then corpus order
    order = [np.lexsort((np.arange(len(table)), table, -np.round(o, 4))) for o in oracle]
    search = BeamSearch(weights(), docid_map, beam=1, k=7, score=score)
    result = search.search(sources())
    np.testing.assert_array_equal(result.rows, [o[:7] for o in order])
    for rows, scores, truth in zip(result.rows, result.scores, oracle, strict=True):
        np.testing.assert_allclose(scores, truth[rows], rtol=1e-5, atol=1e-5)
    keep = rng.random(len(table)) < 0.5
    part = search.search(sources(), subset=Trie.from_docid_map(docid_map).bucketed().subset(keep))
    expected = [[r for r in o if keep[r]][:7] for o in order]
    np.testing.assert_array_equal([r[r >= 0] for r in part.rows], expected)
    assert result.exact.all() and part.exact.all()
    jax.clear_caches()


def test_batches_are_of_like_length_and_no_larger_than_needed(monkeypatch):
    """Each query gets its own answer, whatever the order; a few long ones pad no others."""
    rng = np.random.default_rng(0)
    lengths = [*[1] * 10, *range(2, 14), 100, *[5] * 10, 40]
    source = np.zeros((len(lengths), 128), np.int32)
    for row, length in zip(source, rng.permutation(lengths), strict=True):
        row[:length] = rng.integers(1, 40, length)
    asked = []

    def run(self, source, *, beam, subset, group):
        asked.append(source.shape)
        rows = np.asarray(source).sum(axis=1, keepdims=True).repeat(self.k, axis=1)
        return rows, rows.astype(np.float32), np.asarray(source).any(axis=1)

    monkeypatch.setattr(BeamSearch, "run", run)
    search = BeamSearch(weights(), make_map(MIXED), k=3, batch_size=8)
    found = search.search(source)
    assert asked == [(8, 16)] * 4 + [(2, 128)]
    np.testing.assert_array_equal(found.rows, source.sum(axis=1, keepdims=True).repeat(3, axis=1))
    assert found.exact.all() and found.scores.shape == (len(source), 3)


def test_a_corpus_that_changes_is_searched_by_one_program():
    """As `BeamSearch` takes it: with a document less, another more, and one docid for two."""
    codes = np.unique(np.random.default_rng(0).integers(0, 5, (60, 3)), axis=0)
    program = beam_module._program("cpu")
    before = program._cache_size()
    for rows in (codes, codes[1:], codes[:-2], np.concatenate([codes, codes[:1]])):
        docid_map = DocidMap(tuple(map(str, range(len(rows)))), rows, (5, 5, 5))
        found = BeamSearch(weights(), docid_map, beam=4, k=4).search(sources())
        assert (found.rows >= 0).all()
    assert program._cache_size() == before + 1


def test_the_oracle_keeps_the_best_of_each_block(monkeypatch):
    docid_map = make_map([*MIXED, *[(4, a, b) for a in range(4) for b in range(4)]])
    source = sources(n=3)
    scores = score_all(weights(), docid_map, source)
    order = docid_map.sorted_order
    ranked = order[np.argsort(-scores[:, order], axis=1, kind="stable")]
    monkeypatch.setattr(exact_module, "_SMALLEST", 4)
    monkeypatch.setattr(exact_module, "_MEMORY", 1)
    held = []
    block = exact_module._score_block

    def watched(*args):
        held.append(block(*args))
        return held[-1]

    monkeypatch.setattr(exact_module, "_score_block", watched)
    for k in (1, 6, 100):
        found = find_best(weights(), docid_map, source, k=k)
        np.testing.assert_array_equal(found.rows, ranked[:, :k])
        best = np.take_along_axis(scores, found.rows, axis=1)
        np.testing.assert_allclose(found.scores, best, rtol=1e-5, atol=1e-5)
    assert max(x.shape[1] for x in held) == 4 and found.exact.all()


def test_a_certificate_in_bfloat16_holds_but_for_rounding():
    """Its own sums are certified; the oracle's differ by what another program's roundings do."""
    tolerance = 0.05  # nats; the largest distance here is .01
    low = prepare_inference(CONFIG, params(), "bfloat16")
    many = [(a, b, c) for a in range(5) for b in range(5) for c in range(5)]
    docid_map, source = make_map(many), sources(n=16)
    found = BeamSearch(low, docid_map, beam=3, k=3).search(source)
    oracle = score_all(low, docid_map, source)
    scores = np.take_along_axis(oracle, found.rows, axis=1)
    np.testing.assert_allclose(found.scores, scores, rtol=0, atol=tolerance)
    third = np.sort(oracle, axis=1)[:, -3]
    assert found.exact.any() and not found.exact.all()
    # whatever was missed scores less than the third by the search's own sums
    assert (third - scores.min(axis=1))[found.exact].max() <= 2 * tolerance
