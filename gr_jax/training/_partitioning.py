"""Meshes from sizes, and t5x's logical axis rules as shardings.

t5x's own partitioner picks its mesh by device name and fails on every TPU after v4; this one only
looks at how many devices there are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr_jax.errors import UserError
from gr_jax.files import atomic_file
from gr_jax.models import T5Config, count_parameters, logical_axes

# t5x's standard_logical_axis_rules(activation_dims=1, parameter_dims=1)
STANDARD_RULES: tuple[tuple[str, str | None], ...] = (
    ("batch", "data"),
    ("vocab", "model"),
    ("embed", None),
    ("mlp", "model"),
    ("heads", "model"),
    ("kv", None),
    ("joined_kv", "model"),
    ("relpos_buckets", None),
    ("length", None),
    ("layers", None),
)


def make_mesh(model_parallel: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A (`data`, `model`) mesh over all devices.

    Args:
      model_parallel: size of the `model` axis.
      devices: `jax.Device`s; default: all of the process's backend.

    Raises:
      UserError: the number of devices is not a multiple of `model_parallel`.
    """
    devices = jax.devices() if devices is None else devices
    if model_parallel < 1 or len(devices) % model_parallel:
        raise UserError(
            f"model_parallel={model_parallel} does not divide the {len(devices)} devices"
        )
    # Auto: Linen's logical constraints assert-fail on jax.make_mesh's default, Explicit
    return jax.make_mesh(
        (len(devices) // model_parallel, model_parallel),
        ("data", "model"),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices,
    )


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """Turns logical axis names into shardings on a mesh.

    Attributes:
      mesh: the devices.
      rules: (logical axis, mesh axis or None) pairs, first match first.
    """

    mesh: Mesh
    rules: tuple[tuple[str, str | None], ...] = STANDARD_RULES

    @property
    def data_parallel(self) -> int:
        """Number of shards of a batch: its rows must be a multiple of this."""
        return self.mesh.shape["data"]

    @property
    def replicated(self) -> NamedSharding:
        """A whole copy everywhere."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Rows over `data`."""
        return NamedSharding(self.mesh, PartitionSpec("data"))

    def parameters(self, config: T5Config) -> Any:
        """The sharding of every parameter.

        Raises:
          UserError: a dimension does not divide by its mesh axis.
        """
        model = self.mesh.shape["model"]
        sizes = {
            "num_heads": config.num_heads,
            "mlp_dim": config.mlp_dim,
            "vocab_size": config.vocab_size,
            "target_vocab_size": config.output_vocab_size,
        }
        for name, size in sizes.items():
            if size % model:
                raise UserError(
                    f"T5Config.{name}={size} does not divide by the mesh's model axis of {model}"
                )
        return nn.logical_to_mesh_sharding(logical_axes(config), self.mesh, list(self.rules))

    def put_batch(self, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A host's rows as global arrays."""
        return {
            name: jax.make_array_from_process_local_data(self.batch, array)
            for name, array in arrays.items()
        }


def write_model_info(path: Path, config: T5Config, parameters: Any) -> None:
    """t5x's `model-info.txt`: each variable's size, shape by axis name, and the total."""
    axes = logical_axes(config)
    lines = []
    for (key_path, leaf), spec in zip(
        jax.tree_util.tree_leaves_with_path(parameters),
        jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec)),
        strict=True,
    ):
        name = "/".join(str(k.key) for k in key_path)
        shape = ", ".join(f"{axis}={size}" for axis, size in zip(spec, leaf.shape, strict=True))
        lines.append(f"Variable {name:<80} size {leaf.size:<12} shape ({shape})\n")
    lines.append(f"Total number of parameters: {count_parameters(parameters)}\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
