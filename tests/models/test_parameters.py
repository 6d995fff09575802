"""The parameter tree: t5x's names, shapes, axes, and the published sizes."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.models import VARIANTS, T5Config, count_parameters, init_parameters, logical_axes
from gr_jax.models._layout import unstack_layers
from tests.models.conftest import T5_1_0, T5_1_1, UMT5


def t5x_tree(c: T5Config) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Name -> (shape, logical axes), from a dump of t5x's own T5 (see docs: the t5x contract)."""
    joined = c.num_heads * c.head_dim
    tree: dict[str, Any] = {
        "token_embedder/embedding": ((c.vocab_size, c.emb_dim), ("vocab", "embed"))
    }
    if c.target_vocab_size is not None:
        tree["target_embedder/embedding"] = (
            (c.target_vocab_size, c.emb_dim),
            ("vocab", "embed"),
        )
    inward = ((c.emb_dim, joined), ("embed", "joined_kv"))
    outward = ((joined, c.emb_dim), ("joined_kv", "embed"))
    scale = ((c.emb_dim,), ("embed",))
    stacks = {
        "encoder": (c.num_encoder_layers, {"attention": "pre_attention_layer_norm"}),
        "decoder": (
            c.num_decoder_layers,
            {
                "self_attention": "pre_self_attention_layer_norm",
                "encoder_decoder_attention": "pre_cross_attention_layer_norm",
            },
        ),
    }
    for stack, (layers, attentions) in stacks.items():
        bias = ((c.num_heads, c.relpos_buckets), ("heads", "relpos_buckets"))
        if not c.relpos_per_layer:
            tree[f"{stack}/relpos_bias/rel_embedding"] = bias
        tree[f"{stack}/{stack}_norm/scale"] = scale
        for i in range(layers):
            layer = f"{stack}/layers_{i}"
            if c.relpos_per_layer:
                tree[f"{layer}/relpos_bias/rel_embedding"] = bias
            for attention, norm in attentions.items():
                tree[f"{layer}/{norm}/scale"] = scale
                for name in ("query", "key", "value"):
                    tree[f"{layer}/{attention}/{name}/kernel"] = inward
                tree[f"{layer}/{attention}/out/kernel"] = outward
            tree[f"{layer}/pre_mlp_layer_norm/scale"] = scale
            gated = len(c.mlp_activations) == 2
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                tree[f"{layer}/mlp/{name}/kernel"] = ((c.emb_dim, c.mlp_dim), ("embed", "mlp"))
            tree[f"{layer}/mlp/wo/kernel"] = ((c.mlp_dim, c.emb_dim), ("mlp", "embed"))
    if not c.logits_via_embedding:
        width = c.vocab_size if c.target_vocab_size is None else c.target_vocab_size
        tree["decoder/logits_dense/kernel"] = ((c.emb_dim, width), ("embed", "vocab"))
    return tree if not c.scan_layers else scanned(c, tree)


def scanned(c: T5Config, tree: dict[str, Any]) -> dict[str, Any]:
    """The same with the layers as axis 1 of what belongs to them (t5x's `scalable_t5`)."""
    depths = {"encoder": c.num_encoder_layers, "decoder": c.num_decoder_layers}
    result = {}
    for name, (shape, axes) in tree.items():
        stack, *rest = name.split("/")
        if rest[0].startswith("layers_"):
            name = "/".join([stack, stack, *rest[1:]])
            shape = (shape[0], depths[stack], *shape[1:])
            axes = (axes[0], "layers", *axes[1:])
        result[name] = (shape, axes)
    return result


def flat(tree, is_leaf=None):
    return {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }


def shapes_of(config: T5Config):
    return jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))


