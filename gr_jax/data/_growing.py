"""Arrays on disk that grow."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

_COPIED_BYTES = 2**22


class GrowingArray:
    """An .npy file of one axis whose length is not known beforehand.

    numpy leaves room in the header for a longer length, so it is written again at the end.
    """

    def __init__(self, path: Path, dtype: type):
        self.length = 0
        self._dtype = np.dtype(dtype)
        self._stream = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        """Adds values."""
        self._stream.write(values.astype(self._dtype, copy=False).tobytes())
        self.length += len(values)

    def append_file(self, path: Path) -> None:
        """Adds a plain file of values."""
        with path.open("rb") as stream:
            shutil.copyfileobj(stream, self._stream, _COPIED_BYTES)
        self.length += path.stat().st_size // self._dtype.itemsize

    def close(self) -> None:
        """Writes the length."""
        self._stream.seek(0)
        self._write_header()
        self._stream.close()

    def _write_header(self) -> None:
        header = {
            "descr": np.lib.format.dtype_to_descr(self._dtype),
            "fortran_order": False,
            "shape": (self.length,),
        }
        np.lib.format.write_array_header_1_0(self._stream, header)
