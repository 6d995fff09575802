"""The same weights, corpora and queries as Hugging Face: same logits, same ranked docids.

`hf_goldens.json` holds what `generate` of transformers returned (its versions are inside). It is
written by `benchmarks/hugging_face.py`, which also defines the models, corpora and queries; nothing
here needs torch, except one test that is marked so.

Logits are compared first, then Hugging Face's rules in plain Python on gr_jax's logits, then
gr_jax's search: the first of them to fail says where to look.
"""

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import hugging_face as hf
from gr_jax.decoding import BeamSearch, SearchResult, Trie
from gr_jax.docids import DocidMap, DocidVocabulary
from gr_jax.models import decode_train, encode, prepare_inference
from tests import hugging_face

GOLDENS = Path(__file__).with_name("hf_goldens.json")
CASES = [f"{model}/{corpus}" for model in hf.MODELS for corpus in hf.CORPORA]

model = functools.cache(hugging_face.model)
_encode = jax.jit(encode, static_argnums=0)
_decode = jax.jit(decode_train, static_argnums=0)


@functools.cache
def goldens() -> dict[str, Any]:
    return json.loads(GOLDENS.read_text(encoding="utf-8"))["cases"]


@functools.cache
def docid_map(corpus: str) -> DocidMap:
    docids = hf.parity_docids(corpus)
    codes = np.full((len(docids), hf.LEVELS), -1)
    for row, docid in zip(codes, docids, strict=True):
        row[: len(docid)] = docid
    return DocidMap(tuple(map(str, docids)), codes, (hf.CODES,) * hf.LEVELS)


def logits(name: str, source: np.ndarray, decoder_input: np.ndarray) -> np.ndarray:
    """Teacher-forced logits of pairs of rows; the decoder reads 0 at the start."""
    batch = {
        "encoder_input_tokens": source,
        "encoder_segment_ids": (source > 0).astype(np.int32),
        "decoder_input_tokens": decoder_input,
        "decoder_segment_ids": np.ones_like(decoder_input),
    }
    return np.asarray(_decode(*model(name), batch))


@pytest.mark.parametrize("case", CASES)
def test_the_models_are_the_same(case):
    name, corpus = case.split("/")
    source = hf.parity_queries()
    tokens = hf.parity_tokens(corpus)
    golden = goldens()[case]
    encoded = np.asarray(_encode(*model(name), source))[:, 0, ::4]
    np.testing.assert_allclose(encoded, golden["encoded"], rtol=1e-4, atol=1e-4)
    computed = logits(name, source, hf.teacher_forced(tokens, len(source)))
    computed = computed[..., hf.LOGIT_COLUMNS]
    np.testing.assert_allclose(computed, golden["logits"], rtol=1e-4, atol=1e-4)


# --- Hugging Face's rules -------------------------------------------------------------------------


@functools.cache
def step_scores(case: str) -> np.ndarray:
    """Log-probabilities of every token after every prefix of every docid, for every query.

    [query, docid, step, vocab]
    """
    name, corpus = case.split("/")
    source = hf.parity_queries()
    tokens = hf.parity_tokens(corpus)
    read = np.pad(tokens[:, :-1], ((0, 0), (1, 0)))
    n = len(source)
    all_logits = logits(name, source.repeat(len(read), axis=0), np.tile(read, (n, 1)))
    all_logits = all_logits.reshape(n, *read.shape, -1).astype(np.float64)
    return all_logits - np.logaddexp.reduce(all_logits, axis=-1, keepdims=True)


def search_by_rank(
    scores: np.ndarray, tokens: np.ndarray, beam: int, *, every_end: bool = False
) -> list[tuple[float, int]]:
    """Beam search as transformers does it: `(score, docid)`, best first.

    All candidates of a step, ends among them, are ranked together. An end counts only if it is
    among the best `beam` (or always, with `every_end`); the best `beam` others live on, so that
    ends take no place in the beam.
    """
    docids = [tuple(t for t in row if t) for row in tokens.tolist()]
    row_of_prefix = {d[:i]: row for row, d in enumerate(docids) for i in range(len(d) + 1)}
    children: dict[tuple, set] = {}
    for d in docids:
        for i, token in enumerate(d):
            children.setdefault(d[:i], set()).add(token)
    live, pool = [(0.0, ())], []
    for step in range(tokens.shape[1]):
        grown = [
            (total + scores[row_of_prefix[prefix], step, token], (*prefix, token))
            for total, prefix in live
            for token in children[prefix]
        ]
        grown.sort(reverse=True)
        counted = grown if every_end else grown[:beam]
        pool += [(score, prefix) for score, prefix in counted if prefix[-1] == hf.EOS]
        live = [(score, prefix) for score, prefix in grown if prefix[-1] != hf.EOS][:beam]
    return [(score, docids.index(docid)) for score, docid in sorted(pool, reverse=True)[:beam]]


