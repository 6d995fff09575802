"""Names of slices: Cloud's, which count chips or cores, and the compiler's."""

import pytest

from gr_jax.errors import UserError
from gr_jax.planning import parse_topology, slices_of


@pytest.mark.parametrize(
    ("name", "chips", "shape"),
    [
        ("v5e-256", 256, (16, 16)),
        ("v5litepod-8", 8, (2, 4)),
        ("v6e-1", 1, (1, 1)),
        ("v4-32", 16, (2, 2, 4)),  # cores
        ("v5p-128", 64, (4, 4, 4)),
        ("tpu7x-16", 8, (2, 2, 2)),
        ("v5e:4x8", 32, (4, 8)),
        ("v5p:4x4x12", 192, (4, 4, 12)),
        ("v5:2x2x2", 8, (2, 2, 2)),
        (" V5E-16 ", 16, (4, 4)),
    ],
)
def test_a_name_means_so_many_chips(name, chips, shape):
    topology = parse_topology(name)
    assert (topology.chips, topology.shape) == (chips, shape)


def test_devices_are_chips_but_of_tpu7x_which_has_two_per_chip():
    assert parse_topology("v5p-128").devices_per_slice == 64
    assert parse_topology("v4-128").devices_per_slice == 64
    assert parse_topology("tpu7x-128").devices_per_slice == 128


def test_names_come_back():
    for kind in ("v4", "v5e", "v5p", "v6e", "tpu7x"):
        for topology in slices_of(kind):
            assert parse_topology(topology.name) == topology
    assert parse_topology("v5e:2x2").name == "v5e-4"
    assert parse_topology("v5e:2x8").name == "v5e:2x8"  # which Cloud does not offer


def test_slices_of_a_generation_grow():
    sizes = [topology.chips for topology in slices_of("v5e")]
    assert sizes == sorted(sizes) == [1, 4, 8, 16, 32, 64, 128, 256]


def test_several_slices_have_their_chips_together():
    assert parse_topology("v5e-16", slices=4).chips == 64


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e-7", "there are v5e-1, v5e-4, v5e-8"),
        ("v5p:4x4", "v5p has 3 axes"),
        ("v5e:0x4", "v5e has 2 axes"),
        ("h100-8", "as in v5e-256"),
        ("v5e256", "v5e-256"),
        ("", "as in v5e-256"),
    ],
)
def test_a_wrong_name_is_refused_with_right_ones(name, said):
    with pytest.raises(UserError, match=said):
        parse_topology(name)


def test_no_slice_and_no_generation():
    with pytest.raises(UserError, match="num_slices is 0"):
        parse_topology("v5e-8", slices=0)
    with pytest.raises(UserError, match="there are v4, v5e"):
        slices_of("v3")


def test_ends_are_connected_on_whole_pods_and_cubes_only():
    assert all(parse_topology("v5e-256").wraps(axis) for axis in (0, 1))
    assert [parse_topology("v5e-128").wraps(axis) for axis in (0, 1)] == [False, True]
    assert not parse_topology("v5e-64").wraps(0)
    assert all(parse_topology("v5p-128").wraps(axis) for axis in (0, 1, 2))
    assert not parse_topology("v5p-64").wraps(2)


def test_a_link_is_a_share_of_what_cloud_states_for_a_chip():
    chip = parse_topology("v5e-8").chip
    assert chip.link_bandwidth * 4 * 2 == 400e9
    chip = parse_topology("v5p-8").chip
    assert chip.link_bandwidth * 6 * 2 == 1200e9


@pytest.mark.parametrize(
    ("name", "hosts", "host"),
    [
        ("v5e-1", 1, "v5e-1"),
        ("v5e-8", 1, "v5e-8"),
        ("v6e-16", 4, "v6e-4"),
        ("v5e-256", 64, "v5e-4"),
        ("v5p-8", 1, "v5p-8"),
        ("v4-16", 2, "v4-8"),
        ("tpu7x-16", 2, "tpu7x-8"),
    ],
)
def test_a_slice_is_made_of_hosts(name, hosts, host):
    topology = parse_topology(name)
    assert (topology.hosts, topology.host.name, topology.host.hosts) == (hosts, host, 1)
    assert parse_topology(name, 2).hosts == 2 * hosts and topology.one_chip.chips == 1
