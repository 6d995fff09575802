"""Arrays that are read when they are asked for, and views of them that read no more than they show.

A converter is a composition of these: a view turns the slice that it is asked for into the slice
that it needs of what it is a view of, so that nothing is ever read whole to give a part.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

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
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[Index], np.ndarray] = dataclasses.field(repr=False, compare=False)

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
        given = [slice(None)] * len(self.shape) if index is None else list(index)
        bounds = [s.indices(n) for s, n in zip(given, self.shape, strict=True)]
        if any(step != 1 for _, _, step in bounds):
            raise ValueError(f"only slices of step 1 can be read, not {given}")
        index = tuple(slice(a, max(a, b)) for a, b, _ in bounds)
        if any(s.start == s.stop for s in index):
            return np.empty([s.stop - s.start for s in index], self.dtype)
        return self.fetch(index)

    def blocks(self, limit: int = _BLOCK_BYTES) -> Iterator[np.ndarray]:
        """The whole array in C order, in blocks of rows of at most `limit` bytes where that goes.

        Each block is contiguous.
        """
        rows = max(1, limit // max(1, self.nbytes // max(1, self.shape[0]))) if self.shape else 1
        for at in range(0, self.shape[0], rows) if self.shape else [0]:
            index = [slice(None)] * len(self.shape)
            if self.shape:
                index[0] = slice(at, min(at + rows, self.shape[0]))
            block = self.read(index)
            yield np.ascontiguousarray(block).reshape(block.shape)


def cast(array: LazyArray, dtype: np.dtype) -> LazyArray:
    """The same values, rounded to `dtype`."""
    if array.dtype == dtype:
        return array
    return LazyArray(array.shape, dtype, lambda index: array.fetch(index).astype(dtype))


def reinterpret(array: LazyArray, dtype: np.dtype) -> LazyArray:
    """The same bytes as another dtype of the same size."""
    return LazyArray(array.shape, dtype, lambda index: array.fetch(index).view(dtype))


def transpose(array: LazyArray) -> LazyArray:
    """A matrix with its axes exchanged."""
    return LazyArray(array.shape[::-1], array.dtype, lambda index: array.fetch(index[::-1]).T)


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

    return LazyArray(array.shape[:axis] + array.shape[axis + 1 :], array.dtype, fetch)


def stack(arrays: Sequence[LazyArray], axis: int) -> LazyArray:
    """Arrays of one shape along a new axis: the inverse of `take`."""
    shape = list(arrays[0].shape)
    shape.insert(axis, len(arrays))

    def fetch(index: Index) -> np.ndarray:
        rest = index[:axis] + index[axis + 1 :]
        empty = [i.stop - i.start for i in index]
        out = np.empty(empty, arrays[0].dtype)
        for i, array in enumerate(arrays[index[axis]]):
            out[(slice(None),) * axis + (i,)] = array.fetch(rest)
        return out

    return LazyArray(tuple(shape), arrays[0].dtype, fetch)


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

    return LazyArray(shape, array.dtype, fetch)


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

    return LazyArray(shape, array.dtype, fetch)


def zeros(shape: tuple[int, ...], like: LazyArray) -> LazyArray:
    """Zeros of `like`'s dtype, never held whole."""
    return LazyArray(
        shape,
        like.dtype,
        lambda index: np.zeros([i.stop - i.start for i in index], like.dtype),
    )
