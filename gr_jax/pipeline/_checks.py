"""Whether a run can start from a checkpoint: its shape, its docid tables, its vocabulary."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from gr_jax.checkpoints import TARGET_EMBEDDING, ParameterSource
from gr_jax.data import BYTES, ByteTokenizer, load_tokenizer
from gr_jax.errors import UserError
from gr_jax.models import VARIANTS, T5Config
from gr_jax.models._variants import SHAPE_FIELDS
from gr_jax.pipeline._prepare import DataConfig, content_of
from gr_jax.pipeline._workspace import Workspace
from gr_jax.serving import IndexSpec

# Fields of a model that the shapes of its parameters depend on, in any layout; vocabularies,
# position biases per layer and tied heads can differ where a run starts.
_SHAPE = (*SHAPE_FIELDS, "relpos_buckets")
# What a model computes of the same parameters, where the checkpoint says it.
_MEANING = ("mlp_activations", "relpos_max_distance")


def check_shape(source: ParameterSource, model: T5Config, *, docid_tables: bool) -> None:
    """Refuses a checkpoint of another model than `model`, whatever its vocabularies.

    Args:
      source: the checkpoint.
      model: the run's, with vocabularies of any size.
      docid_tables: whether those of the checkpoint are wanted too.

    Raises:
      UserError: they are not, or there are no docid tables.
    """
    if docid_tables and TARGET_EMBEDDING not in source.leaves:
        raise UserError(
            f"{source.path}: has no tables of docid tokens, which DOCID_TABLES='checkpoint' wants; "
            "give DOCID_TABLES='random' or 'documents'"
        )
    theirs, ours = source.config, model
    differ = [name for name in _SHAPE if getattr(theirs, name) != getattr(ours, name)]
    recorded = [name for name in _MEANING if name in source.recorded]
    differ += [name for name in recorded if getattr(theirs, name) != getattr(ours, name)]
    gated = len(theirs.mlp_activations) != len(ours.mlp_activations)
    if gated and "mlp_activations" not in differ:
        differ.append("mlp_activations")
    if theirs.relpos_per_layer and not ours.relpos_per_layer:
        differ.append("relpos_per_layer")
    if docid_tables and theirs.logits_via_embedding != ours.logits_via_embedding:
        differ.append("logits_via_embedding")
    if differ:
        fields = ", ".join(
            f"T5Config.{name} is {getattr(theirs, name)!r} (the model's: {getattr(ours, name)!r})"
            for name in differ
        )
        files = " or ".join(f"gin/models/{name}.gin" for name in _published(theirs))
        mend = f"--gin_file={files}, after the run's own" if files else "the model its shape"
        raise UserError(f"{source.path}: not of the model's shape: {fields}; give {mend}")


def _published(config: T5Config) -> list[str]:
    """Names of the published models of that shape; those of that vocabulary, if there are any."""

    def shape(of: T5Config) -> list[Any]:
        also = (len(of.mlp_activations), of.relpos_per_layer, of.logits_via_embedding)
        return [*(getattr(of, name) for name in _SHAPE), *also]

    names = [
        name for name in VARIANTS if shape(T5Config.from_name(name, vocab_size=1)) == shape(config)
    ]
    return [n for n in names if VARIANTS[n].get("vocab_size") == config.vocab_size] or names


def with_vocabulary(source: ParameterSource, data: DataConfig) -> DataConfig:
    """`data` with the vocabulary whose pieces the rows of the checkpoint's token table stand for.

    That of a checkpoint of gr_jax lies in its model directory; that of others has to be given.

    Raises:
      UserError: it is not given, or another one is.
    """
    if source.format == "gr-jax":
        for folder in Path(source.path).absolute().parents[:2]:  # of checkpoint_N, of its `state`
            if Workspace(folder).index.exists():
                return with_vocabulary_of(folder, data)
    rows = source.config.vocab_size
    if data.sentencepiece is None:
        beside = Path(source.path) / "spiece.model"
        known = BYTES if rows == VARIANTS["byt5_small"]["vocab_size"] else "spiece.model"
        given = beside if beside.exists() else known
        raise UserError(
            f"{source.path}: its {rows:,} rows of tokens stand for the pieces of its own "
            f'vocabulary; give that: --gin.SENTENCEPIECE=\\"{given}\\"'
        )
    pieces = _pieces(data.sentencepiece)
    if not rows / 2 <= pieces <= rows:  # published tables have spare rows, up to 128 or so
        raise UserError(
            f"{data.sentencepiece}: has {pieces:,} pieces, and {source.path} {rows:,} rows of "
            "tokens; give the vocabulary that belongs to it as SENTENCEPIECE"
        )
    return data


def with_vocabulary_of(model_dir: Path, data: DataConfig) -> DataConfig:
    """`data` with the vocabulary of a model directory; see `with_vocabulary`.

    Raises:
      UserError: another vocabulary is given, or there is none in the directory.
    """
    workspace = Workspace(model_dir)
    found = load_tokenizer(workspace.sentencepiece, words_only=False)
    theirs = BYTES if isinstance(found, ByteTokenizer) else str(workspace.sentencepiece)
    given = data.sentencepiece
    if given is not None and content_of(given) != content_of(theirs):
        raise UserError(
            f"{given}: not the vocabulary of {model_dir}, which the checkpoint was trained with; "
            "leave SENTENCEPIECE out to take that one"
        )
    words_only = IndexSpec.load(workspace.index).words_only
    return dataclasses.replace(data, sentencepiece=theirs, words_only=words_only)


def _pieces(vocabulary: str) -> int:
    if vocabulary == BYTES:
        return ByteTokenizer.vocab_size
    return load_tokenizer(Path(vocabulary), words_only=False).vocab_size
