"""Run files: ranked documents per query, in TREC's six columns.

The order of a `Run` is its truth, but a run file has no order: trec_eval and the tools after it
ignore the rank column, store scores in single precision, sort by score and break ties by document
id, highest first. `write_run` therefore writes scores that fall strictly in single precision, so
that every tool, here or elsewhere, sees the ranking that was measured; `read_run` sorts as
trec_eval does, so that a foreign file measures here as it does there.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from gr_jax.errors import UserError
from gr_jax.files import atomic_file

Run = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> (document id, score), best first."""

_SPACE = re.compile(r"\s")


def write_run(path: str | Path, run: Run, tag: str) -> None:
    """Writes a run as a TREC file, `qid Q0 docid rank score tag`, whole or not at all.

    Equal runs give equal bytes: queries come in the order of their ids, ranks start at 1. A score
    is written as it is (shortest text that reads back the same) while it falls below the one
    above it. Where it ties, or rises, it is replaced by the next lower single-precision number
    under the score above it (`nextafter`): the smallest change that every tool can see.

    Args:
        path: Where to write; missing folders are made, an existing file is replaced.
        run: The ranked documents of each query. A query without documents leaves no line.
        tag: The name of the system, without spaces.

    Raises:
        UserError: If an id or the tag is empty or has white space (the format separates columns by
            it), a document comes twice for a query, a score is not finite in single precision, or
            the file cannot be written.
    """
    path = Path(path)
    _check_word(path, "the tag", tag)
    lines = []
    for query_id in sorted(run):
        ranking = run[query_id]
        _check_word(path, "query id", query_id)
        check_unique(str(path), query_id, ranking)
        scores = _falling_scores([score for _, score in ranking])
        if scores is None:
            raise UserError(
                f"{path}: query {query_id!r} has a score outside single precision's range; "
                "write finite scores below 3.4e38"
            )
        for rank, ((doc_id, _), score) in enumerate(zip(ranking, scores, strict=True), start=1):
            _check_word(path, "document id", doc_id)
            lines.append(f"{query_id} Q0 {doc_id} {rank} {score!r} {tag}\n")
    with atomic_file(path) as part:
        part.write_text("".join(lines), encoding="utf-8", newline="\n")


def write_certificates(run: str | Path, certificates: Mapping[str, tuple[bool, int]]) -> Path:
    """Writes what a TREC run cannot hold beside it, a JSON object per query, by id.

    `{"query_id": "q1", "exact": true, "beam": 20}`: whether the query's ranking is proven to be the
    best of the whole corpus, and the width of the beam that gave it.

    Args:
        run: The run file. `RUN.certificates.jsonl` is written, whole or not at all.
        certificates: (exact, beam) of each query.

    Returns:
        The file that was written.

    Raises:
        UserError: If the file cannot be written.
    """
    path = Path(f"{run}.certificates.jsonl")
    lines = [
        json.dumps({"query_id": query_id, "exact": exact, "beam": beam}, ensure_ascii=False) + "\n"
        for query_id, (exact, beam) in sorted(certificates.items())
    ]
    with atomic_file(path) as part:
        part.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Reads a TREC run file into rankings, best first, in the order trec_eval would use.

    Args:
        path: A file of `qid Q0 docid rank score tag` lines; empty lines are skipped.

    Returns:
        The (document id, score) pairs of each query, queries in the order of the file. Documents
        with equal scores (in single precision) follow trec_eval: the greater id first.

    Raises:
        UserError: Naming the file and line, if the file is missing, not UTF-8, or a line is not
            six columns with a finite score, or names a document twice for its query.
    """
    path = Path(path)
    found: dict[str, dict[str, float]] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if columns := line.split():
                    query_id, doc_id, score = _parse_line(f"{path}:{number}", columns)
                    scores = found.setdefault(query_id, {})
                    if doc_id in scores:
                        raise UserError(
                            f"{path}:{number}: document {doc_id!r} comes twice for query "
                            f"{query_id!r}; keep one line"
                        )
                    scores[doc_id] = score
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason}; convert it first") from error
    return {query_id: _trec_order(scores) for query_id, scores in found.items()}


def check_unique(where: str, query_id: str, ranking: Sequence[tuple[str, float]]) -> None:
    """Refuses a ranking that holds a document twice: every metric would count it twice.

    Args:
        where: The start of the message: a file, or what the ranking belongs to.
        query_id: The query of the ranking.
        ranking: (document id, score) pairs.

    Raises:
        UserError: Naming the first document that comes a second time.
    """
    seen: set[str] = set()
    for doc_id, _ in ranking:
        if doc_id in seen:
            raise UserError(
                f"{where}: document {doc_id!r} is ranked twice for query {query_id!r}; "
                "keep its best rank only"
            )
        seen.add(doc_id)


def _falling_scores(scores: Sequence[float]) -> list[float] | None:
    """The scores, nudged down where they do not fall; None where one is not a finite float32."""
    exact = [float(score) for score in scores]
    with np.errstate(over="ignore"):
        single = np.asarray(exact, dtype=np.float32)
        for i in range(1, len(single) if np.any(single[1:] >= single[:-1]) else 0):
            if single[i] >= single[i - 1]:
                single[i] = np.nextafter(single[i - 1], np.float32(-np.inf))
                exact[i] = float(single[i])
    return exact if np.all(np.isfinite(single)) else None


def _parse_line(where: str, columns: list[str]) -> tuple[str, str, float]:
    """One line's query id, document id and score."""
    if len(columns) != 6:
        raise UserError(
            f"{where}: {len(columns)} columns where a run has 6: qid Q0 docid rank score tag"
        )
    try:
        score = float(columns[4])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise UserError(f"{where}: the score {columns[4]!r} is not a finite number; correct it")
    return columns[0], columns[2], score


def _trec_order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Documents as trec_eval sorts them: by single-precision score, then id, both falling."""
    with np.errstate(over="ignore"):
        return sorted(scores.items(), key=lambda e: (np.float32(e[1]), e[0]), reverse=True)


def _check_word(path: Path, what: str, word: str) -> None:
    """Refuses what would not stay one column."""
    if not word or _SPACE.search(word):
        raise UserError(
            f"{path}: {what} {word!r} is empty or has white space, which a TREC run cannot hold; "
            "rename it"
        )
