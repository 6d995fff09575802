"""Meshes, t5x's rules, and what `model-info.txt` says."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from gr_jax.errors import UserError
from gr_jax.models import decode_train, init_parameters, logical_axes
from gr_jax.models._layout import stack_layers
from gr_jax.training import (
    Optimizer,
    Partitioner,
    Partitioning,
    init_state,
    logical_axis_rules,
    make_mesh,
    write_model_info,
)
from gr_jax.training._loop import step_function
from tests.training.tiny_run import MODEL, TRAINER, make_batches, partitioner

APART = dataclasses.replace(MODEL, relpos_per_layer=True, num_encoder_layers=2)
SCANNED = dataclasses.replace(APART, scan_layers=True, remat="minimal")


@pytest.mark.parametrize("config", [MODEL, APART, SCANNED], ids=["plain", "umt5", "scanned"])
def test_every_logical_axis_has_a_rule(config):
    specs = jax.tree.leaves(logical_axes(config), is_leaf=lambda x: isinstance(x, PartitionSpec))
    axes = {axis for spec in specs for axis in spec}
    assert axes <= dict(logical_axis_rules()).keys()
    assert ("layers" in axes) == config.scan_layers


def test_scanned_layers_are_split_as_single_ones_are():
    on = partitioner(8, 2)
    shardings = on.parameters(SCANNED)
    layer = shardings["decoder"]["decoder"]
    expected = {
        "query": PartitionSpec(None, None, "model"),
        "out": PartitionSpec("model", None, None),
    }
    for name, spec in expected.items():
        assert layer["self_attention"][name]["kernel"].spec == spec
    assert layer["relpos_bias"]["rel_embedding"].spec == PartitionSpec("model", None, None)
    apart = init_parameters(APART, jax.random.key(0))
    batch = make_batches()(0).arrays
    jit_logits = jax.jit(decode_train, static_argnums=0)
    placed = jax.device_put(stack_layers(apart), shardings)
    found = jit_logits(SCANNED, placed, on.put_batch(batch))
    np.testing.assert_allclose(found, jit_logits(APART, apart, batch), rtol=1e-4, atol=1e-5)


def test_model_info_of_scanned_layers(tmp_path):
    on = Partitioner.make(Partitioning(model_parallel=2, parameter_partitions=2))
    params = jax.device_put(init_parameters(SCANNED, jax.random.key(0)), on.parameters(SCANNED))
    write_model_info(tmp_path / "info.txt", SCANNED, params)
    lines = (tmp_path / "info.txt").read_text("utf-8").splitlines()
    by_name = {line.split()[1]: " ".join(line.split()) for line in lines[:-1]}
    c = SCANNED
    layers = c.num_encoder_layers
    assert by_name["encoder/encoder/mlp/wo/kernel"].endswith(
        f"size {c.mlp_dim * layers * c.emb_dim} "
        f"shape (mlp={c.mlp_dim}, layers={layers}, embed={c.emb_dim}) "
        "partition spec ('model', None, 'data')"
    )
    assert by_name["encoder/encoder/relpos_bias/rel_embedding"].endswith(
        f"shape (heads={c.num_heads}, layers={layers}, relpos_buckets=32) "
        "partition spec ('model', None, None)"
    )
    assert by_name["encoder/encoder_norm/scale"].endswith("partition spec ('data',)")
    apart = jax.eval_shape(lambda: init_parameters(APART, jax.random.key(0)))
    assert lines[-1].endswith(f" {sum(x.size for x in jax.tree.leaves(apart))}")


def mesh_axes(rules, *names: str) -> tuple[Any, ...]:
    spec = nn.logical_to_mesh_axes(names, rules)
    assert spec is not None
    return tuple(spec)


def test_rules_are_t5xs():
    """The tables of t5x's `standard_logical_axis_rules`, as functions of its two settings."""

    def spec(parameters, activations, *names):
        rules = logical_axis_rules(parameters, activations)
        return mesh_axes(rules, *names)

    batch = ("replica", "data")
    for parameters, activations in itertools.product((1, 2), (1, 2)):
        activation = spec(parameters, activations, "batch", "length", "embed")
        assert activation == (batch, None, "model" if activations == 2 else None)
        assert spec(parameters, activations, "batch", "length", "mlp") == (batch, None, "model")
        kernel = spec(parameters, activations, "embed", "mlp")
        assert kernel == ("data" if parameters == 2 else None, "model")
        table = spec(parameters, activations, "vocab", "embed")
        assert table == ("model", "data" if parameters == 2 else None)
    assert spec(1, 2, "embed") == spec(2, 2, "embed") == ("model",)
    assert spec(2, 1, "embed") == ("data",)


def test_additional_rules():
    as_gin_has_them: Any = [["length", "model"], ("kv", None)]
    rules = Partitioning(additional_rules=as_gin_has_them).rules
    found = mesh_axes(rules, "batch", "length", "embed")
    assert found == (("replica", "data"), "model", None)
    # t5x's order: the standard rule of an axis that is split comes first
    rules = Partitioning(additional_rules=(("mlp", "data"), ("embed", ("replica", "data")))).rules
    assert mesh_axes(rules, "embed", "mlp") == (("replica", "data"), "model")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameter_partitions": 3}, "parameter_partitions is 3: 1 or 2"),
        ({"model_parallel": 0}, "model_parallel is 0"),
        ({"replicas": -1}, "replicas is -1"),
        ({"additional_rules": (("tokens", "data"),)}, "logical axis 'tokens': there are batch,"),
        ({"additional_rules": (("embed", "fsdp"),)}, "mesh axis 'fsdp': there are replica, data"),
        ({"additional_rules": ("embed",)}, "pairs like"),
    ],
)
def test_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Partitioning(**settings)


