"""Writing to disk so that nothing half-written is ever mistaken for a result."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from gr_jax.errors import UserError


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns "disk full" and "not writable" into one line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space and run again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path}: not writable; choose another directory") from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it when the block succeeds.

    Raises:
      UserError: the disk is full or not writable; `path` is then as it was before.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory that becomes `path` when the block succeeds.

    An existing `path` is replaced. Leftovers of a killed process are removed.

    Raises:
      UserError: the disk is full or not writable; `path` is then as it was before.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f"{path.name}.tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
        temporary.mkdir()
    try:
        with disk_errors(path):
            yield temporary
            if path.exists():
                shutil.rmtree(path)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
