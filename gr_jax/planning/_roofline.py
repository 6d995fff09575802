"""How long a program needs at least, by the peak rates of a chip: an estimate, not a measurement.

Four times are computed for one device: that of its multiplications at the matrix units' peak, that
of the bytes that it moves to and from main memory, that of each torus axis' links, and that of the
network between slices. `seconds` is the longest of them: it assumes that all else is hidden behind
it, collectives on different torus axes behind each other too. `serial_seconds` assumes the contrary
of communication, that nothing is hidden behind it: multiplications or memory, whichever is longer,
and then every collective after the other (permutations in opposite directions together). A real
step lies between the two, or above where the matrix units do not reach their peak (small or odd
shapes), which neither accounts for.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gr_jax.planning._costs import CROSS_SLICE, Collective, Costs
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
    # all slices run the same program; the partitions that it numbers are those of one
    devices = [device for device in devices if _slice(device) == _slice(devices[0])]
    busy = _Busy()
    rings = network = 0.0
    passing = _Busy()  # permutations only
    wire: dict[str, float] = {}
    counts: dict[str, float] = {}
    for collective, times in costs.collectives.items():
        if collective.kind.startswith(CROSS_SLICE):
            sent = _across(collective)
            network += times * sent * chip.devices / chip.network_bandwidth
        elif collective.kind == "collective-permute":
            sent, lanes = _permutation(collective, devices, topology)
            for lane, seconds in lanes.items():
                passing.add(lane, times * seconds)
                busy.add(lane, times * seconds)
        else:
            sent, seconds, axes = _exchange(collective, devices, topology)
            rings += times * seconds
            for axis in axes:  # both ways around
                busy.add((axis, 1), times * seconds)
                busy.add((axis, -1), times * seconds)
        wire[collective.kind] = wire.get(collective.kind, 0.0) + times * sent
        counts[collective.kind] = counts.get(collective.kind, 0) + times
    return Roofline(
        compute=device_flops * chip.devices / chip.flops,
        memory=costs.memory_bytes * chip.devices / chip.memory_bandwidth,
        links=busy.by_axis(),
        network=network,
        # the two directions of a link are two lanes, and permutations come in pairs
        communication=rings + network + max(passing.seconds.values(), default=0.0),
        wire_bytes=wire,
        counts=counts,
    )


Lane = tuple[str, int]  # a torus axis and a direction along it


class _Busy:
    """How long each lane is in use."""

    def __init__(self):
        self.seconds: dict[Lane, float] = {}

    def add(self, lane: Lane, seconds: float) -> None:
        self.seconds[lane] = self.seconds.get(lane, 0.0) + seconds

    def by_axis(self) -> dict[str, float]:
        axes = sorted({axis for axis, _ in self.seconds})
        return {a: max(self.seconds.get((a, d), 0.0) for d in (1, -1)) for a in axes}


_SLICE = 100_000  # what the compiler numbers devices of several slices by
_Sent = Callable[[float, int], float]
# bytes that each of n devices sends, of what it hands in
_SENT: dict[str, _Sent] = {
    "all-gather": lambda size, n: size * (n - 1),
    "all-reduce": lambda size, n: 2 * size * (n - 1) / n,
    "reduce-scatter": lambda size, n: size * (n - 1) / n,
    "all-to-all": lambda size, n: size * (n - 1) / n,
}


def _exchange(
    collective: Collective, devices: Sequence[Any], topology: Topology
) -> tuple[float, float, list[str]]:
    """Bytes a device sends, seconds on links, and the torus axes of those."""
    group = [devices[i] for i in device_groups(collective.groups, len(devices))[0]]
    n = len(group)
    if n == 1:
        return 0.0, 0.0, []
    sent = _SENT[collective.kind](collective.operand_bytes, n)
    axes, rate = _paths(group, topology)
    if collective.kind == "all-to-all" and rate:
        # a quarter of a ring lies between two members on average
        rate /= max(n / 4, 1)
    return sent, sent / rate if rate else 0.0, axes


def _across(collective: Collective) -> float:
    """Bytes that a device sends to other slices.

    The runtime's groups are `{1,2}x{0:3}`, slices that each device meets its like of; lists of
    devices, `_SLICE` times the slice plus the number in it; or pairs of them, `{{100000->200000}}`.
    """
    kind, size = collective.kind.removeprefix(CROSS_SLICE), collective.operand_bytes
    if kind not in _SENT:  # the busiest device's
        sources = re.findall(r"(\d+)->", collective.groups)
        return size * max(map(sources.count, sources), default=1)
    group = re.search(r"\{([\d,]+)\}", collective.groups)
    members = [int(n) for n in group[1].split(",")] if group else [0]
    if kind == "all-to-all":  # what is for the device's own slice does not leave it
        slices = len({n // _SLICE for n in members})
        return size * (slices - 1) / slices
    return _SENT[kind](size, len(members))


def _permutation(
    collective: Collective, devices: Sequence[Any], topology: Topology
) -> tuple[float, dict[Lane, float]]:
    """Bytes a device sends, and seconds on the busiest link of each lane."""
    pairs = [
        (devices[a], devices[b])
        for a, b in device_groups(collective.groups, len(devices))
        if a != b
    ]
    if not pairs:
        return 0.0, {}
    size, chip = collective.operand_bytes, topology.chip
    loads: dict[tuple[Lane, tuple[int, ...]], int] = {}
    for source, target in pairs:
        for link in _route(source, target, topology):
            loads[link] = loads.get(link, 0) + 1
    lanes: dict[Lane, float] = {}
    for (lane, _), load in loads.items():
        lanes[lane] = max(lanes.get(lane, 0.0), load * size / chip.link_bandwidth)
    return size, lanes


def _route(source: Any, target: Any, topology: Topology) -> Iterator[tuple[Lane, tuple[int, ...]]]:
    """The links between two chips, one torus axis after the other, the shorter way around."""
    place = list(source.coords)
    for axis, size in enumerate(topology.shape):
        distance = target.coords[axis] - place[axis]
        if topology.wraps(axis):
            distance = (distance + size // 2) % size - size // 2
        direction = 1 if distance > 0 else -1
        for _ in range(abs(distance)):
            yield ("xyz"[axis], direction), tuple(place)
            place[axis] = (place[axis] + direction) % size


def _paths(group: Sequence[Any], topology: Topology) -> tuple[list[str], float]:
    """The torus axes that a group extends along, and the bytes per second it gets from them."""
    first = _slice(group[0])
    places = [device.coords for device in group if _slice(device) == first]
    axes, rate = [], 0.0
    for axis, size in enumerate(topology.shape):
        along = sorted({place[axis] for place in places})
        if len(along) > 1:
            # links between members that are not neighbours are shared by as many groups
            stride = max((along[-1] - along[0]) // (len(along) - 1), 1)
            ring = len(along) * stride == size and topology.wraps(axis)
            axes.append("xyz"[axis])
            # a ring is gone around in both directions; the end of a line has one neighbour
            rate += topology.chip.link_bandwidth * (2 if ring else 1) / stride
    return axes, rate


def ring_rate(group: Sequence[Any], topology: Topology) -> float:
    """Bytes per second that reach each member of a group of devices in a gather; 0 for one."""
    return _paths(group, topology)[1]


def _slice(device: Any) -> int:
    return getattr(device, "slice_index", None) or 0


def device_groups(text: str, devices: int) -> list[list[int]]:
    """The groups of partitions that a collective's text lists, or the pairs of a permutation.

    The compiler writes `{{0,1},{2,3}}`; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`, which is numbers in
    order, reshaped, transposed and reshaped again; and `mesh['a'=2,'b'=2] {'a'}`, the groups along
    some axes of a mesh. No text is one group of all.
    """
    if listed := re.findall(r"\{([\d,\s]+)\}", text):
        return [[int(n) for n in group.split(",")] for group in listed]
    if iota := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, source, order = (
            [int(n) for n in part.split(",")] if part else None for part in iota.groups()
        )
        numbers = np.arange(devices).reshape(source or devices).transpose(order)
        listed = numbers.reshape(-1, (shape or [devices])[-1])
        return [[int(n) for n in group] for group in listed]
    if mesh := re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        axes = re.findall(r"'([^']+)'=(\d+)", mesh[1])
        names = [name for name, _ in axes]
        along = [names.index(name) for name in re.findall(r"'([^']+)'", mesh[2])]
        others = [i for i in range(len(names)) if i not in along]
        numbers = np.arange(devices).reshape([int(size) for _, size in axes])
        members = int(np.prod([numbers.shape[i] for i in along]))
        listed = numbers.transpose(others + along).reshape(-1, members)
        return [[int(n) for n in group] for group in listed]
    return [list(range(devices))]