@pytest.mark.parametrize("beam", hf.BEAMS)
@pytest.mark.parametrize("case", CASES)
def test_hugging_faces_rules_are_understood(case, beam):
    golden = goldens()[case][f"beam_{beam}"]
    tokens = hf.parity_tokens(case.split("/")[1])
    for query, scores in enumerate(step_scores(case)):
        ranked = search_by_rank(scores, tokens, beam)
        assert [row for _, row in ranked] == golden["rows"][query], query
        found = [score for score, _ in ranked]
        np.testing.assert_allclose(found, golden["scores"][query], rtol=1e-4)


# --- gr_jax's search ------------------------------------------------------------------------------


def search(case: str, beam: int, **options: Any) -> SearchResult:
    name, corpus = case.split("/")
    documents = docid_map(corpus)
    vocabulary = DocidVocabulary(documents.level_sizes, eos=True, first_tokens=hf.CORPORA[corpus])
    weights = prepare_inference(*model(name), "float32")
    trie = Trie.from_docid_map(documents, vocabulary=vocabulary)
    searcher = BeamSearch(weights, trie, beam=beam, k=beam, score="full", **options)
    return searcher.search(hf.parity_queries())


def assert_equal(result: SearchResult, query: int, rows: list[int], scores: list[float]) -> None:
    missing = len(result.rows[query]) - len(rows)
    assert result.rows[query].tolist() == rows + [-1] * missing, query
    np.testing.assert_allclose(result.scores[query][: len(rows)], scores, rtol=1e-4)


# every program takes seconds to compile: each model, corpus and beam here, all together when asked
QUICK = {("t5_1_0/shared", 1), ("t5_1_1/disjoint", 10), ("t5_1_1/shared", 100)}


def quick_of(cases: list[Any], quick: set[Any]) -> list[Any]:
    """The cases as parameters, all but the quick ones marked `slow`."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else [case]),
            marks=() if case in quick else pytest.mark.slow,
        )
        for case in cases
    ]


@pytest.mark.parametrize("case", quick_of(CASES, {"t5_1_1/few"}))
def test_the_search_ranks_as_the_rules_do_when_every_end_counts(case, beam=10):
    result, golden = search(case, beam), goldens()[case][f"beam_{beam}"]
    tokens = hf.parity_tokens(case.split("/")[1])
    for query, scores in enumerate(step_scores(case)):
        ranked = search_by_rank(scores, tokens, beam, every_end=True)
        assert_equal(result, query, [row for _, row in ranked], [score for score, _ in ranked])
        # Hugging Face finds nothing else: what it lacks comes in between and pushes its last out
        ours, theirs = result.rows[query].tolist(), golden["rows"][query]
        common = [row for row in ours if row in theirs]
        assert common == theirs[: len(common)]
        assert (
            result.scores[query][: len(theirs)] >= np.array(golden["scores"][query]) - 1e-3
        ).all()


@pytest.mark.parametrize(
    ("case", "beam"), quick_of(list(itertools.product(CASES, hf.BEAMS)), QUICK)
)
def test_the_search_ranks_as_hugging_face_does(case, beam):
    result, golden = search(case, beam, ends="ranked"), goldens()[case][f"beam_{beam}"]
    for query, answer in enumerate(zip(golden["rows"], golden["scores"], strict=True)):
        assert_equal(result, query, *answer)


# --- the goldens themselves -----------------------------------------------------------------------


def test_the_goldens_are_worth_comparing():
    for case, golden in goldens().items():
        docids = hf.parity_docids(case.split("/")[1])
        for beam in hf.BEAMS:
            answers = golden[f"beam_{beam}"]
            for rows, scores in zip(answers["rows"], answers["scores"], strict=True):
                assert len(rows) == min(beam, len(docids))
                # no order that rounding could turn
                assert len(rows) == 1 or np.diff(scores).max() < -5e-5, (case, beam)
        lengths = {len(docids[row]) for rows in golden["beam_10"]["rows"] for row in rows}
        assert len(lengths) > 1, case


@pytest.mark.parametrize("model_name", hf.MODELS)
def test_counting_every_end_would_rank_otherwise(model_name):
    # else the goldens could not tell the two rules apart
    scores, tokens = step_scores(f"{model_name}/shared"), hf.parity_tokens("shared")
    for beam in (10, 100):
        differ = [
            search_by_rank(s, tokens, beam) != search_by_rank(s, tokens, beam, every_end=True)
            for s in scores
        ]
        assert sum(differ) >= 3


@pytest.mark.torch
def test_transformers_still_answers_so(run_torch, tmp_path):
    written = tmp_path / "goldens.json"
    run_torch("benchmarks.hugging_face", "--goldens", written)
    fresh = json.loads(written.read_text(encoding="utf-8"))["cases"]
    assert fresh.keys() == goldens().keys()
    for case, golden in goldens().items():
        assert fresh[case].keys() == golden.keys()
        for name, values in golden.items():
            if name.startswith("beam_"):
                assert fresh[case][name]["rows"] == values["rows"], (case, name)
                for a, b in zip(fresh[case][name]["scores"], values["scores"], strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-5)
            else:
                np.testing.assert_allclose(fresh[case][name], values, rtol=1e-5, atol=1e-5)
