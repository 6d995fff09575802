"""zarr arrays as lazy arrays, through TensorStore."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorstore as ts

from gr_jax.checkpoints._lazy import Index, LazyArray
from gr_jax.errors import damage


def zarr_array(
    where: str,
    spec: dict[str, Any],
    shape: tuple[int, ...],
    dtype: np.dtype,
    chunk: Sequence[int] | None,
) -> LazyArray:
    """An array that is opened when it is first read; a slice reads the chunks that it touches.

    Args:
      where: names the array in errors.
      spec: TensorStore's.
      shape: of the array.
      dtype: of the array.
      chunk: shape of its chunks; None where only its own metadata tell.
    """
    # a chunk that is not there is damage: both t5x and Orbax also write the chunks that are zero
    spec = spec | {"fill_missing_data_reads": False, "recheck_cached_data": False}

    @functools.cache
    def opened() -> ts.TensorStore:
        store = ts.open(spec, read=True).result()
        if store.shape != shape or store.dtype.numpy_dtype != dtype:
            raise ValueError(f"it is {store.dtype.name} {store.shape}, not {dtype} {shape}")
        return store

    def fetch(index: Index) -> np.ndarray:
        with damage(where, "damaged, a part of it is missing or cannot be read"):
            return np.asarray(opened()[index].read().result())

    return LazyArray(shape, dtype, fetch, tuple(int(n) for n in chunk or ()))
