"""Nothing half-written may ever be mistaken for a result."""

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gr_jax.errors import UserError
from gr_jax.files import atomic_directory, atomic_file, disk_errors, local_path, new_directory

DEAD = 2**22 + 1  # larger than any process id of Linux


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "made" / "too" / "x.txt"
    for text in ("first", "second"):
        with atomic_file(path) as temporary:
            assert temporary.parent == path.parent  # a rename must not cross file systems
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert names(path.parent) == ["x.txt"]


def test_file_survives_an_exception(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["x.txt"]


def test_file_survives_a_block_that_writes_nothing(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic_file(path):
        pass
    assert path.read_text() == "old"


def test_directory_is_replaced_whole(tmp_path):
    path = tmp_path / "made" / "x"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("1")
        (temporary / "b").write_text("1")
    with atomic_directory(path) as temporary:
        assert names(temporary) == []
        assert names(path) == ["a", "b"]
        (temporary / "c").write_text("2")
    assert names(path) == ["c"]
    assert names(path.parent) == ["x"]


def test_directory_survives_an_exception(tmp_path):
    path = tmp_path / "x"
    path.mkdir()
    (path / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_directory(path) as temporary:
        (temporary / "a").write_text("new")
        raise KeyboardInterrupt
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_directory_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.mkdir()
    (path / "a").write_text("old")
    rename = Path.replace

    def replace(self, target):
        if Path(target) == path and not self.name.endswith("-old"):
            raise OSError(errno.EIO, "input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="input/output"), atomic_directory(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("there", ["file", "link"])
def test_directory_replaces_whatever_stands_there(tmp_path, there):
    path, elsewhere = tmp_path / "x", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    if there == "file":
        path.write_text("old")
    else:
        path.symlink_to(elsewhere, target_is_directory=True)
    with atomic_directory(path) as temporary:
        (temporary / "a").touch()
    assert names(path) == ["a"]
    assert names(elsewhere) == ["kept"]  # the link is replaced, not what it leads to
    assert names(tmp_path) == ["elsewhere", "x"]


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "not writable"),
        (errno.EPERM, "not writable"),
        (errno.EROFS, "not writable"),
    ],
)
def test_disk_errors_are_one_line_and_change_nothing(tmp_path, atomic, code, words):
    path = tmp_path / "x"
    with pytest.raises(UserError) as caught, atomic(path):
        raise OSError(code, os.strerror(code))
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
def test_a_parent_that_cannot_be_made(tmp_path, monkeypatch, atomic):
    def refuse(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # as in a folder that cannot be searched
    with pytest.raises(UserError, match="not writable"), atomic(tmp_path / "y" / "x"):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
def test_a_place_that_can_have_no_folders(tmp_path, atomic):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (Path("/proc/x/y"), tmp_path / ("a" * 300) / "x", tmp_path / "loop" / "x"):
        with pytest.raises(UserError, match=re.escape(str(path))), atomic(path):
            raise AssertionError("the block must not run")


def test_a_name_that_is_too_long_for_a_new_directory(tmp_path):
    with pytest.raises(UserError, match="cannot be written"), new_directory(tmp_path / ("a" * 300)):
        raise AssertionError("the block must not run")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(OSError, match="strange") as caught, disk_errors(tmp_path):
        raise OSError(errno.EIO, "strange")
    assert not isinstance(caught.value, UserError)


@pytest.mark.parametrize("atomic", [atomic_file, atomic_directory])
@pytest.mark.parametrize("name", ["x", "run[1]", "a.b+c"])
def test_leftovers_of_killed_processes_are_removed(tmp_path, atomic, name):
    for leftover in (f"{name}.tmp-{DEAD}", f"{name}.tmp-{os.getpid()}", f"{name}.tmp-{DEAD}-old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "deep").touch()
    (tmp_path / f"{name}.tmp-{DEAD + 1}").write_text("a file")
    kept = [f"{name}.tmp-notes", f"other.tmp-{DEAD}", f"{name}.tmp-{os.getppid()}"]
    for other in kept:
        (tmp_path / other).mkdir()
    with atomic(tmp_path / name) as temporary:
        (temporary / "a" if temporary.is_dir() else temporary).touch()
    assert names(tmp_path) == sorted([name, *kept])


_KILLED = """
import os, pathlib, shutil, signal, sys
from gr_jax import files
path, when = pathlib.Path(sys.argv[1]), sys.argv[2]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if when == "deleting":
    shutil.rmtree = die
with files.atomic_directory(path) as temporary:
    (temporary / "a").write_text("new")
    if when == "writing":
        die()
    (temporary / "b").write_text("new")
"""


@pytest.mark.parametrize(("when", "content"), [("writing", "old"), ("deleting", "new")])
def test_a_killed_process_leaves_the_old_or_the_new(tmp_path, when, content):
    path = tmp_path / "x"
    path.mkdir()
    for name in "ab":
        (path / name).write_text("old")
    killed = subprocess.run([sys.executable, "-c", _KILLED, path, when], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert [(path / name).read_text() for name in "ab"] == [content] * 2
    assert len(names(tmp_path)) == 2  # the process could not clean up
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("newer")
    assert names(tmp_path) == ["x"]


def test_urls_are_not_taken_for_folders():
    assert local_path("~/model") == Path.home() / "model"
    with pytest.raises(UserError, match=r"^gs://bucket/model: not a path; mount the bucket"):
        local_path("gs://bucket/model")


def test_file_system_without_renames_of_directories(tmp_path, monkeypatch):
    rename = os.replace

    def replace(source, target):
        if Path(source).is_dir():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        rename(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with (
        pytest.raises(UserError, match=r"docids: directories cannot be renamed .* hierarchical"),
        atomic_directory(tmp_path / "docids") as temporary,
    ):
        (temporary / "x").write_text("x")
    assert names(tmp_path) == []
