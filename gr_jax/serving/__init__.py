"""Answering queries with a finished index. Needs no TensorFlow."""

from gr_jax.serving._index import Index, IndexSpec, Result

__all__ = ["Index", "IndexSpec", "Result"]
