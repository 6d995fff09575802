"""Three tiny T5s, their parameters, and one ragged batch of examples."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from gr_jax.models import T5Config, decode_train, init_parameters

# T5 1.1: gated GELU, untied output, docid tokens of their own; head_dim * heads is not emb_dim
T5_1_1 = T5Config(
    vocab_size=40,
    target_vocab_size=24,
    emb_dim=16,
    num_heads=3,
    head_dim=8,
    mlp_dim=20,
    num_encoder_layers=2,
    num_decoder_layers=1,
)
# T5 1.0: one ReLU projection, tied output, text targets; buckets small enough to be left
T5_1_0 = T5Config(
    vocab_size=40,
    emb_dim=16,
    num_heads=2,
    head_dim=4,
    mlp_dim=12,
    num_encoder_layers=1,
    num_decoder_layers=2,
    mlp_activations=("relu",),
    logits_via_embedding=True,
    relpos_buckets=8,
    relpos_max_distance=12,
)
# umT5: T5 1.1 with position biases of each layer's own
UMT5 = dataclasses.replace(T5_1_1, relpos_per_layer=True, num_decoder_layers=2)

jit_logits = jax.jit(decode_train, static_argnums=0)


@functools.cache
def parameters_of(config: T5Config, noise: float = 0.3):
    """Random parameters; the noise leaves none of them at its initial constant."""
    tree = jax.jit(init_parameters, static_argnums=0)(config, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: (np.asarray(x) + noise * rng.standard_normal(x.shape)).astype(np.float32), tree
    )


@functools.cache
def ragged_examples() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Pairs of (source, target) of different lengths, the last source long."""
    rng = np.random.default_rng(2)
    return tuple(
        (rng.integers(1, 40, source), rng.integers(1, 24, target))
        for source, target in ((3, 2), (1, 4), (6, 1), (20, 3))
    )


def shift(target: np.ndarray) -> np.ndarray:
    """What the decoder reads: the start token 0, then all but the last."""
    return np.concatenate([[0], target[:-1]])


def make_batch(rows, *, source_length: int, target_length: int) -> dict[str, np.ndarray]:
    """Packs `rows`, each a list of (source, target), padded to the lengths given."""
    encoder = np.zeros((2, len(rows), source_length), np.int32)
    decoder = np.zeros((3, len(rows), target_length), np.int32)
    for r, row in enumerate(rows):
        at = target_at = 0
        for segment, (source, target) in enumerate(row, start=1):
            encoder[:, r, at : at + len(source)] = source, np.full(len(source), segment)
            decoder[:, r, target_at : target_at + len(target)] = (
                shift(target),
                target,
                np.full(len(target), segment),
            )
            at, target_at = at + len(source), target_at + len(target)
    return {
        "encoder_input_tokens": encoder[0],
        "encoder_segment_ids": encoder[1],
        "decoder_input_tokens": decoder[0],
        "decoder_target_tokens": decoder[1],
        "decoder_segment_ids": decoder[2],
    }


@pytest.fixture(params=[T5_1_1, T5_1_0], ids=["t5_1_1", "t5_1_0"])
def config(request) -> T5Config:
    return request.param
