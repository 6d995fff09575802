"""Docids: the map from documents to code sequences, and the methods that assign them."""

from gr_jax.docids._assigners import AtomicDocids, DocidAssigner, HierarchicalKMeans
from gr_jax.docids._docid_map import (
    EOS_ID,
    PAD_ID,
    DocidMap,
    DocidVocabulary,
    docid_map_from_tokens,
)

__all__ = [
    "EOS_ID",
    "PAD_ID",
    "AtomicDocids",
    "DocidAssigner",
    "DocidMap",
    "DocidVocabulary",
    "HierarchicalKMeans",
    "docid_map_from_tokens",
]