def test_meshes():
    assert dict(make_mesh(2).shape) == {"replica": 1, "data": 4, "model": 2}
    assert dict(make_mesh(2, replicas=2).shape) == {"replica": 2, "data": 2, "model": 2}
    with pytest.raises(UserError, match="model_parallel=4 times replicas=4 does not divide the 8"):
        make_mesh(4, replicas=4)


@dataclasses.dataclass(frozen=True)
class _Device:
    """As much of a device of several hosts as meshes are made from."""

    id: int
    slice_index: int
    process_index: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "none"


def test_replicas_are_whole_slices():
    devices = [_Device(i, i // 4, i // 4, (i % 2, i % 4 // 2, 0)) for i in range(8)]
    mesh = make_mesh(2, devices)
    assert mesh.devices.shape == (2, 2, 2)
    for replica in (0, 1):
        assert {device.slice_index for device in mesh.devices[replica].flat} == {replica}
    assert make_mesh(1, devices, replicas=4).devices.shape == (4, 2, 1)
    with pytest.raises(UserError, match="replicas=1 is not a multiple of the 2 slices"):
        make_mesh(1, devices, replicas=1)


def test_hosts_of_gpus_are_not_slices():
    """JAX numbers the hosts of GPUs as it does slices."""
    devices = [
        _Device(i, i // 4, i // 4, (0, 0, 0), platform="gpu", device_kind="gpu") for i in range(8)
    ]
    assert make_mesh(1, devices).devices.shape == (1, 8, 1)
    assert make_mesh(8, devices).devices.shape == (1, 1, 8)
    assert make_mesh(1, devices, replicas=2).devices.shape == (2, 4, 1)


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        (
            {"num_heads": 3},
            {"model_parallel": 2},
            "num_heads=3 .* axis of 2: on 8 .* 1 would",
        ),
        ({"mlp_dim": 36}, {"model_parallel": 8}, "mlp_dim=36 .* 1, 2, 4 would"),
        ({"vocab_size": 42}, {"model_parallel": 4}, "vocab_size=42 .* 1, 2 would"),
        ({"target_vocab_size": 6}, {"model_parallel": 4}, "target_vocab_size=6 .* 1, 2 would"),
        ({"emb_dim": 20}, {"parameter_partitions": 2}, "emb_dim=20 .* data axis of 8: .* 1, 2, 4"),
    ],
)
def test_what_does_not_divide_is_named_with_what_would(changes, settings, message):
    config = dataclasses.replace(MODEL, **{"num_heads": 8, "mlp_dim": 32} | changes)
    on = Partitioner.make(Partitioning(**settings))
    with pytest.raises(UserError, match=message):
        on.parameters(config)


def test_nothing_is_kept_twice_when_parameters_are_fully_split():
    on = Partitioner.make(Partitioning(model_parallel=2, parameter_partitions=2))
    optimizer = Optimizer(name="adamw").make()
    state = init_state(MODEL, optimizer, on, seed=0, ema=True)
    split = {True: [], False: []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        matrix = leaf.ndim > 1 and "rel_embedding" not in jax.tree_util.keystr(path)
        split[matrix].append(leaf.nbytes / leaf.addressable_shards[0].data.nbytes)
    assert set(split[True]) == {8}
    # of norms and position biases, only one axis is split
    assert set(split[False]) == {1, 2, 4} and len(split[True]) > len(split[False])


class _Process(Partitioner):
    """A partitioner as a process sees it that has some of the devices only."""

    @property
    def own_shards(self) -> tuple[int, ...]:
        return (0, 2)


def test_a_process_puts_its_own_rows_where_they_belong(monkeypatch):
    on = Partitioner.make(Partitioning(model_parallel=2))
    assert on.own_shards == (0, 1, 2, 3)
    one = Partitioner.make(Partitioning(model_parallel=8))
    assert one.own_shards == (0,)
    batches = make_batches(row_multiple=16)
    whole, own = batches(0).arrays, batches.shards(0, (0, 2), 4).arrays

    def of_this_process(shape, sharding, read):
        """`jax.make_array_from_callback`, asked for the parts of this process's devices."""
        part = shape[0] // 4
        return shape, [read((slice(i * part, (i + 1) * part),)) for i in (0, 2)]

    monkeypatch.setattr(jax, "make_array_from_callback", of_this_process)
    asked = _Process(on.mesh).put_batch(own)
    for name, array in whole.items():
        shape, parts = asked[name]
        assert shape == array.shape
        for part, rows in zip(parts, np.split(array, 4)[::2], strict=True):
            np.testing.assert_array_equal(part, rows)
    with pytest.raises(ValueError, match="3 rows do not divide into 2 parts"):
        _Process(on.mesh).put_batch({"x": np.zeros((3, 1))})


@pytest.mark.parametrize(
    "settings",
    [
        {"model_parallel": 2, "parameter_partitions": 2},
        pytest.param(
            {"model_parallel": 4, "parameter_partitions": 2, "activation_partitions": 2},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_a_step_leaves_every_array_where_it_was(settings):
    """Else the second step would be another program, and memory would not be what was planned."""
    on = Partitioner.make(Partitioning(**settings))
    trainer = dataclasses.replace(TRAINER, ema_decay=0.9, optimizer=Optimizer(name="adafactor"))
    optimizer = trainer.optimizer.make()
    run_step = step_function(trainer, SCANNED, optimizer, on)
    before = init_state(SCANNED, optimizer, on, seed=0, ema=True)
    shardings = jax.tree.map(lambda x: x.sharding, before)
    after, _ = run_step(before, make_batches()(0).arrays, 1e-2)
    moved = [
        jax.tree_util.keystr(path)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(shardings), strict=True
        )
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    ]
    assert not moved
