"""The order of training examples as a pure function of (seed, step).

A true global shuffle that needs no shuffled copy, no buffer and no state: example `p` of a run is
found by arithmetic, so resuming at any step is free and every host computes the same order. DSI's
published numbers were peaks of a forgetting cycle made by a 5,000-element shuffle buffer (Tay et
al. 2022, Table 6).

This is ours, not a library's, because it is what "reproduces exactly" rests on: it must not change
with a dependency's version, and it costs nanoseconds an example where generic ones cost tens of
microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import Int

_ROUNDS = 6
_SEEDS = 2**62 - 1
_HALF = Fraction(1, 2)


def _mix(x: np.ndarray, key: np.uint64) -> np.ndarray:
    """splitmix64's finaliser: a well-distributed 64-bit hash of `x` and `key`."""
    with np.errstate(over="ignore"):
        x = x + key * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(
    index: Int[np.ndarray, "*s"], size: int, seed: Int[np.ndarray, "*s"] | int
) -> Int[np.ndarray, "*s"]:
    """Where a random permutation of `range(size)` sends each index.

    A Feistel network over the next even power of two, walked until it lands inside (Black and
    Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
      index: int64, each in [0, size).
      size: number of elements, at most 2**62.
      seed: which permutation, a non-negative int64; one per index is fine.

    Returns:
      int64 of the index's shape; for one seed a bijection of range(size).
    """
    if size <= 1:
        return np.zeros_like(np.asarray(index, np.int64))
    half = np.uint64((int(size - 1).bit_length() + 1) // 2)
    low_mask = np.uint64((1 << int(half)) - 1)
    value = np.asarray(index).astype(np.uint64)
    key = _mix(np.broadcast_to(np.asarray(seed), value.shape).astype(np.uint64), np.uint64(1))

    def network(value: np.ndarray, key: np.ndarray) -> np.ndarray:
        left, right = value >> half, value & low_mask
        for round_ in range(_ROUNDS):
            mixed = _mix(right ^ key, np.uint64(round_ + 2)) & low_mask
            left, right = right, left ^ mixed
        return (left << half) | right

    value = network(value, key)
    while (outside := value >= np.uint64(size)).any():
        value = np.where(outside, network(value, key), value)
    return value.astype(np.int64)


def mixture_positions(
    step: int, batch_size: int, rates: Sequence[float], sizes: Sequence[int], seed: int
) -> tuple[Int[np.ndarray, " batch"], Int[np.ndarray, " batch"]]:
    """The examples of one step.

    After any number of steps each task has been read `rate * examples` times to within one (for up
    to three tasks; a little more beyond), so a step's shares are right to within two. A task's
    examples all come once before any comes again, in a new order each time.

    Args:
      step: from 0.
      batch_size: examples per step.
      rates: relative weight of each task, not all zero.
      sizes: number of examples of each task; tasks without examples are passed over.
      seed: of the run.

    Returns:
      (task, example index in that task), int64 [batch_size] each.
    """
    start = examples_read(step * batch_size, rates, sizes)
    stop = examples_read((step + 1) * batch_size, rates, sizes)
    tasks, examples = [], []
    for task, size in enumerate(sizes):
        positions = np.arange(start[task], stop[task], dtype=np.int64)
        if not len(positions):
            continue
        tasks.append(np.full(len(positions), task, np.int64))
        examples.append(examples_at(positions, task, size, seed))
    return np.concatenate(tasks), np.concatenate(examples)


def examples_read(total: int, rates: Sequence[float], sizes: Sequence[int]) -> list[int]:
    """How many of the first `total` examples of a run are each task's; see `mixture_positions`.

    Each task in turn takes its rounded share of what is left. Exact fractions, so that no count
    ever decreases as `total` grows.
    """
    weights = [Fraction(r) if n else Fraction(0) for r, n in zip(rates, sizes, strict=True)]
    if not sum(weights) > 0 or min(weights) < 0:
        raise ValueError(f"no task with examples and a positive rate: {list(rates)}, {list(sizes)}")
    counts, left, weight_left = [], total, sum(weights)
    for weight in weights:
        counts.append(math.floor(left * weight / weight_left + _HALF) if weight else 0)
        left, weight_left = left - counts[-1], weight_left - weight
    return counts


def examples_at(
    positions: Int[np.ndarray, " n"], task: int, size: int, seed: int
) -> Int[np.ndarray, " n"]:
    """Which of its `size` examples a task reads as its 0th, 1st, ... `positions`th of a run."""
    epoch, offset = np.divmod(positions, size)
    task_seed = (seed * 1_000_003 + task) * 1_000_003 & _SEEDS  # a Python int: any size
    return permute(offset, size, (task_seed + epoch) & _SEEDS)
