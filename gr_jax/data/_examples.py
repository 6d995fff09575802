"""Training examples as text files: what SeqIO reads, and what a person can read too.

One line an example: `text <TAB> docid tokens`, for instance `who won the cup<TAB>5 40 77`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from gr_jax.docids import DocidMap
from gr_jax.files import atomic_file


@dataclasses.dataclass(frozen=True)
class ExampleSource:
    """One kind of training example.

    Attributes:
      name: of the SeqIO task: `index`, `synthetic` or `queries`.
      rate: its weight in the mixture.
      examples: number of lines in its file.
    """

    name: str
    rate: float
    examples: int


def write_examples(path: Path, docid_map: DocidMap, pairs: Iterable[tuple[str, int]]) -> int:
    """Writes (text, document row) pairs as a task's file and returns how many there were.

    White space is collapsed to single spaces; a text with nothing else is left out.
    """
    targets = [" ".join(str(t) for t in row if t) for row in docid_map.tokens.tolist()]
    count = 0
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for text, row in pairs:
            text = " ".join(text.split())
            if text:
                stream.write(f"{text}\t{targets[row]}\n")
                count += 1
    return count
