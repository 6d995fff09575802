"""What a corpus is: documents, queries, relevance judgements. Plain values, no input or output."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Document:
    """One document, the unit that is retrieved.

    Attributes:
        doc_id: unique in its corpus; no whitespace, since TREC runs separate fields by it.
        title: may be empty.
        text: may be empty where there is a title.
    """

    doc_id: str
    title: str
    text: str

    @property
    def body(self) -> str:
        """What a model reads: `"title. text"`, or whichever of the two is present."""
        if not self.title or not self.text:
            return self.title or self.text
        # "What is DSI?. It is" would be an odd thing to learn from.
        separator = " " if self.title[-1] in ".!?" else ". "
        return f"{self.title}{separator}{self.text}"


@dataclasses.dataclass(frozen=True)
class Query:
    """One query: an id without whitespace, and the words of the user."""

    query_id: str
    text: str


@dataclasses.dataclass(frozen=True)
class QuerySet:
    """Queries with their relevance judgements.

    Attributes:
        name: of the split ("train", "test_seen"), or a name that the user gave.
        queries: in the order of the queries file; each has at least one relevant document.
        qrels: query id -> document id -> grade.
    """

    name: str
    queries: tuple[Query, ...]
    qrels: Mapping[str, Mapping[str, int]]

    def __len__(self) -> int:
        return len(self.queries)

    def relevant(self, query_id: str) -> tuple[str, ...]:
        """Returns the ids of the documents with grade >= 1, in the order of the qrels."""
        return tuple(doc_id for doc_id, grade in self.qrels[query_id].items() if grade >= 1)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The documents that can be retrieved.

    Attributes:
        name: for people; not part of the content.
        documents: in the order of the source; the position is a document's index everywhere.
        skipped: ids of documents that the source has, without title and text.
    """

    name: str
    documents: tuple[Document, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.documents)

    @functools.cached_property
    def doc_ids(self) -> frozenset[str]:
        """The ids of all documents, for membership tests."""
        return frozenset(document.doc_id for document in self.documents)

    @functools.cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of the documents in their order; the name plays no part."""
        digest = hashlib.sha256()
        for document in self.documents:
            # A JSON list delimits its strings, so no two contents give the same bytes.
            record = [document.doc_id, document.title, document.text]
            digest.update(json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n")
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Collection:
    """A corpus with its queries.

    Attributes:
        corpus: the documents.
        train: real queries to train on; None where the collection has none.
        splits: the evaluation splits by name, in alphabetical order.
    """

    corpus: Corpus
    train: QuerySet | None
    splits: Mapping[str, QuerySet]
