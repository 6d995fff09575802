"""Reading slices of safetensors files, by offset.

The format is eight bytes of length, a JSON header, then the tensors' bytes. safetensors' own reader
maps whole files into the address space, and a limit on that is how some machines limit memory.
"""

from __future__ import annotations

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gr_jax.checkpoints._lazy import Index, LazyArray
from gr_jax.errors import UserError, damage

# safetensors' names of dtypes
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_LENGTH = 8  # bytes that say how long the header is
_LONGEST_HEADER = 100_000_000  # what safetensors allows
_GAP = 1 << 16  # bytes that are quicker read over than skipped
_BLOCK = 1 << 22  # bytes of rows that are read at once to take columns of them


def open_safetensors(path: Path) -> dict[str, LazyArray]:
    """The tensors of a file, by name; only its header is read.

    Raises:
      UserError: it is cut or damaged, or has a dtype that no T5 has.
    """
    with damage(path, "not a whole safetensors file"), path.open("rb") as stream:
        state = _state(stream)
        size = state[0]
        length = int.from_bytes(stream.read(_LENGTH), "little")
        begin = _LENGTH + length
        if begin > size or length > _LONGEST_HEADER:
            raise ValueError(f"it has {size} bytes and says that its header has {length}")
        header = json.loads(stream.read(length).decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        header.pop("__metadata__", None)
        places = sorted((*_place(path, name, entry), name) for name, entry in header.items())
        end = 0
        for start, stop, name in places:
            if start != end:
                raise ValueError(f"{name} begins at byte {start}, what is before it ends at {end}")
            end = stop
        if begin + end != size:
            raise ValueError(f"it has {size} bytes and says that it has {begin + end}")
    tensors = {}
    for start, _, name in places:
        shape, dtype = tuple(header[name]["shape"]), DTYPES[header[name]["dtype"]]
        tensors[name] = LazyArray(shape, dtype, _reader(path, state, begin + start, shape, dtype))
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("its header names something twice")
    return names


def _place(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Where the bytes of a tensor begin and end, counted from the header's end."""
    match entry:
        case {"dtype": str(code), "shape": list(shape), "data_offsets": [int(start), int(stop)]}:
            if not all(type(n) is int and n >= 0 for n in shape):
                raise ValueError(f"{name} has the shape {shape}")
        case _:
            raise ValueError(f"{name} is not told by dtype, shape and data_offsets")
    if code not in DTYPES:
        raise UserError(f"{path}: {name} is {code}: only {', '.join(DTYPES)} can be read")
    if stop - start != math.prod(shape) * DTYPES[code].itemsize:
        raise ValueError(f"{name} is {code} {shape} in {stop - start} bytes")
    return start, stop


def _state(stream: io.IOBase) -> tuple[int, int]:
    """Size and time of the last change of an open file."""
    found = os.fstat(stream.fileno())
    return found.st_size, found.st_mtime_ns


def _reader(
    path: Path, state: tuple[int, int], begin: int, shape: tuple[int, ...], dtype: np.dtype
):
    """Reads slices of the tensor of this shape whose bytes begin at `begin`."""
    row = math.prod(shape[1:]) * dtype.itemsize  # bytes

    def fetch(index: Index) -> np.ndarray:
        out = np.empty([s.stop - s.start for s in index], dtype)
        with damage(path, "cannot be read"), path.open("rb", buffering=0) as stream:
            if _state(stream) != state:
                raise UserError(f"{path}: was changed while it was read; begin again")
            first, *rest = index or (slice(0, 1),)
            start = begin + first.start * row
            if all(s.stop - s.start == n for s, n in zip(rest, shape[1:], strict=True)):
                _fill(stream, start, out)
            elif len(shape) == 2 and row - out[0].nbytes >= _GAP:
                for i in range(len(out)):
                    _fill(stream, start + i * row + rest[0].start * dtype.itemsize, out[i])
            else:
                count = max(1, _BLOCK // row)
                for at in range(0, len(out), count):
                    part = out[at : at + count]
                    rows = np.empty((len(part), *shape[1:]), dtype)
                    _fill(stream, start + at * row, rows)
                    part[...] = rows[(slice(None), *rest)]
        return out

    return fetch


def _fill(stream: io.RawIOBase, at: int, array: np.ndarray) -> None:
    """Reads a contiguous array that lies at `at`."""
    left = memoryview(array.reshape(-1).view(np.uint8))
    stream.seek(at)
    while left:
        count = stream.readinto(left)
        if not count:
            raise ValueError("it ends too early")
        left = left[count:]
