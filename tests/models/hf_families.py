"""Logits of every family of T5 from Hugging Face, for `test_hf_families.py`.

For a Python that has torch and transformers; gr_jax and JAX are not imported:

    python -m tests.models.hf_families tests/models/hf_families.json

Weights are drawn with NumPy from a recipe (`benchmarks.hugging_face.make_weights`), so that both
sides have the same ones and no file of weights is kept.
"""

# pyright: reportMissingImports=false
# torch and transformers are not in the environment that gr_jax is checked in

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import hugging_face as hf

SEED = 7
_TINY = {
    "vocab_size": 90, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4,
    "num_layers": 2, "num_decoder_layers": 2,
}  # fmt: skip
_GATED = {**_TINY, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "t5": {**_TINY, "feed_forward_proj": "relu", "tie_word_embeddings": True},
    "t5_1_1": _GATED,
    "flan_t5": _GATED,
    "mt5": {**_GATED, "vocab_size": 120},
    "byt5": {**_GATED, "num_layers": 3, "num_decoder_layers": 1},  # as uneven as the published ones
    "umt5": _GATED,
}
COLUMNS = slice(None, None, 7)  # of the logits, to be kept


def weights(family: str) -> dict[str, np.ndarray]:
    """By Hugging Face's names; other ones for each family."""
    seed = SEED + list(SHAPES).index(family)
    return hf.make_weights(SHAPES[family], seed, bias_per_layer=family == "umt5")


def batch() -> dict[str, np.ndarray]:
    """Sources of up to 40 tokens and decoder inputs of up to 9; padding holds tokens, not zeros."""
    rng = np.random.default_rng(SEED)
    source = rng.integers(2, 90, (4, 40))
    target = rng.integers(2, 90, (4, 9))
    target[:, 0] = 0  # the start token
    lengths = np.array([40, 3, 17, 1]), np.array([4, 9, 1, 6])
    masks = [
        np.arange(x.shape[1]) < n[:, None] for x, n in zip((source, target), lengths, strict=True)
    ]
    return {
        "source": source.astype(np.int32), "source_mask": masks[0].astype(np.int32),
        "target": target.astype(np.int32), "target_mask": masks[1].astype(np.int32),
    }  # fmt: skip


def logits(family: str) -> np.ndarray:
    """[rows, target length, vocabulary]"""
    import torch
    import transformers as t

    kind = {"mt5": "MT5", "umt5": "UMT5"}.get(family, "T5")
    config = getattr(t, f"{kind}Config")(**SHAPES[family], decoder_start_token_id=0)
    model = getattr(t, f"{kind}ForConditionalGeneration")(config)
    tied = SHAPES[family]["tie_word_embeddings"]
    if not tied:
        # transformers 5 ties all heads, whatever the configuration says, and scales the output of
        # umT5's decoder as if it had been trained tied; the published weights are neither
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        model.config.tie_word_embeddings = kind == "T5"  # T5 has a field of its own for the scale
    state = {name: torch.from_numpy(x.copy()) for name, x in weights(family).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    aliases = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    aliases |= {"lm_head.weight"} if tied else set()
    if unexpected or set(missing) - aliases:
        raise ValueError(f"{family}: missing {missing}, unexpected {unexpected}")
    inputs = {name: torch.from_numpy(x.astype(np.int64)) for name, x in batch().items()}
    with torch.no_grad():
        result = model.eval()(
            input_ids=inputs["source"],
            attention_mask=inputs["source_mask"],
            decoder_input_ids=inputs["target"],
            decoder_attention_mask=inputs["target_mask"],
        )
    return result.logits.numpy()


def main() -> None:
    """Writes the logits of all families at the places of real tokens, each a row."""
    import torch
    import transformers

    real = batch()["target_mask"] > 0
    kept = {family: logits(family)[real][:, COLUMNS].astype(float).round(5) for family in SHAPES}
    record = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "logits": {family: rows.tolist() for family, rows in kept.items()},
    }
    text = json.dumps(record, separators=(",", ":")).replace("]],", "]],\n")
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
