"""The parameter tree: t5x's names, shapes, axes, and the published sizes."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from gr_jax.models import SIZES, T5Config, count_parameters, init_parameters, logical_axes
from tests.models.conftest import T5_1_0, T5_1_1


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
        tree[f"{stack}/relpos_bias/rel_embedding"] = (
            (c.num_heads, c.relpos_buckets),
            ("heads", "relpos_buckets"),
        )
        tree[f"{stack}/{stack}_norm/scale"] = scale
        for i in range(layers):
            layer = f"{stack}/layers_{i}"
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
    return tree


def flat(tree, is_leaf=None):
    return {
        "/".join(str(key.key) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    }


def shapes_of(config: T5Config):
    return jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))


@pytest.mark.parametrize(
    "config",
    [T5_1_1, T5_1_0, T5Config(vocab_size=50, num_encoder_layers=1, num_decoder_layers=3)],
    ids=["t5_1_1", "t5_1_0", "shared_vocabulary"],
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


# published names of the sizes, in millions of parameters (T5 1.1, 32,128 text tokens)
@pytest.mark.parametrize(
    ("size", "millions"),
    [("small", 77), ("base", 248), ("large", 783), ("xl", 2850), ("xxl", 11135)],
)
def test_published_sizes(size, millions):
    config = T5Config.from_size(size, 32128)
    d, heads, layers, mlp = SIZES[size]
    attention = 4 * d * heads * 64
    encoder = layers * (attention + 3 * d * mlp + 2 * d)
    decoder = layers * (2 * attention + 3 * d * mlp + 3 * d)
    by_hand = 2 * 32128 * d + encoder + decoder + 2 * d + 2 * heads * 32
    assert count_parameters(shapes_of(config)) == by_hand
    assert by_hand / 1e6 == pytest.approx(millions, rel=0.01)


def test_initial_values():
    """T5's initialisers: unit embeddings, queries smaller by sqrt(head_dim), norms at one."""
    config = T5Config(
        vocab_size=500, emb_dim=64, num_heads=4, num_encoder_layers=1, num_decoder_layers=1
    )
    params = flat(jax.jit(init_parameters, static_argnums=0)(config, jax.random.key(0)))
    std = {name: float(leaf.std()) for name, leaf in params.items()}
    layer = "decoder/layers_0/self_attention"
    assert std["token_embedder/embedding"] == pytest.approx(1, rel=0.05)
    assert std[f"{layer}/key/kernel"] == pytest.approx(64**-0.5, rel=0.05)
    assert std[f"{layer}/query/kernel"] == pytest.approx((64 * 64) ** -0.5, rel=0.05)
    assert std[f"{layer}/out/kernel"] == pytest.approx(256**-0.5, rel=0.05)
    assert std["encoder/layers_0/mlp/wi_0/kernel"] == pytest.approx(64**-0.5, rel=0.05)
    for name, leaf in params.items():
        if name.endswith("scale"):
            assert (leaf == 1).all()
