"""How many floating-point operations a T5 is worth: model FLOPs, whatever a program really runs.

Counted are the products with parameters and those of attention, two operations for each
multiplication and addition, padding included and attention's masked half too, as is usual. Not
counted are looking up embeddings, norms, softmax and dropout (about 1 % of a T5), the optimizer
(once per step and parameter), and what rematerialisation computes a second time: that is how a
program goes about it, not the model. So utilisation computed from these is MFU (Chowdhery et al.
2022, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence

from gr_jax.models._config import T5Config


def training_flops(config: T5Config, *, rows: int, input_length: int, target_length: int) -> float:
    """FLOPs of one training step: the forward pass, and twice that for its gradients.

    Args:
      config: the model.
      rows: of the batch, over all devices and microbatches.
      input_length: tokens of a row's source.
      target_length: tokens of a row's target.
    """
    encoder = _encoder(config, input_length) + _cross_projections(config, input_length)
    per_position = config.num_decoder_layers * _decoder_layer(config) + _head(config)
    own = _attention(config, target_length, target_length)
    other = _attention(config, target_length, input_length)
    decoder = target_length * per_position + config.num_decoder_layers * (own + other)
    return 3.0 * rows * (encoder + decoder)


def recomputation_flops(
    config: T5Config, *, rows: int, input_length: int, target_length: int
) -> float:
    """FLOPs, at most, that `T5Config.remat` adds to `training_flops`, whose arguments it takes."""
    if config.remat == "none":
        return 0.0
    attention = config.num_encoder_layers * _attention(config, input_length, input_length)
    attention += config.num_decoder_layers * (
        _attention(config, target_length, target_length)
        + _attention(config, target_length, input_length)
    )
    if config.remat == "minimal":  # products with parameters are kept
        return float(rows * attention)
    sizes = {"rows": rows, "input_length": input_length, "target_length": target_length}
    return training_flops(config, **sizes) / 3 - rows * target_length * _head(config)


def decoding_flops(
    config: T5Config,
    *,
    rows: int,
    input_length: int,
    widths: Sequence[int],
    outputs: Sequence[int] | None = None,
) -> float:
    """FLOPs of one search: each query encoded once, then a decoder step per level of the docids.

    Args:
      config: the model.
      rows: queries.
      input_length: tokens of a query.
      widths: live prefixes of a query in each step: 1, then as many as the beam has room for.
      outputs: tokens that a prefix is given logits of in each step; None for all of them.
    """
    total = _encoder(config, input_length) + _cross_projections(config, input_length)
    for step, width in enumerate(widths):
        layer = _decoder_layer(config) + _attention(config, 1, step + 1 + input_length)
        head = _head(config, None if outputs is None else outputs[step])
        total += width * (config.num_decoder_layers * layer + head)
    return float(rows * total)


def _joined(config: T5Config) -> int:
    return config.num_heads * config.head_dim


def _mlp(config: T5Config) -> int:
    """Of one position."""
    return 2 * (len(config.mlp_activations) + 1) * config.emb_dim * config.mlp_dim


def _attention(config: T5Config, queries: int, keys: int) -> int:
    """Scores and weighted values of one row in one layer."""
    return 2 * 2 * queries * keys * _joined(config)


def _encoder(config: T5Config, length: int) -> int:
    """Of one row."""
    projections = 2 * 4 * config.emb_dim * _joined(config)
    layer = length * (projections + _mlp(config)) + _attention(config, length, length)
    return config.num_encoder_layers * layer


def _cross_projections(config: T5Config, length: int) -> int:
    """Keys and values of one encoded row, for all decoder layers."""
    return config.num_decoder_layers * length * 2 * 2 * config.emb_dim * _joined(config)


def _decoder_layer(config: T5Config) -> int:
    """Of one position: its own four projections, the query's side of the other attention, MLP."""
    return 2 * 6 * config.emb_dim * _joined(config) + _mlp(config)


def _head(config: T5Config, tokens: int | None = None) -> int:
    """Of one position."""
    return 2 * config.emb_dim * (config.output_vocab_size if tokens is None else tokens)
