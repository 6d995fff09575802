"""Documents, queries and relevance judgements: readers, validation, and an embedded collection.

>>> collection = read_collection("data/nfcorpus")
>>> len(collection.corpus), sorted(collection.splits)
"""

from gr_jax.corpus._beir import (
    read_collection,
    read_corpus,
    read_ids,
    read_qrels,
    read_queries,
    read_query_set,
    read_titles,
    write_corpus,
)
from gr_jax.corpus._lines import whole_characters
from gr_jax.corpus._python_docs import python_docs
from gr_jax.corpus._types import Collection, Corpus, Document, Query, QuerySet
from gr_jax.corpus._words import normalize, words

__all__ = [
    "Collection",
    "Corpus",
    "Document",
    "Query",
    "QuerySet",
    "normalize",
    "python_docs",
    "read_collection",
    "read_corpus",
    "read_ids",
    "read_qrels",
    "read_queries",
    "read_query_set",
    "read_titles",
    "whole_characters",
    "words",
    "write_corpus",
]
