"""What a restricted softmax reads beside the batch, of docids that are only counted."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from gr_jax.decoding import TrieShape
from gr_jax.training import Softmax
from gr_jax.training._restriction import ChildrenRestriction, LevelRestriction, Restriction


def abstract_restriction(softmax: Softmax, docids: TrieShape) -> Restriction | None:
    """`make_restriction` of a docid map that is not there.

    Its sizes are the trie's, so upper bounds where those are; exact for a trie's own shape of which
    all docids have all levels.

    Args:
      softmax: what the model is trained with.
      docids: shape of their trie.
    """
    if softmax == "full":
        return None
    vocabulary = docids.vocabulary
    if softmax == "level":
        return LevelRestriction(vocabulary)
    nodes = _prefixes(docids)

    def array(size: int) -> Any:
        return jax.ShapeDtypeStruct((size,), jnp.int32)

    return ChildrenRestriction(
        of_root=array(vocabulary.level_sizes[0]),
        token=array(nodes),
        first_child=array(nodes + 1),
        vocabulary=vocabulary,
        fan_out=_fan_out(docids),
    )


def _prefixes(docids: TrieShape) -> int:
    """Distinct prefixes of all docids as tokens, the empty one included."""
    total, alone = 1, 0
    for level in range(len(docids.vocabulary.level_sizes)):
        # below a prefix of one docid a trie stores no nodes, but the restriction does
        stored = docids.nodes[level] if level < len(docids.nodes) else 0
        total += min(stored + alone, docids.docids)
        branching = docids.branches[level] if level < len(docids.branches) else 0
        alone += stored - branching
    return total + docids.docids * docids.vocabulary.eos


def _fan_out(docids: TrieShape) -> int:
    """Tokens that follow a prefix other than the empty one, at most."""
    eos = docids.vocabulary.eos
    below = [
        # a prefix that is a docid itself, or of one docid
        fan_out + (eos and docids.ends[level])
        for level, fan_out in enumerate(docids.fan_outs[1:])
    ]
    return max(*below, int(docids.vocabulary.max_tokens > 1), 0)
