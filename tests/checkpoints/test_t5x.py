"""t5x's checkpoints: what t5x itself wrote, its old versions, and what t5x's manager restores."""

import json
import shutil
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax.serialization import msgpack_restore, msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

from gr_jax.checkpoints import convert, open_checkpoint, write_t5x_legacy, write_t5x_orbax
from gr_jax.checkpoints._storage import Folder
from gr_jax.checkpoints._t5x_legacy import read_legacy
from gr_jax.errors import UserError
from tests.checkpoints.conftest import (
    BFLOAT16,
    CONFIGS,
    T5_1_1,
    arrays_of,
    assert_holds,
    one_line,
    source_of,
)


def golden_arrays(folder, layout):
    with np.load(folder / f"{layout}.npz") as arrays:
        return dict(arrays)


GOLDENS = {"legacy_layers": "layers", "orbax_scanned": "scanned"}


@pytest.mark.parametrize(("name", "layout"), GOLDENS.items())
def test_what_t5x_writes_is_read(t5x_goldens, name, layout):
    source = open_checkpoint(t5x_goldens / name)
    wanted = golden_arrays(t5x_goldens, "layers")
    targets = {n.removeprefix("target/"): x for n, x in wanted.items() if n.startswith("target/")}
    assert_holds(source, targets)
    assert source.step == 5 and source.layout == layout
    stored = golden_arrays(t5x_goldens, layout)
    moments = {n: x for n, x in stored.items() if n.startswith("state/param_states/")}
    assert source.optimizer.keys() == moments.keys()
    for moment, array in moments.items():
        np.testing.assert_array_equal(source.optimizer[moment].read(), array, err_msg=moment)


@pytest.mark.parametrize("to", ["t5x", "t5x-orbax"])
@pytest.mark.parametrize(("name", "layout"), GOLDENS.items())
def test_optimizer_state_is_kept_in_its_layout(t5x_goldens, tmp_path, name, layout, to):
    scanned = layout == "scanned"
    source = open_checkpoint(t5x_goldens / name)
    kept = convert(t5x_goldens / name, tmp_path / "x", to=to, scanned=scanned, optimizer=True)
    assert kept.optimizer.keys() == source.optimizer.keys() and kept.step == 5
    for moment, array in source.optimizer.items():
        np.testing.assert_array_equal(kept.optimizer[moment].read(), array.read(), err_msg=moment)
    with pytest.raises(UserError, match="its optimizer state cannot be in the layout"):
        convert(t5x_goldens / name, tmp_path / "y", to=to, scanned=not scanned, optimizer=True)
    dropped = convert(t5x_goldens / name, tmp_path / "z", to=to, scanned=not scanned)
    assert not dropped.optimizer
    with pytest.raises(UserError, match="holds no t5x optimizer state"):
        convert(tmp_path / "z", tmp_path / "y", to=to, optimizer=True)
    assert not (tmp_path / "y").exists()


def test_t5x_finds_in_msgpack_what_it_does_not_partition(t5x_goldens, tmp_path):
    convert(t5x_goldens / "legacy_layers", tmp_path / "x", to="t5x", optimizer=True)
    ours, theirs = (
        flatten_dict(
            msgpack_restore((folder / "checkpoint_5" / "checkpoint").read_bytes()), sep="/"
        )
        for folder in (tmp_path / "x", t5x_goldens / "legacy_layers")
    )
    inline = [
        {n for n, x in found.items() if isinstance(x, np.ndarray | np.generic)}
        for found in (ours, theirs)
    ]
    assert inline[0] == inline[1] and any(n.endswith("v_row") for n in inline[0])


@pytest.mark.parametrize("scanned", [False, True])
def test_t5x_manager_restores_ours(tmp_path, scanned):
    """The calls that t5x's OrbaxCheckpointManagerInterface makes, with its names."""
    write_t5x_orbax(source_of(T5_1_1, step=7), tmp_path / "x", scanned=scanned)
    assert (tmp_path / "x" / "checkpoint_7" / "commit_success.txt").exists()
    write_t5x_legacy(source_of(T5_1_1, step=7), tmp_path / "y", scanned=scanned)
    arrays = {n: x.read() for n, x in read_legacy(str(tmp_path / "y" / "checkpoint_7")).items()}
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = unflatten_dict(arrays, sep="/")
    restore = ocp.args.PyTreeRestore(
        tree,
        restore_args=jax.tree.map(
            lambda x: ocp.ArrayRestoreArgs(sharding=device, dtype=x.dtype), tree
        ),
    )
    manager = ocp.CheckpointManager(
        tmp_path / "x",
        options=ocp.CheckpointManagerOptions(step_prefix="checkpoint", read_only=True),
        item_handlers={"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)},
    )
    assert manager.latest_step() == 7
    restored = manager.restore(7, args=ocp.args.Composite(state=restore))["state"]
    manager.close()
    jax.tree.map(np.testing.assert_array_equal, restored, tree)
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(restored))


