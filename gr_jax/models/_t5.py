"""T5's encoder, decoder and the whole, as Linen modules whose parameter tree is t5x's.

Only the target table is new: `target_embedder/embedding` exists when targets have a vocabulary of
their own (docid tokens), and then `decoder/logits_dense` is as wide as that vocabulary. Everything
else of a public T5 checkpoint loads as it is.

Position biases belong to a stack, or (umT5) to each layer; layers are a subtree each, or
(`scan_layers`) one subtree with the layers as axis 1 of every leaf, see `_layout`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Int

from gr_jax.models._config import T5Config
from gr_jax.models._layers import (
    PRODUCT,
    Attention,
    Dense,
    Embed,
    Mlp,
    RelativePositionBias,
    RMSNorm,
    laid_out_gradient,
)
from gr_jax.models._layout import LAYER_AXIS

_ACTIVATION_AXES = ("batch", "length", "embed")
_REMAT_POLICIES = {
    "minimal": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def attention_mask(
    query_segments: Int[Array, "b q"], key_segments: Int[Array, "b k"], *, causal: bool = False
) -> Bool[Array, "b 1 q k"]:
    """Which keys a query may see: those of its own segment (0 is padding), none later if causal."""
    mask = (query_segments[:, :, None] == key_segments[:, None, :]) & (key_segments[:, None, :] > 0)
    if causal:
        mask &= jnp.tril(jnp.ones(mask.shape[1:], bool))
    return mask[:, None]


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each as `x + dropout(f(norm(x)))`."""

    config: T5Config

    @nn.compact
    def __call__(self, x, mask, bias, deterministic):
        """[batch, length, embed] -> [batch, length, embed]."""
        c = self.config
        if c.relpos_per_layer:
            bias = _position_bias(c, x.shape[1], bidirectional=True)
        drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))
        h = RMSNorm(c.dtype, name="pre_attention_layer_norm")(x)
        h = Attention(c, name="attention")(h, h, mask, bias, deterministic)
        x = x + drop(h, deterministic=deterministic)
        h = RMSNorm(c.dtype, name="pre_mlp_layer_norm")(x)
        h = Mlp(c, name="mlp")(h, deterministic)
        x = x + drop(h, deterministic=deterministic)
        return nn.with_logical_constraint(x, _ACTIVATION_AXES)


class DecoderLayer(nn.Module):
    """Causal self-attention, attention to the encoder, MLP."""

    config: T5Config

    @nn.compact
    def __call__(self, x, encoded, self_mask, cross_mask, bias, deterministic):
        """All positions at once: [batch, length, embed] -> [batch, length, embed]."""
        c = self.config
        if c.relpos_per_layer:
            bias = _position_bias(c, x.shape[1], bidirectional=False)
        drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))
        h = RMSNorm(c.dtype, name="pre_self_attention_layer_norm")(x)
        h = Attention(c, name="self_attention")(h, h, self_mask, bias, deterministic)
        x = x + drop(h, deterministic=deterministic)
        h = RMSNorm(c.dtype, name="pre_cross_attention_layer_norm")(x)
        # summed over layers in parts; `Decoder` puts them together
        encoded = laid_out_gradient(encoded, ("batch", "length", "joined_kv"))
        h = Attention(c, name="encoder_decoder_attention")(
            h, encoded, cross_mask, None, deterministic
        )
        x = x + drop(h, deterministic=deterministic)
        h = RMSNorm(c.dtype, name="pre_mlp_layer_norm")(x)
        h = Mlp(c, name="mlp")(h, deterministic)
        x = x + drop(h, deterministic=deterministic)
        return nn.with_logical_constraint(x, _ACTIVATION_AXES)


def _position_bias(config: T5Config, length: int, *, bidirectional: bool):
    """Biases [1, heads, length, length] of the module, stack or layer, that this is called in."""
    positions = np.arange(length)
    return RelativePositionBias(config, bidirectional, name="relpos_bias")(positions, positions)


