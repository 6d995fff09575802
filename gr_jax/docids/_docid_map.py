"""`DocidMap`: the artefact that ties documents to docids, and the vocabulary of docid tokens."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int

from gr_jax.errors import UserError
from gr_jax.files import atomic_directory

PAD_ID = 0
EOS_ID = 1
_FIRST_CODE_ID = 2
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class DocidVocabulary:
    """One token per (level, code): pad 0, end 1, then the codes of each level in turn.

    Attributes:
      level_sizes: number of codes of each level.
      eos: whether sequences end with the end token. Not needed when no docid is a prefix of
        another: after the last code there is nothing left to decide.
    """

    level_sizes: tuple[int, ...]
    eos: bool = False

    @functools.cached_property
    def offsets(self) -> Int[np.ndarray, " levels"]:
        """Token of code 0 of each level."""
        return _FIRST_CODE_ID + np.concatenate([[0], np.cumsum(self.level_sizes)[:-1]]).astype(int)

    @property
    def size(self) -> int:
        """Number of tokens, pad and end included."""
        return _FIRST_CODE_ID + sum(self.level_sizes)

    @property
    def max_tokens(self) -> int:
        """Length of the longest token sequence."""
        return len(self.level_sizes) + self.eos

    def encode(self, codes: Int[np.ndarray, "n levels"]) -> Int[np.ndarray, "n tokens"]:
        """Codes (-1 after a docid's end) -> tokens [n, max_tokens], 0 after the end."""
        tokens = np.where(codes >= 0, codes + self.offsets, PAD_ID).astype(np.int32)
        if self.eos:
            tokens = np.pad(tokens, ((0, 0), (0, 1)))
            tokens[np.arange(len(codes)), (codes >= 0).sum(axis=1)] = EOS_ID
        return tokens

    def decode(self, tokens: Int[np.ndarray, "n tokens"]) -> Int[np.ndarray, "n levels"]:
        """Inverse of `encode`.

        Raises:
          ValueError: a token that is not one of its level's.
        """
        tokens = tokens[:, : len(self.level_sizes)]
        ended = tokens < _FIRST_CODE_ID
        codes = np.where(ended, -1, tokens - self.offsets).astype(np.int32)
        bad = ~ended & ((codes < 0) | (codes >= np.array(self.level_sizes)))
        if bad.any():
            raise ValueError(f"tokens that are not of their level: {tokens[bad][:5].tolist()}")
        return codes


@dataclasses.dataclass(frozen=True, eq=False)
class DocidMap:
    """Documents and their docids, in corpus order.

    Attributes:
      doc_ids: the documents.
      codes: int32 [documents, levels]; a shorter docid has -1 after its end.
      level_sizes: number of codes of each level.
      provenance: how the docids were made (method, settings, seed, corpus fingerprint): JSON.
    """

    doc_ids: tuple[str, ...]
    codes: Int[np.ndarray, "n levels"]
    level_sizes: tuple[int, ...]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        with np.errstate(invalid="ignore"):  # a copy: the caller's array stays the caller's
            codes = np.array(self.codes, dtype=np.int32, order="C")
        if not np.array_equal(codes, self.codes):
            raise ValueError("codes are whole numbers of 32 bits")
        codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "doc_ids", tuple(self.doc_ids))
        object.__setattr__(self, "level_sizes", tuple(int(s) for s in self.level_sizes))
        if codes.shape != (len(self.doc_ids), len(self.level_sizes)):
            raise ValueError(
                f"codes {codes.shape} for {len(self.doc_ids)} documents and "
                f"{len(self.level_sizes)} levels"
            )
        if not self.level_sizes:
            raise ValueError("a docid needs at least one level")
        if len(set(self.doc_ids)) != len(self.doc_ids):
            raise ValueError("a document has two docids")
        ended = codes < 0
        if (ended[:, :-1] & ~ended[:, 1:]).any() or (len(codes) and ended[:, 0].any()):
            raise ValueError("a docid has a hole, or no code")
        if (codes < -1).any():
            raise ValueError("a code is negative")
        if (codes >= np.array(self.level_sizes, dtype=np.int64)).any():
            raise ValueError("a code is larger than its level")

    def __len__(self) -> int:
        return len(self.doc_ids)

    @functools.cached_property
    def sorted_order(self) -> Int[np.ndarray, " n"]:
        """Documents in lexicographic order of their docids (a prefix first), then corpus order."""
        return np.lexsort(self.codes.T[::-1])

    @functools.cached_property
    def unique(self) -> bool:
        """Whether no two documents share a docid."""
        ordered = self.codes[self.sorted_order]
        return not (ordered[1:] == ordered[:-1]).all(axis=1).any()

    @functools.cached_property
    def prefix_free(self) -> bool:
        """Whether no docid is a proper prefix of another."""
        ordered = self.codes[self.sorted_order]
        before, after = ordered[:-1], ordered[1:]
        same = (before == after).all(axis=1)
        # in sorted order, a prefix stands right before one of its extensions
        return not (((before == after) | (before < 0)).all(axis=1) & ~same).any()

    @functools.cached_property
    def vocabulary(self) -> DocidVocabulary:
        """The tokens that spell these docids."""
        return DocidVocabulary(self.level_sizes, eos=not self.prefix_free)

    @functools.cached_property
    def tokens(self) -> Int[np.ndarray, "n tokens"]:
        """Every docid as tokens, 0 after its end."""
        return self.vocabulary.encode(self.codes)

    @functools.cached_property
    def index_of(self) -> Mapping[str, int]:
        """Row of each document."""
        return {doc_id: i for i, doc_id in enumerate(self.doc_ids)}

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 over documents, codes and level sizes: what a checkpoint was trained for."""
        digest = hashlib.sha256()
        digest.update(json.dumps([_FORMAT, self.level_sizes, len(self)]).encode())
        digest.update(json.dumps(self.doc_ids).encode())
        digest.update(self.codes.astype("<i4").tobytes())
        return digest.hexdigest()

    def docid_string(self, row: int) -> str:
        """A docid as people read it: `3-1-12`."""
        return "-".join(str(c) for c in self.codes[row] if c >= 0)

    def save(self, directory: Path) -> None:
        """Writes the map to `directory` (made, or replaced whole)."""
        with atomic_directory(Path(directory)) as temporary:
            np.save(temporary / "codes.npy", self.codes)
            (temporary / "doc_ids.json").write_text(json.dumps(self.doc_ids), encoding="utf-8")
            header = {
                "format": _FORMAT,
                "fingerprint": self.fingerprint,
                "documents": len(self),
                "level_sizes": self.level_sizes,
                "provenance": dict(self.provenance),
            }
            (temporary / "docid_map.json").write_text(
                json.dumps(header, indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
          UserError: a file is missing, damaged, or does not give the recorded fingerprint.
        """
        directory = Path(directory)
        try:
            header = json.loads((directory / "docid_map.json").read_text(encoding="utf-8"))
            docid_map = cls(
                doc_ids=tuple(json.loads((directory / "doc_ids.json").read_text("utf-8"))),
                codes=np.load(directory / "codes.npy", allow_pickle=False),
                level_sizes=tuple(header["level_sizes"]),
                provenance=header["provenance"],
            )
            fingerprint = str(header["fingerprint"])
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: not found; it is part of a docid map written by gr-jax"
            ) from error
        except (ValueError, TypeError, KeyError, EOFError, OSError) as error:
            raise UserError(f"{directory}: the docid map is damaged ({error})") from error
        if docid_map.fingerprint != fingerprint:
            raise UserError(
                f"{directory}: the docid map does not match its fingerprint "
                f"{fingerprint[:12]}; make it again or restore it from a copy"
            )
        return docid_map


def docid_map_from_tokens(
    doc_ids: Sequence[str], docids: Sequence[Sequence[int]], **provenance: Any
) -> DocidMap:
    """A map from plain lists of codes; level sizes are the smallest that fit.

    Raises:
      ValueError: no documents, or an empty docid.
    """
    levels = max((len(d) for d in docids), default=0)
    if not levels:
        raise ValueError("a docid map needs at least one document and one code")
    codes = np.full((len(docids), levels), -1, dtype=np.int32)
    for row, docid in zip(codes, docids, strict=True):
        row[: len(docid)] = docid
    return DocidMap(
        doc_ids=tuple(doc_ids),
        codes=codes,
        level_sizes=tuple(int(s) + 1 for s in codes.max(axis=0)),
        provenance=provenance,
    )
