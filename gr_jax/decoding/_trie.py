"""The set of valid docids as flat arrays: a breadth-first list of nodes per level, and tails."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Int

from gr_jax.array_files import Expected, load_arrays, save_arrays
from gr_jax.decoding._shape import TrieShape, few_capacities
from gr_jax.docids import DocidMap, DocidVocabulary
from gr_jax.errors import UserError

_FORMAT = 3


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["words", "counts"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Ranks:
    """A set of numbers below `n` that tells how many of its members are below a number.

    Several sets over the same `n` can be stacked along a leading group axis.

    Attributes:
      words: uint32 [ceil(n / 32) + 1] or [groups, ...]: bit `i % 32` of word `i // 32` says whether
        `i` is a member.
      counts: int32, same shape: members before each word.
    """

    words: Array
    counts: Array

    @classmethod
    def from_mask(cls, mask: Bool[np.ndarray, " n"]) -> Self:
        """The set of the positions that are True."""
        table = np.zeros(4 * (-(-len(mask) // 32) + 1), np.uint8)
        packed = np.packbits(mask, bitorder="little")
        table[: len(packed)] = packed
        words = table.view("<u4").astype(np.uint32, copy=False)
        counts = np.zeros(len(words), np.int32)
        np.cumsum(np.bitwise_count(words[:-1]), out=counts[1:])
        return cls(words, counts)  # pyright: ignore[reportArgumentType]

    def rank(self, index: ArrayLike, group: ArrayLike | None = None) -> Array:
        """Members below each index (0 to n, any shape); of which group, if there are several."""
        index = jnp.asarray(index)
        place: Any = index >> 5 if group is None else (group, index >> 5)
        word, count = (
            jnp.asarray(x).at[place].get(mode="promise_in_bounds")
            for x in (self.words, self.counts)
        )
        below = (jnp.uint32(1) << (index & 31).astype(jnp.uint32)) - jnp.uint32(1)
        return count + jax.lax.population_count(word & below).astype(jnp.int32)

    def _grown(self, n: int) -> Ranks:
        """The same set over a larger `n`."""
        words, counts = np.asarray(self.words), np.asarray(self.counts)
        more = -(-n // 32) + 1 - len(words)
        # the last word has no member, so its count is that of all members
        return Ranks(
            np.pad(words, (0, more)),  # pyright: ignore[reportArgumentType]
            np.pad(counts, (0, more), constant_values=counts[-1]),  # pyright: ignore[reportArgumentType]
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["allowed", "select", "first_document", "documents", "identity"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Some documents of a trie, or several such choices (groups), as arguments of a program.

    Attributes:
      allowed: the numbers of the docids that keep a document, over the trie's capacity of docids
        [groups, ...].
      select: the same numbers in order [groups, capacity]; 0 in padding.
      first_document: as in `Trie`, over the kept documents only [groups, docids + 1]; None if the
        trie's docids are unique.
      documents: as in `Trie`, the kept ones [groups, capacity], -1 in padding; None if the trie's
        docids are unique.
      identity: as in `Trie`: that of the trie whose documents these are, uint32 [8].
    """

    allowed: Ranks
    select: Array
    first_document: Array | None
    documents: Array | None
    identity: Array

    @property
    def groups(self) -> int:
        """Number of choices."""
        return len(self.select)

    def check(self, trie: Trie) -> None:
        """Refuses a trie that the documents were not chosen from; on the host.

        Raises:
          UserError: the trie is of another docid map, or of another capacity.
        """
        mend = "choose the documents with the `subset` of the trie that is searched"
        if not np.array_equal(self.identity, trie.identity):
            raise UserError(f"the subset is of a trie of another docid map: {mend}")
        words = -(-trie.shape.docids // 32) + 1
        shared = self.documents is not None
        if self.allowed.words.shape[-1] != words or shared == trie.shape.unique:
            raise UserError(
                f"the subset is of a trie with room for another number of docids: {mend}"
            )

    @classmethod
    def stack(cls, subsets: Sequence[Subset]) -> Subset:
        """All groups of all subsets (of one trie), in order.

        Raises:
          ValueError: no subsets, or of several tries.
        """
        kinds = {
            (s.allowed.words.shape[1], s.documents is None, np.asarray(s.identity).tobytes())
            for s in subsets
        }
        if len(kinds) != 1:
            raise ValueError("subsets to stack are of one trie, and at least one")

        def stacked(arrays: list[Array], padding: int) -> np.ndarray:
            width = max(a.shape[1] for a in arrays)
            grown = [
                np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=padding)
                for a in map(np.asarray, arrays)
            ]
            return np.concatenate(grown)

        first = [s.first_document for s in subsets if s.first_document is not None]
        documents = [s.documents for s in subsets if s.documents is not None]
        arrays: Any = {
            "select": stacked([s.select for s in subsets], 0),
            "first_document": np.concatenate(first) if first else None,
            "documents": stacked(documents, -1) if documents else None,
            "identity": subsets[0].identity,
        }
        return cls(allowed=jax.tree.map(_concatenate, *(s.allowed for s in subsets)), **arrays)


