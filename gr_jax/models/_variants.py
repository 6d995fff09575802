"""The published T5s, by the names of their checkpoints: what each is as fields of `T5Config`.

Shapes are those of t5x's gin files and of Hugging Face's configurations; the number of parameters
of each is held to the published one by a test. `tiny` is no published size: it is each family in
miniature, for tests.
"""

from __future__ import annotations

from typing import Any

# what a size of a family is
SHAPE_FIELDS = (
    "emb_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_encoder_layers",
    "num_decoder_layers",
)
_TINY = (64, 4, 16, 128, 2, 2)
_T5 = {
    "tiny": _TINY,
    "small": (512, 8, 64, 2048, 6, 6),
    "base": (768, 12, 64, 3072, 12, 12),
    "large": (1024, 16, 64, 4096, 24, 24),
    "3b": (1024, 32, 128, 16384, 24, 24),
    "11b": (1024, 128, 128, 65536, 24, 24),
}
_T5_1_1 = {
    "tiny": _TINY,
    "small": (512, 6, 64, 1024, 8, 8),
    "base": (768, 12, 64, 2048, 12, 12),
    "large": (1024, 16, 64, 2816, 24, 24),
    "xl": (2048, 32, 64, 5120, 24, 24),
    "xxl": (4096, 64, 64, 10240, 24, 24),
}
_UMT5 = {size: shape for size, shape in _T5_1_1.items() if size != "large"}
_BYT5 = {
    "tiny": _TINY,
    "small": (1472, 6, 64, 3584, 12, 4),
    "base": (1536, 12, 64, 3968, 18, 6),
    "large": (1536, 16, 64, 3840, 36, 12),
    "xl": (2560, 32, 64, 6720, 36, 12),
    "xxl": (4672, 64, 64, 12352, 36, 12),
}

# Vocabularies with their padding to a multiple of 128: 32,100 pieces have 32,128 rows.
_FAMILIES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any]]] = {
    "t5": (
        _T5,
        {"vocab_size": 32128, "mlp_activations": ("relu",), "logits_via_embedding": True},
    ),
    "t5_1_1": (_T5_1_1, {"vocab_size": 32128}),
    "t5_1_1_lm100k": (_T5_1_1, {"vocab_size": 32128}),
    "flan_t5": (_T5_1_1, {"vocab_size": 32128}),
    "mt5": (_T5_1_1, {"vocab_size": 250112}),
    "mt5_lm_adapted": (_T5_1_1, {"vocab_size": 250112}),
    "byt5": (_BYT5, {"vocab_size": 384}),
    "umt5": (_UMT5, {"vocab_size": 256384, "relpos_per_layer": True}),
}


def _published(size: str, shape: tuple[int, ...], family: dict[str, Any]) -> dict[str, Any]:
    fields = dict(zip(SHAPE_FIELDS, shape, strict=True)) | family
    if size == "tiny":
        del fields["vocab_size"]  # that of whatever it is tested with
    return fields


VARIANTS: dict[str, dict[str, Any]] = {
    f"{family}_{size}": _published(size, shape, differences)
    for family, (sizes, differences) in _FAMILIES.items()
    for size, shape in sizes.items()
}
