"""Answering queries with a finished index. Needs no TensorFlow."""

from gr_jax.serving._config import DEFAULT_MOST_BEAM, DEFAULT_SCORE, SearchConfig
from gr_jax.serving._corpus import IndexedCorpus, write_tables
from gr_jax.serving._index import Index, IndexSpec, Latency, Result
from gr_jax.serving._model import Model

__all__ = [
    "DEFAULT_MOST_BEAM",
    "DEFAULT_SCORE",
    "Index",
    "IndexSpec",
    "IndexedCorpus",
    "Latency",
    "Model",
    "Result",
    "SearchConfig",
    "write_tables",
]
