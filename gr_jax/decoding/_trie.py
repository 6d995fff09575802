"""The set of valid docids as flat arrays: one breadth-first list of nodes per level."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Array, Int

from gr_jax.docids import DocidMap


class TrieShape(NamedTuple):
    """What a compiled search knows of a trie: the vocabulary exactly, all sizes as upper bounds.

    Two tries of one shape share a compiled program; `Trie.pad` brings a trie to a larger shape.
    Entry `i` of a tuple is about level `i`, that is about prefixes of `i + 1` codes.

    Attributes:
      level_sizes: codes of each level, as in `DocidVocabulary`; exact.
      eos: whether docids end with the end token, as in `DocidVocabulary`; exact.
      nodes: prefixes of each level.
      inner: prefixes of each level that have an extension.
      fan_outs: children that one node of the level above (the root, for level 0) can have.
      leaves: whether a prefix of the level may be without extension.
      ends: whether a docid may end at the level.
      docids: distinct docids.
      documents: documents; as many as docids unless documents share one.
      unique: whether each docid is known to have one document.
      dense_root: whether node `i` of level 0 is known to be code `i`.
    """

    level_sizes: tuple[int, ...]
    eos: bool
    nodes: tuple[int, ...]
    inner: tuple[int, ...]
    fan_outs: tuple[int, ...]
    leaves: tuple[bool, ...]
    ends: tuple[bool, ...]
    docids: int
    documents: int
    unique: bool
    dense_root: bool


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "first_child", "docids", "first_document", "documents"],
    meta_fields=["shape"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """Valid docids, level by level, with implicit children.

    The nodes of level `i` are the distinct prefixes of `i + 1` codes in lexicographic order. The
    children of a node stand side by side in the next level, sorted by code, so a child's id is its
    position there and no id is stored. Docids are numbered in lexicographic order too (a prefix
    before its extensions), and all arrays are int32.

    It is a pytree: arrays are its leaves (an argument of a compiled program, never a constant of
    it), `shape` is static.

    Attributes:
      codes: per level, each node's code [nodes]; -1 in padding.
      first_child: per level but the last, [nodes + 1]: the children of node `n` are the nodes
        `first_child[n]` to `first_child[n + 1]` of the next level.
      docids: per level, the number of the docid that ends at each node [nodes], -1 where none
        does; None where no docid ends at the level.
      first_document: [docids + 1]: documents `first_document[d]` to `first_document[d + 1]` of
        `documents` have docid `d`; None when each docid has one document, `documents[d]`.
      documents: rows of the `DocidMap`, by docid, then in corpus order [documents]; -1 in padding.
      shape: the static sizes.
    """

    codes: tuple[Array, ...]
    first_child: tuple[Array, ...]
    docids: tuple[Array | None, ...]
    first_document: Array | None
    documents: Array
    shape: TrieShape

    @classmethod
    def from_docid_map(cls, docid_map: DocidMap) -> Self:
        """Builds the trie of a map on the host, in time linear in its codes (after sorting).

        Raises:
          ValueError: the map has no document.
        """
        if not len(docid_map):
            raise ValueError("a trie needs at least one document")
        order = docid_map.sorted_order
        table = docid_map.codes[order]  # [documents, levels]
        levels = table.shape[1]
        lengths = (table >= 0).sum(axis=1)

        # fresh[r]: row r differs from row r - 1 in one of the levels seen so far
        fresh = np.zeros(len(table), bool)
        fresh[0] = True
        codes, starts, before = [], [], []
        for level in range(levels):
            fresh[1:] |= table[1:, level] != table[:-1, level]
            opens = fresh & (table[:, level] >= 0)
            starts.append(np.flatnonzero(opens))  # the first row of each node
            before.append(np.cumsum(opens, dtype=np.int32) - opens)  # nodes opened above each row
            codes.append(np.ascontiguousarray(table[starts[-1], level]))
        first_child = [
            np.append(before[i + 1][starts[i]], len(codes[i + 1])).astype(np.int32)
            for i in range(levels - 1)
        ]

        first_document = np.append(np.flatnonzero(fresh), len(table)).astype(np.int32)
        docid_lengths = lengths[first_document[:-1]]
        docids = []
        for level in range(levels):
            ending = np.flatnonzero(docid_lengths == level + 1)
            if not len(ending):
                docids.append(None)
                continue
            ends = np.full(len(codes[level]), -1, np.int32)
            # the node of a row is the last one opened at or above it
            row = first_document[ending]
            ends[np.searchsorted(starts[level], row, side="right") - 1] = ending
            docids.append(ends)

        child_counts = [np.array([len(codes[0])])] + [np.diff(f) for f in first_child]
        inner = [int(np.count_nonzero(c)) for c in child_counts[1:]] + [0]
        unique = len(first_document) == len(table) + 1
        shape = TrieShape(
            level_sizes=docid_map.level_sizes,
            eos=docid_map.vocabulary.eos,
            nodes=tuple(len(c) for c in codes),
            inner=tuple(inner),
            fan_outs=tuple(int(c.max(initial=0)) for c in child_counts),
            leaves=tuple(i < len(c) for i, c in zip(inner, codes, strict=True)),
            ends=tuple(d is not None for d in docids),
            docids=len(first_document) - 1,
            documents=len(table),
            unique=unique,
            dense_root=bool((codes[0] == np.arange(len(codes[0]))).all()),
        )
        return cls(
            codes=tuple(codes),  # pyright: ignore[reportArgumentType]
            first_child=tuple(first_child),  # pyright: ignore[reportArgumentType]
            docids=tuple(docids),
            first_document=None if unique else first_document,  # pyright: ignore[reportArgumentType]
            documents=order.astype(np.int32),  # pyright: ignore[reportArgumentType]
            shape=shape,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in jax.tree.leaves(self))

    def pad(self, shape: TrieShape) -> Trie:
        """The same docids in arrays of a larger shape, to share a compiled program.

        Raises:
          ValueError: the trie does not fit `shape`.
        """
        mine = self.shape
        fits = (
            (mine.level_sizes, mine.eos) == (shape.level_sizes, shape.eos)
            and all(a <= b for a, b in zip(mine.nodes, shape.nodes, strict=True))
            and all(a <= b for a, b in zip(mine.inner, shape.inner, strict=True))
            and all(a <= b for a, b in zip(mine.fan_outs, shape.fan_outs, strict=True))
            and all(a <= b for a, b in zip(mine.leaves, shape.leaves, strict=True))
            and all(a <= b for a, b in zip(mine.ends, shape.ends, strict=True))
            and mine.docids <= shape.docids
            and mine.documents <= shape.documents
            and mine.unique >= shape.unique
            and mine.dense_root >= shape.dense_root
        )
        if not fits:
            raise ValueError(f"a trie of shape {mine} does not fit into {shape}")

        def grow(x, size, value):
            x = np.asarray(x)
            return np.pad(x, (0, size - len(x)), constant_values=value)

        first_document = None
        if not shape.unique:
            first_document = self.first_document
            if first_document is None:
                first_document = np.arange(mine.docids + 1, dtype=np.int32)
            first_document = grow(first_document, shape.docids + 1, mine.documents)
        return dataclasses.replace(
            self,
            codes=tuple(grow(c, n, -1) for c, n in zip(self.codes, shape.nodes, strict=True)),
            first_child=tuple(
                grow(f, n + 1, f[-1])
                for f, n in zip(self.first_child, shape.nodes[:-1], strict=True)
            ),
            docids=tuple(
                grow(np.zeros(0, np.int32) if d is None else d, n, -1) if ends else None
                for d, n, ends in zip(self.docids, shape.nodes, shape.ends, strict=True)
            ),
            first_document=first_document,
            documents=grow(self.documents, shape.documents, -1),
            shape=shape,
        )

    def enumerate(self) -> Int[np.ndarray, "documents levels"]:
        """Every document's codes, by row of the `DocidMap`, -1 after a docid's end."""
        levels = len(self.codes)
        documents = np.asarray(self.documents)
        documents = documents[documents >= 0]
        by_docid = np.full((self.shape.docids, levels), -1, np.int32)
        prefixes = np.zeros((1, 0), np.int32)
        for level in range(levels):
            codes = np.asarray(self.codes[level])
            codes = codes[codes >= 0]
            if level == 0:
                parents = np.zeros(len(codes), int)
            else:
                counts = np.diff(np.asarray(self.first_child[level - 1]))
                parents = np.repeat(np.arange(len(counts)), counts)
            prefixes = np.column_stack([prefixes[parents], codes])  # [nodes, level + 1]
            if self.docids[level] is not None:
                docids = np.asarray(self.docids[level])[: len(codes)]
                by_docid[docids[docids >= 0], : level + 1] = prefixes[docids >= 0]
        if self.first_document is not None:
            counts = np.diff(np.asarray(self.first_document))
            by_docid = np.repeat(by_docid, counts, axis=0)
        out = np.empty((len(documents), levels), np.int32)
        out[documents] = by_docid[: len(documents)]
        return out
