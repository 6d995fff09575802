"""Orbax checkpoints: t5x's (`target/...`, `state/param_states/...`) and our own (`params/...`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from gr_jax.checkpoints._lazy import LazyArray
from gr_jax.checkpoints._source import (
    Parameters,
    ParameterSource,
    leaves_under,
    make_source,
    make_t5x_source,
)
from gr_jax.checkpoints._tensorstore import zarr_array
from gr_jax.errors import UserError, damage
from gr_jax.models import T5Config

STATE = "state"
METADATA = "_METADATA"
_IDENTITY = "identity"


def open_orbax(path: Path, parameters: Parameters = "eval") -> ParameterSource:
    """`checkpoint_N` with an item `state`, or that item; see `open_checkpoint`.

    Raises:
      UserError: not such a checkpoint, or a damaged one.
    """
    item = path / STATE if (path / STATE).is_dir() else path
    leaves = _read_item(item)
    if any(name.startswith("params/") for name in leaves):
        return _own(path, item, leaves, parameters)
    return make_t5x_source(str(path), "t5x orbax", leaves)


def saved_parameters(path: Path) -> dict[str, LazyArray]:
    """What a `checkpoint_N` of gr_jax is decoded with, by name, in the layout that it lies in.

    Raises:
      UserError: not such a checkpoint, or a damaged one.
    """
    leaves = _read_item(path / STATE)
    found, _ = _parameters(leaves, "eval")
    if not found:
        raise UserError(f"{path}: not a checkpoint of gr-jax, or damaged")
    return found


def _parameters(
    leaves: dict[str, LazyArray], parameters: Parameters
) -> tuple[dict[str, LazyArray], bool]:
    """Those of a checkpoint of ours that are asked for, and whether it has their average."""
    average = leaves_under("ema/", leaves)
    if average and parameters == "eval":
        return average, True
    return leaves_under("params/", leaves), bool(average)


def _own(
    path: Path, item: Path, leaves: dict[str, LazyArray], parameters: Parameters
) -> ParameterSource:
    identity = _identity(item.parent / _IDENTITY)
    with damage(item.parent / _IDENTITY, "damaged"):
        config = T5Config.from_json(identity["model"]) if identity else None
    step = leaves.get("step")
    asked, averaged = _parameters(leaves, parameters)
    return make_source(
        str(path),
        "gr-jax",
        asked,
        config=config,
        step=None if step is None else int(step.read().item()),
        optimizer={n: x for n, x in leaves.items() if n.startswith("opt_state/")},
        averaged=averaged,
        docid_fingerprint=identity.get("docid_fingerprint"),
    )


def _identity(path: Path) -> dict[str, Any]:
    """What a run recorded of itself; nothing where there is no such item."""
    if not path.is_dir():
        return {}
    # Not through a `Checkpointer`, which waits for all processes of a run after it has read: where
    # one of them reads alone, the others wait for that one.
    with damage(path, "damaged"):
        return dict(ocp.JsonCheckpointHandler().restore(path))  # pyright: ignore[reportArgumentType]


def _read_item(path: Path) -> dict[str, LazyArray]:
    """Every array of one saved tree, by the names of its branches joined with '/'."""
    if not (path / METADATA).is_file():
        raise UserError(f"{path / METADATA}: missing; give a whole Orbax checkpoint (checkpoint_N)")
    with damage(path, "a damaged Orbax checkpoint"), ocp.PyTreeCheckpointer() as reader:
        metadata = reader.metadata(path.absolute()).item_metadata
        driver = "zarr3" if metadata.use_zarr3 else "zarr"
        base: dict[str, Any] = {"driver": "file", "path": f"{path.absolute()}/"}
        leaves = {}
        for keys, leaf in jax.tree_util.tree_leaves_with_path(metadata.tree):
            if not hasattr(leaf, "shape"):
                continue  # a text, or nothing
            name = jax.tree_util.keystr(keys, simple=True, separator="/")
            if (path / "manifest.ocdbt").exists():
                kvstore = {"driver": "ocdbt", "base": base, "path": f"{leaf.name}/"}
            else:
                kvstore = base | {"path": f"{base['path']}{leaf.name}/"}
            spec = {"driver": driver, "kvstore": kvstore}
            shape, dtype = tuple(leaf.shape), np.dtype(leaf.dtype)
            chunk = leaf.storage.chunk_shape if leaf.storage is not None else None
            leaves[name] = zarr_array(f"{path}: {name}", spec, shape, dtype, chunk)
    return leaves
