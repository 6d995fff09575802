"""A host's own copy of the token cache: training reads it at random places."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path

from gr_jax.errors import UserError
from gr_jax.files import disk_errors


def local_copy(cache: Path, folder: Path) -> Path:
    """Copies a token cache to a folder of this host, unless it has been.

    Several processes of a host may do so at once: whichever is done first, its copy is used.

    Args:
      cache: what `build_cache` wrote.
      folder: on a disk of the host, or in its memory (`/dev/shm`).

    Returns:
      The copy, whose name is that of this writing of the cache alone.

    Raises:
      UserError: there is no cache, or the disk is full or not writable.
    """
    try:
        written = (cache / "mixture.json").stat().st_mtime_ns
    except OSError as error:
        raise UserError(f"{cache}: the token cache is missing; run again") from error
    name = hashlib.sha256(f"{cache.resolve()} {written}".encode()).hexdigest()[:16]
    copy = folder / f"gr_jax_cache_{name}"
    if copy.exists():
        return copy
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{copy.name}.", dir=folder) as temporary:
            whole = Path(temporary) / "cache"
            whole.mkdir()
            for path in cache.iterdir():
                shutil.copyfile(path, whole / path.name)
            if not copy.exists():
                try:
                    whole.rename(copy)
                except OSError:
                    if not copy.exists():  # another process's, in the meantime
                        raise
    return copy
