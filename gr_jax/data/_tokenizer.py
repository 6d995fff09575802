"""SentencePiece, or ByT5's bytes, for queries and documents, without TensorFlow."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece
from jaxtyping import Int

from gr_jax.corpus import normalize
from gr_jax.errors import UserError
from gr_jax.files import atomic_file

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # T5's
BYTES = "bytes"  # stands for ByT5's vocabulary, in the place of a SentencePiece model's path
_BYTES_FILE = b"bytes\n"  # and this for the model
_MAX_SENTENCE_BYTES = 16_384
_PART = _MAX_SENTENCE_BYTES // 4  # a character has at most four bytes


def train_tokenizer(
    texts: Iterable[str], path: Path, *, vocab_size: int = 8192, max_texts: int = 1_000_000
) -> None:
    """Trains a unigram SentencePiece model with T5's special ids on texts reduced to their words.

    Args:
      texts: what to learn from; each is normalised (`gr_jax.corpus.normalize`) first.
      path: the model file to write.
      vocab_size: pieces wanted; a small corpus gives fewer.
      max_texts: texts beyond this many are not read.

    Raises:
      UserError: the texts have no words to learn from, or more characters than `vocab_size`.
    """
    path = Path(path)
    lines = [normalize(text) for text in itertools.islice(texts, max_texts)]
    lines = [part for line in lines for part in _parts(line)]
    if not lines:
        raise UserError(f"{path}: no text to train a vocabulary on")
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            sentencepiece.SentencePieceTrainer.Train(
                sentence_iterator=iter(lines),
                model_writer=stream,
                model_type="unigram",
                vocab_size=vocab_size,
                hard_vocab_limit=False,  # fewer pieces than asked for is fine on a small corpus
                normalization_rule_name="nmt_nfkc",
                character_coverage=0.9999,
                byte_fallback=False,
                pad_id=PAD_ID,
                eos_id=EOS_ID,
                unk_id=UNK_ID,
                bos_id=-1,
                max_sentence_length=_MAX_SENTENCE_BYTES,
                num_threads=1,  # the same pieces every time
                minloglevel=2,
            )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: SentencePiece cannot make {vocab_size} pieces of this text ({reason})"
        ) from error


def _parts(line: str) -> list[str]:
    """Pieces of a line that SentencePiece reads: it passes over whole lines that are too long."""
    if len(line.encode()) <= _MAX_SENTENCE_BYTES:
        return [line] if line else []
    return [line[i : i + _PART] for i in range(0, len(line), _PART)]


class Tokenizer(Protocol):
    """Text -> ids that end with the end token.

    Attributes:
      path: the vocabulary's file.
      words_only: whether text is reduced to its case-folded words first, as the models that
        `train_tokenizer` makes expect. Published vocabularies want the text as it is.
      vocab_size: number of ids.
    """

    path: Path
    words_only: bool

    @property
    def vocab_size(self) -> int: ...

    def clean(self, text: str) -> str:
        """`text` as this vocabulary wants it, on one line."""
        ...

    def encode(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "n length"]:
        """Ids [texts, max_length], cut to leave room for the end token, padded with 0."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        ...


def load_tokenizer(path: Path, *, words_only: bool) -> Tokenizer:
    """The vocabulary of a file: a SentencePiece model, or what `write_bytes_vocabulary` wrote.

    Raises:
      UserError: missing, or neither.
    """
    return ByteTokenizer(path) if is_bytes(path) else SentencePieceTokenizer(path, words_only)


def is_bytes(path: Path) -> bool:
    """Whether a vocabulary's file stands for bytes."""
    path = Path(path)
    return (
        path.is_file()
        and path.stat().st_size == len(_BYTES_FILE)
        and (path.read_bytes() == _BYTES_FILE)
    )


def write_bytes_vocabulary(path: Path) -> None:
    """Writes the file that stands for ByT5's vocabulary."""
    with atomic_file(Path(path)) as temporary:
        temporary.write_bytes(_BYTES_FILE)


class ByteTokenizer:
    """ByT5's vocabulary (Xue et al. 2022): the bytes of UTF-8, after pad, end and unknown."""

    vocab_size = 3 + 256

    def __init__(self, path: Path):
        self.path = Path(path)
        self.words_only = False

    def clean(self, text: str) -> str:
        """See `Tokenizer`."""
        return " ".join(text.split())

    def encode(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "n length"]:
        """See `Tokenizer`."""
        ids = [np.frombuffer(self.clean(text).encode(), np.uint8) + np.int32(3) for text in texts]
        return _padded(ids, max_length)

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer`; what is no UTF-8 is left away."""
        return bytes(int(i) - 3 for i in ids if 3 <= i < self.vocab_size).decode(errors="ignore")


class SentencePieceTokenizer:
    """A SentencePiece model with T5's special ids; see `Tokenizer`."""

    def __init__(self, path: Path, words_only: bool):
        """Loads `path`.

        Raises:
          UserError: missing, or not a SentencePiece model.
        """
        self.path = Path(path)
        self.words_only = words_only
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such SentencePiece model")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromFile(str(self.path))
        except (RuntimeError, OSError) as error:
            raise UserError(f"{self.path}: not a SentencePiece model ({error})") from error
        p = self._processor
        special = (p.pad_id(), p.eos_id(), p.unk_id())
        if special != (PAD_ID, EOS_ID, UNK_ID):
            raise UserError(
                f"{self.path}: has pad, end and unknown ids {special}; T5 needs "
                f"{(PAD_ID, EOS_ID, UNK_ID)}: train it with --pad_id=0 --eos_id=1 --unk_id=2 "
                "--bos_id=-1"
            )

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return self._processor.GetPieceSize()

    def clean(self, text: str) -> str:
        """`text` as this vocabulary wants it, on one line."""
        return normalize(text) if self.words_only else " ".join(text.split())

    def encode(self, texts: Sequence[str], max_length: int) -> Int[np.ndarray, "n length"]:
        """Ids [texts, max_length], cut to leave room for the end token, padded with 0."""
        return _padded(self._processor.Encode([self.clean(text) for text in texts]), max_length)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return self._processor.Decode([int(i) for i in ids if i > EOS_ID])


def _padded(rows: Sequence[Any], max_length: int) -> Int[np.ndarray, "n length"]:
    """Rows cut to leave room for the end token, which follows each."""
    ids = np.full((len(rows), max_length), PAD_ID, np.int32)
    for row, pieces in zip(ids, rows, strict=True):
        pieces = pieces[: max_length - 1]
        row[: len(pieces)] = pieces
        row[len(pieces)] = EOS_ID
    return ids
