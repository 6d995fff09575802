"""Collections in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv, each maybe .gz."""

import dataclasses
import json
import os
from collections.abc import Collection as AbstractCollection
from collections.abc import Iterator, Mapping
from pathlib import Path

from gr_jax.corpus._lines import json_objects, lines, record_id, text_field
from gr_jax.corpus._types import Collection, Corpus, Document, Query, QuerySet
from gr_jax.errors import UserError
from gr_jax.files import atomic_file

_DOCUMENT = '{"_id": "d1", "title": "...", "text": "..."}'
_QUERY = '{"_id": "q1", "text": "..."}'
_QREL = '"query-id<TAB>corpus-id<TAB>score" or TREC\'s "query-id 0 corpus-id score"'

type StrPath = str | os.PathLike[str]


def read_corpus(path: StrPath, *, strict: bool = False) -> Corpus:
    """Reads the documents of a collection.

    Args:
        path: corpus.jsonl, corpus.jsonl.gz, or the folder that holds one of them.
        strict: refuse documents without title and text, instead of skipping them.

    Returns:
        The corpus, named after its folder (or after its file, where that is not "corpus").

    Raises:
        UserError: if the file is missing, unreadable or empty, or a line is no document; the
            message names the line.
    """
    file = _find(Path(path), "corpus.jsonl", f"one line per document, like {_DOCUMENT}")
    documents: list[Document] = []
    skipped: list[str] = []
    first_line: dict[str, int] = {}
    for number, record in json_objects(file, _DOCUMENT):
        where = f"{file}:{number}"
        doc_id = record_id(record, where, _DOCUMENT)
        if (first := first_line.setdefault(doc_id, number)) != number:
            raise UserError(
                f'{where}: document id "{doc_id}" is also on line {first}; make ids unique'
            )
        title, text = text_field(record, "title", where), text_field(record, "text", where)
        if title.strip() or text.strip():
            documents.append(Document(doc_id, title, text))
        else:
            skipped.append(doc_id)
    if skipped and (strict or not documents):
        few = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        raise UserError(
            f"{file}: {len(skipped)} of {len(first_line)} documents have neither title nor text "
            f"({few}); give them text or remove them" + (", or drop strict" if documents else "")
        )
    if not documents:
        raise UserError(f"{file}: no documents; each line is one object like {_DOCUMENT}")
    stem = _stem(file)
    name = file.resolve().parent.name if stem == "corpus" else stem
    return Corpus(name, tuple(documents), tuple(skipped))


def write_corpus(corpus: Corpus, path: StrPath) -> None:
    """Writes corpus.jsonl, so that reading it gives the same fingerprint.

    The bytes depend on the documents only. Skipped documents are not written.

    Args:
        corpus: what to write.
        path: the file; an older one is replaced when the new one is complete.

    Raises:
        UserError: if a document could not be read back: an id with whitespace, no text at all, or
            half a surrogate pair in the text; or if the disk is full or not writable.
    """
    file = Path(path)
    with atomic_file(file) as temporary, temporary.open("wb") as stream:
        for document in corpus.documents:
            record = {"_id": document.doc_id, "title": document.title, "text": document.text}
            record_id(record, f'{file}: document "{document.doc_id}"', _DOCUMENT)
            if not document.body.strip():
                raise UserError(f'{file}: document "{document.doc_id}" has neither title nor text')
            line = json.dumps(record, ensure_ascii=False) + "\n"
            try:
                stream.write(line.encode("utf-8"))
            except UnicodeEncodeError:
                raise UserError(
                    f'{file}: document "{document.doc_id}" has half a surrogate pair in its text, '
                    "which is no character; replace it"
                ) from None


def read_titles(path: StrPath) -> Iterator[tuple[str, str]]:
    """Yields (document id, title) of each line of a corpus.jsonl, one line in memory at a time.

    Raises:
        UserError: if the file is missing or unreadable, or a line is no document.
    """
    file = Path(path)
    for number, record in json_objects(file, _DOCUMENT):
        where = f"{file}:{number}"
        yield record_id(record, where, _DOCUMENT), text_field(record, "title", where)


