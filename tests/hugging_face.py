"""Hugging Face's models in gr_jax: a configuration and parameters for a model of the benchmarks."""

from typing import Any

from benchmarks import hugging_face as hf
from gr_jax.models import T5Config


def model(name: str, **changes: Any) -> tuple[T5Config, dict[str, Any]]:
    """Configuration and float32 parameters of `hf.MODELS[name]`, and `changes` to the former."""
    shape = hf.MODELS[name]
    gated = shape["feed_forward_proj"] == "gated-gelu"
    config = T5Config(
        vocab_size=shape["vocab_size"],
        emb_dim=shape["d_model"],
        num_heads=shape["num_heads"],
        head_dim=shape["d_kv"],
        mlp_dim=shape["d_ff"],
        num_encoder_layers=shape["num_layers"],
        num_decoder_layers=shape["num_decoder_layers"],
        mlp_activations=("gelu", "linear") if gated else ("relu",),
        logits_via_embedding=shape["tie_word_embeddings"],
        **changes,
    )
    return config, hf.t5x_tree(shape, hf.make_weights(shape, hf.SEED))
