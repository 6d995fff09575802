"""What the evaluation tests share: a report with known figures."""

from collections.abc import Callable

import pytest

from gr_jax.evaluation import METRICS, Difference, Report, SearchQuality, Split


@pytest.fixture
def figures() -> Callable[[float, float], dict[str, float]]:
    """Makes one system's figures: the same value for every metric, and the ms per query."""
    return lambda value, ms: {**dict.fromkeys(METRICS, value), "ms_per_query": ms}


@pytest.fixture
def report(figures) -> Report:
    """A report with a split that gr_jax wins and one that BM25 wins."""
    return Report(
        documents=2067,
        parameters=60_506_624,
        steps=20_000,
        wall_seconds={"docids": 12.5, "train": 2105.0, "eval": 95.0},
        splits={
            "seen": Split(
                1851,
                figures(0.8125, 4.25),
                figures(0.78, 0.31),
                {"hits@1": Difference(0.0325, 0.01, 0.05)},
                SearchQuality(certified=0.964, beam_recall=0.9985),
            ),
            "unseen": Split(
                206,
                figures(0.413, 4.5),
                figures(0.791, 0.3),
                search=SearchQuality(certified=0.937, beam_recall=None),
            ),
        },
        seed=17,
        command="gr-jax train --gin.MODEL_DIR='/tmp/<m>'",
        docid_fingerprint="4f1c9a77d0e2",
        beam=20,
        index_bytes={"gr_jax": 242_000_000, "bm25": 1_843_200},
        device="1 x NVIDIA H100",
        versions={"gr_jax": "0.1.0", "jax": "0.12.1"},
        score="level",
        precision="bfloat16",
    )
