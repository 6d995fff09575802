"""What a compiled search knows of a trie, and the few sizes that tries are padded to."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from gr_jax.docids import DocidVocabulary

_LEAST = 64  # nodes, docids: fewer change by a large part when one document does
_EIGHTHS_FROM = 4096  # below, sizes are powers of two: a level's few nodes cost nothing
_LEAST_FAN_OUT = 16
_LEAST_CAPACITY = 256
# Below it a first shared docid does not change the program. Above, the 4 bytes per docid that this
# takes, in the trie and in each request's subset, are more than one compilation in a corpus's life.
_MOST_MAYBE_SHARED = 1 << 20
_ALONE = 16  # docids per node from which no node of a level has only one, unless it is skewed


class TrieShape(NamedTuple):
    """What a compiled search knows of a trie: the vocabulary exactly, all sizes as upper bounds.

    Two tries of one shape share a compiled program; `Trie.pad` brings a trie to a larger shape.

    Attributes:
      vocabulary: the tokens of the codes; exact.
      nodes: nodes of each stored level.
      branches: branching nodes of each stored level but the last.
      fan_outs: per stored level, children that one parent (the root, for level 0) can have.
      ends: per level of the vocabulary, whether a docid may end with a code of this level.
      tail_start: the first level whose codes are in `tails`; no docid needs one before.
      docids: distinct docids.
      documents: documents; as many as docids unless documents share one.
      unique: whether each docid is known to have one document.
    """

    vocabulary: DocidVocabulary
    nodes: tuple[int, ...]
    branches: tuple[int, ...]
    fan_outs: tuple[int, ...]
    ends: tuple[bool, ...]
    tail_start: int
    docids: int
    documents: int
    unique: bool

    @property
    def atomic(self) -> bool:
        """Whether a docid is one code, so that nothing follows it."""
        return len(self.vocabulary.level_sizes) == 1 and not self.vocabulary.eos

    @property
    def codes(self) -> int:
        """Codes of the first level; where each is a docid, an atomic search looks none up."""
        return self.vocabulary.level_sizes[0]

    def holds(self, other: TrieShape) -> bool:
        """Whether a trie of the other shape can be padded to this one."""
        return (
            self.vocabulary == other.vocabulary
            and len(self.branches) + 1 == len(self.nodes) == len(self.fan_outs)
            and len(self.nodes) <= len(self.ends) == len(self.vocabulary.level_sizes)
            and len(other.nodes) <= len(self.nodes)
            # a search would step into a level that no docid reaches, and find nothing to score
            and any(self.ends[len(self.nodes) - 1 :])
            and all(a <= b for a, b in zip(other.nodes, self.nodes, strict=False))
            and all(a <= b for a, b in zip(other.branches, self.branches, strict=False))
            and all(a <= b for a, b in zip(other.fan_outs, self.fan_outs, strict=False))
            and all(a <= b for a, b in zip(other.ends, self.ends, strict=True))
            and 0 <= self.tail_start <= other.tail_start
            and other.docids <= self.docids
            and other.documents <= self.documents
            and other.unique >= self.unique
            and (not self.atomic or (self.docids == self.codes) == (other.docids == other.codes))
        )

    def bucketed(self) -> TrieShape:
        """The shape that a refreshed corpus has too, for most changes of a few percent of it.

        Sizes are rounded up: small ones to powers of two of at least 64, large ones by at most an
        eighth; fan-outs to powers of two of at least 16. What appears or vanishes with a single
        document is there: a level below the last one where that has many nodes, tails from the
        first level whose nodes have few docids each, any length between the shortest and
        the longest docid, and, below a million docids, documents that share one. To be taken of a
        trie's own shape: taken twice, it makes room twice.
        """
        sizes, stored = self.vocabulary.level_sizes, len(self.nodes)
        nodes, branches, fan_outs = self.nodes, self.branches, self.fan_outs
        first, last = self.ends.index(True), len(sizes) - self.ends[::-1].index(True)
        # Of n nodes below branching ones, some n / 2 pairs of docids have met down to here; of
        # these, one in `size` goes on together. The next level is likely enough to come or go.
        if stored < last and nodes[-1] * 8 > sizes[stored - 1]:
            nodes, branches, fan_outs = (*nodes, 0), (*branches, 0), (*fan_outs, 0)
        tail_start = self.tail_start
        while 2 <= tail_start < stored + 2 and self.docids <= _ALONE * self.nodes[tail_start - 2]:
            tail_start -= 1
        docids = bucket(self.docids)
        unique = self.unique and docids > _MOST_MAYBE_SHARED
        nodes = tuple(map(bucket, nodes))
        if self.atomic:
            if self.docids == self.codes:
                docids = self.docids
            elif docids == self.codes:
                docids = bucket(docids + 1)
            nodes, unique = (docids,), self.unique
        return self._replace(
            nodes=nodes,
            branches=tuple(map(bucket, branches)),
            fan_outs=tuple(
                min(max(power_of_two(f), _LEAST_FAN_OUT), s)
                for f, s in zip(fan_outs, sizes, strict=False)
            ),
            ends=tuple(first <= level < last for level in range(len(sizes))),
            tail_start=tail_start,
            docids=docids,
            documents=bucket(self.documents),
            unique=unique,
        )

    def joined(self, other: TrieShape) -> TrieShape:
        """The smallest shape that holds both, which are of one vocabulary."""

        def most(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(map(max, itertools.zip_longest(a, b, fillvalue=0)))

        return self._replace(
            nodes=most(self.nodes, other.nodes),
            branches=most(self.branches, other.branches),
            fan_outs=most(self.fan_outs, other.fan_outs),
            ends=tuple(a or b for a, b in zip(self.ends, other.ends, strict=True)),
            tail_start=min(self.tail_start, other.tail_start),
            docids=max(self.docids, other.docids),
            documents=max(self.documents, other.documents),
            unique=self.unique and other.unique,
        )


def bucket(n: int) -> int:
    """The next power of two from 64 to 4096; above, of {8, 9, ..., 16} * 2^k."""
    if n <= _EIGHTHS_FROM:
        return max(power_of_two(n), _LEAST)
    step = 1 << ((n - 1).bit_length() - 4)
    return -(-n // step) * step


def few_capacities(n: int, most: int) -> int:
    """Room for `n` of `most`: 256 times a power of four, or all; eight sizes up to 4 million."""
    room = _LEAST_CAPACITY
    while room < n:
        room *= 4
    return min(room, most)


def power_of_two(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()
