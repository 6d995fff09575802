"""TPU slices by name: what they are made of, and their devices for the compiler.

A name is Cloud's or the compiler's own:

- `v5e-256`, `v5litepod-256`, `v6e-256`: the number of chips.
- `v4-32`, `v5p-128`, `tpu7x-128`: the number of TensorCores, of which a chip has two; so v5p-128
  has 64 chips. (A chip of v4 and v5p is one device to JAX, one of tpu7x is two.)
- `v5e:16x16`, `v5p:4x4x4`: the shape in chips; any that the compiler accepts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from typing import Any

from gr_jax.errors import UserError
from gr_jax.planning._environment import require_compiler
from gr_jax.training import peak_flops


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPU. All figures are of a chip, and per second, as its maker states them.

    Attributes:
      name: of the generation, as the compiler spells it.
      kind: `jax.Device.device_kind` of its devices.
      memory_gib: main memory that the compiler lets programs have, both devices of a chip together;
        a little less than the maker's figure.
      memory_bandwidth: bytes between main memory and the chip.
      link_bandwidth: bytes over one link to a neighbour in one direction.
      network_bandwidth: bytes to other slices over the data centre's network.
      dimensions: 2 for a torus with 4 links per chip, 3 for one with 6.
      devices: what JAX sees a chip as.
      cores_counted: TensorCores of a chip if Cloud's names count those; 1 if they count chips.
      wraps_at: smallest size of an axis whose ends are connected: all multiples of it are.
    """

    name: str
    kind: str
    memory_gib: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    dimensions: int
    devices: int
    cores_counted: int
    wraps_at: int

    @property
    def flops(self) -> float:
        """bfloat16 operations of the matrix units."""
        of_device = peak_flops(self.kind)
        assert of_device is not None
        return of_device * self.devices


def _link(both_ways_per_chip: float, links: int) -> float:
    """One direction of one link, of Cloud's "bidirectional ICI bandwidth per chip"."""
    return both_ways_per_chip / links / 2


# docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, read in November 2026, or as said here.
# Memory is what libtpu 0.0.50.1 names when it refuses a program that is too large.
# Networks are the pod's (v5e: 6.4, v6e: 25.6 Tbit/s) or the chip's (v5p: 50, tpu7x: 100 Gbit/s).
CHIPS = {
    # Links: 50 GB/s, Jouppi et al. 2023 (arXiv 2304.01433), table 4; network: taken to be v5p's.
    "v4": Chip("v4", "TPU v4", 30.75, 1200e9, 50e9, 6.25e9, 3, 1, 2, 4),
    "v5e": Chip("v5e", "TPU v5 lite", 15.75, 819e9, _link(400e9, 4), 3.125e9, 2, 1, 1, 16),
    "v5p": Chip("v5p", "TPU v5", 95.73, 2765e9, _link(1200e9, 6), 6.25e9, 3, 1, 2, 4),
    "v6e": Chip("v6e", "TPU v6 lite", 31.24, 1638e9, _link(800e9, 4), 12.5e9, 2, 1, 1, 16),
    "tpu7x": Chip("tpu7x", "TPU7x", 2 * 94.74, 7380e9, _link(1200e9, 6), 12.5e9, 3, 2, 2, 4),
}
_SPELLINGS = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "7x": "tpu7x", "ironwood": "tpu7x"}

# The shapes that Cloud offers under a number of chips.
_FLAT = {n: shape for n, shape in zip(
    (1, 4, 8, 16, 32, 64, 128, 256),
    ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    strict=True,
)}  # fmt: skip
_CUBES = {n: shape for n, shape in zip(
    (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048),
    ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    strict=True,
)}  # fmt: skip


