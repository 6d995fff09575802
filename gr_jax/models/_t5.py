"""T5's encoder, decoder and the whole, as Linen modules whose parameter tree is t5x's.

Only the target table is new: `target_embedder/embedding` exists when targets have a vocabulary of
their own (docid tokens), and then `decoder/logits_dense` is as wide as that vocabulary. Everything
else of a public T5 checkpoint loads as it is.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from gr_jax.models._config import T5Config
from gr_jax.models._layers import Attention, Dense, Embed, Mlp, RelativePositionBias, RMSNorm

_ACTIVATION_AXES = ("batch", "length", "embed")


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

    def setup(self):
        """Names the sub-layers as t5x does."""
        c = self.config
        self.pre_self_attention_layer_norm = RMSNorm(c.dtype)
        self.self_attention = Attention(c)
        self.pre_cross_attention_layer_norm = RMSNorm(c.dtype)
        self.encoder_decoder_attention = Attention(c)
        self.pre_mlp_layer_norm = RMSNorm(c.dtype)
        self.mlp = Mlp(c)
        self.drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))

    def __call__(self, x, encoded, self_mask, cross_mask, bias, deterministic):
        """All positions at once: [batch, length, embed] -> [batch, length, embed]."""
        h = self.pre_self_attention_layer_norm(x)
        h = self.self_attention(h, h, self_mask, bias, deterministic)
        x = x + self.drop(h, deterministic=deterministic)
        h = self.pre_cross_attention_layer_norm(x)
        h = self.encoder_decoder_attention(h, encoded, cross_mask, None, deterministic)
        x = x + self.drop(h, deterministic=deterministic)
        h = self.mlp(self.pre_mlp_layer_norm(x), deterministic)
        x = x + self.drop(h, deterministic=deterministic)
        return nn.with_logical_constraint(x, _ACTIVATION_AXES)


class Encoder(nn.Module):
    """The encoder stack."""

    config: T5Config

    @nn.compact
    def __call__(self, x, segments, deterministic):
        """Embedded tokens [batch, length, embed] -> encoded [batch, length, embed]."""
        c = self.config
        positions = np.arange(x.shape[1])
        bias = RelativePositionBias(c, True, name="relpos_bias")(positions, positions)
        mask = attention_mask(segments, segments)
        drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))
        x = drop(x, deterministic=deterministic)
        for i in range(c.num_encoder_layers):
            x = EncoderLayer(c, name=f"layers_{i}")(x, mask, bias, deterministic)
        x = RMSNorm(c.dtype, name="encoder_norm")(x)
        return drop(x, deterministic=deterministic)


class Decoder(nn.Module):
    """The decoder stack and its output layer."""

    config: T5Config

    def setup(self):
        """Names the parts as t5x does."""
        c = self.config
        self.relpos_bias = RelativePositionBias(c, False)
        self.layers = [DecoderLayer(c) for _ in range(c.num_decoder_layers)]
        self.decoder_norm = RMSNorm(c.dtype)
        self.drop = nn.Dropout(c.dropout_rate, broadcast_dims=(-2,))
        if not c.logits_via_embedding:
            # float32 as in t5x: the softmax over the vocabulary wants exact logits
            self.logits_dense = Dense(c.output_vocab_size, ("embed", "vocab"), "float32")

    def logits(self, x: Float[Array, "*b d"], embedder: Embed) -> Float[Array, "*b v"]:
        """float32 logits over the target vocabulary."""
        if self.config.logits_via_embedding:
            x = x.astype(jnp.float32)
            return embedder.attend(x / jnp.sqrt(jnp.float32(self.config.emb_dim)))
        return self.logits_dense(x)

    def __call__(self, x, embedder, encoded, segments, encoder_segments, deterministic):
        """Embedded targets [batch, length, embed] -> logits [batch, length, vocab]."""
        positions = np.arange(x.shape[1])
        bias = self.relpos_bias(positions, positions)
        self_mask = attention_mask(segments, segments, causal=True)
        cross_mask = attention_mask(segments, encoder_segments)
        x = self.drop(x, deterministic=deterministic)
        for layer in self.layers:
            x = layer(x, encoded, self_mask, cross_mask, bias, deterministic)
        x = self.drop(self.decoder_norm(x), deterministic=deterministic)
        return self.logits(x, embedder)


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
