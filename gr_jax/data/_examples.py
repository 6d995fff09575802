"""Training examples as text files: what SeqIO reads, and what a person can read too.

One line an example: `text <TAB> docid tokens`, for instance `who won the cup<TAB>5 40 77`. A task's
files are `<task>-00000-of-00012.tsv` and so on. All but the last have the same number of lines, in
the order of the examples, so their number depends on nothing but that of the examples.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.files import disk_errors

EXAMPLES_PER_FILE = 65_536


@dataclasses.dataclass(frozen=True)
class ExampleSource:
    """One kind of training example.

    Attributes:
      name: of the SeqIO task: `index`, `synthetic` or `queries`.
      rate: its weight in the mixture.
      examples: number of lines in its files.
    """

    name: str
    rate: float
    examples: int


def write_examples(
    directory: Path,
    task: str,
    docid_map: DocidMap,
    pairs: Iterable[tuple[str, int]],
    *,
    per_file: int = EXAMPLES_PER_FILE,
) -> int:
    """Writes (text, document row) pairs as a task's files and returns how many there were.

    White space is collapsed to single spaces; a text with nothing else is left out. The pairs are
    read one by one and never held. The task's older files are replaced when all pairs are written.

    Args:
      directory: of all tasks' files.
      task: name.
      docid_map: the documents' docids.
      pairs: see above.
      per_file: lines of a file.

    Raises:
      UserError: the disk is full or not writable.
    """
    directory = Path(directory)
    with disk_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        _remove_parts(directory, task)  # of a process that was killed
        try:
            parts, count, lines = [], 0, _lines(docid_map, pairs)
            while not parts or count == len(parts) * per_file:
                part = directory / f"{task}.part-{len(parts)}"
                with part.open("w", encoding="utf-8") as stream:
                    written = 0
                    for line in itertools.islice(lines, per_file):
                        stream.write(line)
                        written += 1
                    stream.flush()
                    os.fsync(stream.fileno())
                if parts and not written:
                    break
                parts.append(part)
                count += written
            for old in _files(directory, task):
                old.unlink()
            for number, part in enumerate(parts):
                part.replace(directory / f"{task}-{number:05}-of-{len(parts):05}.tsv")
        finally:
            _remove_parts(directory, task)
    return count


def example_files(directory: Path, task: str) -> list[Path]:
    """The files of a task, in the order of their examples.

    Raises:
      UserError: one is missing, or there are files of several writings.
    """
    files = _files(Path(directory), task)
    if not files:
        raise UserError(f"{directory}: no examples of {task}; delete the directory and run again")
    wanted = [f"{task}-{number:05}-of-{len(files):05}.tsv" for number in range(len(files))]
    if wrong := [file.name for file, name in zip(files, wanted, strict=True) if file.name != name]:
        raise UserError(
            f"{directory}: {wrong[0]} is not one of {len(files)} files of {task}, or some are "
            "missing; delete the directory and run again"
        )
    return files


def _lines(docid_map: DocidMap, pairs: Iterable[tuple[str, int]]) -> Iterator[str]:
    tokens = docid_map.tokens
    for text, row in pairs:
        if text := " ".join(text.split()):
            target = " ".join(str(token) for token in tokens[row].tolist() if token)
            yield f"{text}\t{target}\n"


def _files(directory: Path, task: str) -> list[Path]:
    name = re.compile(re.escape(task) + r"-\d{5,}-of-\d{5,}\.tsv")
    found = (path for path in directory.iterdir() if name.fullmatch(path.name))
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _remove_parts(directory: Path, task: str) -> None:
    for part in directory.glob(f"{task}.part-*"):
        part.unlink()
