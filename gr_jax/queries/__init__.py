"""Synthetic queries: what people might ask a document for, sampled from the document itself."""

from gr_jax.queries._synthetic import SyntheticQueries
from gr_jax.queries._tables import QuestionStyle, WordTables

__all__ = ["QuestionStyle", "SyntheticQueries", "WordTables"]
