"""Writing Hugging Face's safetensors, a block of one tensor in memory at a time.

The format is eight bytes of length, a JSON header, then the tensors' bytes; safetensors' own
writer takes all tensors at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from gr_jax.checkpoints._canonical import per_layer_biases
from gr_jax.checkpoints._hugging_face import (
    INDEX,
    LM_HEAD,
    SHARED,
    WEIGHTS,
    hugging_face_name,
    is_transposed,
)
from gr_jax.checkpoints._hugging_face_config import CONFIG, FINGERPRINT, OFFSET, SIZES
from gr_jax.checkpoints._lazy import LazyArray, blocks_of, cast, concatenate, transpose, zeros
from gr_jax.checkpoints._safetensors import DTYPES
from gr_jax.checkpoints._shapes import EMBEDDING, HEAD, TARGET_EMBEDDING
from gr_jax.checkpoints._source import ParameterSource
from gr_jax.checkpoints._tokenizer_files import tokenizer_files
from gr_jax.errors import UserError
from gr_jax.files import new_directory

Family = Literal["t5", "mt5", "umt5"]

_CLASSES: dict[str, str] = {
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
    "umt5": "UMT5ForConditionalGeneration",
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_hugging_face(
    source: ParameterSource,
    directory: Path,
    *,
    dtype: np.dtype | None = None,
    shard_bytes: int = 5_000_000_000,
    family: Family | None = None,
) -> None:
    """Writes `model.safetensors` (or shards and their index), `config.json` and the tokenizer.

    The tokenizer is the source's, where it is a folder of Hugging Face's that has one or the
    checkpoint of a run.

    `from_pretrained` of transformers' T5, mT5 or umT5 class reads it. An untied head is always
    written, with `tie_word_embeddings: false` and, for T5's class, `scale_decoder_outputs: false`:
    without the first transformers 4 scales the logits, without both transformers 5.

    **Docid models.** Hugging Face's T5 has one token table for both sides, so text and docid tokens
    become one vocabulary: rows `[0, vocab_size)` of `shared.weight` are the text's, the rows from
    `docid_token_offset` (in `config.json`; it is `vocab_size`) on are the docid tokens'. Target
    token `t` is `docid_token_offset + t`: `decoder_start_token_id` and `eos_token_id` are moved so.
    Of an untied `lm_head.weight` the text's rows are zeros: their logits mean nothing, and the head
    has no bias to exclude them with, so a caller slices the logits (`[..., docid_token_offset:]`)
    or restricts `generate` with `prefix_allowed_tokens_fn`, as constrained search does anyway. The
    sliced logits are gr_jax's. The file reads back as the docid model that it was, bit for bit.

    Args:
      source: the model.
      directory: made; it must not exist.
      dtype: to round the parameters to; None leaves them as they are.
      shard_bytes: of one file, at most, unless one tensor is larger.
      family: transformers' class; None for umT5's where each layer has its own position biases,
        for that of the file it was read from, else for T5's.

    Raises:
      UserError: the directory exists, or the model is none of that family.
    """
    family = _family(source, family)
    tensors = _tensors(source, family, dtype)
    with new_directory(directory) as temporary:
        shards = _shards(tensors, shard_bytes)
        names = [WEIGHTS]
        if len(shards) > 1:
            stem, count = WEIGHTS.removesuffix(".safetensors"), len(shards)
            names = [f"{stem}-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
            index = {
                "metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
                "weight_map": {n: name for name, s in zip(names, shards, strict=True) for n in s},
            }
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        for name, shard in zip(names, shards, strict=True):
            _write_file(temporary / name, shard)
        config = _config(source, family, next(iter(tensors.values())).dtype)
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
        for name, content in tokenizer_files(source).items():
            (temporary / name).write_bytes(content)


def export_notes(written: ParameterSource) -> list[str]:
    """What people have to know who load an export with transformers, a line each."""
    notes = []
    if not tokenizer_files(written):
        notes.append(
            f"{written.path}: has no tokenizer, and transformers makes up a meaningless one; "
            "add the model's: AutoTokenizer.from_pretrained(NAME).save_pretrained(DST)"
        )
    if written.record.get("model_type") == "umt5" and not written.config.logits_via_embedding:
        notes.append(
            f"{written.path}: transformers 5 scales umT5's logits; after loading say "
            "model.config.tie_word_embeddings = False (docs/checkpoints.md)"
        )
    return notes


def _family(source: ParameterSource, family: Family | None) -> Family:
    config = source.config
    if family is None:
        recorded = source.record.get("model_type")
        known: Family = recorded if recorded in _CLASSES else "t5"
        family = "umt5" if config.relpos_per_layer else known
    if config.relpos_per_layer and family != "umt5":
        raise UserError(f"{source.path}: cannot be a {family}: each layer has its position biases")
    if family == "mt5" and config.logits_via_embedding:
        raise UserError(f"{source.path}: cannot be an mt5: transformers' never scales a tied head")
    if not (config.num_encoder_layers and config.num_decoder_layers):
        raise UserError(f"{source.path}: transformers' T5 cannot have a stack without layers")
    return family


def _tensors(
    source: ParameterSource, family: Family, dtype: np.dtype | None
) -> dict[str, LazyArray]:
    """Hugging Face's tensors of a model, by their names there."""
    leaves = per_layer_biases(source.leaves) if family == "umt5" else dict(source.leaves)
    table, head = leaves.pop(EMBEDDING), leaves.pop(HEAD, None)
    target = leaves.pop(TARGET_EMBEDDING, None)
    if head is not None:
        head = transpose(head)
    if target is not None:
        if head is not None:
            head = concatenate([zeros(table.shape, like=head), head])
        table = concatenate([table, target])
    tensors = {SHARED: table} | ({} if head is None else {LM_HEAD: head})
    for name, leaf in leaves.items():
        tensors[hugging_face_name(name)] = transpose(leaf) if is_transposed(name) else leaf
    if dtype is not None:
        tensors = {name: cast(tensor, dtype) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in _CODES:
            raise UserError(f"{source.path}: {name} is {tensor.dtype}; give a dtype to convert to")
    return tensors


def _shards(tensors: Mapping[str, LazyArray], limit: int) -> list[dict[str, LazyArray]]:
    shards: list[dict[str, LazyArray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_file(path: Path, tensors: Mapping[str, LazyArray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    with path.open("wb") as stream:
        start = stream.write(len(text).to_bytes(8, "little") + text)
        for name, row, block in blocks_of(tensors):
            begin, _ = header[name]["data_offsets"]
            stream.seek(start + begin + row * block[:1].nbytes)
            stream.write(block.reshape(-1).view(np.uint8).data)


def _config(source: ParameterSource, family: Family, dtype: np.dtype) -> dict[str, Any]:
    model = source.config
    name, *gate = model.mlp_activations
    if gate not in ([], ["linear"]):
        raise UserError(
            f"{source.path}: transformers' T5 has no activations {model.mlp_activations}"
        )
    if not gate and name == "gelu":
        name = "gelu_new"  # plain "gelu" is the exact one there; "gated-gelu" is this one
    offset = 0 if model.target_vocab_size is None else model.vocab_size
    config = {
        "architectures": [_CLASSES[family]],
        "model_type": family,
        "is_encoder_decoder": True,
        "vocab_size": offset + model.output_vocab_size,
        **{theirs: getattr(model, ours) for theirs, ours in SIZES.items()},
        "relative_attention_max_distance": model.relpos_max_distance,
        "dropout_rate": model.dropout_rate,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": f"gated-{name}" if gate else name,
        "tie_word_embeddings": model.logits_via_embedding,
        "pad_token_id": 0,
        "eos_token_id": offset + 1,
        "decoder_start_token_id": offset,
        "use_cache": True,
        "dtype": str(dtype),
        "torch_dtype": str(dtype),  # its name before transformers 4.56
    }
    if family == "t5":
        config["scale_decoder_outputs"] = model.logits_via_embedding
    if offset:
        config[OFFSET] = offset
        if source.docid_fingerprint:
            config[FINGERPRINT] = source.docid_fingerprint
    return config
