"""A host's own copy of the token cache: training reads it at random places."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from typing import TextIO

from gr_jax.errors import UserError
from gr_jax.files import NO_LOCKS, atomic_directory, disk_errors

_in_use: dict[Path, int] = {}  # the copies that this process reads: files that it has locked


def local_copy(cache: Path, folder: Path) -> Path:
    """Copies a token cache to a folder of this host, unless it has been.

    Of several processes of a host one copies, and the others wait and use its copy. What killed
    processes left of one is removed, and so are copies of the cache as it was written before, once
    no process reads them. The last copy stays, for the next run.

    Args:
      cache: what `build_cache` wrote.
      folder: on a disk of the host, or in its memory (`/dev/shm`).

    Returns:
      The copy, whose name is that of this writing of the cache alone. It stays as long as this
      process lives.

    Raises:
      UserError: there is no cache, or the disk is full or not writable or has no file locks.
    """
    try:
        written = (cache / "mixture.json").stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{cache}: the token cache is missing; run again") from error
    name = f"gr_jax_cache_{hashlib.sha256(str(cache.resolve()).encode()).hexdigest()[:16]}"
    copy = folder / f"{name}_{written}"
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("a", encoding="utf-8") as mutex:
            _lock(mutex, folder)
            for other in folder.glob(f"{name}_*"):  # first: there may not be room for both
                if other != copy and not _is_in_use(other):
                    shutil.rmtree(other, ignore_errors=True)
            if not copy.exists():
                with atomic_directory(copy) as temporary:
                    for path in cache.iterdir():
                        shutil.copyfile(path, temporary / path.name)
            _use(copy)
    return copy


def _lock(mutex: TextIO, folder: Path) -> None:
    """Waits for the lock, which the kernel releases when its holder ends, however it ends."""
    try:
        fcntl.flock(mutex, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise UserError(
            f"{folder}: has no file locks; choose a directory on a disk of this host"
        ) from error


def _use(copy: Path) -> None:
    """Has `_is_in_use` know of it until this process ends."""
    # NFS locks only what is open for writing
    file = os.open(copy / "mixture.json", os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_SH)
    if copy in _in_use:
        os.close(_in_use[copy])
    _in_use[copy] = file


def _is_in_use(copy: Path) -> bool:
    """Whether a process reads a copy. Nothing reads what was not copied to the end."""
    if not (copy / "mixture.json").exists():
        return False
    with (copy / "mixture.json").open("a", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
