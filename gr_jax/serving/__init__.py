"""Answering queries with a finished index. Needs no TensorFlow."""

from gr_jax.serving._config import DEFAULT_SCORE, SearchConfig
from gr_jax.serving._index import Index, IndexSpec, Result

__all__ = ["DEFAULT_SCORE", "Index", "IndexSpec", "Result", "SearchConfig"]
