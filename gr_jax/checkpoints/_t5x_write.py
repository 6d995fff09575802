"""Writing t5x's checkpoints, one array in memory at a time: its own format, and Orbax."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict

from gr_jax.checkpoints._canonical import scanned as scanned_layout
from gr_jax.checkpoints._lazy import LazyArray, cast
from gr_jax.checkpoints._source import ParameterSource
from gr_jax.checkpoints._t5x_legacy import CHECKPOINT
from gr_jax.errors import UserError
from gr_jax.files import new_directory

_CHUNK_BYTES = 1 << 26  # t5x's target


def write_t5x_legacy(
    source: ParameterSource,
    directory: Path,
    *,
    scanned: bool = False,
    dtype: np.dtype | None = None,
    optimizer: bool = False,
) -> None:
    """Writes `DIRECTORY/checkpoint_<step>` in t5x's own format, version 3 (`use_orbax=False`).

    Args:
      source: the model.
      directory: made; it must not exist.
      scanned: in the layout of `examples/scalable_t5` with `scan_layers`: heads on an axis of their
        own, layers on axis 1, position biases per layer (a shared one stands in each).
      dtype: to round the parameters to; None leaves them as they are.
      optimizer: also t5x's optimizer state.

    Raises:
      UserError: the directory exists, or there is no optimizer state of that layout to write.
    """
    leaves = _leaves(source, scanned, dtype, optimizer)
    with new_directory(directory) as temporary:
        folder = temporary / f"checkpoint_{source.step or 0}"
        folder.mkdir()
        written = {tuple(n.split("/")): _write_leaf(folder, n, x) for n, x in leaves.items()}
        record = {"version": 3, "optimizer": unflatten_dict(written)}
        (folder / CHECKPOINT).write_bytes(msgpack_serialize(record))


def write_t5x_orbax(
    source: ParameterSource,
    directory: Path,
    *,
    scanned: bool = False,
    dtype: np.dtype | None = None,
    optimizer: bool = False,
) -> None:
    """Writes `DIRECTORY/checkpoint_<step>/state` as t5x's Orbax manager does, and restores.

    The arguments are those of `write_t5x_legacy`.

    Raises:
      UserError: the directory exists, or there is no optimizer state of that layout to write.
    """
    leaves = _leaves(source, scanned, dtype, optimizer)
    tree = unflatten_dict({tuple(name.split("/")): leaf for name, leaf in leaves.items()})
    registry = ocp.type_handlers.create_type_handler_registry((LazyArray, _Streamed()))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, type_handler_registry=registry)
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with (
        new_directory(directory) as temporary,
        ocp.Checkpointer(ocp.CompositeCheckpointHandler(state=handler)) as checkpointer,
    ):
        checkpointer.save(
            temporary.absolute() / f"checkpoint_{source.step or 0}",
            args=ocp.args.Composite(state=ocp.args.PyTreeSave(tree, save_args=chunks)),
        )


class _Streamed(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of numpy arrays, for arrays that are read when it is their turn."""

    def __init__(self):
        super().__init__(deepcopy_host_arrays=False)

    async def serialize(
        self,
        values: Sequence[Any],
        infos: Sequence[Any],
        args: Sequence[Any] | None = None,
    ) -> Sequence[Any]:
        """Reads and writes one array after the other; nothing is left to wait for."""
        args = args or [ocp.SaveArgs()] * len(values)
        for value, info, arg in zip(values, infos, args, strict=True):
            for written in await super().serialize([value.read()], [info], [arg]):
                written.result()
        return []


def _leaves(
    source: ParameterSource, scanned: bool, dtype: np.dtype | None, optimizer: bool
) -> dict[str, LazyArray]:
    """All that is written, under t5x's names."""
    target: Mapping[str, LazyArray] = source.leaves
    if scanned:
        target = scanned_layout(target, source.config.head_dim)
    if dtype is not None:
        target = {name: cast(leaf, dtype) for name, leaf in target.items()}
    leaves = {f"target/{name}": leaf for name, leaf in target.items()}
    leaves["state/step"] = LazyArray.of(np.asarray(source.step or 0, np.int32))
    if not optimizer:
        return leaves
    if source.format == "gr-jax" or not source.optimizer:
        raise UserError(f"{source.path}: holds no t5x optimizer state to keep")
    layout = "scanned" if scanned else "layers"
    if source.layout != layout:
        raise UserError(
            f"{source.path}: its optimizer state is in the layout {source.layout!r}, which cannot "
            f"become {layout!r}; drop it, or keep the layout"
        )
    return leaves | dict(source.optimizer)


def _write_leaf(folder: Path, name: str, leaf: LazyArray) -> Any:
    """Writes one array as zarr; what stands in its place in the msgpack file."""
    # t5x looks for what it does not partition in the msgpack file: the step, Adafactor's factors
    # and the placeholders of moments that it does not use
    if leaf.size == 1 or name.endswith(("/v_row", "/v_col")):
        return leaf.read()
    inside = name.replace("/", ".")
    row = leaf.nbytes // leaf.shape[0]
    chunk = (min(leaf.shape[0], max(1, _CHUNK_BYTES // row)), *leaf.shape[1:])
    spec: dict[str, Any] = {
        "driver": "zarr",
        "dtype": leaf.dtype.name,
        "kvstore": {"driver": "file", "path": f"{inside}/"},
        "metadata": {
            "chunks": list(chunk),
            "compressor": {"id": "gzip", "level": 1},
            "shape": list(leaf.shape),
        },
    }
    path = f"{folder.absolute()}/{inside}/"
    # not flushed to the disk one by one, which takes longer than all else
    here = spec | {"kvstore": {"driver": "file", "path": path, "file_io_sync": False}}
    # zeros are written too: a chunk that is not there is damage
    store = ts.open(here | {"store_data_equal_to_fill_value": True}, create=True).result()
    at = 0
    for block in leaf.blocks(_CHUNK_BYTES):
        store[at : at + len(block)].write(block).result()
        at += len(block)
    return spec
