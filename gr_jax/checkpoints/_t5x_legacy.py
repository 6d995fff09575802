"""t5x's own checkpoints: a msgpack file beside zarr arrays; all public T5 checkpoints are that.

`checkpoint` holds `{version, optimizer: {target, state: {step, param_states}}}`; a leaf is an array
or the TensorStore spec of one, with a path relative to wherever the directory was when it was
written. Versions 2 and 3 differ in bfloat16, which 2 wrote as uint16. Also read: a whole model in
one msgpack file, and the first Orbax checkpoints, whose leaves are `PLACEHOLDER://` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from gr_jax.checkpoints._lazy import LazyArray, reinterpret
from gr_jax.checkpoints._source import ParameterSource, make_t5x_source
from gr_jax.checkpoints._storage import Folder
from gr_jax.checkpoints._tensorstore import zarr_array
from gr_jax.errors import UserError, damage

CHECKPOINT = "checkpoint"
_PLACEHOLDER = "PLACEHOLDER://"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_ROOTS = ("optimizer", "_optimizer")  # t5x's, and that of its first Orbax checkpoints


def open_legacy(path: str) -> ParameterSource:
    """A directory (local, `gs://`, `s3://`) that holds `checkpoint`, or such a file alone.

    Raises:
      UserError: not such a checkpoint, a damaged one, or one without a model's parameters.
    """
    return make_t5x_source(path, "t5x", read_legacy(path))


def read_legacy(path: str) -> dict[str, LazyArray]:
    """Every array of a checkpoint: `target/...` and `state/...`.

    Raises:
      UserError: not such a checkpoint, or a damaged one.
    """
    folder = Folder(path)
    file = path if not folder.is_remote and Path(path).is_file() else f"{path}/{CHECKPOINT}"
    content = Path(path).read_bytes() if file == path else folder.read(CHECKPOINT)
    if content is None:
        raise UserError(f"{file}: missing; give the directory of a t5x checkpoint (checkpoint_N)")
    with damage(file, "not a t5x checkpoint, or cut short"):
        tree: Any = msgpack_restore(content)
    root = next((tree[r] for r in _ROOTS if isinstance(tree, dict) and r in tree), None)
    if not isinstance(root, dict):
        raise UserError(f"{file}: not a t5x checkpoint: it has no `optimizer`")
    version = tree.get("version", 3)
    if version not in (2, 3):
        raise UserError(f"{file}: version {version} of t5x's format; 2 and 3 can be read")
    leaves = {}
    for keys, leaf in flatten_dict(root, is_leaf=lambda _, x: not x or "driver" in x).items():
        name = "/".join(keys)
        with damage(f"{file}: {name}", "not a leaf that t5x writes"):
            if (array := _leaf(folder, name, leaf)) is not None:
                leaves[name] = array
    return leaves


def _leaf(folder: Folder, name: str, leaf: Any) -> LazyArray | None:
    if leaf is None or (isinstance(leaf, Mapping) and not leaf):
        return None
    if isinstance(leaf, Mapping):
        return _stored(folder, leaf)
    if isinstance(leaf, str):
        return _placeholder(folder, leaf)
    return _bfloat16(LazyArray.of(np.asarray(leaf)))


def _stored(folder: Folder, spec: Mapping[str, Any]) -> LazyArray:
    """The array of a TensorStore spec, wherever the directory is now."""
    metadata = dict(spec["metadata"])
    # TensorStore before 0.1.14 had the path beside the kvstore
    inside = (spec["kvstore"].get("path") or spec["path"]).strip("/").rsplit("/", 1)[-1]
    dtype = np.dtype(spec.get("dtype") or metadata["dtype"])
    metadata["dtype"] = metadata.get("dtype") or ("bfloat16" if dtype == _BFLOAT16 else dtype.str)
    here = {
        "driver": spec["driver"],
        "kvstore": folder.kvstore(inside),
        "metadata": metadata,
        # the msgpack says all that `.zarray` says: no need to ask for a file per array
        "assume_metadata": True,
    }
    shape = tuple(int(n) for n in metadata["shape"])
    return _bfloat16(zarr_array(f"{folder.url}/{inside}", here, shape, dtype, metadata["chunks"]))


def _placeholder(folder: Folder, text: str) -> LazyArray:
    """An array of the first Orbax checkpoints, of which only its own `.zarray` knows the shape."""
    if not text.startswith(_PLACEHOLDER):
        raise ValueError(f"a text: {text[:40]!r}")
    inside = text.removeprefix(_PLACEHOLDER)
    metadata = Folder(f"{folder.url}/{inside}").read(".zarray")
    if metadata is None:
        raise UserError(
            f"{folder.url}/{inside}/.zarray: missing; copy the checkpoint with its hidden files"
        )
    known = json.loads(metadata)
    dtype = _BFLOAT16 if known["dtype"] == "bfloat16" else np.dtype(known["dtype"])
    spec = {"driver": "zarr", "kvstore": folder.kvstore(inside)}
    return zarr_array(f"{folder.url}/{inside}", spec, tuple(known["shape"]), dtype, known["chunks"])


def _bfloat16(array: LazyArray) -> LazyArray:
    """Nothing in a checkpoint is uint16 but version 2's bfloat16."""
    return reinterpret(array, _BFLOAT16) if array.dtype == np.uint16 else array