_HOST_CHIPS = 4  # of a machine in a slice of several; a flat slice of 8 also comes as one machine


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips, or several slices of one kind.

    Attributes:
      chip: its generation.
      shape: chips along each axis.
      slices: how many slices; the data centre's network is between them.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def device_count(self) -> int:
        """Of all slices, as JAX counts them."""
        return self.chips * self.chip.devices

    @property
    def devices_per_slice(self) -> int:
        """As JAX counts them."""
        return math.prod(self.shape) * self.chip.devices

    @property
    def hosts(self) -> int:
        """Machines of all slices: v5e-8 and v6e-8 are one, of 8 chips."""
        most = 2 * _HOST_CHIPS if self.chip.dimensions == 2 else _HOST_CHIPS
        chips = math.prod(self.shape)
        return self.slices * (1 if chips <= most else -(-chips // _HOST_CHIPS))

    @property
    def host(self) -> Topology:
        """One machine of it."""
        if self.hosts == 1:
            return self
        return Topology(self.chip, (2, 2, 1)[: self.chip.dimensions])

    @property
    def one_chip(self) -> Topology:
        """One chip of it."""
        return Topology(self.chip, (1,) * self.chip.dimensions)

    @property
    def shape_name(self) -> str:
        """The shape as people write it: 4x4x8."""
        return "x".join(map(str, self.shape))

    @property
    def name(self) -> str:
        """Cloud's name of a slice, or the compiler's where Cloud has none."""
        offered = _FLAT if self.chip.dimensions == 2 else _CUBES
        if offered.get(math.prod(self.shape)) == self.shape_name:
            return f"{self.chip.name}-{math.prod(self.shape) * self.chip.cores_counted}"
        return f"{self.chip.name}:{self.shape_name}"

    def wraps(self, axis: int) -> bool:
        """Whether the ends of an axis are connected."""
        size = self.shape[axis]
        if self.chip.dimensions == 3:  # whole cubes of 4x4x4 only
            return all(n % self.chip.wraps_at == 0 for n in self.shape)
        return size % self.chip.wraps_at == 0

    def devices(self) -> list[Any]:
        """The devices as `jax.sharding.Mesh` takes them, of a machine that is not there.

        Raises:
          UserError: there is no TPU compiler, or no such slice.
        """
        from jax.experimental import topologies

        require_compiler()
        options: dict[str, Any] = {}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # else a device for each core
        if math.prod(self.shape) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
        if self.slices > 1:
            options["num_slices"] = self.slices
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{self.chip.name}:{self.shape_name}", **options
            )
        except Exception as error:  # the compiler raises whatever it likes for a shape it lacks
            line = " ".join(str(error).split())
            raise UserError(f"the TPU compiler has no {self.name}: {line[:200]}") from error
        return list(description.devices)


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology that a name means; see the module.

    Raises:
      UserError: there is no such generation, or no slice of that size.
    """
    found = re.fullmatch(r"(?:tpu-)?([a-z0-9]+?)[-:](\d+(?:x\d+)*)", name.strip().lower())
    kind = _SPELLINGS.get(found[1], found[1]) if found else ""
    if found is None or kind not in CHIPS:
        near = difflib.get_close_matches(name, [f"{k}-256" for k in CHIPS], 1)
        hint = f"did you mean {near[0]}?" if near else "as in v5e-256, v5p-128 or v5e:16x16"
        raise UserError(f"no TPU slice is called {name!r}: {hint}")
    if slices < 1:
        raise UserError(f"num_slices is {slices}: at least 1 is needed")
    chip = CHIPS[kind]
    if "x" in found[2]:
        shape = tuple(int(n) for n in found[2].split("x"))
        if len(shape) != chip.dimensions or 0 in shape:
            raise UserError(f"{name!r}: {kind} has {chip.dimensions} axes, as in {_example(chip)}")
        return Topology(chip, shape, slices)
    for topology in slices_of(kind):
        if topology.name == f"{kind}-{found[2]}":
            return dataclasses.replace(topology, slices=slices)
    known = ", ".join(topology.name for topology in slices_of(kind))
    raise UserError(
        f"no TPU slice is called {name!r}: there are {known}, and shapes as in {_example(chip)}"
    )


def _example(chip: Chip) -> str:
    return f"{chip.name}:{'x'.join(['4'] * chip.dimensions)}"


def slices_of(kind: str) -> list[Topology]:
    """The slices that Cloud offers of a generation, smallest first.

    Raises:
      UserError: there is no such generation.
    """
    kind = _SPELLINGS.get(kind.lower(), kind.lower())
    if kind not in CHIPS:
        raise UserError(f"no TPU generation is called {kind!r}: there are {', '.join(CHIPS)}")
    chip = CHIPS[kind]
    offered = _FLAT if chip.dimensions == 2 else _CUBES
    return [Topology(chip, tuple(int(n) for n in s.split("x"))) for s in offered.values()]
