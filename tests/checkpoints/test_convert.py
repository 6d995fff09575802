"""`gr-jax convert` and `inspect`: what people see, a killed conversion, memory."""

import errno
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from gr_jax.checkpoints import convert, fingerprint, open_checkpoint, write_hugging_face
from gr_jax.cli import main
from gr_jax.errors import UserError
from tests.checkpoints.conftest import BFLOAT16, CONFIGS, T5_1_1, arrays_of, assert_holds, source_of


@pytest.fixture
def written(tmp_path):
    write_hugging_face(source_of(CONFIGS["docids"]), tmp_path / "hf")
    return tmp_path / "hf"


def test_the_command_line(written, tmp_path, capsys):
    to = str(tmp_path / "scanned")
    command = ["convert", str(written), to, "--to", "t5x-orbax", "--scanned", "--dtype", "bfloat16"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{to}/checkpoint_0: t5x orbax, ")
    rounded = {n: a.astype(BFLOAT16) for n, a in arrays_of(CONFIGS["docids"]).items()}
    assert_holds(open_checkpoint(to), rounded)
    assert main(["inspect", to, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "t5x orbax" and found["layout"] == "scanned" and found["step"] == 0
    assert found["tree"]["target_embedder/embedding"] == {
        "shape": [9, 10],
        "dtype": "bfloat16",
        "bytes": 180,
    }
    assert found["parameters"] == sum(a.size for a in rounded.values()) == found["bytes"] // 2
    assert found["fingerprint"] == fingerprint(open_checkpoint(to))
    assert main(["inspect", str(written), "--no_fingerprint"]) == 0
    text = capsys.readouterr().out
    assert "fingerprint" not in text and "(9, 10)" in text and "hugging face" in text
    assert main(["inspect", str(written)]) == 0
    assert fingerprint(open_checkpoint(written)) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["SRC", "SRC"], "SRC: exists already; name a directory that does not"),
        (["SRC/absent", "DST"], "SRC/absent: no such file or directory"),
        (["a" * 300, "DST"], "cannot be opened"),
        (["~nobodyhere/x", "DST"], "~nobodyhere/x: cannot be opened"),
        (["SRC", "/proc/x/y"], "/proc/x/y: cannot be made"),
        (["SRC", "DST", "--scanned"], "Hugging Face's format has no scanned layout"),
        (["SRC", "DST", "--optimizer", "keep"], "has no optimizer state"),
        (["SRC", "DST", "--to", "t5x", "--optimizer", "keep"], "holds no t5x optimizer state"),
    ],
)
def test_mistakes_are_one_line(written, tmp_path, capsys, arguments, words):
    places = {"SRC": str(written), "DST": str(tmp_path / "x")}
    for place, path in places.items():
        arguments = [a.replace(place, path) for a in arguments]
        words = words.replace(place, path)
    assert main(["convert", *arguments]) == 2
    output = capsys.readouterr()
    assert output.err.count("\n") == 1 and words in output.err and not output.out
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_nothing_imports_tensorflow(written, tmp_path):
    code = (
        "import sys; from gr_jax.cli import main; "
        f"assert main(['convert', {str(written)!r}, {str(tmp_path / 'x')!r}]) == 0; "
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


_KILLED = """
import os, signal, sys
from gr_jax.console import quiet_libraries
quiet_libraries()
from gr_jax.checkpoints import _lazy, convert
source, to, format, count = sys.argv[1:]
read, left = _lazy.LazyArray.read, int(count)
def reading(self, index=None):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, index)
_lazy.LazyArray.read = reading
convert(source, to, to=format)
"""


@pytest.mark.parametrize("to", ["hf", "t5x", "t5x-orbax"])
def test_a_killed_conversion_leaves_no_destination(written, tmp_path, to):
    place = tmp_path / "x"
    command = [sys.executable, "-c", _KILLED, str(written), str(place), to, "20"]
    killed = subprocess.run(command, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not place.exists() and len(list(tmp_path.iterdir())) == 2
    convert(written, place, to=to)
    assert_holds(open_checkpoint(place), arrays_of(CONFIGS["docids"]))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "x"]


def test_a_full_disk_is_one_line(written, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr("gr_jax.checkpoints._hugging_face_write._write_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        convert(written, tmp_path / "x")

    def full_for_tensorstore(*_):
        raise ValueError(f"RESOURCE_EXHAUSTED: writing [os_error_code='{errno.ENOSPC}']")

    monkeypatch.setattr("gr_jax.checkpoints._t5x_write._write_arrays", full_for_tensorstore)
    with pytest.raises(UserError, match="the disk is full"):
        convert(written, tmp_path / "x", to="t5x")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_dtype_that_safetensors_has_not(tmp_path):
    source = source_of(T5_1_1, dtype=np.int32)
    with pytest.raises(UserError, match=r"shared\.weight is int32; give a dtype"):
        write_hugging_face(source, tmp_path / "x")
