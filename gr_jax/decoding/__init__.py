"""Constrained decoding: the trie of valid docids, beam search over it, and the exact oracle."""

from gr_jax.decoding._beam import BeamSearch, SearchResult
from gr_jax.decoding._core import Score
from gr_jax.decoding._exact import find_best, score_all
from gr_jax.decoding._shape import TrieShape
from gr_jax.decoding._trie import Subset, Trie

__all__ = [
    "BeamSearch",
    "Score",
    "SearchResult",
    "Subset",
    "Trie",
    "TrieShape",
    "find_best",
    "score_all",
]