def test_version_2_holds_bfloat16_as_uint16_and_older_paths(tmp_path):
    write_t5x_legacy(source_of(T5_1_1, dtype=BFLOAT16), tmp_path / "x")
    folder = tmp_path / "x" / "checkpoint_3"
    tree: Any = msgpack_restore((folder / "checkpoint").read_bytes())
    leaves: dict[Any, Any] = flatten_dict(tree["optimizer"], is_leaf=lambda _, x: "driver" in x)
    for n, (keys, leaf) in enumerate(leaves.items()):
        if not isinstance(leaf, dict):
            continue
        array = arrays_of(T5_1_1, dtype=BFLOAT16)["/".join(keys[1:])].view(np.uint16)
        if n % 3 == 0:
            leaves[keys] = array  # inline
            continue
        inside = leaf["kvstore"]["path"]
        shutil.rmtree(folder / inside)
        stored = leaf | {"kvstore": {"driver": "file", "path": f"{folder}/{inside}"}}
        ts.open(stored | {"dtype": "uint16"}, create=True).result().write(array).result()
        leaf["dtype"] = "uint16"
        leaf["kvstore"] = {"driver": "gfile", "path": inside}
        if n % 3 == 1:  # TensorStore before 0.1.14, in Google's store, dtype in the metadata only
            del leaf["dtype"]
            leaf["metadata"]["dtype"] = "<u2"
            leaf["kvstore"] = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
            leaf["path"] = inside
    record = {"version": 2, "optimizer": unflatten_dict(leaves)}
    (folder / "checkpoint").write_bytes(msgpack_serialize(record))
    assert_holds(open_checkpoint(folder), arrays_of(T5_1_1, dtype=BFLOAT16))
    for version in (1, 4):
        (folder / "checkpoint").write_bytes(msgpack_serialize(record | {"version": version}))
        with pytest.raises(UserError, match=f"version {version} of t5x's format"):
            open_checkpoint(folder)


def test_a_directory_without_hidden_files_is_read(tmp_path):
    write_t5x_legacy(source_of(T5_1_1), tmp_path / "x")
    for hidden in tmp_path.rglob(".zarray"):
        hidden.unlink()
    assert_holds(open_checkpoint(tmp_path / "x"), arrays_of(T5_1_1))


def test_the_first_orbax_checkpoints(tmp_path):
    config = CONFIGS["t5_1_0"]
    write_t5x_legacy(source_of(config), tmp_path / "x")
    folder = tmp_path / "x" / "checkpoint_3"
    tree: Any = msgpack_restore((folder / "checkpoint").read_bytes())
    leaves: dict[Any, Any] = flatten_dict(tree["optimizer"], is_leaf=lambda _, x: "driver" in x)
    for keys, leaf in leaves.items():
        if isinstance(leaf, dict):
            inside = leaf["kvstore"]["path"].strip("/")
            (folder / inside).rename(folder / f"_optimizer.{inside}")
            leaves[keys] = f"PLACEHOLDER://_optimizer.{inside}"
    record = {"_optimizer": unflatten_dict(leaves), "flax_mutables": None, "params_axes": None}
    (folder / "checkpoint").write_bytes(msgpack_serialize(record))
    assert_holds(open_checkpoint(folder), arrays_of(config))
    hidden = folder / "_optimizer.target.encoder.encoder_norm.scale" / ".zarray"
    hidden.unlink()
    with pytest.raises(UserError, match="copy the checkpoint with its hidden files") as error:
        open_checkpoint(folder)
    assert str(error.value).startswith(str(hidden))


def test_where_it_lies_in_an_object_store():
    for url, driver in (("gs://t5-data/t5x/base", "gcs"), ("s3://t5-data/t5x/base", "s3")):
        assert Folder(url).kvstore("target.x") == {
            "driver": driver,
            "bucket": "t5-data",
            "path": "t5x/base/target.x/",
        }
        assert ts.KvStore.Spec(Folder(url).kvstore()).to_json()["bucket"] == "t5-data"
    assert Folder("gs://t5-data").kvstore()["path"] == ""
    for wrong in ("http://x/y", "gs://"):
        with pytest.raises(UserError, match="only gs://BUCKET/PATH and s3://BUCKET/PATH"):
            open_checkpoint(wrong)


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture
def legacy(tmp_path):
    write_t5x_legacy(source_of(T5_1_1), tmp_path / "x")
    return tmp_path / "x" / "checkpoint_3"


