"""How long a program needs at least, by the peak rates of a chip: an estimate, not a measurement.

Four times are computed for one device: that of its multiplications at the matrix units' peak, that
of the bytes that it moves to and from main memory, that of each torus axis' links, and that of the
network between slices. `seconds` is the longest of them: it assumes that all else is hidden behind
it, collectives on different torus axes behind each other too. `serial_seconds` assumes the contrary
of communication, that nothing is hidden behind it: multiplications or memory, whichever is longer,
and then every collective after the other. A real step lies between the two, or above where the
matrix units do not reach their peak (small or odd shapes), which neither accounts for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gr_jax.planning._costs import Collective, Costs
from gr_jax.planning._topologies import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Times of one step, in seconds.

    Attributes:
      compute: multiplications at peak, recomputation included.
      memory: main memory's traffic.
      links: per torus axis, how long its links are busy.
      network: how long the network between slices is busy.
      communication: of all collectives one after the other.
      wire_bytes: bytes that a device sends, by kind of collective.
      counts: how many collectives, by kind.
    """

    compute: float
    memory: float
    links: dict[str, float]
    network: float
    communication: float
    wire_bytes: dict[str, float]
    counts: dict[str, float]

    @property
    def times(self) -> dict[str, float]:
        """All that bound the step, by name."""
        links = {f"links {axis}": seconds for axis, seconds in self.links.items()}
        return {"compute": self.compute, "memory": self.memory, **links, "network": self.network}

    @property
    def bound(self) -> str:
        """What takes longest: compute, memory, the links of a torus axis, or network."""
        return max(self.times, key=lambda name: self.times[name])

    @property
    def seconds(self) -> float:
        """Everything hidden behind the longest."""
        return max(self.times.values())

    @property
    def serial_seconds(self) -> float:
        """No communication hidden."""
        return max(self.compute, self.memory) + self.communication


def roofline(
    costs: Costs, *, device_flops: float, devices: Sequence[Any], topology: Topology
) -> Roofline:
    """The roofline of a program.

    Args:
      costs: of one run, of one device.
      device_flops: operations that a device runs.
      devices: in the order of the program's partitions (`mesh.devices.flat`).
      topology: where it runs.
    """
    chip = topology.chip
    links: dict[str, float] = {}
    network = communication = 0.0
    wire: dict[str, float] = {}
    counts: dict[str, float] = {}
    for collective, times in costs.collectives.items():
        sent, axes, seconds, far = _exchange(collective, devices, topology)
        wire[collective.kind] = wire.get(collective.kind, 0.0) + times * sent
        counts[collective.kind] = counts.get(collective.kind, 0) + times
        for axis in axes:
            links[axis] = links.get(axis, 0.0) + times * seconds
        network += times * far
        communication += times * (seconds + far)
    return Roofline(
        compute=device_flops * chip.devices / chip.flops,
        memory=costs.memory_bytes * chip.devices / chip.memory_bandwidth,
        links=links,
        network=network,
        communication=communication,
        wire_bytes=wire,
        counts=counts,
    )


def _exchange(
    collective: Collective, devices: Sequence[Any], topology: Topology
) -> tuple[float, list[str], float, float]:
    """Bytes a device sends, the torus axes used, seconds on those, seconds on the network."""
    groups = device_groups(collective.groups, len(devices))
    size = collective.operand_bytes
    chip = topology.chip
    if collective.kind == "collective-permute":
        hops = [_hops(devices[a], devices[b], topology) for a, b in groups if a != b]
        far = any(_slice(devices[a]) != _slice(devices[b]) for a, b in groups)
        if not hops:
            return 0.0, [], 0.0, 0.0
        if far:
            return size, [], 0.0, size / chip.network_bandwidth * chip.devices
        longest = max(hops, key=lambda distance: sum(distance.values()))
        axes = [axis for axis, distance in longest.items() if distance]
        return size, axes, sum(longest.values()) * size / chip.link_bandwidth, 0.0
    group = [devices[i] for i in groups[0]]
    n = len(group)
    if n == 1:
        return 0.0, [], 0.0, 0.0
    near = n // len({_slice(device) for device in group})  # members within one slice
    sent = {
        "all-gather": size * (n - 1),
        "all-reduce": 2 * size * (n - 1) / n,
        "reduce-scatter": size * (n - 1) / n,
        "all-to-all": size * (n - 1) / n,
    }[collective.kind]
    far = 0.0
    if near < n:
        # first within a slice, so that only a share of the bytes crosses the network
        crossing = sent / near if collective.kind != "all-gather" else sent
        far = crossing / chip.network_bandwidth * chip.devices
        sent = sent * (near - 1) / max(near, 1) if near > 1 else 0.0
    axes, rate = _paths(group, topology)
    if collective.kind == "all-to-all" and rate:
        # a quarter of a ring lies between two members on average
        rate /= max(near / 4, 1)
    return sent, axes, sent / rate if rate else 0.0, far


def _paths(group: Sequence[Any], topology: Topology) -> tuple[list[str], float]:
    """The torus axes that a group extends along, and the bytes per second it gets from them."""
    first = _slice(group[0])
    places = [device.coords for device in group if _slice(device) == first]
    axes, rate = [], 0.0
    for axis, size in enumerate(topology.shape):
        extent = len({place[axis] for place in places})
        if extent > 1:
            ring = extent == size and topology.wraps(axis)
            axes.append("xyz"[axis])
            # a ring is gone around in both directions; the end of a line has one neighbour
            rate += topology.chip.link_bandwidth * (2 if ring else 1)
    return axes, rate


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", None) or 0


def _hops(source: Any, target: Any, topology: Topology) -> dict[str, int]:
    distances = {}
    for axis, size in enumerate(topology.shape):
        distance = abs(source.coords[axis] - target.coords[axis])
        if topology.wraps(axis):
            distance = min(distance, size - distance)
        distances["xyz"[axis]] = distance
    return distances


def device_groups(text: str, devices: int) -> list[list[int]]:
    """The groups of partitions that a collective's text lists, or the pairs of a permutation.

    The compiler writes `{{0,1},{2,3}}`; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`, which is numbers in
    order, reshaped, transposed and reshaped again; and `mesh['a'=2,'b'=2] {'a'}`, the groups along
    some axes of a mesh. No text is one group of all.
    """
    import numpy as np

    if listed := re.findall(r"\{([\d,\s]+)\}", text):
        return [[int(n) for n in group.split(",")] for group in listed]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, order = (
            [int(n) for n in part.split(",")] if part else None for part in iota.groups()
        )
        numbers = np.arange(devices).reshape(source)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    if mesh := re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        axes = re.findall(r"'([^']+)'=(\d+)", mesh[1])
        names = [name for name, _ in axes]
        along = [names.index(name) for name in re.findall(r"'([^']+)'", mesh[2])]
        others = [i for i in range(len(names)) if i not in along]
        numbers = np.arange(devices).reshape([int(size) for _, size in axes])
        members = int(np.prod([numbers.shape[i] for i in along]))
        return numbers.transpose(others + along).reshape(-1, members).tolist()
    return [list(range(devices))]
