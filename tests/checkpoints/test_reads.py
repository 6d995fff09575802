"""How many bytes are really read of a checkpoint: each chunk once, whatever the layouts."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore as ts
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

from gr_jax.checkpoints import (
    _lazy,
    _t5x_write,
    convert,
    fingerprint,
    from_parameters,
    load_parameters,
    open_checkpoint,
    write_t5x_legacy,
    write_t5x_orbax,
)
from gr_jax.models import T5Config
from gr_jax.models._layout import LAYER_AXIS, stack_layers
from gr_jax.training import Partitioner, make_mesh
from tests.checkpoints.conftest import arrays_of, assert_holds

LAYERS = 4
MODEL = T5Config(
    vocab_size=64,
    emb_dim=64,
    num_heads=8,
    head_dim=8,
    mlp_dim=128,
    num_encoder_layers=LAYERS,
    num_decoder_layers=LAYERS,
)
SOURCE = from_parameters(unflatten_dict(arrays_of(MODEL), sep="/"), MODEL, step=1)
STACK = 64 * LAYERS * 128 * 4  # bytes of its feed-forward kernels
BLOCK = STACK // 3


def bytes_read() -> int:
    metrics = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value.get("value", 0) for metric in metrics for value in metric["values"])


def rechunk(folder: Path, layers: int) -> None:
    """About square chunks, as t5x makes them: a third of each side, and some layers."""
    tree: Any = msgpack_restore((folder / "checkpoint").read_bytes())
    leaves: dict[Any, Any] = flatten_dict(tree["optimizer"], is_leaf=lambda _, x: "driver" in x)
    for keys, leaf in leaves.items():
        if not isinstance(leaf, dict):
            continue
        inside = leaf["kvstore"]["path"]
        here = leaf | {"kvstore": {"driver": "file", "path": f"{folder}/{inside}"}}
        array = ts.open(here).result().read().result()
        shutil.rmtree(folder / inside)
        chunk = [-(-n // 3) for n in array.shape]
        if keys[1] in ("encoder", "decoder") and keys[2] == keys[1]:
            chunk[LAYER_AXIS] = layers
        leaf["metadata"]["chunks"] = chunk
        ts.open(here, create=True).result().write(array).result()
    tree["optimizer"] = unflatten_dict(leaves)
    (folder / "checkpoint").write_bytes(msgpack_serialize(tree))


STORED = ("square", "scanned", "halves", "ours", "orbax")


@pytest.fixture(scope="module")
def stored(memory_folder: Path) -> dict[str, Path]:
    """The model in each layout and chunk: t5x's and Orbax's hold all layers of a stack."""
    folder = memory_folder / "stored"
    paths = {name: folder / name for name in STORED}
    for name, path in paths.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_t5x_write, "_CHUNK_BYTES", BLOCK // 4)
            if name == "orbax":
                write_t5x_orbax(SOURCE, path, scanned=True)
                continue
            write_t5x_legacy(SOURCE, path, scanned=name in ("scanned", "halves", "ours"))
        if name in ("square", "scanned", "halves"):
            rechunk(path / "checkpoint_1", LAYERS // 2 if name == "halves" else LAYERS)
    return paths


@pytest.fixture
def largest(monkeypatch) -> list[int]:
    """Small blocks, and the sizes of what is read at once of stored arrays."""
    monkeypatch.setattr(_lazy, "_BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(_t5x_write, "_CHUNK_BYTES", BLOCK // 4)
    sizes: list[int] = []
    fetch = _lazy.LastRead.read

    def read(self, array, index, within):
        sizes.append(math.prod(s.stop - s.start for s in within) * array.dtype.itemsize)
        return fetch(self, array, index, within)

    monkeypatch.setattr(_lazy.LastRead, "read", read)
    return sizes


def assert_read_once(before: int, path: Path, largest: list[int], *, beside: int = 0) -> None:
    """What lies there is read, and little more; of what is kept, half a stack at most."""
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    read = bytes_read() - before - beside
    # Orbax's index takes a third to a half, with chunks this small: some of it is read twice
    assert 0.8 * size < read < 2 * size, read / size
    assert max(largest, default=0) <= STACK // 2


@pytest.mark.parametrize("name", STORED)
def test_a_fingerprint(stored, largest, name):
    source = open_checkpoint(stored[name])
    before = bytes_read()
    assert fingerprint(source) == fingerprint(SOURCE)
    assert_read_once(before, stored[name], largest)


@pytest.mark.parametrize(
    ("name", "scan"), [("square", True), ("scanned", False), ("orbax", False), ("orbax", True)]
)
def test_a_load(stored, largest, name, scan):
    """Each of this process's eight devices holds a part of every chunk."""
    config = dataclasses.replace(MODEL, scan_layers=scan)
    shardings = Partitioner(make_mesh(8)).parameters(config)
    source = open_checkpoint(stored[name])
    before = bytes_read()
    loaded = load_parameters(source, config, shardings)
    assert_read_once(before, stored[name], largest)
    tree = unflatten_dict(arrays_of(MODEL), sep="/")
    jax.tree.map(np.testing.assert_array_equal, loaded, stack_layers(tree) if scan else tree)


@pytest.mark.parametrize(
    ("name", "to", "scan"),
    [
        *((name, "t5x", False) for name in STORED),
        *((name, "t5x", True) for name in ("square", "scanned", "orbax")),
        *(("scanned", to, False) for to in ("t5x-orbax", "hf")),
    ],
)
def test_a_conversion(stored, largest, name, to, scan, tmp_path):
    before = bytes_read()
    if "orbax" in to:  # which reads what it has written
        write_t5x_orbax(SOURCE, tmp_path / "y")
    again = bytes_read() - before
    before = bytes_read()
    written = convert(stored[name], tmp_path / "x", to=to, scanned=scan)
    assert_read_once(before, stored[name], largest, beside=again)
    assert_holds(written, arrays_of(MODEL))