def test_a_missing_or_cut_chunk_is_one_line(legacy):
    chunk = legacy / "target.token_embedder.embedding" / "0.0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    assert "target.token_embedder.embedding: damaged" in one_line(legacy)
    chunk.unlink()
    message = one_line(legacy)
    assert "target.token_embedder.embedding: damaged, a part of it is missing" in message
    shutil.rmtree(chunk.parent)
    assert "target.token_embedder.embedding: damaged" in one_line(legacy)


def test_a_cut_or_foreign_msgpack_is_one_line(legacy):
    file = legacy / "checkpoint"
    content = file.read_bytes()
    for damaged in (content[:-1], content[:100], b"", b'model_checkpoint_path: "model.ckpt"\n'):
        file.write_bytes(damaged)
        assert str(file) in one_line(legacy)
    file.write_bytes(msgpack_serialize({"weights": {"a": np.ones(2)}}))
    assert "it has no `optimizer`" in one_line(legacy)
    file.write_bytes(msgpack_serialize({"version": 3, "optimizer": {"target": {"a": "text"}}}))
    assert "not a leaf that t5x writes" in one_line(legacy)


def test_a_damaged_orbax_checkpoint_is_one_line(tmp_path):
    write_t5x_orbax(source_of(T5_1_1), tmp_path / "x")
    folder = tmp_path / "x" / "checkpoint_3"
    whole = shutil.copytree(folder, tmp_path / "whole")
    (folder / "state" / "_METADATA").write_text("{")
    assert "damaged Orbax checkpoint" in one_line(folder)
    (folder / "state" / "_METADATA").unlink()
    assert "missing; give a whole Orbax checkpoint" in one_line(folder)
    for data in [*whole.glob("state/d/*"), *whole.glob("state/ocdbt.process_0/d/*")]:
        data.unlink()
    assert str(whole) in one_line(whole)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no T5 checkpoint: it has neither"),
        (["pytorch_model.bin"], "holds pickled weights"),
        (["checkpoint_9.tmp-123/checkpoint"], "no T5 checkpoint"),
    ],
)
def test_a_foreign_directory_is_one_line(tmp_path, files, words):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert words in one_line(tmp_path)
    with pytest.raises(UserError, match="no such file or directory"):
        open_checkpoint(tmp_path / "absent")


def test_the_newest_of_a_model_directory_is_opened(legacy):
    shutil.copytree(legacy, legacy.parent / "checkpoint_12")
    shutil.copytree(legacy, legacy.parent / "checkpoint_100.tmp-1")
    assert open_checkpoint(legacy.parent).path.endswith("/checkpoint_12")


# --- t5x's own test data --------------------------------------------------------------------------


def test_t5x_test_data(shared_data, tmp_path):
    folder = shared_data / "t5x_checkpoints"
    source = open_checkpoint(folder / "test_t5_tiny.checkpoint_0")
    assert (source.config.emb_dim, source.config.num_heads, source.config.head_dim) == (8, 4, 3)
    assert source.step == 0 and len(source.optimizer) == 208
    tree: Any = msgpack_restore((folder / "test_t5_tiny.checkpoint_0").read_bytes())
    target: dict[str, Any] = dict(flatten_dict(tree["optimizer"]["target"], sep="/"))
    assert_holds(source, target)
    arrays = read_legacy(str(folder / "tiny_t5" / "checkpoint_1"))
    kernel = arrays["state/param_states/kernel"].read()
    assert kernel.shape == (10, 5) and kernel.dtype == np.float64
    assert 0 < kernel.min() < kernel.max() < 1 and kernel.std() > 0.2
    with pytest.raises(UserError, match="it has no parameters"):
        open_checkpoint(folder / "tiny_t5" / "checkpoint_1")
    # the copy has lost its hidden files, which alone know the shapes
    with pytest.raises(UserError, match="hidden files"):
        open_checkpoint(folder / "tiny_orbax" / "1")
    copy = shutil.copytree(folder / "tiny_orbax" / "1", tmp_path / "1")
    states = "_optimizer.state.param_states"
    shapes = {f"{states}.kernel": [10, 5], f"{states}.bias": [5], f"{states}.step": []}
    for name, shape in (shapes | {"_optimizer.state.step": []}).items():
        metadata = {
            "zarr_format": 2,
            "shape": shape,
            "chunks": shape,
            "dtype": "<f8" if shape == [10, 5] else "<i4",
            "compressor": {"id": "zstd", "level": 1},
            "fill_value": None,
            "filters": None,
            "order": "C",
            "dimension_separator": ".",
        }
        if not (folder / "tiny_orbax" / "1" / name / ".zarray").exists():
            (copy / name / ".zarray").write_text(json.dumps(metadata))
    kernel = read_legacy(str(copy))["state/param_states/kernel"].read()
    assert kernel.shape == (10, 5) and np.isfinite(kernel).all()
