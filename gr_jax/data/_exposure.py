"""How often training has seen each document: from the order of examples, so nothing is recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from gr_jax.data._cache import MixtureCache, TaskCache
from gr_jax.data._order import examples_at, examples_read
from gr_jax.docids import DocidMap
from gr_jax.files import atomic_file

_BLOCK = 2**20  # examples worked on at a time


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How often the documents have been seen up to a step.

    An example counts for the document whose docid it teaches; where documents share a docid, for
    each of them, because nothing tells the model which one was meant.

    Attributes:
      steps: done.
      batch_size: examples per step.
      doc_ids: the documents.
      counts: for each task, how many of its examples each document was the target of.
      rates: the share of the examples that is each task's; together 1.
      sharing: number of documents whose docid is another's as well.
    """

    steps: int
    batch_size: int
    doc_ids: tuple[str, ...]
    counts: Mapping[str, Int[np.ndarray, " documents"]]
    rates: Mapping[str, float]
    sharing: int

    @property
    def total(self) -> Int[np.ndarray, " documents"]:
        """Over all tasks."""
        return np.sum(list(self.counts.values()), axis=0)

    def summary(self) -> dict[str, Any]:
        """The figures of each task and of all: JSON.

        `expected` is steps x batch size x rate / documents, which is the mean where no documents
        share a docid.
        """
        return {
            "steps": self.steps,
            "documents": len(self.doc_ids),
            "sharing": self.sharing,
            "total": self._figures(self.total, 1.0),
            "tasks": {n: self._figures(c, self.rates[n]) for n, c in self.counts.items()},
        }

    def _figures(self, counts: Int[np.ndarray, " documents"], rate: float) -> dict[str, float]:
        return {
            "min": int(counts.min()),
            "median": float(np.median(counts)),
            "mean": float(counts.mean()),
            "max": int(counts.max()),
            "never": int((counts == 0).sum()),
            "expected": self.steps * self.batch_size * rate / len(self.doc_ids),
        }

    def write(self, path: Path) -> None:
        """Writes a line for each document: its id, its total and its count for each task."""
        columns = [self.total, *self.counts.values()]
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
            stream.write("\t".join(["doc_id", "total", *self.counts]) + "\n")
            for row, doc_id in enumerate(self.doc_ids):
                figures = "\t".join(str(column[row]) for column in columns)
                stream.write(f"{doc_id}\t{figures}\n")


def measure_exposure(
    cache: MixtureCache, docid_map: DocidMap, *, batch_size: int, seed: int, steps: int
) -> Exposure:
    """How often a run of these examples has seen each document after `steps`.

    Whole epochs are counted, not walked through: time and memory grow with the number of examples
    and of documents, not with the steps.

    Raises:
      ValueError: the cache has a docid that no document has.
    """
    read = examples_read(steps * batch_size, cache.rates, cache.sizes)
    opens = docid_map.shared_levels < len(docid_map.level_sizes)  # in sorted order
    # where the first document with the same docid stands
    first = np.maximum.accumulate(np.where(opens, np.arange(len(opens)), 0))
    counts = {}
    for number, task in enumerate(cache.tasks):
        by_place = np.zeros(len(docid_map), np.int64)
        seen = _times_read(read[number], number, len(task), seed)
        for block in _blocks(0, len(task)):
            places = docid_map.places(_targets(task, block, docid_map.vocabulary.max_tokens))
            np.add.at(by_place, places, seen[block])
        counts[task.name] = np.empty(len(docid_map), np.int64)
        counts[task.name][docid_map.sorted_order] = by_place[first]
    weights = [rate if size else 0.0 for rate, size in zip(cache.rates, cache.sizes, strict=True)]
    shares = [weight / sum(weights) for weight in weights]
    alone = opens & np.append(opens[1:], True)
    return Exposure(
        steps=steps,
        batch_size=batch_size,
        doc_ids=docid_map.doc_ids,
        counts=counts,
        rates={task.name: share for task, share in zip(cache.tasks, shares, strict=True)},
        sharing=int((~alone).sum()),
    )


def _times_read(read: int, task: int, size: int, seed: int) -> Int[np.ndarray, " size"]:
    """How often each example of a task is among the first `read` of its."""
    epochs = read // size if size else 0
    times = np.full(size, epochs, np.int64)
    for positions in _blocks(epochs * size, read):
        times[examples_at(positions, task, size, seed)] += 1  # none twice in an epoch
    return times


def _blocks(start: int, stop: int) -> Iterator[Int[np.ndarray, " block"]]:
    for at in range(start, stop, _BLOCK):
        yield np.arange(at, min(at + _BLOCK, stop), dtype=np.int64)


def _targets(
    task: TaskCache, examples: Int[np.ndarray, " n"], width: int
) -> Int[np.ndarray, "n tokens"]:
    """The docids of some examples, 0 after their end."""
    lengths = task.lengths("targets", examples)
    tokens = np.zeros((len(examples), width), np.int32)
    tokens[np.arange(width) < lengths[:, None]] = task.gather("targets", examples)
    return tokens
