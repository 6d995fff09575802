import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.errors import UserError
from gr_jax.evaluation import (
    METRICS,
    compare,
    evaluate_run,
    measure_split,
    per_query,
    read_run,
    write_run,
)

QUERIES = ["q1", "q2", "q3", "q4"]
DOCUMENTS = [f"d{i}" for i in range(14)]
GRADES = st.integers(-1, 3)
QRELS = st.dictionaries(
    st.sampled_from(QUERIES), st.dictionaries(st.sampled_from(DOCUMENTS), GRADES), min_size=1
)
RANKINGS = st.lists(st.sampled_from(DOCUMENTS), unique=True).map(
    lambda ids: [(doc_id, 1.0) for doc_id in ids]  # all tied: only the order may count
)
RUNS = st.dictionaries(st.sampled_from(QUERIES), RANKINGS)


def brute_force(ranking: list[str], judged: dict[str, int]) -> dict[str, float]:
    """The five metrics of one query, straight from their definitions."""
    relevant = {doc_id for doc_id, grade in judged.items() if grade >= 1}
    ranks = [rank for rank, doc_id in enumerate(ranking, start=1) if doc_id in relevant]
    gains = [max(judged.get(doc_id, 0), 0) for doc_id in ranking]
    ideal = sorted((max(grade, 0) for grade in judged.values()), reverse=True)

    def dcg(values):
        return sum(value / math.log2(i + 2) for i, value in enumerate(values[:10]))

    return {
        "hits@1": float(1 in ranks),
        "hits@10": float(any(rank <= 10 for rank in ranks)),
        "mrr@10": next((1 / rank for rank in ranks if rank <= 10), 0.0),
        "ndcg@10": dcg(gains) / dcg(ideal) if dcg(ideal) else 0.0,
        "recall@100": sum(rank <= 100 for rank in ranks) / len(relevant) if relevant else 0.0,
    }


@settings(max_examples=150, deadline=None)
@given(RUNS, QRELS)
def test_parity_with_brute_force(run, qrels):
    if run and not set(run) & set(qrels):
        with pytest.raises(UserError, match="none of the run's"):
            evaluate_run(run, qrels)
        return
    expected = {
        query_id: brute_force([doc_id for doc_id, _ in run.get(query_id, [])], judged)
        for query_id, judged in qrels.items()
    }
    found = per_query(run, qrels)
    assert list(found) == list(qrels)
    for query_id, row in expected.items():
        assert found[query_id] == pytest.approx(row, abs=1e-6)
    means = evaluate_run(run, qrels)
    assert tuple(means) == METRICS
    for metric, value in means.items():
        expected_mean = sum(row[metric] for row in expected.values()) / len(qrels)
        assert value == pytest.approx(expected_mean, abs=1e-6)


def test_cutoffs_beyond_a_hundred_documents():
    run = {"q": [(f"x{i}", -float(i)) for i in range(99)] + [("a", -99.0), ("b", -100.0)]}
    row = per_query(run, {"q": {"a": 1, "b": 1}})["q"]
    assert row["recall@100"] == 0.5
    assert row["hits@10"] == row["mrr@10"] == row["ndcg@10"] == 0


def test_a_missing_query_counts_as_zero():
    qrels = {"q1": {"a": 1}, "q2": {"a": 1}}
    assert evaluate_run({"q1": [("a", 1.0)]}, qrels) == dict.fromkeys(METRICS, 0.5)
    assert evaluate_run({"q1": [("a", 1.0)], "q2": []}, qrels) == dict.fromkeys(METRICS, 0.5)
    assert evaluate_run({}, qrels) == dict.fromkeys(METRICS, 0.0)


def test_queries_outside_the_qrels_do_not_count():
    run = {"q1": [("a", 1.0)], "other": [("b", 1.0)]}
    assert evaluate_run(run, {"q1": {"a": 1}}) == dict.fromkeys(METRICS, 1.0)


def test_the_file_measures_as_the_run_does(tmp_path):
    run = {"q": [(doc_id, 0.25) for doc_id in DOCUMENTS]}
    qrels = {"q": {"d3": 1, "d12": 2}}
    write_run(tmp_path / "a.run", run, "t")
    assert evaluate_run(read_run(tmp_path / "a.run"), qrels) == evaluate_run(run, qrels)