def _concatenate(*arrays: Array) -> np.ndarray:
    return np.concatenate(arrays)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "codes",
        "lows",
        "branching",
        "first_child",
        "tails",
        "lengths",
        "first_document",
        "documents",
        "root_children",
        "identity",
    ],
    meta_fields=["shape"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Trie:
    """Valid docids: level by level as long as there is a choice, then as tails.

    Docids are numbered in lexicographic order (a prefix before its extensions). A *node* of level
    `i` is a prefix of `i + 1` codes; the docids below it are a range of numbers. It is *branching*
    if they are at least two; else it is *unary*, and all that follows is forced. The children of
    the root and of branching nodes are stored, in lexicographic order, so that the children of a
    node stand side by side; what follows a unary node is read from `tails`.

    The range of node `n` starts at `lows[n]`. It ends at `min(lows[n + 1], end of the parent's
    range)`: between the last child of a parent and the next stored node there may be docids of
    nodes that are not stored, or that have no child. A docid that ends at a branching node is the
    first of its range, and the range of its first child starts behind it.

    It is a pytree: arrays are its leaves (an argument of a compiled program, never a constant of
    it), `shape` is static. Codes are of the narrowest of uint8, uint16 and int32 that holds those
    of the level.

    Attributes:
      codes: per stored level, each node's code [nodes]; 0 in padding.
      lows: per stored level, int32 [nodes + 1]: the first docid of each node; behind the last node
        and in padding, the number of docids.
      branching: per stored level but the last, which nodes are branching.
      first_child: per stored level but the last, int32 [branches + 1]: the children of the `b`-th
        branching node are the nodes `first_child[b]` to `first_child[b + 1]` of the next level.
      tails: each docid's codes from level `shape.tail_start` on [docids, levels - tail_start]; 0
        behind its end.
      lengths: number of codes of each docid [docids], uint8 or, for more than 255 levels, uint16.
      first_document: int32 [docids + 1]: documents `first_document[d]` to `first_document[d + 1]`
        of `documents` have docid `d`; None when each docid has one document, `documents[d]`.
      documents: rows of the `DocidMap`, by docid, then in corpus order, int32 [documents]; -1 in
        padding.
      root_children: number of nodes of level 0, without padding; int32 [].
      identity: the fingerprint of the `DocidMap`, uint32 [8]: what a `Subset` must be of.
      shape: the static sizes.
    """

    codes: tuple[Array, ...]
    lows: tuple[Array, ...]
    branching: tuple[Ranks, ...]
    first_child: tuple[Array, ...]
    tails: Array
    lengths: Array
    first_document: Array | None
    documents: Array
    root_children: Array
    identity: Array
    shape: TrieShape

    @classmethod
    def from_docid_map(cls, docid_map: DocidMap, vocabulary: DocidVocabulary | None = None) -> Self:
        """Builds the trie of a map on the host, in time linear in its codes (after sorting).

        Args:
          docid_map: the documents and their docids.
          vocabulary: the tokens of the codes; None for those of the map.

        Raises:
          ValueError: the vocabulary cannot spell the map's docids.
        """
        if vocabulary is None:
            vocabulary = docid_map.vocabulary
        elif vocabulary.level_sizes != docid_map.level_sizes:
            raise ValueError(
                f"a vocabulary of levels {vocabulary.level_sizes} for docids of levels "
                f"{docid_map.level_sizes}"
            )
        elif not vocabulary.eos and not docid_map.prefix_free:
            raise ValueError("a docid is a prefix of another: the vocabulary needs an end token")
        vocabulary.check_codes(docid_map.codes)
        identity = np.frombuffer(bytes.fromhex(docid_map.fingerprint), "<u4").astype(np.uint32)
        if not len(docid_map):
            return cls._empty(vocabulary, identity)
        sizes = docid_map.level_sizes
        levels = len(sizes)

        # from documents to distinct docids: the first row of each, in order
        rows, shared = docid_map.sorted_order, docid_map.shared_levels
        first_document = None
        if not docid_map.unique:
            first = np.flatnonzero(shared < levels)
            first_document = np.append(first, len(rows)).astype(np.int32)
            rows, shared = rows[first], shared[first]
        lengths = docid_map.lengths[rows]
        docids = len(rows)
        # leading codes in common with the next docid, and with either neighbour
        shared_next = np.zeros_like(shared)
        shared_next[:-1] = shared[1:]
        meets = np.maximum(shared, shared_next)
        # A docid opens a node at each level from `shared` on, up to its own end; its prefix of
        # `meets` codes is the last one with other docids below it, whose children are stored.
        last = np.minimum(meets, lengths - 1)
        stored = int(last.max()) + 1
        tail_start = int(meets.min(where=lengths - 1 > meets, initial=levels - 1)) + 1

        codes, lows, branching, first_child, fan_outs, branches = [], [], [], [], [], []
        tails = np.zeros((docids, levels - tail_start), _code_type(sizes[tail_start:]))
        parents = np.zeros(0, int)  # first docids of the branching nodes of the level before
        for level in range(levels):
            # gathered from a narrow copy, which fits into caches
            column = np.maximum(docid_map.codes[:, level], 0).astype(_code_type(sizes[level]))
            if level >= tail_start:
                tails[:, level - tail_start] = column[rows]
            if level >= stored:
                continue
            opens = (shared <= level) & (last >= level)
            low = np.flatnonzero(opens)
            codes.append(column[rows[low]])
            lows.append(np.append(low, docids).astype(np.int32))
            if level == 0:
                fan_outs.append(len(low))
            else:
                opened = np.cumsum(opens, dtype=np.int32)
                before = opened[parents] - opens[parents]
                first_child.append(np.append(before, np.int32(len(low))))
                fan_outs.append(int(np.diff(first_child[-1]).max()))
            if level + 1 < stored:
                branch = shared_next[low] > level
                branching.append(Ranks.from_mask(branch))
                parents = low[branch]
                branches.append(len(parents))

        ending = np.bincount(lengths, minlength=levels + 1)[1:]
        shape = TrieShape(
            vocabulary=vocabulary,
            nodes=tuple(len(c) for c in codes),
            branches=tuple(branches),
            fan_outs=tuple(fan_outs),
            ends=tuple(bool(n) for n in ending),
            tail_start=tail_start,
            docids=docids,
            documents=len(docid_map),
            unique=first_document is None,
        )
        arrays: Any = {
            "codes": tuple(codes),
            "lows": tuple(lows),
            "branching": tuple(branching),
            "first_child": tuple(first_child),
            "tails": tails,
            "lengths": lengths.astype(_length_type(levels), copy=False),
            "first_document": first_document,
            "documents": docid_map.sorted_order.astype(np.int32),
            "root_children": np.array(len(codes[0]), np.int32),
            "identity": identity,
        }
        return cls(**arrays, shape=shape)

    @classmethod
    def _empty(cls, vocabulary: DocidVocabulary, identity: np.ndarray) -> Self:
        """The trie of no document: padding for one, since a program needs something to look up."""
        levels = len(vocabulary.level_sizes)
        ends = (True, *(False,) * (levels - 1))
        shape = TrieShape(vocabulary, (1,), (), (1,), ends, levels, 1, 1, unique=True)
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), cls.abstract(shape))
        arrays: Any = {"documents": empty.documents - 1, "identity": identity}
        return dataclasses.replace(empty, **arrays)

    @classmethod
    def abstract(cls, shape: TrieShape) -> Self:
        """A trie of this shape with `jax.ShapeDtypeStruct` for arrays, to compile ahead of data."""

        def array(dtype: Any, *dimensions: int) -> Any:
            return jax.ShapeDtypeStruct(dimensions, dtype)

        def ranks(n: int) -> Ranks:
            words = -(-n // 32) + 1
            return Ranks(array(np.uint32, words), array(np.int32, words))

        sizes = shape.vocabulary.level_sizes
        tail = len(sizes) - shape.tail_start
        return cls(
            codes=tuple(array(_code_type(s), n) for s, n in zip(sizes, shape.nodes, strict=False)),
            lows=tuple(array(np.int32, n + 1) for n in shape.nodes),
            branching=tuple(ranks(n) for n in shape.nodes[:-1]),
            first_child=tuple(array(np.int32, b + 1) for b in shape.branches),
            tails=array(_code_type(sizes[shape.tail_start :]), shape.docids, tail),
            lengths=array(_length_type(len(sizes)), shape.docids),
            first_document=None if shape.unique else array(np.int32, shape.docids + 1),
            documents=array(np.int32, shape.documents),
            root_children=array(np.int32),
            identity=array(np.uint32, 8),
            shape=shape,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(x.nbytes for x in jax.tree.leaves(self))

    @property
    def docid_count(self) -> int:
        """Distinct docids, without padding."""
        return int(self.lows[0][-1])

    @property
    def document_count(self) -> int:
        """Documents, without padding."""
        return self.docid_count if self.first_document is None else int(self.first_document[-1])

    def pad(self, shape: TrieShape) -> Trie:
        """The same docids in arrays of a larger shape, to share a compiled program.

        Raises:
          ValueError: the trie does not fit `shape`.
        """
        if not shape.holds(self.shape):
            raise ValueError(f"a trie of shape {self.shape} does not fit into {shape}")
        docids = self.docid_count
        levels = range(len(shape.nodes))
        sizes = shape.vocabulary.level_sizes
        types = [_code_type(s) for s in sizes]

        def grow(x, size, value=0):
            x = np.asarray(x)
            return np.pad(x, [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)], constant_values=value)

        # levels that only the larger shape has: no node
        codes = [*self.codes, *(np.zeros(0, t) for t in types[len(self.codes) : len(levels)])]
        lows = [*self.lows, *[np.full(1, docids, np.int32)] * (len(levels) - len(self.lows))]
        nobody = Ranks.from_mask(np.zeros(0, bool))
        branching = [*self.branching, *[nobody] * (len(levels) - 1 - len(self.branching))]
        nothing = np.zeros(1, np.int32)
        first_child = [*self.first_child, *[nothing] * (len(levels) - 1 - len(self.first_child))]
        tails = self.tails
        if shape.tail_start < self.shape.tail_start:
            tail = range(shape.tail_start, len(sizes))
            tails = np.zeros((docids, len(tail)), _code_type(sizes[shape.tail_start :]))
            for place, level in enumerate(tail):
                tails[:, place] = np.maximum(self._level_codes(level), 0)
        first_document = self.first_document
        if not shape.unique:
            if first_document is None:
                first_document = np.arange(docids + 1, dtype=np.int32)
            first_document = grow(first_document, shape.docids + 1, self.document_count)
        arrays: Any = {
            "codes": tuple(map(grow, codes, shape.nodes)),
            "lows": tuple(grow(x, n + 1, docids) for x, n in zip(lows, shape.nodes, strict=True)),
            "branching": tuple(
                r._grown(n) for r, n in zip(branching, shape.nodes[:-1], strict=True)
            ),
            "first_child": tuple(
                grow(x, n + 1, x[-1]) for x, n in zip(first_child, shape.branches, strict=True)
            ),
            "tails": grow(tails, shape.docids),
            "lengths": grow(self.lengths, shape.docids),
            "first_document": first_document,
            "documents": grow(self.documents, shape.documents, -1),
            "root_children": self.root_children,
            "identity": self.identity,
        }
        return Trie(**arrays, shape=shape)

    def bucketed(self) -> Trie:
        """Padded to `TrieShape.bucketed`: most refreshed corpora then share a compiled program."""
        return self.pad(self.shape.bucketed())

    def subset(
        self,
        keep: Bool[np.ndarray, " documents"] | Int[np.ndarray, " n"],
        *,
        capacity: int | None = None,
    ) -> Subset:
        """A choice of documents, for one request or many, as arguments of the search's program.

        A search is compiled once without subsets and once for each capacity of subsets (and, of a
        stack, number of groups).

        Args:
          keep: which documents, by row of the `DocidMap`, or the rows themselves.
          capacity: room for docids and documents; None for their number, rounded up to 256 times a
            power of four, or to all that the trie has room for: at most eight capacities up to 4
            million documents, and ten up to 67 million.

        Raises:
          ValueError: `keep` is not about this trie's documents, or there is not room enough.
        """
        count, keep = self.document_count, np.asarray(keep)
        if keep.dtype != bool:
            rows = keep.astype(np.int64)
            if rows.ndim != 1 or not np.array_equal(rows, keep):
                raise ValueError("documents to keep are a mask, or rows as whole numbers")
            if rows.min(initial=0) < 0 or rows.max(initial=-1) >= count:
                raise ValueError(f"a row to keep is not one of {count} documents")
            keep = np.zeros(count, bool)
            keep[rows] = True
        if keep.shape != (count,):
            raise ValueError(f"a mask of shape {keep.shape} for {count} documents")
        documents = np.asarray(self.documents)[:count]
        kept = keep[documents]  # by docid
        mask = np.zeros(self.shape.docids, bool)
        first_document = None
        if self.first_document is None:
            mask[:count] = kept
        else:
            before = np.zeros(count + 1, np.int32)
            np.cumsum(kept, out=before[1:])
            first_document = before[np.asarray(self.first_document)]
            mask[:] = first_document[1:] > first_document[:-1]

        def padded(x: np.ndarray, value: int, most: int) -> np.ndarray:
            room = few_capacities(len(x), most) if capacity is None else capacity
            if len(x) > room:
                raise ValueError(f"{len(x)} kept for a capacity of {room}")
            out = np.full((1, room), value, np.int32)
            out[0, : len(x)] = x
            return out

        shared = first_document is not None
        arrays: Any = {
            "select": padded(np.flatnonzero(mask), 0, self.shape.docids),
            "first_document": first_document[None] if shared else None,
            "documents": padded(documents[kept], -1, self.shape.documents) if shared else None,
        }
        allowed = jax.tree.map(lambda x: x[None], Ranks.from_mask(mask))
        return Subset(allowed=allowed, identity=self.identity, **arrays)

    def enumerate(self) -> Int[np.ndarray, "documents levels"]:
        """Every document's codes, by row of the `DocidMap`, -1 after a docid's end."""
        documents = np.asarray(self.documents)[: self.document_count]
        docids = np.arange(self.docid_count)
        if self.first_document is not None:
            docids = np.repeat(docids, np.diff(self.first_document)[: len(docids)])
        out = np.empty((len(documents), len(self.shape.ends)), np.int32)
        for level in range(out.shape[1]):
            out[documents, level] = self._level_codes(level)[docids]
        return out

    def _level_codes(self, level: int) -> Int[np.ndarray, " docids"]:
        """Every docid's code of one level, -1 where it has none; without padding."""
        docids, start = self.docid_count, self.shape.tail_start
        longer = np.asarray(self.lengths)[:docids] > level
        if not longer.any():
            return np.full(docids, -1, np.int32)
        if level >= start:
            column = np.asarray(self.tails)[:docids, level - start]
        else:
            # the node of a docid is the last one that starts at or before it
            low = np.asarray(self.lows[level])
            opens = np.zeros(docids, np.int32)
            opens[low[: np.searchsorted(low, docids)]] = 1
            column = np.asarray(self.codes[level])[np.cumsum(opens) - 1]
        return np.where(longer, column.astype(np.int32), np.int32(-1))

    def save(self, directory: Path, fingerprint: str) -> None:
        """Writes the trie to `directory` (made, or replaced whole).

        Args:
          directory: where.
          fingerprint: that of the `DocidMap`.

        Raises:
          UserError: the disk is full or not writable.
        """
        record = {"format": _FORMAT, "fingerprint": fingerprint, "shape": _to_json(self.shape)}
        arrays = {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(self)}
        save_arrays(directory, "trie", record, arrays)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        fingerprint: str | None = None,
        mmap: bool = True,
        verify: bool = True,
    ) -> Self:
        """Reads what `save` wrote.

        Args:
          directory: where.
          fingerprint: that of the `DocidMap` that the trie must be of; None for any.
          mmap: whether arrays stay on disk, to be shared by processes and read when used.
          verify: whether all bytes are compared with their checksums, which reads them.

        Raises:
          UserError: a file is missing, damaged or of another format, or the trie is of another map.
        """

        def describe(header: dict[str, Any]) -> tuple[Any, Expected]:
            leaves, structure = jax.tree.flatten_with_path(
                cls.abstract(_from_json(header["shape"]))
            )
            return structure, {_name(path): (leaf.shape, leaf.dtype) for path, leaf in leaves}

        structure, arrays = load_arrays(
            directory,
            "trie",
            version=_FORMAT,
            fingerprint=fingerprint,
            describe=describe,
            mmap=mmap,
            verify=verify,
        )
        return jax.tree.unflatten(structure, arrays)


def _code_type(sizes: int | Sequence[int]) -> type[np.generic]:
    """The narrowest type for codes of levels of these sizes."""
    most = np.max(sizes, initial=0)
    return np.uint8 if most <= 256 else np.uint16 if most <= 65536 else np.int32


def _length_type(levels: int) -> type[np.generic]:
    return np.uint8 if levels <= 255 else np.uint16


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _to_json(shape: TrieShape) -> dict[str, Any]:
    return {**shape._asdict(), "vocabulary": dataclasses.asdict(shape.vocabulary)}


def _from_json(fields: dict[str, Any]) -> TrieShape:
    def tuples(values: dict[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}

    vocabulary = DocidVocabulary(**tuples(fields["vocabulary"]))
    return TrieShape(**{**tuples(fields), "vocabulary": vocabulary})
