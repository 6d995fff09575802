"""The files that transformers makes a tokenizer of, for a model that is exported.

A model of Hugging Face's brings its own. A run of ours has a SentencePiece model, or stands for
bytes: that becomes a `tokenizer.json`, which needs no other package, and encodes to the ids that
the run was trained on.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2 as sentencepiece_model

from gr_jax.checkpoints._source import ParameterSource
from gr_jax.data import is_bytes, load_tokenizer
from gr_jax.errors import damage

_CONFIG = "tokenizer_config.json"
_SENTENCEPIECE = "spiece.model"
_FILES = (
    "tokenizer.json",
    _SENTENCEPIECE,
    _CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
)
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_SPACES = r"[\s\x{1c}-\x{1f}]+"  # what Python's `str.split` splits at
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}


def tokenizer_files(source: ParameterSource) -> dict[str, bytes]:
    """Names and contents of the files; none where the source has no tokenizer.

    Raises:
      UserError: a file of the source cannot be read.
    """
    path = Path(source.path).absolute()
    if source.format == "hugging face":
        folder = path if path.is_dir() else path.parent
        found = [folder / name for name in _FILES if (folder / name).is_file()]
        return {file.name: _read(file) for file in found}
    if source.format != "gr-jax":
        return {}
    # a checkpoint lies in MODEL_DIR, as the run's vocabulary does and how it reads text
    vocabulary = path.parent / "vocabulary" / "sentencepiece.model"
    index = path.parent / "index.json"
    if not (vocabulary.is_file() and index.is_file()):
        return {}
    with damage(index, "damaged"):
        words_only = bool(json.loads(_read(index))["words_only"])
    return _files_of(vocabulary, words_only=words_only)


def _read(path: Path) -> bytes:
    with damage(path, "cannot be read"):
        return path.read_bytes()


def _files_of(vocabulary: Path, *, words_only: bool) -> dict[str, bytes]:
    load_tokenizer(vocabulary, words_only=words_only)  # which checks it
    if is_bytes(vocabulary):
        return {_CONFIG: _json({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0})}
    content = _read(vocabulary)
    message: Any = vars(sentencepiece_model)["ModelProto"]  # defined when it is imported
    model = message.FromString(content)
    if model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        return {}
    files = {
        "tokenizer.json": _json(_tokenizer(model, words_only=words_only)),
        # T5's own class would leave away what comes before SentencePiece's normalisation
        _CONFIG: _json(_SPECIAL | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    }
    return files if words_only else files | {_SENTENCEPIECE: content}


def _json(value: Any) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _tokenizer(model: Any, *, words_only: bool) -> dict[str, Any]:
    """A SentencePiece model as the `tokenizers` package writes its own."""
    normalizers = [*(_words_only() if words_only else []), _replace({"Regex": _SPACES}, " ")]
    if charsmap := model.normalizer_spec.precompiled_charsmap:
        text = base64.b64encode(charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": text})
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id,
                "content": token,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for id, token in enumerate(_SPECIAL.values())
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "WhitespaceSplit"}, _METASPACE],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "decoder": _METASPACE,
        "model": {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[piece.piece, piece.score] for piece in model.pieces],
            "byte_fallback": model.trainer_spec.byte_fallback,
        },
    }


def _words_only() -> list[dict[str, Any]]:
    """`gr_jax.corpus.normalize`: case-folded runs of letters and digits.

    `tokenizers` can only make lower case; where that is not case folding, characters are replaced.
    """
    characters = map(chr, range(0x110000))
    folded = {c: c.casefold() for c in characters if c.casefold() != c.lower()}
    return [
        *(_replace({"String": c}, to) for c, to in folded.items()),
        {"type": "Lowercase"},
        _replace({"Regex": r"[^\p{L}\p{N}]+"}, " "),
    ]


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}