def test_trec_eval_itself_agrees_on_a_written_tied_run(tmp_path):
    import pytrec_eval

    run = {"q": [(doc_id, 0.25) for doc_id in DOCUMENTS]}
    qrels = {"q": {"d3": 1, "d12": 2}}
    write_run(tmp_path / "a.run", run, "t")
    raw = {}
    for line in (tmp_path / "a.run").read_text().splitlines():
        query_id, _, doc_id, _, score, _ = line.split()
        raw.setdefault(query_id, {})[doc_id] = float(score)
    row = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank", "ndcg_cut"}).evaluate(raw)["q"]
    assert row["recip_rank"] == 1 / 4
    assert row["ndcg_cut_10"] == pytest.approx(evaluate_run(run, qrels)["ndcg@10"])


def test_a_foreign_tied_file_measures_as_in_trec_eval(tmp_path):
    import pytrec_eval

    raw = {"q": {"a": 1.0, "c": 1.0 + 1e-12, "b": 1.0, "z": 0.5}}
    (tmp_path / "a.run").write_text("".join(f"q Q0 {d} 0 {s!r} t\n" for d, s in raw["q"].items()))
    run = read_run(tmp_path / "a.run")
    for relevant in raw["q"]:
        qrels = {"q": {relevant: 1}}
        theirs = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(raw)
        assert evaluate_run(run, qrels)["mrr@10"] == theirs["q"]["recip_rank"]


def test_refuses_what_cannot_be_measured():
    with pytest.raises(UserError, match="'a' is ranked twice for query 'q'"):
        evaluate_run({"q": [("a", 1.0), ("a", 0.5)]}, {"q": {"a": 1}})
    with pytest.raises(UserError, match="the qrels name no query"):
        evaluate_run({"q": [("a", 1.0)]}, {})
    with pytest.raises(UserError, match="unknown metric 'map'"):
        per_query({}, {"q": {"a": 1}}, ("map",))


def half_right(count: int, right: float, seed: int):
    rng = np.random.default_rng(seed)
    return {
        f"q{i}": [("good", 1.0), ("bad", 0.0)] if hit else [("bad", 1.0), ("good", 0.0)]
        for i, hit in enumerate(rng.random(count) < right)
    }


def test_the_bootstrap_interval_holds_the_difference():
    qrels = {f"q{i}": {"good": 1} for i in range(400)}
    a, b = half_right(400, 0.8, 0), half_right(400, 0.6, 1)
    found = compare(a, b, qrels, "hits@1", seed=3)
    assert found.value == pytest.approx(
        evaluate_run(a, qrels)["hits@1"] - evaluate_run(b, qrels)["hits@1"]
    )
    assert found.low < found.value < found.high
    assert found.is_clear
    pairs = per_query(a, qrels), per_query(b, qrels)
    d = [x["hits@1"] - y["hits@1"] for x, y in zip(*map(dict.values, pairs), strict=True)]
    half_width = 1.96 * np.std(d) / math.sqrt(400)  # what the normal approximation says
    assert found.high - found.low == pytest.approx(2 * half_width, rel=0.1)
    assert found == compare(a, b, qrels, "hits@1", seed=3)
    assert found != compare(a, b, qrels, "hits@1", seed=4)
    back = compare(b, a, qrels, "hits@1", seed=3)
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )


def test_equal_runs_do_not_differ():
    qrels = {"q1": {"good": 1}, "q2": {"good": 1}}
    run = half_right(2, 0.5, 0)
    found = compare(run, run, qrels, "mrr@10", seed=0)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    assert not found.is_clear


def test_measure_split_agrees_with_its_parts():
    qrels = {f"q{i}": {"good": 1} for i in range(50)}
    a, b = half_right(50, 0.8, 0), half_right(50, 0.6, 1)
    split = measure_split(qrels, (a, 4.0), (b, 0.5), seed=3)
    assert split.queries == 50
    assert split.gr_jax == pytest.approx({**evaluate_run(a, qrels), "ms_per_query": 4.0})
    assert split.bm25 == pytest.approx({**evaluate_run(b, qrels), "ms_per_query": 0.5})
    for metric in METRICS:
        assert split.differences[metric] == compare(a, b, qrels, metric, seed=3)
