"""Rooflines by hand: bytes over links, on tori that are not there."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest

from gr_jax.planning import Topology, parse_topology
from gr_jax.planning._costs import Collective, Costs
from gr_jax.planning._roofline import device_groups, ring_rate, roofline


def devices_of(topology: Topology):
    return [
        SimpleNamespace(coords=list(place), slice_index=number)
        for number in range(topology.slices)
        for place in itertools.product(*map(range, topology.shape))
    ]


def times(topology: Topology, *collectives: Collective, flops=0.0, memory=0.0):
    costs = Costs(memory, {c: 1.0 for c in collectives})
    return roofline(costs, device_flops=flops, devices=devices_of(topology), topology=topology)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("mesh['a'=2,'b'=2] {'b'}", [[0, 1], [2, 3]]),
        ("mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("", [[0, 1, 2, 3]]),
    ],
)
def test_groups_are_read_in_all_their_spellings(text, groups):
    assert device_groups(text, 4) == groups


POD = parse_topology("v5e-256")
LINK = POD.chip.link_bandwidth
ROW = "[16,16]<=[256]"  # along y
COLUMN = "[16,16]<=[16,16]T(1,0)"


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 15 * 1600),
        ("reduce-scatter", 1500),
        ("all-reduce", 3000),
    ],
)
def test_a_ring_sends_both_ways_around(kind, sent):
    r = times(POD, Collective(kind, 1600, ROW))
    assert r.wire_bytes == {kind: pytest.approx(sent)}
    assert r.links == {"y": pytest.approx(sent / (2 * LINK))}
    assert r.communication == pytest.approx(sent / (2 * LINK))


def test_collectives_on_two_axes_hide_behind_each_other_or_not():
    r = times(POD, Collective("all-reduce", 1600, ROW), Collective("all-reduce", 800, COLUMN))
    assert r.bound == "links y"
    assert r.seconds == pytest.approx(3000 / (2 * LINK))
    assert r.serial_seconds == pytest.approx(4500 / (2 * LINK))


def test_a_group_over_both_axes_uses_the_links_of_both():
    r = times(POD, Collective("all-gather", 1, "[1,256]<=[256]"))
    assert r.links["x"] == r.links["y"] == pytest.approx(255 / (4 * LINK))


def test_the_end_of_a_line_has_one_neighbour_and_far_members_share_links():
    line = parse_topology("v5e-16")
    devices = devices_of(line)
    assert ring_rate(devices[:4], line) == LINK
    pod = devices_of(POD)
    assert ring_rate(pod[:16], POD) == 2 * LINK
    assert ring_rate(pod[:8], POD) == LINK
    assert ring_rate(pod[:16:8], POD) == 2 * LINK / 8  # eight such pairs lie over each other
    assert ring_rate(pod[:1], POD) == 0


def test_permutations_load_the_links_that_they_pass():
    ring = ",".join(f"{{{i},{(i + 1) % 16}}}" for i in range(16))
    r = times(POD, Collective("collective-permute", 1000, f"{{{ring}}}"))
    assert r.links == {"y": pytest.approx(1000 / LINK)}
    back = ",".join(f"{{{(i + 1) % 16},{i}}}" for i in range(16))
    both = times(
        POD,
        Collective("collective-permute", 1000, f"{{{ring}}}"),
        Collective("collective-permute", 1000, f"{{{back}}}"),
    )
    assert both.links == {"y": pytest.approx(1000 / LINK)}  # the other direction's own lane
    assert both.communication == pytest.approx(1000 / LINK)
    far = ",".join(f"{{{i},{(i + 2) % 16}}}" for i in range(16))
    r = times(POD, Collective("collective-permute", 1000, f"{{{far}}}"))
    assert r.links == {"y": pytest.approx(2000 / LINK)}
    assert times(POD, Collective("collective-permute", 9, "{{3,3}}")).links == {}


def test_the_way_back_of_a_line_crosses_it():
    line = parse_topology("v5e:1x8")
    ring = ",".join(f"{{{i},{(i + 1) % 8}}}" for i in range(8))
    r = times(line, Collective("collective-permute", 1000, f"{{{ring}}}"))
    # a lane each: seven neighbours one way, and seven links of the one that goes all the way back
    assert r.links == {"y": pytest.approx(1000 / LINK)}


@pytest.mark.parametrize(
    ("kind", "groups", "sent"),
    [
        ("all-reduce", "{1,2}x{0:3}", 2 * 1200 / 2),
        ("all-reduce", "{1,2,3}x{0:3}", 2 * 1200 * 2 / 3),
        ("all-reduce", "{{100000,300000},{200000,400000}}", 2 * 1200 / 2),
        ("all-gather", "{1,2,3}x{0:3}", 1200 * 2),
        ("reduce-scatter", "{1,2,3}x{0:3}", 1200 * 2 / 3),
        ("all-to-all", "{{100000,200000,300000}}", 1200 * 2 / 3),
        ("all-to-all", "{{100000,100001,200000,200001}}", 1200 / 2),  # half stays in its slice
        ("one-to-one", "{{100003->200000},{200003->100000}}", 1200),
    ],
)
def test_what_is_sent_to_other_slices_crosses_the_network(kind, groups, sent):
    slices = dataclasses.replace(parse_topology("v5e-4"), slices=4)
    r = times(slices, Collective(f"cross-slice-{kind}", 1200, groups))
    assert r.wire_bytes == {f"cross-slice-{kind}": pytest.approx(sent)}
    assert r.network == pytest.approx(sent / slices.chip.network_bandwidth)
    assert r.communication == r.network
    assert (r.links, r.bound) == ({}, "network")


def test_groups_of_a_program_for_several_slices_are_within_one():
    two = dataclasses.replace(parse_topology("v5e-4"), slices=2)
    r = times(two, Collective("all-reduce", 800, ""), Collective("all-reduce", 800, "{{0,1,2,3}}"))
    assert r.wire_bytes == {"all-reduce": pytest.approx(2 * 2 * 800 * 3 / 4)}
    assert set(r.links) == {"x", "y"}
    assert r.network == 0


def test_two_devices_of_a_chip_share_its_network():
    two = dataclasses.replace(parse_topology("tpu7x-8"), slices=2)
    r = times(two, Collective("cross-slice-all-reduce", 800, "{1,2}x{0:7}"))
    assert r.network == pytest.approx(2 * 800 / two.chip.network_bandwidth)


def test_products_and_memory_are_those_of_a_device():
    r = times(POD, flops=197e12, memory=819e9 / 2)
    assert (r.compute, r.memory, r.bound) == (1.0, 0.5, "compute")
    assert r.seconds == r.serial_seconds == 1.0
    seven = parse_topology("tpu7x-8")  # half a chip has half its rates
    assert times(seven, flops=2307e12 / 2).compute == pytest.approx(1.0)
