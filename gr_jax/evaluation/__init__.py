"""Evaluation: ranked documents -> TREC run -> metrics -> report, with BM25 beside every figure.

The one path every number takes: a system ranks documents per query (a `Run`), `write_run` stores
it in TREC's format, `evaluate_run` measures it, `write_report` and `print_report` show it next to
BM25's. Importing this package is cheap: the heavy libraries load when they are used.
"""

from gr_jax.evaluation._bm25 import BM25
from gr_jax.evaluation._console import print_report
from gr_jax.evaluation._metrics import METRICS, Difference, compare, evaluate_run, per_query
from gr_jax.evaluation._report import (
    Report,
    Split,
    measure_split,
    read_report,
    verdict,
    write_report,
)
from gr_jax.evaluation._runs import Run, read_run, write_certificates, write_run
from gr_jax.evaluation._search import SearchQuality, beam_recall

__all__ = [
    "BM25",
    "METRICS",
    "Difference",
    "Report",
    "Run",
    "SearchQuality",
    "Split",
    "beam_recall",
    "compare",
    "evaluate_run",
    "measure_split",
    "per_query",
    "print_report",
    "read_report",
    "read_run",
    "verdict",
    "write_certificates",
    "write_report",
    "write_run",
]
