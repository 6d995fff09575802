"""Directories of memory-mapped arrays under one header, of which no byte is taken on trust."""

from __future__ import annotations

import json
import tokenize
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gr_jax.errors import UserError
from gr_jax.files import atomic_directory

# what JSON and NumPy raise at bytes that are not theirs
_DAMAGE = (
    *(ValueError, TypeError, KeyError, AttributeError, EOFError, OSError),
    *(SyntaxError, tokenize.TokenError, RecursionError),
)

type Expected = Mapping[str, tuple[tuple[int, ...], Any]]
"""Name -> shape and dtype."""


def save_arrays(
    directory: Path, name: str, record: Mapping[str, Any], arrays: Mapping[str, Any]
) -> None:
    """Writes `NAME.json` and one `.npy` per array to `directory` (made, or replaced whole).

    Args:
      directory: where.
      name: of what the arrays are.
      record: JSON with at least `format` and `fingerprint`; see `load_arrays`.
      arrays: the arrays.

    Raises:
      UserError: the disk is full or not writable.
    """
    checksums = {}
    with atomic_directory(Path(directory)) as temporary:
        for key, leaf in arrays.items():
            array = np.ascontiguousarray(leaf).reshape(np.shape(leaf))
            np.save(temporary / f"{key}.npy", array)
            checksums[key] = _checksum(array)
        header = {**record, "checksums": checksums}
        header["checksum"] = zlib.crc32(json.dumps(header, sort_keys=True).encode())
        (temporary / f"{name}.json").write_text(
            json.dumps(header, indent=2, sort_keys=True) + "\n", encoding="utf-8"
        )


def load_arrays[T](
    directory: Path,
    name: str,
    *,
    version: int,
    fingerprint: str | None,
    describe: Callable[[dict[str, Any]], tuple[T, Expected]],
    mmap: bool = True,
    verify: bool = True,
) -> tuple[T, list[np.ndarray]]:
    """Reads what `save_arrays` wrote.

    Args:
      directory: where.
      name: of what the arrays are.
      version: the `format` that is understood.
      fingerprint: what the arrays must have been made of; None for anything.
      describe: from the header, what is to be returned of it, and the arrays that there must be.
      mmap: whether arrays stay on disk, to be shared by processes and read when used.
      verify: whether all bytes are compared with their checksums, which reads them.

    Raises:
      UserError: a file is missing, damaged or of another format, or of another fingerprint.
    """
    directory = Path(directory)
    file = directory / f"{name}.json"
    mend = f"delete the directory and build the {name} again"
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no {name} here; build the {name} again")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
        if header["format"] != version:
            raise UserError(
                f"{file}: format {header['format']!r}, not {version}: written by another "
                f"version of gr-jax; {mend}"
            )
        checksum = header.pop("checksum")
        if zlib.crc32(json.dumps(header, sort_keys=True).encode()) != checksum:
            raise ValueError("the checksum does not match")
        if fingerprint not in (None, header["fingerprint"]):
            raise UserError(
                f"{file}: the {name} of docid map {str(header['fingerprint'])[:12]}, not of "
                f"{str(fingerprint)[:12]}; {mend}"
            )
        described, expected = describe(header)
        arrays = []
        for key, (shape, dtype) in expected.items():
            file = directory / f"{key}.npy"
            array = np.asarray(np.lib.format.open_memmap(file, mode="r"))
            if (array.shape, array.dtype) != (shape, dtype):
                raise ValueError(f"{array.dtype} {list(array.shape)}, not {dtype} {list(shape)}")
            if not mmap:
                array = np.array(array)
            if verify and _checksum(array) != header["checksums"][key]:
                raise ValueError("the checksum does not match")
            arrays.append(array)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: not found; it is part of a {name} written by gr-jax: {mend}"
        ) from error
    except _DAMAGE as error:
        raise UserError(f"{file}: damaged ({_line(error)}); {mend}") from error
    return described, arrays


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data) if array.size else 0


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
