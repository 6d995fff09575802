"""The shape of a T5: one frozen, hashable value that every function of `gr_jax.models` takes."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Collection
from typing import Any, Self

from gr_jax.errors import UserError
from gr_jax.models._variants import VARIANTS

_ACTIVATIONS = ("gelu", "linear", "relu", "silu", "swish", "tanh", "sigmoid")
_REMATS = ("none", "minimal", "full")
_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Hyper-parameters of an encoder-decoder T5 (Raffel et al. 2020, T5 1.1 by default).

    Attributes:
      vocab_size: rows of the source (text) embedding.
      target_vocab_size: rows of the target embedding and of the output layer: docid tokens. None
        when targets are text too, in which case both sides share `token_embedder`, as in t5x.
      emb_dim: width of the residual stream.
      num_heads: attention heads.
      head_dim: width of one head; `num_heads * head_dim` need not be `emb_dim`.
      mlp_dim: hidden width of the feed-forward layers.
      num_encoder_layers: encoder depth.
      num_decoder_layers: decoder depth.
      mlp_activations: one function per input projection, multiplied together: `("gelu", "linear")`
        is T5 1.1's gated GELU, `("relu",)` T5 1.0's.
      embedding_init: standard deviation of fresh token tables: T5's is 1.
      dropout_rate: probability of dropping an activation while training.
      logits_via_embedding: T5 1.0's tied output layer, whose input is divided by sqrt(emb_dim).
      relpos_buckets: relative position buckets.
      relpos_max_distance: distance from which on all positions share the last bucket.
      relpos_per_layer: umT5's position biases: each layer has its own, not each stack.
      scan_layers: parameters in the scanned layout, and one layer's program for all of a stack:
        compiled in a fraction of the time where there are many layers.
      remat: what the backward pass computes again instead of keeping it: `none`, `minimal` (all but
        the products with parameters) or `full` (all of a layer).
      dtype: dtype of activations; parameters, softmax, norms and losses stay float32.
    """

    vocab_size: int
    target_vocab_size: int | None = None
    emb_dim: int = 512
    num_heads: int = 6
    head_dim: int = 64
    mlp_dim: int = 1024
    num_encoder_layers: int = 8
    num_decoder_layers: int = 8
    mlp_activations: tuple[str, ...] = ("gelu", "linear")
    embedding_init: float = 1.0
    dropout_rate: float = 0.1
    logits_via_embedding: bool = False
    relpos_buckets: int = 32
    relpos_max_distance: int = 128
    relpos_per_layer: bool = False
    scan_layers: bool = False
    remat: str = "none"
    dtype: str = "float32"

    def __post_init__(self):
        # gin and JSON hand over lists; jit needs the config hashable.
        object.__setattr__(self, "mlp_activations", tuple(self.mlp_activations))
        for name in ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"T5Config.{name} is {getattr(self, name)}: it must be at least 1")
        if self.target_vocab_size is not None and self.target_vocab_size < 1:
            raise UserError(
                f"T5Config.target_vocab_size is {self.target_vocab_size}: it must be at least 1, "
                "or None for targets that share the source vocabulary"
            )
        for name in ("num_encoder_layers", "num_decoder_layers"):
            if getattr(self, name) < 0:
                raise UserError(f"T5Config.{name} is {getattr(self, name)}: it must be at least 0")
        unknown = [name for name in self.mlp_activations if name not in _ACTIVATIONS]
        if unknown or not self.mlp_activations:
            raise UserError(
                f"T5Config.mlp_activations is {self.mlp_activations}: choose one or more of "
                f"{', '.join(_ACTIVATIONS)}"
            )
        if self.dtype not in _DTYPES:
            raise UserError(f"T5Config.dtype is {self.dtype!r}: choose one of {', '.join(_DTYPES)}")
        if self.remat not in _REMATS:
            raise UserError(f"T5Config.remat is {self.remat!r}: choose one of {', '.join(_REMATS)}")
        if self.relpos_buckets < 4 or self.relpos_buckets % 2:
            raise UserError(
                f"T5Config.relpos_buckets is {self.relpos_buckets}: it must be even, at least 4"
            )
        if self.relpos_max_distance <= self.relpos_buckets // 2:
            raise UserError(
                f"T5Config.relpos_max_distance is {self.relpos_max_distance}: it must be more than "
                f"half of relpos_buckets={self.relpos_buckets}"
            )
        if not 0 <= self.dropout_rate < 1:
            raise UserError(f"T5Config.dropout_rate is {self.dropout_rate}: it must be in [0, 1)")

    @property
    def output_vocab_size(self) -> int:
        """Width of the logits."""
        return self.target_vocab_size or self.vocab_size

    @classmethod
    def from_name(cls, name: str, vocab_size: int | None = None, **overrides: Any) -> Self:
        """The published T5 called `name`, `t5_1_1_small` for instance (see `VARIANTS`).

        Args:
          name: a key of `VARIANTS`.
          vocab_size: the tokenizer's. The published table has padding rows beyond its own
            tokenizer's pieces, and keeps them: it only grows, where it has fewer rows than this.
            None leaves the published number; the `tiny` ones have none.
          **overrides: other fields of `T5Config`.

        Raises:
          UserError: an unknown name or field, or a `tiny` one without `vocab_size`.
        """
        if name not in VARIANTS:
            raise UserError(f"unknown T5 {name!r}: {_nearest(name, VARIANTS)}")
        fields = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in overrides if name not in fields]:
            raise UserError(f"T5Config has no field {unknown[0]!r}: {_nearest(unknown[0], fields)}")
        shape = VARIANTS[name] | overrides
        if vocab_size is None and "vocab_size" not in shape:
            raise UserError(f"{name} has no vocabulary of its own: give vocab_size")
        shape["vocab_size"] = max(shape.get("vocab_size", 0), vocab_size or 0)
        return cls(**shape)

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config written by `to_json`."""
        return cls(**json.loads(text))


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
