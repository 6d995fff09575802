"""`DocidMap`: the artefact that ties documents to docids, and the vocabulary of docid tokens."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import operator
import tokenize
from collections.abc import Iterable, Mapping, Sequence
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
    """Which token spells a code of a level. Token 0 is padding, token 1 the end.

    Levels may share tokens: `first_tokens=(2,) * levels` spells all levels with the same tokens,
    and with `(0,) * levels` a code is a token of a text vocabulary (codes 0 and 1 are not legal).

    Attributes:
      level_sizes: number of codes of each level.
      eos: whether sequences end with the end token. Not needed when no docid is a prefix of
        another: after the last code there is nothing left to decide.
      first_tokens: the token of code 0 of each level; None for levels one after another, each with
        tokens of its own.
    """

    level_sizes: tuple[int, ...]
    eos: bool = False
    first_tokens: tuple[int, ...] | None = None

    def __post_init__(self):
        if self.first_tokens is not None:
            if len(self.first_tokens) != len(self.level_sizes):
                raise ValueError(
                    f"{len(self.first_tokens)} first tokens for {len(self.level_sizes)} levels"
                )
            if min(self.first_tokens, default=0) < 0:
                raise ValueError(f"a first token is negative: {self.first_tokens}")

    @functools.cached_property
    def offsets(self) -> Int[np.ndarray, " levels"]:
        """Token of code 0 of each level."""
        if self.first_tokens is not None:
            return np.array(self.first_tokens, int)
        return _FIRST_CODE_ID + np.concatenate([[0], np.cumsum(self.level_sizes)[:-1]]).astype(int)

    @property
    def size(self) -> int:
        """Number of tokens, pad and end included."""
        ends = self.offsets + np.array(self.level_sizes, int)
        return max(_FIRST_CODE_ID, *ends.tolist())

    @property
    def max_tokens(self) -> int:
        """Length of the longest token sequence."""
        return len(self.level_sizes) + self.eos

    def encode(self, codes: Int[np.ndarray, "n levels"]) -> Int[np.ndarray, "n tokens"]:
        """Codes (-1 after a docid's end) -> tokens [n, max_tokens], 0 after the end.

        Raises:
          ValueError: a code whose token is that of padding or of the end.
        """
        self.check_codes(codes)
        tokens = np.full((len(codes), self.max_tokens), PAD_ID, np.int32)
        for level, offset in enumerate(self.offsets.tolist()):
            column = codes[:, level]
            tokens[:, level] = np.where(column >= 0, column + offset, PAD_ID)
        if self.eos:
            tokens[np.arange(len(codes)), (codes >= 0).sum(axis=1)] = EOS_ID
        return tokens

    def check_codes(self, codes: Int[np.ndarray, "n levels"]) -> None:
        """Refuses codes whose tokens mean something else.

        Raises:
          ValueError: a code whose token is that of padding or of the end.
        """
        for level, offset in enumerate(self.offsets.tolist()):
            if offset < _FIRST_CODE_ID:
                column = codes[:, level]
                bad = (column >= 0) & (column < _FIRST_CODE_ID - offset)
                if bad.any():
                    raise ValueError(
                        f"code {column[bad][0]} of level {level} would be token "
                        f"{column[bad][0] + offset}: tokens below {_FIRST_CODE_ID} are padding "
                        "and end"
                    )

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
      eos: as in `DocidVocabulary`; None if only docids that need an end token shall have one. Maps
        made of this one, and its file, keep what it came to: a trained model knows these tokens,
        whatever documents come and go.
      first_tokens: as in `DocidVocabulary`.
    """

    doc_ids: tuple[str, ...]
    codes: Int[np.ndarray, "n levels"]
    level_sizes: tuple[int, ...]
    provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eos: bool | None = None
    first_tokens: tuple[int, ...] | None = None

    def __post_init__(self):
        codes = self.codes
        if not _is_frozen(codes):
            with np.errstate(invalid="ignore"):  # a copy: the caller's array stays the caller's
                codes = np.array(self.codes, dtype=np.int32, order="C")
            if not np.array_equal(codes, self.codes):
                raise ValueError("codes are whole numbers of 32 bits")
            codes.flags.writeable = False
        object.__setattr__(self, "codes", codes)
        object.__setattr__(self, "doc_ids", tuple(self.doc_ids))
        object.__setattr__(self, "level_sizes", tuple(int(s) for s in self.level_sizes))
        if self.first_tokens is not None:
            object.__setattr__(self, "first_tokens", tuple(int(t) for t in self.first_tokens))
        if not (self.eos is None or isinstance(self.eos, bool)):
            raise ValueError(f"eos is {self.eos!r}: True, False or None")
        if codes.shape != (len(self.doc_ids), len(self.level_sizes)):
            raise ValueError(
                f"codes {codes.shape} for {len(self.doc_ids)} documents and "
                f"{len(self.level_sizes)} levels"
            )
        if not self.level_sizes:
            raise ValueError("a docid needs at least one level")
        if len(set(self.doc_ids)) != len(self.doc_ids):
            twice = next(d for d, n in collections.Counter(self.doc_ids).items() if n > 1)
            raise ValueError(f"a document has two docids: {twice!r}")
        ended = codes < 0
        # True after False is an end, False after True a hole
        if (ended[:, :-1] > ended[:, 1:]).any() or ended[:, 0].any():
            raise ValueError("a docid has a hole, or no code")
        if codes.min(initial=-1) < -1:
            raise ValueError("a code is negative")
        if (codes.max(axis=0, initial=-1) >= np.array(self.level_sizes, dtype=np.int64)).any():
            raise ValueError("a code is larger than its level")

    def __len__(self) -> int:
        return len(self.doc_ids)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of codes of each docid, in the smallest unsigned type that holds it."""
        lengths = np.zeros(len(self), np.min_scalar_type(len(self.level_sizes)))
        for column in self.codes.T:
            lengths += column >= 0
        return lengths

    @functools.cached_property
    def sorted_order(self) -> Int[np.ndarray, " n"]:
        """Documents in lexicographic order of their docids (a prefix first), then corpus order."""
        first, *more = _pack(self.codes, self.level_sizes)
        # The quick sort is not stable, and it sees the first levels only: rows that it found equal
        # are sorted again. They are few, or the map is small.
        order = np.argsort(first)
        in_order = first[order]
        same = in_order[1:] == in_order[:-1]
        if same.any():
            tied = np.zeros(len(order), bool)
            tied[1:] |= same
            tied[:-1] |= same
            rows = order[tied]
            keys = [rows, *(word[rows] for word in reversed(more)), in_order[tied]]
            order[tied] = rows[np.lexsort(keys)]
        order.flags.writeable = False
        return order

    @functools.cached_property
    def shared_levels(self) -> Int[np.ndarray, " n"]:
        """Leading codes that each docid of `sorted_order` has in common with the one before.

        It is the number of levels where both are the same docid, and 0 for the first.
        """
        levels = len(self.level_sizes)
        shared = np.zeros(len(self), np.min_scalar_type(levels))
        if len(self) < 2:
            return shared
        level, equal = 0, True
        words = _pack(self.codes, self.level_sizes)
        for word, shifts in zip(words, _shifts(self.level_sizes), strict=True):
            word = word[self.sorted_order]
            differing = word[1:] ^ word[:-1]  # its highest bit is in the first level that differs
            for shift in shifts:
                shared[1:] += equal & (differing >> np.uint64(shift) == 0)
            level += len(shifts)
            equal = shared[1:] == level
        return shared

    def places(self, tokens: Int[np.ndarray, "m tokens"]) -> Int[np.ndarray, " m"]:
        """Where in `sorted_order` the first document with each docid stands.

        Args:
          tokens: docids as `tokens` has them: 0 after the end.

        Raises:
          ValueError: no document has such a docid.
        """
        asked = _comparable(_pack(self.vocabulary.decode(tokens), self.level_sizes))
        found = np.minimum(np.searchsorted(self._sorted_words, asked), len(self) - 1)
        if (unknown := self._sorted_words[found] != asked).any():
            raise ValueError(f"no document has the docid {tokens[unknown][0].tolist()}")
        return found

    @functools.cached_property
    def _sorted_words(self) -> np.ndarray:
        words = _pack(self.codes, self.level_sizes)
        return _comparable([word[self.sorted_order] for word in words])

    @functools.cached_property
    def unique(self) -> bool:
        """Whether no two documents share a docid."""
        return not (self.shared_levels == len(self.level_sizes)).any()

    @functools.cached_property
    def prefix_free(self) -> bool:
        """Whether no docid is a proper prefix of another."""
        shared = self.shared_levels[1:]
        before = self.lengths[self.sorted_order[:-1]]
        # in sorted order, a prefix stands right before one of its extensions
        return not ((shared == before) & (shared < self.lengths[self.sorted_order[1:]])).any()

    @functools.cached_property
    def vocabulary(self) -> DocidVocabulary:
        """The tokens that spell these docids.

        Raises:
          ValueError: a docid is a prefix of another, and `eos` is False.
        """
        if self.eos is False and not self.prefix_free:
            raise ValueError("a docid is a prefix of another: eos must be True")
        eos = not self.prefix_free if self.eos is None else self.eos
        return DocidVocabulary(self.level_sizes, eos, self.first_tokens)

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
        """sha256 over documents, codes and vocabulary: what a checkpoint was trained for."""
        digest = hashlib.sha256()
        digest.update(json.dumps([_FORMAT, self.level_sizes, len(self)]).encode())
        digest.update(json.dumps(self.doc_ids).encode())
        digest.update(self.codes.astype("<i4", copy=False))
        # a vocabulary that the codes alone would give is not named: fingerprints made before
        # maps had one of their own are those of such maps
        if self.vocabulary != DocidVocabulary(self.level_sizes, not self.prefix_free):
            digest.update(json.dumps([self.vocabulary.eos, self.first_tokens]).encode())
        return digest.hexdigest()

    def extended(
        self,
        doc_ids: Sequence[str],
        codes: Int[np.ndarray, "m levels"],
        level_sizes: Sequence[int] | None = None,
    ) -> DocidMap:
        """A map with more documents, after those of this one, spelled with the same tokens.

        Args:
          doc_ids: the new documents.
          codes: their docids, -1 after the end.
          level_sizes: a larger last level, or more levels behind it, where their tokens come after
            those that are there; None to keep this map's.

        Raises:
          UserError: a document is there already, a docid is wrong or makes an end token necessary
            that this map does without, or tokens of this map would become others.
        """
        sizes = self._grown_levels(level_sizes)
        doc_ids = _names(doc_ids, "extended")
        try:
            added = DocidMap(doc_ids, codes, sizes)  # refuses what is wrong by itself
        except ValueError as error:
            raise UserError(
                f"documents to add to a docid map: {error}; mend their codes, or name larger "
                f"level_sizes than {sizes}"
            ) from error
        known = set(doc_ids).intersection(self.doc_ids)
        if known:
            first = next(d for d in doc_ids if d in known)
            raise UserError(
                f"the document {first!r} to add has a docid already: leave it out, or take it out "
                "with `without` first"
            )
        together = np.full((len(self) + len(doc_ids), len(sizes)), -1, np.int32)
        together[: len(self), : len(self.level_sizes)] = self.codes
        together[len(self) :] = added.codes
        together.flags.writeable = False
        order, new = self.sorted_order, added.sorted_order
        # of equal docids, those that were there come first
        places = np.searchsorted(
            _comparable([word[order] for word in _pack(together[: len(self)], sizes)]),
            _comparable([word[new] for word in _pack(added.codes, sizes)]),
            side="right",
        )
        changed = self._changed(
            {"extended": len(doc_ids)},
            self.doc_ids + doc_ids,
            together,
            sizes,
            np.insert(order, places, new + len(self)),
        )
        if not changed.eos and not changed.prefix_free:
            before = changed.lengths[changed.sorted_order]
            shared = changed.shared_levels
            place = int(np.flatnonzero((shared[1:] == before[:-1]) & (before[1:] > shared[1:]))[0])
            short, long = changed.sorted_order[place : place + 2].tolist()
            raise UserError(
                f"the docid {changed.docid_string(short)} of {changed.doc_ids[short]!r} would be a "
                f"prefix of {changed.docid_string(long)} of {changed.doc_ids[long]!r}, and the end "
                "token that tells them apart is not among this map's tokens: give another docid, "
                "or make the map anew, with eos=True, and train on it"
            )
        return changed

    def _grown_levels(self, level_sizes: Sequence[int] | None) -> tuple[int, ...]:
        """`level_sizes` of an extension, refused if a token of this map would become another."""
        old = self.level_sizes
        sizes = old if level_sizes is None else tuple(int(s) for s in level_sizes)
        if len(sizes) < len(old) or any(map(operator.lt, sizes, old)):
            raise UserError(
                f"levels {old} cannot shrink to {sizes}: give level_sizes at least as large"
            )
        if self.first_tokens is not None and sizes != old:
            raise UserError(
                f"levels {old} cannot grow to {sizes} in a map with first_tokens of its own: make "
                "the map anew, and train on it"
            )
        for level, (size, before) in enumerate(zip(sizes[: len(old) - 1], old, strict=False)):
            if size > before:
                raise UserError(
                    f"level {level} cannot grow from {before} to {size} codes: the tokens of the "
                    "levels behind it would become others; give codes within level_sizes "
                    f"{old}, or make the map anew, and train on it"
                )
        return sizes

    def without(self, doc_ids: Iterable[str]) -> DocidMap:
        """A map of the other documents, in the same order, with the same docids and tokens.

        Raises:
          UserError: a document is not there.
        """
        doc_ids = _names(doc_ids, "without")
        removed = set(doc_ids)
        keep = np.fromiter((d not in removed for d in self.doc_ids), bool, len(self))
        rows = np.flatnonzero(keep)
        if len(rows) + len(removed) != len(self):
            unknown = removed.difference(self.doc_ids)
            first = next(d for d in doc_ids if d in unknown)
            raise UserError(
                f"the document {first!r} to take out has no docid: leave it out of the list"
            )
        codes = self.codes[rows]
        codes.flags.writeable = False
        order = self.sorted_order
        new_rows = np.cumsum(keep) - 1
        return self._changed(
            {"without": len(removed)},
            tuple(itertools.compress(self.doc_ids, keep)),
            codes,
            self.level_sizes,
            new_rows[order[keep[order]]],
        )

    def _changed(
        self,
        change: dict[str, Any],
        doc_ids: tuple[str, ...],
        codes: Int[np.ndarray, "n levels"],
        level_sizes: tuple[int, ...],
        sorted_order: Int[np.ndarray, " n"],
    ) -> DocidMap:
        """The map that a change makes of this one, with its tokens, and its order known."""
        changes = [*self.provenance.get("changes", ()), {**change, "of": self.fingerprint}]
        changed = DocidMap(
            doc_ids,
            codes,
            level_sizes,
            {**self.provenance, "changes": changes},
            self.vocabulary.eos,
            self.first_tokens,
        )
        sorted_order.flags.writeable = False
        vars(changed)["sorted_order"] = sorted_order  # where cached_property looks
        return changed

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
                "eos": self.vocabulary.eos,
                "first_tokens": self.first_tokens,
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
                # older files have neither: their maps had the tokens that codes alone give
                eos=header.get("eos"),
                first_tokens=header.get("first_tokens"),
            )
            recorded, fingerprint = str(header["fingerprint"]), docid_map.fingerprint
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: not found; it is part of a docid map written by gr-jax"
            ) from error
        except (SyntaxError, tokenize.TokenError) as error:  # NumPy at a damaged header
            raise UserError(f"{directory / 'codes.npy'}: damaged header") from error
        except (ValueError, TypeError, KeyError, EOFError, OSError) as error:
            raise UserError(f"{directory}: the docid map is damaged ({error})") from error
        if fingerprint != recorded:
            raise UserError(
                f"{directory}: the docid map does not match its fingerprint "
                f"{recorded[:12]}; make it again or restore it from a copy"
            )
        return docid_map


def _names(doc_ids: Iterable[str], what: str) -> tuple[str, ...]:
    """Documents as a tuple; one document's name is not taken for the names of its letters."""
    if isinstance(doc_ids, str):
        raise UserError(f"{what} takes a list of documents, not {doc_ids!r}: write [{doc_ids!r}]")
    return tuple(doc_ids)


def _is_frozen(codes: Any) -> bool:
    """Whether nobody can change this array, so that it needs no copy."""
    return (
        type(codes) is np.ndarray
        and codes.dtype == np.int32
        and codes.flags.c_contiguous
        and codes.flags.owndata
        and not codes.flags.writeable
    )


def _shifts(level_sizes: Sequence[int]) -> list[list[int]]:
    """Per word of `_pack`, the lowest bit of each of its levels."""
    words: list[list[int]] = []
    free = 0
    for bits in (min(size.bit_length(), 32) for size in level_sizes):  # codes are int32
        if not words or bits > free:
            words.append([])
            free = 64
        free -= bits
        words[-1].append(free)
    return words


def _pack(codes: Int[np.ndarray, "n levels"], level_sizes: Sequence[int]) -> list[np.ndarray]:
    """Docids as few words of 64 bits [n], the most significant first, that compare as docids do."""
    words, level = [], 0
    for shifts in _shifts(level_sizes):
        word = np.zeros(len(codes), np.uint64)
        for shift in shifts:
            field = (codes[:, level] + 1).view(np.uint32)  # 0 after the end: a prefix comes first
            word |= field.astype(np.uint64) << np.uint64(shift)
            level += 1
        words.append(word)
    return words


def _comparable(words: list[np.ndarray]) -> np.ndarray:
    """The words of `_pack` as one array [n] that `np.searchsorted` takes."""
    if len(words) == 1:
        return words[0]
    # bytes compare from the left, zeros behind the end counting as zeros
    table = np.stack(words, axis=1).astype(">u8")
    return table.view(f"S{8 * len(words)}")[:, 0]


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