def read_ids(path: StrPath) -> list[str]:
    """Reads a file of document ids, one on a line.

    Raises:
        UserError: if the file is missing, unreadable or not UTF-8.
    """
    return [line.strip() for _, line in lines(Path(path))]


def read_queries(path: StrPath) -> dict[str, Query]:
    """Reads queries.jsonl(.gz), or the one in a folder, in its order.

    Raises:
        UserError: if the file is missing, unreadable or empty, or a line is no query.
    """
    file = _find(Path(path), "queries.jsonl", f"one line per query, like {_QUERY}")
    queries: dict[str, Query] = {}
    first_line: dict[str, int] = {}
    for number, record in json_objects(file, _QUERY):
        where = f"{file}:{number}"
        query_id = record_id(record, where, _QUERY)
        if query_id in queries:
            raise UserError(
                f'{where}: query id "{query_id}" is also on line {first_line[query_id]}; '
                "make ids unique"
            )
        text = text_field(record, "text", where)
        if not text.strip():
            raise UserError(f'{where}: query "{query_id}" has no text; give it some or remove it')
        queries[query_id] = Query(query_id, text)
        first_line[query_id] = number
    if not queries:
        raise UserError(f"{file}: no queries; each line is one object like {_QUERY}")
    return queries


def read_qrels(path: StrPath) -> dict[str, dict[str, int]]:
    """Reads relevance judgements, BEIR's tsv or TREC's four columns, maybe .gz.

    Returns:
        query id -> document id -> grade, in the order of the file.

    Raises:
        UserError: if the file is missing, unreadable or empty, or a line is no judgement.
    """
    return _group(_judgements(Path(path)))


def read_collection(folder: StrPath, *, strict: bool = False) -> Collection:
    """Reads a folder with corpus.jsonl, queries.jsonl and qrels/*.tsv, each maybe .gz.

    qrels/train.tsv is to train on; every other file is an evaluation split with its name, except
    that `test` is left out where both `test_seen` and `test_unseen` exist, whose union it is. A
    folder with neither queries.jsonl nor qrels/ is a collection without queries.

    Args:
        folder: the folder.
        strict: refuse documents without title and text, instead of skipping them.

    Raises:
        UserError: as the readers of the single files, and if qrels name unknown ids.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; expected one with corpus.jsonl, queries.jsonl and qrels/"
        )
    corpus = read_corpus(folder, strict=strict)
    qrels_folder = folder / "qrels"
    has_queries = any((folder / f"queries.jsonl{suffix}").is_file() for suffix in ("", ".gz"))
    if not has_queries and not qrels_folder.exists():
        return Collection(corpus, None, {})
    if not qrels_folder.is_dir():
        raise UserError(f"{qrels_folder}: no such folder; expected qrels/<split>.tsv in it")
    queries = read_queries(folder)
    files: dict[str, Path] = {}
    for file in sorted(qrels_folder.iterdir()):
        if not file.name.endswith((".tsv", ".tsv.gz")):
            continue
        if (twin := files.setdefault(_stem(file), file)) != file:
            raise UserError(f"{file}: {twin.name} is the same split; remove one of them")
    if not files:
        raise UserError(
            f"{qrels_folder}: no qrels; expected <split>.tsv with lines of {_QREL.split(' or ')[0]}"
        )
    if {"test_seen", "test_unseen"} <= files.keys():
        files.pop("test", None)
    sets = {
        split: _query_set(
            _Judged(split, file, folder / "queries.jsonl"),
            queries,
            corpus.doc_ids,
            frozenset(corpus.skipped),
        )
        for split, file in files.items()
    }
    return Collection(corpus, sets.pop("train", None), sets)


def read_query_set(
    queries_path: StrPath,
    qrels_path: StrPath,
    doc_ids: AbstractCollection[str],
    name: str,
    *,
    skipped: AbstractCollection[str] = (),
) -> QuerySet:
    """Reads queries with judgements about a corpus that is already there.

    Args:
        queries_path: queries.jsonl(.gz).
        qrels_path: BEIR or TREC qrels.
        doc_ids: the corpus's document ids.
        name: of the set that is returned.
        skipped: ids of documents without text, which qrels may name (`Corpus.skipped`).

    Raises:
        UserError: if a file is missing or malformed, or the qrels name unknown ids.
    """
    queries = read_queries(queries_path)
    judged = _Judged(name, Path(qrels_path), Path(queries_path))
    return _query_set(judged, queries, frozenset(doc_ids), frozenset(skipped))


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Where a query set comes from; the paths are for its error messages."""

    name: str
    qrels: Path
    queries: Path


