"""Hugging Face's safetensors: names, and reading slices of them.

The header of the files says what a model has. `config.json` is only asked for what no header tells
(activation function, distances, dropout, whether logits are scaled, where docid tokens begin).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from gr_jax.checkpoints._hugging_face_config import (
    CONFIG,
    FINGERPRINT,
    OFFSET,
    check_sizes,
    read_config,
    scales_logits,
    settings,
)
from gr_jax.checkpoints._lazy import Index, LazyArray, rows, transpose
from gr_jax.checkpoints._safetensors import open_safetensors
from gr_jax.checkpoints._shapes import EMBEDDING, HEAD, RELPOS, TARGET_EMBEDDING, same_bytes
from gr_jax.checkpoints._source import ParameterSource, make_source
from gr_jax.errors import UserError, damage
from gr_jax.models._layout import split_name

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARED = "shared.weight"
LM_HEAD = "lm_head.weight"

_MLP = ("wi", "wi_0", "wi_1", "wo")
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}


def _sublayers(stack: str) -> dict[str, str]:
    """Hugging Face's names within a block -> t5x's within a layer."""
    attentions = [("SelfAttention", "attention", "pre_attention_layer_norm")]
    if stack == "decoder":
        attentions = [
            ("SelfAttention", "self_attention", "pre_self_attention_layer_norm"),
            ("EncDecAttention", "encoder_decoder_attention", "pre_cross_attention_layer_norm"),
        ]
    names = {}
    for i, (theirs, ours, norm) in enumerate(attentions):
        names[f"layer.{i}.layer_norm.weight"] = f"{norm}/scale"
        for letter, projection in _PROJECTIONS.items():
            names[f"layer.{i}.{theirs}.{letter}.weight"] = f"{ours}/{projection}/kernel"
    last = len(attentions)
    names["layer.0.SelfAttention.relative_attention_bias.weight"] = RELPOS
    names[f"layer.{last}.layer_norm.weight"] = "pre_mlp_layer_norm/scale"
    for name in _MLP:
        names[f"layer.{last}.DenseReluDense.{name}.weight"] = f"mlp/{name}/kernel"
    return names


_SUBLAYERS = {stack: _sublayers(stack) for stack in ("encoder", "decoder")}
_OURS = {stack: {v: k for k, v in names.items()} for stack, names in _SUBLAYERS.items()}
_BLOCK = re.compile(r"(encoder|decoder)\.block\.(\d+)\.(.+)")
# a table that transformers never used and that old files still hold
_UNUSED = re.compile(r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\..*")


def is_transposed(name: str) -> bool:
    """Whether Hugging Face holds the parameter (t5x's name) transposed."""
    return name.endswith(("kernel", "rel_embedding"))


def t5x_name(theirs: str) -> str | None:
    """`encoder.block.3.layer.0.SelfAttention.q.weight` -> t5x's name; None for a table or a head.

    A block's position biases are given as the layer's.
    """
    if match := _BLOCK.fullmatch(theirs):
        stack, layer, rest = match.groups()
        ours = _SUBLAYERS[stack].get(rest)
        return ours and f"{stack}/layers_{layer}/{ours}"
    for stack in ("encoder", "decoder"):
        if theirs == f"{stack}.final_layer_norm.weight":
            return f"{stack}/{stack}_norm/scale"
    return None


def hugging_face_name(ours: str) -> str:
    """Hugging Face's name of a parameter; a bias that a stack shares stands in its first block."""
    tables = {EMBEDDING: SHARED, HEAD: LM_HEAD}
    for stack in ("encoder", "decoder"):
        bias = _OURS[stack][RELPOS]
        tables[f"{stack}/{RELPOS}"] = f"{stack}.block.0.{bias}"
        tables[f"{stack}/{stack}_norm/scale"] = f"{stack}.final_layer_norm.weight"
    if place := split_name(ours):
        stack, layer, rest = place
        return f"{stack}.block.{layer}.{_OURS[stack][rest]}"
    return tables[ours]


def open_hugging_face(path: Path) -> ParameterSource:
    """A folder with `model.safetensors` or its shards, or one safetensors file.

    Raises:
      UserError: a file is missing or cut, or it is no T5.
    """
    folder = path if path.is_dir() else path.parent
    tensors = _tensors(path)
    config = read_config(folder / CONFIG)
    shared = _table(path, tensors)
    offset = config.get(OFFSET)
    if offset is not None and offset >= shared.shape[0]:
        raise UserError(
            f"{folder / CONFIG}: {OFFSET} is {offset}, but {SHARED} has {shared.shape[0]} rows"
        )
    source_rows = shared.shape[0] if offset is None else offset
    raw = {EMBEDDING: rows(shared, 0, source_rows)}
    if offset is not None:
        raw[TARGET_EMBEDDING] = rows(shared, offset, shared.shape[0])
    head = tensors.pop(LM_HEAD, None)
    if head is not None and same_bytes(head, shared):
        head = None  # old files write the tied head of T5 1.0 out
    scaled = scales_logits(config, own_head=head is not None)
    if head is not None or not scaled:
        head = head or shared
        kernel = transpose(rows(head, offset or 0, head.shape[0]))
        raw[HEAD] = _times(kernel, shared.shape[1] ** -0.5) if scaled else kernel
    for theirs, tensor in tensors.items():
        name = t5x_name(theirs)
        if name is None and _UNUSED.fullmatch(theirs):
            continue
        if name is None:
            raise UserError(f"{path}: not a T5 that gr-jax knows: it has {theirs}")
        raw[name] = transpose(tensor) if is_transposed(name) else tensor
    source = make_source(
        str(path),
        "hugging face",
        _biases(raw),
        known=settings(folder / CONFIG, config, raw),
        docid_fingerprint=config.get(FINGERPRINT),
        record=config,
    )
    check_sizes(folder / CONFIG, config, source.config)
    return source


def _times(array: LazyArray, factor: float) -> LazyArray:
    """The same values times a factor, rounded once."""
    exact = np.promote_types(array.dtype, np.float32)

    def fetch(index: Index) -> np.ndarray:
        return (array.fetch(index).astype(exact) * factor).astype(array.dtype)

    return LazyArray(array.shape, array.dtype, fetch)


def _tensors(path: Path) -> dict[str, LazyArray]:
    """Every tensor of a file or of a folder's shards."""
    index = path / INDEX
    if path.is_dir() and not (path / WEIGHTS).exists() and index.exists():
        weights = _weight_map(index)
        files = sorted(set(weights.values()))
        tensors = {}
        for name in files:
            if not (path / name).is_file():
                raise UserError(f"{path / name}: missing, {INDEX} names it; copy it there")
            tensors |= open_safetensors(path / name)
        if lost := sorted(weights.keys() - tensors.keys()):
            raise UserError(f"{path / weights[lost[0]]}: has no {lost[0]}, {INDEX} says it has")
        return tensors
    return open_safetensors(path / WEIGHTS if path.is_dir() else path)


def _weight_map(index: Path) -> dict[str, str]:
    """Tensors' names -> the files beside the index that hold them."""
    with damage(index, "damaged"):
        weights = json.loads(index.read_text("utf-8"))["weight_map"]
        for name, file in weights.items():
            if not isinstance(file, str) or Path(file).name != file:
                raise ValueError(f"{name} is said to be in {file!r}, which is no file beside it")
    return weights


def _table(path: Path, tensors: dict[str, LazyArray]) -> LazyArray:
    """Takes the one token table out of `tensors`, under whichever of its names it was written."""
    names = (SHARED, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    found = [(name, tensors.pop(name)) for name in names if name in tensors]
    if not found:
        raise UserError(f"{path}: not a T5: it has no {SHARED}")
    for name, table in found[1:]:
        if not same_bytes(found[0][1], table):
            raise UserError(
                f"{path}: {found[0][0]} and {name} differ; gr-jax's T5 has one table for both"
            )
    return found[0][1]


def _biases(raw: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """Position biases in the first blocks only are those of the stacks: it is no umT5."""
    biases = [name for name in raw if name.endswith(RELPOS)]
    if all("/layers_0/" in name for name in biases):
        for name in biases:
            raw[name.replace("layers_0/", "")] = raw.pop(name)
    return raw
