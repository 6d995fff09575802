"""Meshes from sizes, and t5x's logical axis rules as shardings.

t5x's own partitioner picks its mesh by device name and fails on every TPU after v4; this one only
looks at how many devices there are, and in how many slices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gr_jax.errors import UserError
from gr_jax.files import atomic_file
from gr_jax.models import T5Config, count_parameters, logical_axes

MESH_AXES = ("replica", "data", "model")
BATCH_AXES = ("replica", "data")  # what the rows of a batch are split over

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]


def logical_axis_rules(parameter_partitions: int = 1, activation_partitions: int = 1) -> Rules:
    """t5x's `standard_logical_axis_rules`: (logical axis, mesh axes), first match first.

    Args:
      parameter_partitions: 2 also splits parameters' `embed` axis over `data`.
      activation_partitions: 2 also splits activations' `embed` axis over `model`.
    """
    embed: list[MeshAxes] = []
    if activation_partitions == 2:
        embed.append("model")
    if parameter_partitions == 2:
        embed.append("data")
    return (
        ("batch", BATCH_AXES),
        ("vocab", "model"),
        ("mlp", "model"),
        ("heads", "model"),
        ("kv", None),
        ("joined_kv", "model"),
        # after those that an array may have beside it: a mesh axis serves one axis of an array
        *(("embed", axis) for axis in embed or [None]),
        ("relpos_buckets", None),
        ("length", None),
        ("layers", None),
    )


@dataclasses.dataclass(frozen=True)
class Partitioning:
    """How a run is spread over its devices. What it computes does not depend on it.

    The mesh has three axes. Batches are split over `replica` and `data`; heads, hidden units and
    vocabularies (a table of atomic docids among them) over `model`.

    Attributes:
      model_parallel: size of the `model` axis; t5x's `num_partitions`.
      replicas: size of the `replica` axis, a multiple of the number of TPU slices: what lies along
        it is copied; what travels between slices is gradients. None for the number of slices.
      parameter_partitions: 2 splits parameters, gradients and optimizer state over `data` as well:
        nothing is kept twice within a replica (t5x's 2-D parameter partitioning; ZeRO-3 or FSDP).
      activation_partitions: 2 splits activations' features over `model` between layers.
      additional_rules: more (logical axis, mesh axis, axes or None) pairs. As in t5x, they come
        after the standard ones; a rule for an axis that those leave whole takes its place.
    """

    model_parallel: int = 1
    replicas: int | None = None
    parameter_partitions: int = 1
    activation_partitions: int = 1
    additional_rules: Rules = ()

    def __post_init__(self):
        for name in ("parameter_partitions", "activation_partitions"):
            if getattr(self, name) not in (1, 2):
                raise UserError(f"Partitioning.{name} is {getattr(self, name)}: 1 or 2 is needed")
        for name in ("model_parallel", "replicas"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"Partitioning.{name} is {value}: at least 1 is needed")
        rules = tuple(_rule(rule) for rule in self.additional_rules)
        object.__setattr__(self, "additional_rules", rules)

    @property
    def rules(self) -> Rules:
        """The standard rules that these settings choose, and the additional ones."""
        standard = logical_axis_rules(self.parameter_partitions, self.activation_partitions)
        ours = {axis for axis, _ in self.additional_rules}
        kept = (rule for rule in standard if rule[1] is not None or rule[0] not in ours)
        return (*kept, *self.additional_rules)


def _rule(rule: Any) -> tuple[str, MeshAxes]:
    known = {axis for axis, _ in logical_axis_rules()}
    try:
        logical, axes = rule
        axes = tuple(axes) if isinstance(axes, list | tuple) else axes
        wanted = axes if isinstance(axes, tuple) else (axes,) if axes is not None else ()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Partitioning.additional_rules has {rule!r}: pairs like ('embed', 'data') are needed"
        ) from error
    if logical not in known:
        raise UserError(
            f"Partitioning.additional_rules names the logical axis {logical!r}: there are "
            f"{', '.join(sorted(known))}"
        )
    if unknown := [axis for axis in wanted if axis not in MESH_AXES]:
        raise UserError(
            f"Partitioning.additional_rules names the mesh axis {unknown[0]!r}: there are "
            f"{', '.join(MESH_AXES)}"
        )
    return logical, axes


def make_mesh(
    model_parallel: int = 1, devices: Sequence[Any] | None = None, *, replicas: int | None = None
) -> Mesh:
    """A (`replica`, `data`, `model`) mesh; `data` takes what the other two leave.

    Args:
      model_parallel: size of the `model` axis.
      devices: `jax.Device`s; default: all of the process's backend.
      replicas: size of the `replica` axis; None for the number of slices.

    Raises:
      UserError: the devices do not divide so.
    """
    devices = jax.devices() if devices is None else devices
    slices = 1
    if _are_tpus(devices):
        slices = len({getattr(device, "slice_index", 0) for device in devices})
    replicas = slices if replicas is None else replicas
    if replicas < 1 or replicas % slices:
        raise UserError(f"replicas={replicas} is not a multiple of the {slices} slices")
    if model_parallel < 1 or len(devices) % (replicas * model_parallel):
        copies = f" times replicas={replicas}" if replicas > 1 else ""
        raise UserError(
            f"model_parallel={model_parallel}{copies} does not divide the {len(devices)} devices"
        )
    shape = (replicas, len(devices) // (replicas * model_parallel), model_parallel)
    # Auto: Linen's logical constraints assert-fail on jax.make_mesh's default, Explicit
    types = (AxisType.Auto,) * 3
    if not _are_tpus(devices):  # jax.make_mesh takes several hosts for slices, too
        return Mesh(mesh_utils.create_device_mesh(shape, devices), MESH_AXES, axis_types=types)
    try:
        if slices == 1:
            return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
        within = (replicas // slices, *shape[1:])
        grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices)
        return Mesh(grid, MESH_AXES, axis_types=types)
    except NotImplementedError as error:  # JAX lays the axes of a mesh along those of the torus
        raise UserError(
            f"model_parallel={model_parallel} does not lie along the torus of these "
            f"{len(devices)} devices: choose the product of some of its sides"
        ) from error


def _are_tpus(devices: Sequence[Any]) -> bool:
    """Whether `slice_index` is what it says: of others it is the host's number."""
    return devices[0].platform == "tpu"


@dataclasses.dataclass(frozen=True)
class Partitioner:
    """Turns logical axis names into shardings on a mesh.

    Attributes:
      mesh: the devices, as `make_mesh` has them.
      rules: (logical axis, mesh axes) pairs, first match first.
    """

    mesh: Mesh
    rules: Rules = dataclasses.field(default_factory=logical_axis_rules)

    @classmethod
    def make(cls, partitioning: Partitioning, devices: Sequence[Any] | None = None) -> Self:
        """The partitioner of these settings; see `make_mesh` for `devices` and errors."""
        mesh = make_mesh(partitioning.model_parallel, devices, replicas=partitioning.replicas)
        return cls(mesh, partitioning.rules)

    @property
    def data_parallel(self) -> int:
        """Number of shards of a batch: its rows must be a multiple of this."""
        return self.mesh.shape["replica"] * self.mesh.shape["data"]

    @property
    def replicated(self) -> NamedSharding:
        """A whole copy everywhere."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Rows over `replica` and `data`."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    def parameters(self, config: T5Config) -> Any:
        """The sharding of every parameter.

        Raises:
          UserError: a dimension does not divide by its mesh axes.
        """
        axes = logical_axes(config)
        shardings = nn.logical_to_mesh_sharding(axes, self.mesh, list(self.rules))
        leaves = zip(
            jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec)),
            jax.tree.leaves(shardings),
            strict=True,
        )
        used = {
            pair
            for names, sharding in leaves
            for pair in zip(names, sharding.spec, strict=False)
            if pair[1] is not None
        }
        for logical, mesh_axes in sorted(used, key=str):
            self._check(config, logical, mesh_axes)
        return shardings

    def _check(self, config: T5Config, logical: str, mesh_axes: MeshAxes) -> None:
        """Raises UserError where a logical axis of `config` does not divide by mesh axes."""
        names = [mesh_axes] if isinstance(mesh_axes, str) else list(mesh_axes or ())
        shards = int(np.prod([self.mesh.shape[name] for name in names]))
        fields = {
            "heads": ("num_heads",),
            "joined_kv": ("num_heads",),  # a head stays whole
            "mlp": ("mlp_dim",),
            "vocab": ("vocab_size", "target_vocab_size"),
            "embed": ("emb_dim",),
            "kv": ("head_dim",),
            "relpos_buckets": ("relpos_buckets",),
            "layers": ("num_encoder_layers", "num_decoder_layers"),
        }[logical]
        for field in fields:
            size = getattr(config, field)
            if size is None or size % shards == 0:
                continue
            devices = self.mesh.size
            fit = [str(n) for n in range(1, devices + 1) if devices % n == 0 and size % n == 0]
            raise UserError(
                f"T5Config.{field}={size} does not divide by the mesh's {' and '.join(names)} axis "
                f"of {shards}: on {devices} devices {', '.join(fit)} would "
                f"({_SETTINGS[names[-1]]})"
            )

    @property
    def own_shards(self) -> tuple[int, ...]:
        """Which of the `data_parallel` equal parts of a batch's rows the process's devices hold."""
        count = self.data_parallel
        indices = self.batch.addressable_devices_indices_map((count,)).values()
        return tuple(sorted({index[0].indices(count)[0] for index in indices if index}))

    def put_batch(self, arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The rows of `own_shards`, one after another, as global arrays."""
        own = self.own_shards

        def put(array: np.ndarray) -> jax.Array:
            part, rest = divmod(len(array), len(own))
            if rest:
                raise ValueError(f"{len(array)} rows do not divide into {len(own)} parts")
            rows = part * self.data_parallel

            def of_device(index: Any) -> np.ndarray:
                at = own.index(index[0].indices(rows)[0] // part) * part
                return array[at : at + part]

            return jax.make_array_from_callback((rows, *array.shape[1:]), self.batch, of_device)

        return {name: put(array) for name, array in arrays.items()}


_SETTINGS = {  # what says how long a mesh axis is
    "model": "Partitioning.model_parallel",
    "data": "or Partitioning.parameter_partitions=1, which does not split it",
    "replica": "Partitioning.replicas",
}


def write_model_info(path: Path, config: T5Config, parameters: Any) -> None:
    """t5x's `model-info.txt`: size, shape by axis name and sharding of each variable; the total."""
    axes = logical_axes(config)
    lines = []
    for (key_path, leaf), names in zip(
        jax.tree_util.tree_leaves_with_path(parameters),
        jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec)),
        strict=True,
    ):
        name = "/".join(str(k.key) for k in key_path)
        shape = ", ".join(f"{axis}={size}" for axis, size in zip(names, leaf.shape, strict=True))
        split = tuple(leaf.sharding.spec) if isinstance(leaf.sharding, NamedSharding) else ()
        split += (None,) * (leaf.ndim - len(split))
        lines.append(
            f"Variable {name:<80} size {leaf.size:<12} shape {f'({shape})':<40} "
            f"partition spec {split}\n"
        )
    lines.append(f"Total number of parameters: {count_parameters(parameters)}\n")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
