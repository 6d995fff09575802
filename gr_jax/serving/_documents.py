"""Ids and titles of an index's documents as flat arrays, to be read where they are wanted."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Int, UInt

from gr_jax.array_files import Expected, load_arrays, save_arrays
from gr_jax.errors import UserError

_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Documents:
    """A table of documents: an answer's take a few reads of it, whatever the corpus.

    Attributes:
      text: UTF-8 of all ids and titles.
      places: where in `text` each document's id starts, its title starts, and that ends.
      hashes: of all ids, in order.
      rows: the document of each hash.
    """

    text: UInt[np.ndarray, " bytes"]
    places: Int[np.ndarray, "documents 3"]
    hashes: UInt[np.ndarray, " documents"]
    rows: Int[np.ndarray, " documents"]

    @classmethod
    def make(cls, doc_ids: Sequence[str], titles: Iterable[tuple[str, str]]) -> Self:
        """The table of documents by row, with what `titles` (id, title) calls them.

        Titles of other documents are passed over; a document without one has the title "".
        """
        text, places = bytearray(), np.zeros((len(doc_ids), 3), np.int64)
        missing = {doc_id: row for row, doc_id in enumerate(doc_ids)}

        def add(row: int, doc_id: str, title: str) -> None:
            start = len(text)
            text.extend(doc_id.encode())
            middle = len(text)
            text.extend(title.encode("utf-8", "replace"))
            places[row] = start, middle, len(text)

        for doc_id, title in titles:
            row = missing.pop(doc_id, None)
            if row is not None:
                add(row, doc_id, title)
        for doc_id, row in missing.items():
            add(row, doc_id, "")
        hashes = np.fromiter(map(_hash, doc_ids), np.uint64, len(doc_ids))
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        return cls(np.frombuffer(text, np.uint8), places, hashes[order], order)

    def __len__(self) -> int:
        return len(self.places)

    def doc_id(self, row: int) -> str:
        """A document's id."""
        start, end, _ = self.places[row].tolist()
        return self.text[start:end].tobytes().decode()

    def title(self, row: int) -> str:
        """A document's title."""
        _, start, end = self.places[row].tolist()
        return self.text[start:end].tobytes().decode()

    def rows_of(self, doc_ids: Iterable[str]) -> Int[np.ndarray, " n"]:
        """The rows of documents.

        Raises:
          UserError: there is no such document, or an id is no text.
        """
        asked = list(doc_ids)
        for doc_id in asked:
            if not isinstance(doc_id, str):
                raise UserError(f"a document id is {doc_id!r}: text is needed")
        wanted = np.fromiter(map(_hash, asked), np.uint64, len(asked))
        first = np.searchsorted(self.hashes, wanted).tolist()
        found = [self._row(*one) for one in zip(asked, wanted, first, strict=True)]
        unknown = [doc_id for doc_id, row in zip(asked, found, strict=True) if row < 0]
        if unknown:
            others = f" (nor {len(unknown) - 1:,} others of those given)" if unknown[1:] else ""
            raise UserError(f"the document {unknown[0]!r} is not in the index{others}")
        return np.asarray(found, np.int64)

    def _row(self, doc_id: str, wanted: np.uint64, place: int) -> int:
        while place < len(self) and self.hashes[place] == wanted:
            row = int(self.rows[place])
            if self.doc_id(row) == doc_id:
                return row
            place += 1  # another document's id has the same hash
        return -1

    def save(self, directory: Path, fingerprint: str) -> None:
        """Writes the table to `directory` (made, or replaced whole), with its `DocidMap`'s mark.

        Raises:
          UserError: the disk is full or not writable.
        """
        record: dict[str, Any] = {"format": _FORMAT, "fingerprint": fingerprint}
        record |= {"documents": len(self), "bytes": len(self.text)}
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        save_arrays(directory, "documents", record, fields)

    @classmethod
    def load(cls, directory: Path, fingerprint: str) -> Self:
        """Reads what `save` wrote, memory-mapped.

        Raises:
          UserError: a file is missing or damaged, or the table is another corpus's.
        """

        def describe(header: dict[str, Any]) -> tuple[None, Expected]:
            n = header["documents"]
            return None, {
                "text": ((header["bytes"],), np.dtype(np.uint8)),
                "places": ((n, 3), np.dtype(np.int64)),
                "hashes": ((n,), np.dtype(np.uint64)),
                "rows": ((n,), np.dtype(np.int32)),
            }

        _, arrays = load_arrays(
            directory, "documents", version=_FORMAT, fingerprint=fingerprint, describe=describe
        )
        return cls(*arrays)


def _hash(doc_id: str) -> int:
    """64 bits that are the same in every process."""
    digest = hashlib.blake2b(doc_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
