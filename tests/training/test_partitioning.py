"""Where the parameters of scanned layers stand, and what `model-info.txt` says of them."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.models import decode_train, init_parameters, logical_axes
from gr_jax.models._layout import stack_layers
from gr_jax.training import write_model_info
from gr_jax.training._partitioning import STANDARD_RULES
from tests.training.tiny_run import MODEL, make_batches, partitioner

APART = dataclasses.replace(MODEL, relpos_per_layer=True, num_encoder_layers=2)
SCANNED = dataclasses.replace(APART, scan_layers=True, remat="minimal")


@pytest.mark.parametrize("config", [MODEL, APART, SCANNED], ids=["plain", "umt5", "scanned"])
def test_every_logical_axis_has_a_rule(config):
    specs = jax.tree.leaves(logical_axes(config), is_leaf=lambda x: isinstance(x, PartitionSpec))
    axes = {axis for spec in specs for axis in spec}
    assert axes <= dict(STANDARD_RULES).keys()
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
    params = jax.eval_shape(lambda: init_parameters(SCANNED, jax.random.key(0)))
    write_model_info(tmp_path / "info.txt", SCANNED, params)
    lines = (tmp_path / "info.txt").read_text("utf-8").splitlines()
    by_name = {line.split()[1]: line for line in lines[:-1]}
    c = SCANNED
    layers = c.num_encoder_layers
    assert by_name["encoder/encoder/mlp/wo/kernel"].endswith(
        f"size {c.mlp_dim * layers * c.emb_dim:<12} "
        f"shape (mlp={c.mlp_dim}, layers={layers}, embed={c.emb_dim})"
    )
    assert by_name["encoder/encoder/relpos_bias/rel_embedding"].endswith(
        f"shape (heads={c.num_heads}, layers={layers}, relpos_buckets=32)"
    )
    apart = jax.eval_shape(lambda: init_parameters(APART, jax.random.key(0)))
    assert lines[-1].endswith(f" {sum(x.size for x in jax.tree.leaves(apart))}")
