"""What Hugging Face's `config.json` says of a T5 beyond its tensors, checked field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gr_jax.checkpoints._lazy import LazyArray
from gr_jax.checkpoints._shapes import RELPOS
from gr_jax.errors import UserError, damage
from gr_jax.models import T5Config

CONFIG = "config.json"
OFFSET = "docid_token_offset"
FINGERPRINT = "docid_fingerprint"

# transformers' names of functions -> ours; its plain "gelu" is the exact one
_FUNCTIONS = {name: name for name in ("relu", "silu", "swish", "tanh", "sigmoid", "linear")}
_FUNCTIONS["gelu_new"] = "gelu"

# their names of sizes -> fields of `T5Config`
SIZES = {
    "d_model": "emb_dim",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "num_heads": "num_heads",
    "num_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "relative_attention_num_buckets": "relpos_buckets",
}


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (lambda value: value in ("t5", "mt5", "umt5"), "gr-jax reads t5, mt5 and umt5"),
    "feed_forward_proj": (_is_text, "it must be a function's name, relu or gated-gelu for example"),
    "dropout_rate": (_is_rate, "it must be a number in [0, 1)"),
    "layer_norm_epsilon": (lambda value: value == 1e-6, "gr-jax's T5 always has 1e-06"),
    "tie_word_embeddings": (_is_bool, "it must be true or false"),
    "scale_decoder_outputs": (_is_bool, "it must be true or false"),
    "transformers_version": (_is_text, "it must be text"),
    FINGERPRINT: (_is_text, "it must be text"),
} | {
    name: (_is_size, "it must be a whole number above 0")
    for name in ("vocab_size", "relative_attention_max_distance", OFFSET, *SIZES)
}


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a `config.json` that are not null; none where there is no such file.

    Raises:
      UserError: it is no JSON object, or a field that is read is not what it has to be.
    """
    if not path.exists():
        return {}
    with damage(path, "damaged"):
        found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise UserError(f"{path}: damaged (it is no JSON object)")
    config = {name: value for name, value in found.items() if value is not None}
    for name, (is_right, words) in _FIELDS.items():
        if name in config and not is_right(config[name]):
            raise UserError(f"{path}: {name} is {config[name]!r:.80}; {words}")
    return config


def scales_logits(config: Mapping[str, Any], *, own_head: bool) -> bool:
    """Whether the decoder's output is divided by sqrt(d_model) before the output layer.

    transformers 4 scaled where `tie_word_embeddings` was true. transformers 5 writes that as true
    whatever the model is, and ties all heads that are not stored; of its classes T5 scales where
    `scale_decoder_outputs` says so, mT5 never, umT5 always.

    Args:
      config: what `read_config` gave.
      own_head: whether the output layer has weights of its own. That of a published mT5 or umT5 is
        never scaled (of umT5's transformers 5 is mistaken, and no field can tell it so).
    """
    family = config.get("model_type", "t5")
    stated = config.get("scale_decoder_outputs") if family == "t5" else None
    if stated is not None or own_head:
        return bool(stated)
    if family == "mt5" and not re.match(r"[1-4]\.", config.get("transformers_version", "")):
        return False
    return config.get("tie_word_embeddings", True)


def settings(path: Path, config: Mapping[str, Any], raw: Mapping[str, LazyArray]) -> dict[str, Any]:
    """The fields of `T5Config` that only `config.json` tells.

    Args:
      path: of `config.json`, for errors.
      config: what `read_config` gave.
      raw: the parameters, by t5x's names.

    Raises:
      UserError: a function that gr_jax has not, or settings that the parameters contradict.
    """
    known: dict[str, Any] = {}
    if projection := config.get("feed_forward_proj"):
        known["mlp_activations"] = _activations(path, projection)
        gated = any(name.endswith("mlp/wi_0/kernel") for name in raw)
        if gated != (len(known["mlp_activations"]) == 2):
            has = "gated" if gated else "not gated"
            raise UserError(
                f"{path}: feed_forward_proj is {projection}, but the tensors' layers are {has}"
            )
    if (distance := config.get("relative_attention_max_distance")) is not None:
        buckets = max((x.shape[-1] for n, x in raw.items() if n.endswith(RELPOS)), default=0)
        if distance <= buckets // 2:
            raise UserError(
                f"{path}: relative_attention_max_distance is {distance}; it must be more than half "
                f"of the {buckets} buckets"
            )
        known["relpos_max_distance"] = distance
    if (rate := config.get("dropout_rate")) is not None:
        known["dropout_rate"] = rate
    return known


def _activations(path: Path, projection: str) -> tuple[str, ...]:
    *gate, name = projection.split("-")
    if projection == "gelu":
        raise UserError(f"{path}: feed_forward_proj is the exact GELU; gr-jax has gelu_new")
    if projection == "gated-gelu":
        name = "gelu_new"  # what transformers makes of it
    if gate not in ([], ["gated"]) or name not in _FUNCTIONS:
        raise UserError(
            f"{path}: feed_forward_proj is {projection:.80}; gr-jax has "
            f"{', '.join(sorted(_FUNCTIONS))}, gated-gelu and gated- with each of these"
        )
    return (_FUNCTIONS[name], "linear") if gate else (_FUNCTIONS[name],)


def check_sizes(path: Path, config: Mapping[str, Any], model: T5Config) -> None:
    """Refuses a `config.json` that is of another model than the tensors beside it.

    Raises:
      UserError: the first field in which they differ.
    """
    docids = model.target_vocab_size or 0
    sizes = {name: getattr(model, ours) for name, ours in SIZES.items()}
    for name, size in ({"vocab_size": model.vocab_size + docids} | sizes).items():
        if config.get(name, size) != size:
            raise UserError(f"{path}: {name} is {config[name]}, but the tensors' is {size}")
