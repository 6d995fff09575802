"""Packed batches as a pure function of the step."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from gr_jax.data._cache import MixtureCache, TaskCache
from gr_jax.data._order import mixture_positions


class PackedBatch(NamedTuple):
    """One step's examples, several to a row.

    Attributes:
      arrays: `encoder_input_tokens`, `encoder_segment_ids` int32 [rows, row length];
        `decoder_input_tokens`, `decoder_target_tokens`, `decoder_segment_ids` int32
        [rows, row target length]; `decoder_task_ids`, the task of each target, of the same shape.
        Segments count from 1 in each row, tasks from 1 in the mixture; 0 is padding.
      examples: number of examples in the batch.
      tokens: number of real (non-padding) encoder tokens.
    """

    arrays: dict[str, Int[np.ndarray, "rows _"]]
    examples: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class Batches:
    """Random access to the batches of a run.

    Every step reads the same number of examples and packs them first-fit, longest first, into rows
    of `row_length` tokens; nothing is dropped. The number of rows is rounded up to a multiple of
    `row_multiple`, so a run sees one or two array shapes.

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
        tasks, examples = self._positions(step)
        lengths = np.empty(len(tasks), np.int64)
        for task, cache in enumerate(self.cache.tasks):
            mine = tasks == task
            lengths[mine] = cache.lengths("inputs", examples[mine])
        most = self.max_targets if self.pack else 1
        rows = pack_first_fit(lengths, self.row_length, most)
        return self._fill(tasks, examples, rows, most)

    def examples(self, step: int) -> list[tuple[TaskCache, int]]:
        """Which examples `step` reads: the task of each, and its number there.

        Example `n` of a task comes from line `n + 1` of `examples/<task>.tsv`.
        """
        tasks, examples = self._positions(step)
        return [
            (self.cache.tasks[task], example)
            for task, example in zip(tasks.tolist(), examples.tolist(), strict=True)
        ]

    def _positions(self, step: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        return mixture_positions(
            step, self.batch_size, self.cache.rates, self.cache.sizes, self.seed
        )

    def _fill(
        self, tasks: np.ndarray, examples: np.ndarray, rows: list[list[int]], most: int
    ) -> PackedBatch:
        count = -(-len(rows) // self.row_multiple) * self.row_multiple
        encoder = np.zeros((2, count, self.row_length), np.int32)
        decoder = np.zeros((4, count, most * self.target_length), np.int32)
        tokens = 0
        for r, row in enumerate(rows):
            position = target_position = 0
            for segment, i in enumerate(row, start=1):
                cache, example = self.cache.tasks[tasks[i]], int(examples[i])
                inputs = cache.example("inputs", example)
                stop = position + len(inputs)
                encoder[0, r, position:stop] = inputs
                encoder[1, r, position:stop] = segment
                position = stop
                targets = cache.example("targets", example)
                stop = target_position + len(targets)
                # shifted right within the segment: it starts with the start token, 0
                decoder[0, r, target_position + 1 : stop] = targets[:-1]
                decoder[1, r, target_position:stop] = targets
                decoder[2, r, target_position:stop] = segment
                decoder[3, r, target_position:stop] = tasks[i] + 1
                target_position = stop
            tokens += position
        arrays = {
            "encoder_input_tokens": encoder[0],
            "encoder_segment_ids": encoder[1],
            "decoder_input_tokens": decoder[0],
            "decoder_target_tokens": decoder[1],
            "decoder_segment_ids": decoder[2],
            "decoder_task_ids": decoder[3],
        }
        return PackedBatch(arrays, examples=len(tasks), tokens=tokens)


def pack_first_fit(
    lengths: Int[np.ndarray, " n"], row_length: int, max_per_row: int
) -> list[list[int]]:
    """First-fit-decreasing bin packing.

    Args:
      lengths: of the items, each at most `row_length`.
      row_length: room in a row.
      max_per_row: items in a row at most.

    Returns:
      For each row, the indices of its items. Deterministic: equal lengths keep their order.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    open_from = 0  # rows before this one are full
    for i in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[i])
        for r in range(open_from, len(rows)):
            if room[r] >= need and len(rows[r]) < max_per_row:
                break
        else:
            r = len(rows)
            rows.append([])
            room.append(row_length)
        rows[r].append(i)
        room[r] -= need
        while open_from < len(rows) and (
            room[open_from] == 0 or len(rows[open_from]) == max_per_row
        ):
            open_from += 1
    return rows
