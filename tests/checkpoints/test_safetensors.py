"""Slices of safetensors files against safetensors' own reader; headers that lie."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gr_jax.checkpoints import _safetensors
from gr_jax.checkpoints._safetensors import open_safetensors
from gr_jax.errors import UserError

SHAPES = {"scalar": (), "vector": (7,), "matrix": (5, 6), "wide": (3, 40), "cube": (4, 3, 5)}
EMPTY = {"none": (0, 3)}


@pytest.fixture
def file(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        n: rng.standard_normal(shape) for n, shape in (SHAPES | EMPTY).items()
    }
    arrays["matrix"] = arrays["matrix"].astype(np.float16)
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize(("gap", "block"), [(1 << 16, 1 << 22), (0, 1), (1 << 16, 100)])
def test_slices_are_safetensors_own(file, monkeypatch, gap, block):
    """Whole rows, runs of columns read one by one, and columns taken of blocks of rows."""
    monkeypatch.setattr(_safetensors, "_GAP", gap)
    monkeypatch.setattr(_safetensors, "_BLOCK", block)
    tensors = open_safetensors(file)
    assert tensors.keys() == SHAPES.keys() | EMPTY.keys()
    rng = np.random.default_rng(1)
    with safe_open(file, framework="np") as theirs:
        for name, tensor in tensors.items():
            whole = theirs.get_tensor(name)
            assert tensor.shape == whole.shape and tensor.dtype == whole.dtype
            np.testing.assert_array_equal(tensor.read(), whole)
            for _ in range(20):
                bounds = [sorted(rng.integers(0, n + 1, 2).tolist()) for n in whole.shape]
                index = tuple(slice(a, b) for a, b in bounds)
                np.testing.assert_array_equal(tensor.read(index), whole[index])


def test_columns_far_apart_are_read_alone(tmp_path, monkeypatch):
    """What a process reads of a matrix whose columns are spread over many."""
    rows, columns = 6, 1 << 15
    matrix = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    save_file({"x": matrix}, tmp_path / "x.safetensors")
    read, fill = [], _safetensors._fill

    def counting(stream, at, array):
        read.append(array.nbytes)
        fill(stream, at, array)

    monkeypatch.setattr(_safetensors, "_fill", counting)
    part = open_safetensors(tmp_path / "x.safetensors")["x"].read([slice(2, 5), slice(64, 128)])
    np.testing.assert_array_equal(part, matrix[2:5, 64:128])
    assert read == [64 * 4] * 3


def _write(path: Path, header: bytes, data: int) -> None:
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data))


def _entry(dtype="F32", shape=(2, 2), at=(0, 16)) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b"", "Expecting value"),
        (b"[]", "no JSON object"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "recursion"),
        (b'{"a": {}, "a": {}}', "names something twice"),
        ({"a": 3}, "a is not told by dtype, shape and data_offsets"),
        ({"a": _entry() | {"data_offsets": [0]}}, "a is not told by"),
        ({"a": _entry(shape=(-2, -2))}, "a has the shape"),
        ({"a": _entry(shape=(2, 2.0))}, "a has the shape"),
        ({"a": _entry(shape=(2, 3))}, "in 16 bytes"),
        ({"a": _entry(at=(16, 0))}, "in -16 bytes"),
        ({"a": _entry(shape=(1, 2), at=(8, 16))}, "a begins at byte 8, what is before it ends at"),
        ({"a": _entry(), "b": _entry(at=(8, 24))}, "b begins at byte 8"),
        ({"a": _entry(at=(0, 1 << 70), shape=(1 << 68,))}, "bytes and says that it has"),
        ({"a": _entry(shape=(1,), at=(0, 4))}, "bytes and says that it has"),
    ],
    ids=lambda x: str(x)[:40],
)
def test_headers_that_lie_are_one_line(tmp_path, header, words):
    path = tmp_path / "x.safetensors"
    _write(path, header if isinstance(header, bytes) else json.dumps(header).encode(), 16)
    with pytest.raises(SafetensorError):  # which refuses the same
        safe_open(path, framework="np")
    with pytest.raises(UserError, match=words) as error:
        open_safetensors(path)
    message = str(error.value)
    assert message.startswith(f"{path}: not a whole safetensors file") and "\n" not in message


def test_a_header_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in (1, 1 << 40, (1 << 64) - 1):
        path.write_bytes(length.to_bytes(8, "little"))
        with pytest.raises(UserError, match=f"says that its header has {length}"):
            open_safetensors(path)


def test_a_file_that_goes_or_changes_while_it_is_read(file):
    tensor = open_safetensors(file)["matrix"]
    content = file.read_bytes()
    file.write_bytes(content + b" ")
    with pytest.raises(UserError, match="was changed while it was read"):
        tensor.read()
    file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        tensor.read()
