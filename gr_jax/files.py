"""Writing to disk so that nothing half-written is ever mistaken for a result."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from gr_jax.errors import UserError

_WRONG_PATHS = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTEMPTY)
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
# Cloud Storage FUSE's, in a bucket without a hierarchical namespace, and other file systems'
_NO_RENAMES = (errno.EMFILE, *_UNSUPPORTED)
_TENSORSTORE_ERROR = re.compile(r"os_error_code='(\d+)'")

# what a file system says that has no locks: some NFS and FUSE mounts
NO_LOCKS = (errno.ENOLCK, *_UNSUPPORTED)


def local_path(path: str | Path) -> Path:
    """A path that a user gave, with `~` expanded.

    Raises:
      UserError: it is a URL. Its text would be taken for a folder of this machine, and what is
        written there be lost with it.
    """
    if "://" in str(path):
        raise UserError(
            f"{path}: not a path; mount the bucket and give the path that it then has "
            "(docs/launch.md says how)"
        )
    return Path(path).expanduser()


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns "disk full" and "not writable" into one line that names `path`.

    TensorStore puts the error's number into a ValueError.
    """
    try:
        yield
    except ValueError as error:
        if (number := _TENSORSTORE_ERROR.search(str(error))) is None:
            raise
        with disk_errors(path):
            raise OSError(int(number[1]), str(error)) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space and run again") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UserError(f"{path}: not writable; choose another directory") from error
        if error.errno in _WRONG_PATHS:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it when the block succeeds.

    Leftovers of killed processes are removed.

    Raises:
      UserError: the disk is full or not writable; `path` is then as it was before.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with disk_errors(path):
            _make(path.parent, path)
            _remove_leftovers(path)
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory that becomes `path` when the block succeeds.

    An existing `path` is replaced. Leftovers of killed processes are removed. A process killed at
    the worst moment leaves no `path`, never a part of one.

    Raises:
      UserError: the disk is full or not writable, or knows no renaming of directories; `path` is
        then as it was before.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    old = path.with_name(f"{temporary.name}-old")
    is_old_aside = False
    try:
        with disk_errors(path):
            _make(path.parent, path)
            _remove_leftovers(path)
            _make(temporary, path)
            yield temporary
            if path.exists():
                _rename(path, old)  # deleting it in place would show half of it meanwhile
                is_old_aside = True
            _rename(temporary, path)
    finally:
        if is_old_aside and not path.exists():
            old.replace(path)
        _remove(temporary)
        _remove(old)


def _make(directory: Path, path: Path) -> None:
    try:
        with disk_errors(path):
            directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # /proc, a mount that has gone, names that a file system has not
        raise UserError(
            f"{path}: cannot be made ({error.strerror}); choose another directory"
        ) from error


def _rename(directory: Path, to: Path) -> None:
    try:
        directory.replace(to)
    except OSError as error:
        if error.errno not in _NO_RENAMES:
            raise
        raise UserError(
            f"{to}: directories cannot be renamed there, so nothing can be saved whole; if it is a "
            "mounted bucket, use one with a hierarchical namespace"
        ) from error


def new_directory(directory: Path) -> AbstractContextManager[Path]:
    """`atomic_directory` for one that must not be there yet.

    Raises:
      UserError: it is.
    """
    with disk_errors(directory):
        there = directory.exists() or directory.is_symlink()
    if there:
        raise UserError(f"{directory}: exists already; name a directory that does not")
    return atomic_directory(directory)


def _remove_leftovers(path: Path) -> None:
    """Removes the temporaries of `path` whose processes are gone."""
    name = re.compile(re.escape(path.name) + r"\.tmp-(\d{1,9})(-old)?")
    for beside in path.parent.iterdir():
        match = name.fullmatch(beside.name)
        if match and (int(match[1]) == os.getpid() or not _is_running(int(match[1]))):
            _remove(beside)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _remove(path: Path) -> None:
    """Removes a file or a directory as far as that can be done."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
