"""Arrays that are read when they are asked for, and views of them that read no more than they show.

A converter is a composition of these: a view turns the slice that it is asked for into the slice
that it needs of what it is a view of, so that nothing is ever read whole to give a part.

What is stored in chunks is read in whole ones, and a chunk may hold all layers of a stack. So
whoever reads several arrays does it with `blocks_of` or `read_together`: layers that share chunks
take turns, block by block, and a block is read once for all of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Index = tuple[slice, ...]

_BLOCK_BYTES = 1 << 29  # of one array that are held at once, at most


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """The shape and dtype of an array, and how to read a part of it.

    Attributes:
      shape: of the whole array.
      dtype: of what is read; bfloat16 is `ml_dtypes`'.
      fetch: reads one slice per axis, each with `0 <= start < stop <= size` and step 1.
      chunk: how many positions along each axis are stored together; empty where any are.
      stack: what it is a layer of, where that lies in the same chunks as other layers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[Index], np.ndarray] = dataclasses.field(repr=False, compare=False)
    chunk: tuple[int, ...] = dataclasses.field(default=(), repr=False, compare=False)
    stack: Stack | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, array: np.ndarray) -> LazyArray:
        """An array that is in memory already."""
        return cls(array.shape, array.dtype, lambda index: array[index])

    @property
    def size(self) -> int:
        """Number of scalars of the whole array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the whole array in bytes."""
        return self.size * self.dtype.itemsize

    def read(self, index: Sequence[slice] | None = None) -> np.ndarray:
        """One slice per axis (step 1), or all of it."""
        index = self.bounds(index)
        if any(s.start == s.stop for s in index):
            return np.empty([s.stop - s.start for s in index], self.dtype)
        return self.fetch(index)

    def bounds(self, index: Sequence[slice] | None) -> Index:
        """One slice per axis, with the start and the stop that it has within the array."""
        given = [slice(None)] * len(self.shape) if index is None else list(index)
        bounds = [s.indices(n) for s, n in zip(given, self.shape, strict=True)]
        if any(step != 1 for _, _, step in bounds):
            raise ValueError(f"only slices of step 1 can be read, not {given}")
        return tuple(slice(a, max(a, b)) for a, b, _ in bounds)

    def rows_at_once(self, limit: int | None = None) -> int:
        """How many rows (axis 0) a block has, so that no chunk is needed for two blocks.

        Those of `limit` bytes (half a gigabyte by default) in whole chunks, but at least one; of a
        layer, so that what is read for it, which is its whole stack's, has half a gigabyte.
        """
        if not self.shape or not self.nbytes:
            return 1
        rows = (limit or _BLOCK_BYTES) * self.shape[0] // self.nbytes
        if self.stack is not None:
            rows = min(rows, _BLOCK_BYTES * self.shape[0] // self.stack.nbytes)
        grain = min(self.chunk[0], self.shape[0]) if self.chunk else 1
        return max(grain, rows // grain * grain)

    def blocks(self, limit: int | None = None) -> Iterator[np.ndarray]:
        """The whole array in C order, in blocks of `rows_at_once(limit)` rows.

        Each block is contiguous.
        """
        index = [slice(0, n) for n in self.shape]
        for part in self.parts(index, limit):
            block = self.read(part)
            yield np.ascontiguousarray(block).reshape(block.shape)

    def parts(self, index: Sequence[slice], limit: int | None = None) -> Iterator[Index]:
        """A slice per axis cut into those of single blocks."""
        if not index:
            yield ()
            return
        rows, *rest = index
        step, at = self.rows_at_once(limit), rows.start
        while at < rows.stop:
            end = min(rows.stop, at // step * step + step)
            yield (slice(at, end), *rest)
            at = end


@dataclasses.dataclass(frozen=True, eq=False)
class Stack:
    """Layers that lie in the same chunks.

    Attributes:
      nbytes: of all of them, as they are stored.
    """

    nbytes: int


class LastRead:
    """The block that was read last of any stack: the layers that are asked for next are in it."""

    def __init__(self):
        self._held: tuple[LazyArray, Index, np.ndarray] | None = None

    def read(self, array: LazyArray, index: Index, within: Index) -> np.ndarray:
        """A part of an array; if it is not held, `within`, which holds it, is read and kept."""
        held = self._held
        if held is None or held[0] is not array or not _covers(held[1], index):
            self._held = None  # never two blocks at once
            del held
            held = self._held = (array, within, array.fetch(within))
        _, bounds, block = held
        relative = zip(index, bounds, strict=True)
        return block[tuple(slice(i.start - b.start, i.stop - b.start) for i, b in relative)]


def _covers(outer: Index, inner: Index) -> bool:
    return all(o.start <= i.start and i.stop <= o.stop for o, i in zip(outer, inner, strict=True))


def blocks_of[K](
    arrays: Mapping[K, LazyArray], limit: int | None = None
) -> Iterator[tuple[K, int, np.ndarray]]:
    """All blocks of several arrays: name, first row, block; each chunk is read for one of them.

    Those of one array come in order; arrays come one after the other but for the layers of a stack,
    which take turns.
    """
    for names in groups(arrays):
        turns = [(name, arrays[name].blocks(limit)) for name in names]
        at = 0
        while True:
            height = 0
            for name, blocks in turns:
                block = next(blocks, None)
                if block is None:
                    break
                height = len(block) if block.shape else 1
                yield name, at, block
                del block  # while the next is read there is no other
            if not height:
                break
            at += height


def groups[K](arrays: Mapping[K, LazyArray]) -> list[list[K]]:
    """Names in their order, but those of layers that lie in the same chunks together."""
    found: dict[Any, list[K]] = {}
    for name, array in arrays.items():
        found.setdefault(name if array.stack is None else array.stack, []).append(name)
    return list(found.values())


def read_together(
    arrays: Sequence[LazyArray],
    index: Sequence[slice] | None = None,
    out: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """The same slices of arrays of one shape; of layers of a stack, each chunk is read once.

    Args:
      arrays: of one shape and dtype.
      index: see `LazyArray.read`.
      out: arrays to write to, where there are some.
    """
    if out is None and all(array.stack is None for array in arrays):
        return [array.read(index) for array in arrays]
    index = arrays[0].bounds(index)
    if out is None:
        shape = [s.stop - s.start for s in index]
        out = [np.empty(shape, array.dtype) for array in arrays]
    for members in groups(dict(enumerate(arrays))):
        stacked = arrays[members[0]].stack is not None
        for part in arrays[members[0]].parts(index) if stacked else [index]:
            rows = slice(part[0].start - index[0].start, part[0].stop - index[0].start)
            for i in members:
                out[i][rows] = arrays[i].read(part)
    return list(out)


def cast(array: LazyArray, dtype: np.dtype) -> LazyArray:
    """The same values, rounded to `dtype`."""
    if array.dtype == dtype:
        return array
    return dataclasses.replace(
        array, dtype=dtype, fetch=lambda index: array.fetch(index).astype(dtype)
    )


def reinterpret(array: LazyArray, dtype: np.dtype) -> LazyArray:
    """The same bytes as another dtype of the same size."""
    return dataclasses.replace(
        array, dtype=dtype, fetch=lambda index: array.fetch(index).view(dtype)
    )


def transpose(array: LazyArray) -> LazyArray:
    """A matrix with its axes exchanged."""
    return dataclasses.replace(
        array,
        shape=array.shape[::-1],
        chunk=array.chunk[::-1],
        fetch=lambda index: array.fetch(index[::-1]).T,
    )


def rows(array: LazyArray, start: int, stop: int) -> LazyArray:
    """Some rows (axis 0)."""

    def fetch(index: Index) -> np.ndarray:
        first, *rest = index
        return array.fetch((slice(first.start + start, first.stop + start), *rest))

    return LazyArray((stop - start, *array.shape[1:]), array.dtype, fetch)


def take(array: LazyArray, at: int, axis: int) -> LazyArray:
    """The array without `axis`, at one position of it."""

    def fetch(index: Index) -> np.ndarray:
        whole = (*index[:axis], slice(at, at + 1), *index[axis:])
        return array.fetch(whole).squeeze(axis)

    return dataclasses.replace(
        array,
        shape=array.shape[:axis] + array.shape[axis + 1 :],
        chunk=array.chunk[:axis] + array.chunk[axis + 1 :],
        fetch=fetch,
    )


def unstack(array: LazyArray, axis: int, last: LastRead) -> list[LazyArray]:
    """The array at each position of `axis`, without it: the layers of a stack.

    Args:
      array: stacked.
      axis: of the layers.
      last: holds what was read for one layer, for the others that lie in the same chunks. That is
        half a gigabyte at most; or, if more, the chunks that a row or a column of them needs.
    """
    count, (depth,) = array.shape[axis], array.chunk[axis : axis + 1] or (1,)
    if depth == 1:
        return [take(array, i, axis) for i in range(count)]
    sides = [
        (n, c) for i, (n, c) in enumerate(zip(array.shape, array.chunk, strict=True)) if i != axis
    ]
    limit = max(_BLOCK_BYTES, *(array.nbytes // n * min(c, n) for n, c in sides))

    def fetch(index: Index) -> np.ndarray:
        first = index[axis].start // depth * depth
        layers = slice(first, min(first + depth, count))
        box = (*index[:axis], layers, *index[axis + 1 :])
        size = math.prod(s.stop - s.start for s in box) * array.dtype.itemsize
        return last.read(array, index, box) if size <= limit else array.fetch(index)

    kept = dataclasses.replace(array, fetch=fetch)
    stacks = [
        Stack(array.nbytes // count * (min(at + depth, count) - at))
        for at in range(0, count, depth)
    ]
    return [
        dataclasses.replace(take(kept, i, axis), stack=stacks[i // depth]) for i in range(count)
    ]


def stack(arrays: Sequence[LazyArray], axis: int) -> LazyArray:
    """Arrays of one shape along a new axis: the inverse of `take`."""
    first = arrays[0]
    shape, chunk = list(first.shape), list(first.chunk)
    shape.insert(axis, len(arrays))
    if chunk:
        chunk.insert(axis, 1)

    def fetch(index: Index) -> np.ndarray:
        out = np.empty([i.stop - i.start for i in index], first.dtype)
        layers = np.moveaxis(out, axis, 0)
        read_together(arrays[index[axis]], index[:axis] + index[axis + 1 :], list(layers))
        return out

    return LazyArray(tuple(shape), first.dtype, fetch, tuple(chunk))


def concatenate(arrays: Sequence[LazyArray]) -> LazyArray:
    """Arrays below each other (axis 0): the inverse of `rows`."""
    ends = np.cumsum([array.shape[0] for array in arrays]).tolist()

    def fetch(index: Index) -> np.ndarray:
        first, *rest = index
        parts = []
        for array, end in zip(arrays, ends, strict=True):
            begin = end - array.shape[0]
            part = slice(max(first.start - begin, 0), min(first.stop, end) - begin)
            if part.start < part.stop:
                parts.append(array.fetch((part, *rest)))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    return LazyArray((ends[-1], *arrays[0].shape[1:]), arrays[0].dtype, fetch)


def merge_axes(array: LazyArray, axis: int) -> LazyArray:
    """`axis` and the one after it as one: [.., heads, kv, ..] -> [.., heads * kv, ..]."""
    outer, inner = array.shape[axis : axis + 2]
    shape = (*array.shape[:axis], outer * inner, *array.shape[axis + 2 :])

    def fetch(index: Index) -> np.ndarray:
        wanted = index[axis]
        first, last = wanted.start // inner, -(-wanted.stop // inner)
        whole = (*index[:axis], slice(first, last), slice(0, inner), *index[axis + 1 :])
        read = array.fetch(whole)
        read = read.reshape(*read.shape[:axis], -1, *read.shape[axis + 2 :])
        inside = slice(wanted.start - first * inner, wanted.stop - first * inner)
        return read[(slice(None),) * axis + (inside,)]

    chunk = array.chunk
    if chunk:
        chunk = (*chunk[:axis], chunk[axis] * inner, *chunk[axis + 2 :])
    return dataclasses.replace(array, shape=shape, chunk=chunk, fetch=fetch)


def split_axis(array: LazyArray, axis: int, inner: int) -> LazyArray:
    """[.., heads * kv, ..] -> [.., heads, kv, ..], kv being `inner`: inverse of `merge_axes`."""
    shape = (*array.shape[:axis], array.shape[axis] // inner, inner, *array.shape[axis + 1 :])

    def fetch(index: Index) -> np.ndarray:
        outer, within = index[axis : axis + 2]
        joined = slice(outer.start * inner, outer.stop * inner)
        read = array.fetch((*index[:axis], joined, *index[axis + 2 :]))
        read = read.reshape(
            *read.shape[:axis], outer.stop - outer.start, inner, *read.shape[axis + 1 :]
        )
        return read[(slice(None),) * (axis + 1) + (within,)]

    chunk = array.chunk
    if chunk:
        chunk = (*chunk[:axis], -(-chunk[axis] // inner), inner, *chunk[axis + 1 :])
    return dataclasses.replace(array, shape=shape, chunk=chunk, fetch=fetch)


def zeros(shape: tuple[int, ...], like: LazyArray) -> LazyArray:
    """Zeros of `like`'s dtype, never held whole."""
    return LazyArray(
        shape,
        like.dtype,
        lambda index: np.zeros([i.stop - i.start for i in index], like.dtype),
    )
