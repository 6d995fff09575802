"""Which parameters a T5 has, by t5x's names, and the T5 that a set of parameters makes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.models._layout import split_name

EMBEDDING = "token_embedder/embedding"
TARGET_EMBEDDING = "target_embedder/embedding"
HEAD = "decoder/logits_dense/kernel"
RELPOS = "relpos_bias/rel_embedding"

_ATTENTIONS = {
    "encoder": (("pre_attention_layer_norm", "attention"),),
    "decoder": (
        ("pre_self_attention_layer_norm", "self_attention"),
        ("pre_cross_attention_layer_norm", "encoder_decoder_attention"),
    ),
}


def layer_shapes(config: T5Config, stack: str) -> dict[str, tuple[int, ...]]:
    """The parameters of one layer of `encoder` or `decoder`."""
    joined = config.num_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"pre_mlp_layer_norm/scale": (config.emb_dim,)}
    for norm, attention in _ATTENTIONS[stack]:
        shapes[f"{norm}/scale"] = (config.emb_dim,)
        for name in ("query", "key", "value"):
            shapes[f"{attention}/{name}/kernel"] = (config.emb_dim, joined)
        shapes[f"{attention}/out/kernel"] = (joined, config.emb_dim)
    count = len(config.mlp_activations)
    for name in ["wi"] if count == 1 else [f"wi_{i}" for i in range(count)]:
        shapes[f"mlp/{name}/kernel"] = (config.emb_dim, config.mlp_dim)
    shapes["mlp/wo/kernel"] = (config.mlp_dim, config.emb_dim)
    if config.relpos_per_layer:
        shapes[RELPOS] = (config.num_heads, config.relpos_buckets)
    return shapes


def parameter_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model in the unscanned layout, by t5x's name."""
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.emb_dim)}
    if config.target_vocab_size is not None:
        shapes[TARGET_EMBEDDING] = (config.target_vocab_size, config.emb_dim)
    if not config.logits_via_embedding:
        shapes[HEAD] = (config.emb_dim, config.output_vocab_size)
    depths = {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    for stack, depth in depths.items():
        shapes[f"{stack}/{stack}_norm/scale"] = (config.emb_dim,)
        if not config.relpos_per_layer:
            shapes[f"{stack}/{RELPOS}"] = (config.num_heads, config.relpos_buckets)
        for i in range(depth):
            layer = layer_shapes(config, stack).items()
            shapes |= {f"{stack}/layers_{i}/{name}": shape for name, shape in layer}
    return shapes


def infer_config(
    path: str,
    leaves: Mapping[str, Any],
    *,
    num_heads: int | None = None,
    known: Mapping[str, Any] | None = None,
) -> T5Config:
    """The model that a set of parameters belongs to, and whether the set is whole.

    Args:
      path: of the checkpoint, for errors.
      leaves: name in the unscanned layout -> anything with a shape.
      num_heads: of attention; None to count the rows of the position biases.
      known: settings that shapes do not tell (activation functions, distances, dropout), where a
        record beside the parameters does.

    Raises:
      UserError: parameters are missing, are more than a T5 has, or do not fit together.
    """
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    if EMBEDDING not in shapes:
        raise UserError(
            f"{path}: not a T5: it has no {EMBEDDING}"
            + (f" (its first parameter is {min(shapes)})" if shapes else " (it has no parameters)")
        )
    depth = {"encoder": 0, "decoder": 0}
    for name in shapes:
        if place := split_name(name):
            stack, layer, _ = place
            depth[stack] = max(depth[stack], layer + 1)
    biases = [name for name in shapes if name.endswith(RELPOS)]
    query = next((n for n in shapes if n.endswith("attention/query/kernel")), None)
    up = sorted(n for n in shapes if re.fullmatch(r"encoder/layers_0/mlp/wi(_\d)?/kernel", n))
    if not (biases and query and up):
        raise UserError(f"{path}: not a whole T5: no attention, feed-forward or position biases")
    num_heads = num_heads or shapes[biases[0]][0]
    settings: dict[str, Any] = {
        "vocab_size": shapes[EMBEDDING][0],
        "target_vocab_size": shapes.get(TARGET_EMBEDDING, (None,))[0],
        "emb_dim": shapes[EMBEDDING][1],
        "num_heads": num_heads,
        "head_dim": shapes[query][1] // num_heads,
        "mlp_dim": shapes[up[0]][1],
        "num_encoder_layers": depth["encoder"],
        "num_decoder_layers": depth["decoder"],
        # what every published T5 has: 1.0 one ReLU, 1.1 and its descendants a gated GELU
        "mlp_activations": ("relu",) if len(up) == 1 else ("gelu", "linear"),
        "logits_via_embedding": HEAD not in shapes,
        "relpos_buckets": shapes[biases[0]][1],
        "relpos_per_layer": any("/layers_" in name for name in biases),
    }
    config = T5Config(**(settings | dict(known or {})))
    for name, shape in parameter_shapes(config).items():
        if name not in shapes:
            raise UserError(f"{path}: not whole: it has no {name}, which its other layers imply")
        if shapes[name] != shape:
            raise UserError(
                f"{path}: {name} is {shapes[name]}, but the rest of the model makes it {shape}"
            )
    if extra := sorted(shapes.keys() - parameter_shapes(config).keys()):
        raise UserError(f"{path}: not a T5 that gr-jax knows: it also has {extra[0]}")
    return config


def same_bytes(leaf: Any, other: Any) -> bool:
    """Whether two lazy arrays hold the same bytes; reads no further than the first difference."""
    if leaf.shape != other.shape or leaf.dtype != other.dtype:
        return False
    small = 1 << 22
    return all(
        np.array_equal(a.view(np.uint8), b.view(np.uint8))
        for a, b in zip(leaf.blocks(small), other.blocks(small), strict=True)
    )