@dataclasses.dataclass(frozen=True)
class _Judgement:
    where: str  # file:line
    query_id: str
    doc_id: str
    grade: int


def _query_set(
    source: _Judged,
    queries: Mapping[str, Query],
    doc_ids: frozenset[str],
    skipped: frozenset[str],
) -> QuerySet:
    """Joins queries and qrels: the queries that a qrels file names, in the queries' order."""
    judgements = list(_judgements(source.qrels))
    if not any(judgement.query_id in queries for judgement in judgements):
        raise UserError(
            f"{source.qrels}: names none of the {len(queries)} queries of {source.queries}; "
            "give the qrels that belong to these queries"
        )
    for judgement in judgements:
        if judgement.query_id not in queries:
            raise UserError(
                f'{judgement.where}: query "{judgement.query_id}" is not in {source.queries}; '
                "add it there or remove the line"
            )
        if judgement.doc_id not in doc_ids and judgement.doc_id not in skipped:
            raise UserError(
                f'{judgement.where}: document "{judgement.doc_id}" is not in the corpus; '
                "add it there or remove the line"
            )
    qrels = {
        query_id: grades
        for query_id, grades in _group(j for j in judgements if j.doc_id in doc_ids).items()
        if any(grade >= 1 for grade in grades.values())  # without one, no metric is defined
    }
    if not qrels:
        raise UserError(
            f"{source.qrels}: no query has a relevant document (score >= 1) with text in the corpus"
        )
    kept = tuple(query for query_id, query in queries.items() if query_id in qrels)
    return QuerySet(source.name, kept, {query.query_id: qrels[query.query_id] for query in kept})


def _judgements(path: Path) -> Iterator[_Judgement]:
    """Yields the lines of a qrels file; refuses malformed ones, and a file without any."""
    if path.is_dir():
        raise UserError(f"{path}: a folder; expected a qrels file with lines of {_QREL}")
    empty, header_allowed = True, True
    for number, line in lines(path):
        fields = line.split()
        if header_allowed and fields[0].lower() in ("query-id", "query_id", "qid"):
            header_allowed = False
            continue
        header_allowed = empty = False
        if len(fields) not in (3, 4):
            raise UserError(f"{path}:{number}: {len(fields)} columns; expected {_QREL}")
        # TREC's second column is an iteration number that nobody uses.
        query_id, doc_id, score = fields[0], fields[-2], fields[-1]
        yield _Judgement(f"{path}:{number}", query_id, doc_id, _grade(score, path, number))
    if empty:
        raise UserError(f"{path}: no judgements; expected lines of {_QREL}")


def _grade(score: str, path: Path, number: int) -> int:
    try:
        grade = float(score)
        if grade.is_integer():
            return int(grade)
    except ValueError:
        pass
    raise UserError(f"{path}:{number}: score {score!r} is not a whole number; write 0, 1, 2, ...")


def _group(judgements: Iterator[_Judgement]) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for judgement in judgements:
        grades = qrels.setdefault(judgement.query_id, {})
        if grades.setdefault(judgement.doc_id, judgement.grade) != judgement.grade:
            raise UserError(
                f'{judgement.where}: query "{judgement.query_id}" and document '
                f'"{judgement.doc_id}" have score {grades[judgement.doc_id]} on an earlier line '
                f"and {judgement.grade} here; keep one"
            )
    return qrels


def _find(path: Path, name: str, content: str) -> Path:
    """Returns `path`, or the file `name` or `name`.gz in it where it is a folder."""
    if path.is_dir():
        for file in (path / name, path / f"{name}.gz"):
            if file.is_file():
                return file
        raise UserError(f"{path}: no {name} or {name}.gz in this folder; expected {content}")
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; expected {name}: {content}")
    return path


def _stem(file: Path) -> str:
    """The name of a file without .gz and the ending before it."""
    return Path(file.name.removesuffix(".gz")).stem
