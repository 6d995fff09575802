"""What an index returns: documents, their docids, and the trie of these, each read when wanted."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

import numpy as np

from gr_jax.corpus import read_titles
from gr_jax.decoding import Trie
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.serving._documents import Documents

type Titles = Callable[[], Iterable[tuple[str, str]]]
"""What gives (document id, title) of each document."""

_SHRUNK = 4  # a trie of that many times fewer docids than the one before has a shape of its own


class IndexedCorpus:
    """The documents of an index.

    Trie and table of documents are memory-mapped from `MODEL_DIR/trie` and `MODEL_DIR/documents`,
    where `write_tables` puts them. Where they are missing, damaged, or of other docids, they are
    made, and kept there if that can be written. One thread makes a part, the others wait for it.
    """

    def __init__(
        self,
        docid_map: DocidMap | Path,
        titles: Titles,
        folder: Path | None = None,
        before: Trie | None = None,
    ):
        """A corpus.

        Args:
          docid_map: the docids, or where they were saved; these are read when wanted.
          titles: of the documents.
          folder: the model directory; None for a corpus that is nowhere kept.
          before: of the corpus that this one follows: its vocabulary and, if that is large enough
            and not much too large, its shape are kept, and so the programs compiled for it.

        Raises:
          UserError: `docid_map` is missing or damaged.
        """
        self._lock = threading.RLock()
        self._titles, self._folder, self._before = titles, folder, before
        self._trie: Trie | None = None
        self._documents: Documents | None = None
        self._map: DocidMap | None = None
        self._saved: Path | None = None
        if isinstance(docid_map, DocidMap):
            self._map, self._codes = docid_map, docid_map.codes
            self.fingerprint = docid_map.fingerprint
        else:
            self._saved = docid_map
            self.fingerprint, self._codes = _opened(docid_map)

    @classmethod
    def open(cls, model_dir: Path) -> Self:
        """The corpus of a model directory; reads next to nothing.

        Raises:
          UserError: its docids are missing or damaged.
        """
        corpus = model_dir / "corpus" / "corpus.jsonl"
        return cls(model_dir / "docids", lambda: read_titles(corpus), model_dir)

    @property
    def docid_map(self) -> DocidMap:
        """All docids, in memory.

        Raises:
          UserError: they are damaged.
        """
        with self._lock:
            if self._map is None:
                assert self._saved is not None
                self._map = DocidMap.load(self._saved)
            return self._map

    @property
    def trie(self) -> Trie:
        """The valid docids, on the host."""
        with self._lock:
            if self._trie is None:
                self._trie = _kept(
                    self._folder and self._folder / "trie",
                    lambda place: Trie.load(place, fingerprint=self.fingerprint),
                    self._make_trie,
                    lambda trie, place: trie.save(place, self.fingerprint),
                )
            return self._trie

    @property
    def documents(self) -> Documents:
        """Ids and titles."""
        with self._lock:
            if self._documents is None:
                self._documents = _kept(
                    self._folder and self._folder / "documents",
                    lambda place: Documents.load(place, self.fingerprint),
                    lambda: Documents.make(self.docid_map.doc_ids, self._titles()),
                    lambda documents, place: documents.save(place, self.fingerprint),
                )
            return self._documents

    def __len__(self) -> int:
        return len(self._codes)

    def docid_string(self, row: int) -> str:
        """A docid as people read it: `3-1-12`."""
        return "-".join(str(code) for code in self._codes[row].tolist() if code >= 0)

    def _make_trie(self) -> Trie:
        if self._before is None:
            return Trie.from_docid_map(self.docid_map).bucketed()
        before = self._before.shape
        try:
            trie = Trie.from_docid_map(self.docid_map, before.vocabulary)
        except ValueError as error:
            raise UserError(f"the new docids do not fit the model: {error}") from error
        wanted = trie.shape.bucketed()
        if before.holds(trie.shape) and before.docids <= _SHRUNK * wanted.docids:
            return trie.pad(before)
        joined = wanted.joined(before)
        few = before.docids <= _SHRUNK * wanted.docids and joined.holds(trie.shape)
        return trie.pad(joined if few else wanted)


def write_tables(model_dir: Path, docid_map: DocidMap, titles: Iterable[tuple[str, str]]) -> None:
    """Writes what searches of a model directory read instead of its docids and its corpus.

    Raises:
      UserError: the disk is full or not writable.
    """
    Trie.from_docid_map(docid_map).bucketed().save(model_dir / "trie", docid_map.fingerprint)
    Documents.make(docid_map.doc_ids, titles).save(model_dir / "documents", docid_map.fingerprint)


def _opened(directory: Path) -> tuple[str, np.ndarray]:
    """Fingerprint and codes of a saved `DocidMap`, of which nothing else is read."""
    with contextlib.suppress(
        *(OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError, RecursionError)
    ):
        header = json.loads((directory / "docid_map.json").read_text("utf-8"))
        codes = np.load(directory / "codes.npy", mmap_mode="r", allow_pickle=False)
        if codes.shape == (header["documents"], len(header["level_sizes"])):
            return str(header["fingerprint"]), codes
    docid_map = DocidMap.load(directory)  # which says what is wrong
    return docid_map.fingerprint, docid_map.codes


def _kept[T](
    place: Path | None,
    read: Callable[[Path], T],
    make: Callable[[], T],
    write: Callable[[T, Path], None],
) -> T:
    """What lies at `place`; made, and put there if that can be done, if it cannot be read."""
    if place is None:
        return make()
    with contextlib.suppress(UserError):
        return read(place)
    made = make()
    with contextlib.suppress(UserError):
        write(made, place)
    return made
