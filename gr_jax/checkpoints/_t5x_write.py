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
from gr_jax.checkpoints._lazy import LazyArray, blocks_of, cast, groups, read_together, stack
from gr_jax.checkpoints._moments import t5x_state
from gr_jax.checkpoints._source import ParameterSource
from gr_jax.checkpoints._t5x_legacy import CHECKPOINT
from gr_jax.files import new_directory
from gr_jax.models._layout import LAYER_AXIS

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
      optimizer: also the optimizer's state: t5x's, or that of gr_jax's Adafactor.

    Raises:
      UserError: the directory exists, or there is no optimizer state that t5x has in that layout.
    """
    leaves = _leaves(source, scanned, dtype, optimizer)
    with new_directory(directory) as temporary:
        folder = temporary / f"checkpoint_{source.step or 0}"
        folder.mkdir()
        record = {"version": 3, "optimizer": unflatten_dict(_write_arrays(folder, leaves), sep="/")}
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
      UserError: the directory exists, or there is no optimizer state that t5x has in that layout.
    """
    leaves = _leaves(source, scanned, dtype, optimizer)
    whole = {n: stack(x, LAYER_AXIS) if isinstance(x, list) else x for n, x in leaves.items()}
    tree = unflatten_dict(whole, sep="/")
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
        """Reads and writes one array after the other; nothing is left to wait for.

        The layers of a stack that is taken apart are read at once.
        """
        args = args or [ocp.SaveArgs()] * len(values)
        for members in groups(dict(enumerate(values))):
            arrays = read_together([values[i] for i in members])
            for i in reversed(members):
                array = [arrays.pop()]
                for written in await super().serialize(array, [infos[i]], [args[i]]):
                    written.result()
        return []


def _leaves(
    source: ParameterSource, scanned: bool, dtype: np.dtype | None, optimizer: bool
) -> dict[str, list[LazyArray] | LazyArray]:
    """All that is written, under t5x's names; the layers of a stack are a list."""
    target = source.leaves
    if dtype is not None:
        target = {name: cast(leaf, dtype) for name, leaf in target.items()}
    laid = scanned_layout(target, source.config.head_dim) if scanned else target
    leaves: dict[str, list[LazyArray] | LazyArray] = {f"target/{n}": x for n, x in laid.items()}
    leaves["state/step"] = LazyArray.of(np.asarray(source.step or 0, np.int32))
    return leaves | t5x_state(source, scanned=scanned) if optimizer else leaves


def _write_arrays(
    folder: Path, leaves: Mapping[str, list[LazyArray] | LazyArray]
) -> dict[str, Any]:
    """Writes arrays as zarr, each block when it is read; what the msgpack file holds of them."""
    record, stores, parts = {}, {}, {}
    for name, leaf in leaves.items():
        # t5x looks for what it does not partition in the msgpack file: the step, Adafactor's
        # factors and the placeholders of moments that it does not use
        if isinstance(leaf, LazyArray) and (leaf.size == 1 or name.endswith(("/v_row", "/v_col"))):
            record[name] = leaf.read()
            continue
        record[name], stores[name] = _new_array(folder, name, leaf)
        if isinstance(leaf, LazyArray):
            parts[name, None] = leaf
        else:
            parts |= {(name, i): layer for i, layer in enumerate(leaf)}
    for (name, layer), at, block in blocks_of(parts, _CHUNK_BYTES):
        rows = slice(at, at + len(block))
        to = stores[name][rows] if layer is None else stores[name][rows, layer]
        to.write(block).result()
    return record


def _new_array(
    folder: Path, name: str, leaf: list[LazyArray] | LazyArray
) -> tuple[dict[str, Any], ts.TensorStore]:
    """An array of which nothing is written: its TensorStore spec, and itself."""
    inside = name.replace("/", ".")
    one = leaf if isinstance(leaf, LazyArray) else leaf[0]
    shape = list(one.shape)
    # a chunk is a block, and of one layer: no chunk is written, nor ever read, for two of them
    chunk = [min(one.rows_at_once(_CHUNK_BYTES), shape[0]), *shape[1:]]
    if not isinstance(leaf, LazyArray):
        shape.insert(LAYER_AXIS, len(leaf))
        chunk.insert(LAYER_AXIS, 1)
    spec: dict[str, Any] = {
        "driver": "zarr",
        "dtype": one.dtype.name,
        "kvstore": {"driver": "file", "path": f"{inside}/"},
        "metadata": {
            "chunks": chunk,
            "compressor": {"id": "gzip", "level": 1},
            "shape": shape,
        },
    }
    path = f"{folder.absolute()}/{inside}/"
    # not flushed to the disk one by one, which takes longer than all else
    here = spec | {"kvstore": {"driver": "file", "path": path, "file_io_sync": False}}
    # zeros are written too: a chunk that is not there is damage
    return spec, ts.open(here | {"store_data_equal_to_fill_value": True}, create=True).result()