@pytest.mark.parametrize(
    "config",
    [
        T5_1_1,
        T5_1_0,
        UMT5,
        T5Config(vocab_size=50, num_encoder_layers=1, num_decoder_layers=3),
        dataclasses.replace(T5_1_1, scan_layers=True, remat="minimal"),
        dataclasses.replace(UMT5, scan_layers=True),
        dataclasses.replace(UMT5, scan_layers=True, num_encoder_layers=0),
        dataclasses.replace(UMT5, num_encoder_layers=0, num_decoder_layers=0),
    ],
    ids=str,
)
def test_names_shapes_and_axes_are_t5xs(config):
    shapes = flat(shapes_of(config))
    expected = t5x_tree(config)
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        name: shape for name, (shape, _) in expected.items()
    }
    assert {leaf.dtype for leaf in shapes.values()} == {jnp.dtype("float32")}
    axes = flat(logical_axes(config), is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert {name: tuple(spec) for name, spec in axes.items()} == {
        name: names for name, (_, names) in expected.items()
    }


# Parameters in millions. The papers round them: 60M, 220M, 738M, 2.8B, 11.3B (T5 1.0; Raffel et
# al. 2020), 77M, 248M, 783M, 2.85B, 11.1B (T5 1.1), 300M, 580M, 1.2B, 3.7B, 13B (mT5; Xue et al.
# 2021), 300M, 582M, 1.23B, 3.74B, 12.9B (ByT5; Xue et al. 2022). LM-adapted and Flan models are
# T5 1.1. umT5 is mT5 with a larger vocabulary and more position biases.
MILLIONS = {
    "t5": {"small": 60.5, "base": 222.9, "large": 737.7, "3b": 2852, "11b": 11307},
    "t5_1_1": {"small": 77.0, "base": 247.6, "large": 783.2, "xl": 2850, "xxl": 11135},
    "mt5": {"small": 300.2, "base": 582.4, "large": 1229.6, "xl": 3743, "xxl": 12921},
    "byt5": {"small": 299.6, "base": 581.7, "large": 1228, "xl": 3738, "xxl": 12907},
    "umt5": {"small": 306.6, "base": 592.0, "xl": 3768, "xxl": 12972},
}
MILLIONS |= {
    "t5_1_1_lm100k": MILLIONS["t5_1_1"],
    "flan_t5": MILLIONS["t5_1_1"],
    "mt5_lm_adapted": MILLIONS["mt5"],
}


@functools.cache
def count_of(config: T5Config) -> int:
    return count_parameters(shapes_of(config))


def count_by_hand(c: T5Config) -> int:
    """From the papers: embeddings, attention, feed-forward, norms and position biases."""
    d, attention = c.emb_dim, 4 * c.emb_dim * c.num_heads * c.head_dim
    mlp = (len(c.mlp_activations) + 1) * d * c.mlp_dim
    encoder = c.num_encoder_layers * (attention + mlp + 2 * d) + d
    decoder = c.num_decoder_layers * (2 * attention + mlp + 3 * d) + d
    layers = c.num_encoder_layers + c.num_decoder_layers
    biases = (layers if c.relpos_per_layer else 2) * c.num_heads * 32
    tables = (1 if c.logits_via_embedding else 2) * c.vocab_size * d
    return tables + encoder + decoder + biases


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes(name):
    family, size = name.rsplit("_", 1)
    # the scanned layout has the same numbers, and all layers are traced at once
    config = T5Config.from_name(name, 100 if size == "tiny" else None, scan_layers=True)
    assert count_of(config) == count_by_hand(config)
    if size != "tiny":
        assert count_of(config) / 1e6 == pytest.approx(MILLIONS[family][size], rel=1e-3)


@pytest.mark.parametrize("scan", [False, True], ids=["apart", "scanned"])
def test_initial_values(scan):
    """T5's initialisers: unit embeddings, queries smaller by sqrt(head_dim), norms at one.

    The number of layers is no part of a fan-in, and no two layers are alike.
    """
    config = T5Config(
        vocab_size=500,
        emb_dim=64,
        num_heads=4,
        mlp_dim=512,
        num_encoder_layers=3,
        num_decoder_layers=3,
        relpos_per_layer=True,
        scan_layers=scan,
    )
    params = jax.jit(init_parameters, static_argnums=0)(config, jax.random.key(0))
    params = flat(unstack_layers(params))
    std = {name: float(leaf.std()) for name, leaf in params.items()}
    assert std["token_embedder/embedding"] == pytest.approx(1, rel=0.05)
    assert std["decoder/logits_dense/kernel"] == pytest.approx(64**-0.5, rel=0.05)
    for i in range(3):
        layer = f"decoder/layers_{i}"
        for attention in ("self_attention", "encoder_decoder_attention"):
            assert std[f"{layer}/{attention}/key/kernel"] == pytest.approx(64**-0.5, rel=0.05)
            assert std[f"{layer}/{attention}/out/kernel"] == pytest.approx(256**-0.5, rel=0.05)
            query = std[f"{layer}/{attention}/query/kernel"]
            assert query == pytest.approx((64 * 64) ** -0.5, rel=0.05)
        assert std[f"encoder/layers_{i}/mlp/wi_0/kernel"] == pytest.approx(64**-0.5, rel=0.05)
        assert std[f"encoder/layers_{i}/mlp/wo/kernel"] == pytest.approx(512**-0.5, rel=0.05)
        # uniform, of variance 1 / the mean of 4 heads and 32 buckets
        assert std[f"{layer}/relpos_bias/rel_embedding"] == pytest.approx(18**-0.5, rel=0.2)
    for name, leaf in params.items():
        if name.endswith("scale"):
            assert (leaf == 1).all()
        elif "layers_0" in name:
            other = params[name.replace("layers_0", "layers_1")]
            assert abs(np.corrcoef(leaf.ravel(), other.ravel())[0, 1]) < 0.4, name