def _run_layers(layer: type[nn.Module], config: T5Config, depth: int, name: str, x, *shared):
    """Runs `depth` layers one after another, in the module that this is called in.

    Args:
      layer: called with x and `shared`, returns x.
      config: says whether they are scanned and what of them is kept for the backward pass.
      depth: how many.
      name: of the scanned layers' one subtree.
      x: [batch, length, embed].
      *shared: what all layers are given.

    Returns:
      [batch, length, embed].
    """

    def run(module, x, _):
        return module(x, *shared), None

    if config.remat != "none":
        # a scan's loop keeps XLA from merging the second computation with the first, anyway
        policy = _REMAT_POLICIES[config.remat]
        run = nn.remat(run, policy=policy, prevent_cse=not config.scan_layers)
    if config.scan_layers and depth:
        scan = nn.scan(
            run,
            variable_axes={"params": LAYER_AXIS},
            split_rngs={"params": True, "dropout": True},
            length=depth,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scan(layer(config, name=name), x, None)[0]
    for i in range(depth):
        x, _ = run(layer(config, name=f"layers_{i}"), x, None)
    return x


class Encoder(nn.Module):
    """The encoder stack."""

    config: T5Config

    @nn.compact
    def __call__(self, x, segments, deterministic):
        """Embedded tokens [batch, length, embed] -> encoded [batch, length, embed]."""
        c = self.config
        bias = None if c.relpos_per_layer else _position_bias(c, x.shape[1], bidirectional=True)
        shared = (attention_mask(segments, segments), bias, deterministic)
        drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))
        x = drop(x, deterministic=deterministic)
        x = _run_layers(EncoderLayer, c, c.num_encoder_layers, "encoder", x, *shared)
        x = RMSNorm(c.dtype, name="encoder_norm")(x)
        return drop(x, deterministic=deterministic)


class Decoder(nn.Module):
    """The decoder stack and its output layer."""

    config: T5Config

    @nn.compact
    def __call__(self, x, embedder, encoded, segments, encoder_segments, deterministic):
        """Embedded targets [batch, length, embed] -> float32 logits [batch, length, vocab]."""
        c = self.config
        bias = None if c.relpos_per_layer else _position_bias(c, x.shape[1], bidirectional=False)
        self_mask = attention_mask(segments, segments, causal=True)
        cross_mask = attention_mask(segments, encoder_segments)
        encoded = laid_out_gradient(encoded, _ACTIVATION_AXES)
        shared = (encoded, self_mask, cross_mask, bias, deterministic)
        drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))
        x = drop(x, deterministic=deterministic)
        x = _run_layers(DecoderLayer, c, c.num_decoder_layers, "decoder", x, *shared)
        x = drop(RMSNorm(c.dtype, name="decoder_norm")(x), deterministic=deterministic)
        if c.logits_via_embedding:
            x = x.astype(jnp.float32)
            return embedder.attend(x / jnp.sqrt(jnp.float32(c.emb_dim)))
        # float32 as in t5x: the softmax over the vocabulary wants exact logits
        return Dense(c.output_vocab_size, ("embed", "vocab"), "float32", name="logits_dense")(x)


class T5(nn.Module):
    """Encoder-decoder T5 with one vocabulary for text and, optionally, one for docid tokens."""

    config: T5Config

    def setup(self):
        """Creates the tables and both stacks."""
        c = self.config
        self.token_embedder = Embed(c.vocab_size, c.emb_dim, c.dtype, c.embedding_init)
        if c.target_vocab_size is not None:
            self.target_embedder = Embed(c.target_vocab_size, c.emb_dim, c.dtype, c.embedding_init)
        self.encoder = Encoder(c)
        self.decoder = Decoder(c)

    def _target_embedder(self) -> Embed:
        return (
            self.token_embedder if self.config.target_vocab_size is None else self.target_embedder
        )

    def encode(self, tokens, segments, deterministic=True):
        """Source tokens and segment ids [batch, length] -> encoded [batch, length, embed]."""
        x = self.token_embedder(tokens)
        return self.encoder(x, segments, deterministic)

    def decode(self, encoded, encoder_segments, tokens, segments, deterministic=True):
        """Teacher-forced logits [batch, target_length, vocab] for shifted target `tokens`."""
        embedder = self._target_embedder()
        return self.decoder(
            embedder(tokens), embedder, encoded, segments, encoder_segments, deterministic
        )

    def __call__(self, source, source_segments, target, target_segments, deterministic=True):
        """Logits [batch, target_length, vocab] of a (packed) batch."""
        encoded = self.encode(source, source_segments, deterministic)
        return self.decode(encoded, source_segments, target, target_segments, deterministic)
