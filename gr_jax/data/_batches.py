"""Packed batches as a pure function of the step, whole or some of their rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from gr_jax.data._cache import MixtureCache, TaskCache, spans
from gr_jax.data._order import mixture_positions
from gr_jax.data._packing import pack_first_fit


class PackedBatch(NamedTuple):
    """One step's examples, several to a row.

    Attributes:
      arrays: `encoder_input_tokens`, `encoder_segment_ids` int32 [rows, row length];
        `decoder_input_tokens`, `decoder_target_tokens`, `decoder_segment_ids` int32
        [rows, row target length]; `decoder_task_ids`, the task of each target, of the same shape.
        Segments count from 1 in each row, tasks from 1 in the mixture; 0 is padding.
      rows: number of rows of the whole batch, whichever of them the arrays hold.
      examples: number of examples in the whole batch.
      tokens: number of real (non-padding) encoder tokens in the whole batch.
    """

    arrays: dict[str, Int[np.ndarray, "rows _"]]
    rows: int
    examples: int
    tokens: int


class _Plan(NamedTuple):
    """Where every example of a step lies, ordered by row and place: the same on every host.

    Attributes:
      rows: number of rows, those of padding included.
      tasks, examples: which example [n].
      lengths: its encoder tokens [n].
      row: that it is in [n].
      first: the number, in this order, of its row's first example [n].
    """

    rows: int
    tasks: Int[np.ndarray, " n"]
    examples: Int[np.ndarray, " n"]
    lengths: Int[np.ndarray, " n"]
    row: Int[np.ndarray, " n"]
    first: Int[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random access to the batches of a run.

    Every step reads the same number of examples and packs them first-fit, longest first, into rows
    of `row_length` tokens; nothing is dropped. The number of rows is rounded up to a multiple of
    `row_multiple`, so a run sees one or two array shapes. Nothing is read but the lengths of the
    step's examples and the tokens of the rows that are asked for.

    Attributes:
      cache: the tokenised mixture.
      batch_size: examples per step.
      row_length: encoder tokens per row; at least the longest input.
      max_targets: examples per row at most, which bounds the row's docid tokens.
      target_length: tokens of the longest docid.
      row_multiple: what the number of rows is rounded up to.
      seed: of the order of examples.
      pack: False puts one example in a row.
    """

    cache: MixtureCache
    batch_size: int
    row_length: int
    max_targets: int
    target_length: int
    row_multiple: int = 8
    seed: int = 0
    pack: bool = True

    def __call__(self, step: int) -> PackedBatch:
        """The batch of `step`, the same whenever and wherever it is asked for."""
        return self.shards(step, (0,), 1)

    def shards(self, step: int, shards: Sequence[int], of: int) -> PackedBatch:
        """Some of the rows of `step`'s batch: all that a host needs whose devices hold them.

        Args:
          step: from 0.
          shards: which of the `of` equal parts of the rows, in the order wanted.
          of: number of parts; `row_multiple` is a multiple of it.
        """
        plan = self._plan(step)
        part, rest = divmod(plan.rows, of)
        if rest:
            raise ValueError(f"{plan.rows} rows do not divide into {of} parts")
        arrays = [self._fill(plan, shard * part, (shard + 1) * part) for shard in shards]
        joined = arrays[0]
        if len(arrays) > 1:
            joined = {name: np.concatenate([a[name] for a in arrays]) for name in joined}
        return PackedBatch(joined, plan.rows, len(plan.row), int(plan.lengths.sum()))

    def examples(self, step: int) -> list[tuple[TaskCache, int]]:
        """Which examples `step` reads: the task of each, and its number there."""
        tasks, examples = self._positions(step)
        return [
            (self.cache.tasks[task], example)
            for task, example in zip(tasks.tolist(), examples.tolist(), strict=True)
        ]

    def _positions(self, step: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        return mixture_positions(
            step, self.batch_size, self.cache.rates, self.cache.sizes, self.seed
        )

    def _plan(self, step: int) -> _Plan:
        tasks, examples = self._positions(step)
        lengths = np.empty(len(tasks), np.int64)
        for task, cache in enumerate(self.cache.tasks):
            mine = tasks == task
            lengths[mine] = cache.lengths("inputs", examples[mine])
        row = pack_first_fit(lengths, self.row_length, self.max_targets if self.pack else 1)
        # within a row as they were put there: longest first, equal ones in their order
        order = np.lexsort((-lengths, row))
        row = row[order]
        return _Plan(
            rows=-(-(int(row[-1]) + 1) // self.row_multiple) * self.row_multiple,
            tasks=tasks[order],
            examples=examples[order],
            lengths=lengths[order],
            row=row,
            first=np.searchsorted(row, row),
        )

    def _fill(self, plan: _Plan, start: int, stop: int) -> dict[str, Int[np.ndarray, "rows _"]]:
        """Rows `start` to `stop` as arrays."""
        wanted = slice(*np.searchsorted(plan.row, (start, stop)))
        tasks, examples = plan.tasks[wanted], plan.examples[wanted]
        rows, first = plan.row[wanted] - start, plan.first[wanted] - wanted.start
        segments = np.arange(len(rows)) - first + 1
        target_row = (self.max_targets if self.pack else 1) * self.target_length
        encoder = np.zeros((2, stop - start, self.row_length), np.int32)
        decoder = np.zeros((4, stop - start, target_row), np.int32)
        for feature, (tokens, ids) in (("inputs", encoder), ("targets", decoder[1:3])):
            lengths = np.empty(len(rows), np.int64)
            for task, cache in enumerate(self.cache.tasks):
                mine = tasks == task
                lengths[mine] = cache.lengths(feature, examples[mine])
            ends = np.cumsum(lengths)
            places = ends - lengths - (ends - lengths)[first]  # in the row
            at = rows * tokens.shape[1] + places  # in the array
            for task, cache in enumerate(self.cache.tasks):
                mine = tasks == task
                values = cache.gather(feature, examples[mine])
                tokens.reshape(-1)[spans(at[mine], lengths[mine])] = values
            ids.reshape(-1)[spans(at, lengths)] = np.repeat(segments, lengths)
            if feature == "targets":
                decoder[3].reshape(-1)[spans(at, lengths)] = np.repeat(tasks + 1, lengths)
                # shifted right within the segment: it starts with the start token, 0
                shifted = spans(at + 1, np.maximum(lengths - 1, 0))
                decoder[0].reshape(-1)[shifted] = tokens.reshape(-1)[shifted - 1]
        return {
            "encoder_input_tokens": encoder[0],
            "encoder_segment_ids": encoder[1],
            "decoder_input_tokens": decoder[0],
            "decoder_target_tokens": decoder[1],
            "decoder_segment_ids": decoder[2],
            "decoder_task_ids": decoder[3],
        }
