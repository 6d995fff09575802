"""Metrics of runs, computed by ir_measures (trec_eval's own code underneath)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gr_jax.errors import UserError
from gr_jax.evaluation._runs import Run, check_unique

METRICS = ("hits@1", "hits@10", "mrr@10", "ndcg@10", "recall@100")
"""What every table shows, in its order."""

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade; 1 and above is relevant."""

# Our name -> ir_measures' name. TREC says Success@k for what this field calls Hits@k: 1 if any
# relevant document is among the first k. Recall@k is the share of the relevant documents there.
_MEASURES = {"hits": "Success", "mrr": "RR", "ndcg": "nDCG", "recall": "R"}

_RESAMPLED_AT_ONCE = 4_000_000  # 32 MB of indices


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much better one system is than another, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def evaluate_run(run: Run, qrels: Qrels) -> dict[str, float]:
    """The mean of each of `METRICS` over all queries of the qrels.

    A query that the run lacks counts as 0, and so does one without a relevant document; queries
    that the qrels lack are not counted. The order of the run counts, not its scores.

    Args:
        run: The ranked documents of each query.
        qrels: The judgements. A grade of 1 or more is relevant; nDCG uses the grades as gains.

    Returns:
        A figure in [0, 1] for each of `METRICS`.

    Raises:
        UserError: If the qrels have no query, the run holds a document twice for a query, or no
            query of the run is in the qrels.
    """
    values = per_query(run, qrels)
    return {
        metric: math.fsum(row[metric] for row in values.values()) / len(values)
        for metric in METRICS
    }


def per_query(
    run: Run, qrels: Qrels, metrics: Sequence[str] = METRICS
) -> dict[str, dict[str, float]]:
    """Each query's metrics, for all queries of the qrels and in their order.

    Args:
        run: The ranked documents of each query.
        qrels: The judgements.
        metrics: Any of hits@K, mrr@K, ndcg@K and recall@K.

    Returns:
        Query id -> metric -> figure in [0, 1].

    Raises:
        UserError: As in `evaluate_run`.
    """
    import ir_measures

    measures = {_measure(metric): metric for metric in metrics}
    if not qrels:
        raise UserError("the qrels name no query: there is nothing to evaluate")
    if run and not any(query_id in qrels for query_id in run):
        raise UserError(
            f"none of the run's {len(run)} queries is among the qrels' {len(qrels)}: "
            "use the qrels of the split that the run was made for"
        )
    values = {query_id: dict.fromkeys(metrics, 0.0) for query_id in qrels}
    ranked = {}
    for query_id, ranking in run.items():
        if query_id in qrels and ranking:
            check_unique("the run", query_id, ranking)
            # Falling by one, the scores have no ties, so no library breaks them in its own way.
            ranked[query_id] = {doc_id: float(-i) for i, (doc_id, _) in enumerate(ranking)}
    # Below 0 some collections mark spam; trec_eval's nDCG expects 0 there.
    grades = {
        query_id: {doc_id: max(int(grade), 0) for doc_id, grade in judged.items()}
        for query_id, judged in qrels.items()
        if judged
    }
    if ranked and grades:
        for found in ir_measures.evaluator(list(measures), grades).iter_calc(ranked):
            values[found.query_id][measures[found.measure]] = float(found.value)
    return values


def compare(
    run_a: Run, run_b: Run, qrels: Qrels, metric: str, seed: int, samples: int = 2000
) -> Difference:
    """Run a's lead over run b, with the 95 % interval of the paired bootstrap over queries.

    Args:
        run_a: The one run.
        run_b: The other run, for the same queries.
        qrels: The judgements.
        metric: One of hits@K, mrr@K, ndcg@K and recall@K.
        seed: The seed of the resampling; the same seed gives the same interval.
        samples: How often the queries are drawn again, with replacement.

    Returns:
        The mean difference, a minus b, and the 2.5th and 97.5th percentile of the resampled means.
    """
    a, b = (
        np.asarray([row[metric] for row in per_query(run, qrels, (metric,)).values()])
        for run in (run_a, run_b)
    )
    return bootstrap(a - b, seed, samples)


def bootstrap(differences: np.ndarray, seed: int, samples: int = 2000) -> Difference:
    """The mean of per-query differences with its 95 % percentile-bootstrap interval."""
    rng = np.random.default_rng(seed)
    count = len(differences)
    rows = max(1, _RESAMPLED_AT_ONCE // count)
    means = [
        differences[rng.integers(0, count, (min(rows, samples - done), count))].mean(axis=1)
        for done in range(0, samples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(float(np.mean(differences)), float(low), float(high))


def _measure(metric: str) -> Any:
    """The ir_measures object of one of our metric names."""
    import ir_measures

    name, _, cutoff = metric.partition("@")
    if name not in _MEASURES or not cutoff.isdecimal() or int(cutoff) < 1:
        raise UserError(f"unknown metric {metric!r}: use hits@K, mrr@K, ndcg@K or recall@K")
    return getattr(ir_measures, _MEASURES[name]) @ int(cutoff)
