"""Which row of a batch each example goes to."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def pack_first_fit(
    lengths: Int[np.ndarray, " n"], row_length: int, max_per_row: int
) -> Int[np.ndarray, " n"]:
    """First-fit-decreasing bin packing: each item, longest first, goes to the first row with room.

    Items of one length are placed together, since the first of them that does not fit into a row
    is the last that looks at it. So the work is a few array operations for each length there is,
    where the plain loop looks at every row for every item.

    Args:
      lengths: of the items, each from 1 to `row_length`.
      row_length: room in a row.
      max_per_row: items in a row at most.

    Returns:
      The row of each item, from 0 without gaps. Items of equal length are taken in their order.
    """
    order = np.argsort(-lengths, kind="stable")
    rows = np.empty(len(lengths), np.int64)
    # every item might need a row of its own; rows nobody is in yet have all their room
    room = np.full(len(lengths), row_length, np.int64)
    places = np.full(len(lengths), max_per_row, np.int64)
    lengths_down, starts, counts = np.unique(-lengths[order], return_index=True, return_counts=True)
    full = used = 0  # rows before `full` take nothing more, those from `used` on are empty
    groups = zip((-lengths_down).tolist(), starts.tolist(), counts.tolist(), strict=True)
    for length, start, count in groups:
        new = -(-count // min(row_length // length, max_per_row))
        seen = slice(full, used + new)
        fits = np.minimum(room[seen] // length, places[seen])
        before = np.cumsum(fits) - fits
        taken = np.clip(count - before, 0, fits)
        rows[order[start : start + count]] = np.repeat(np.arange(full, used + new), taken)
        room[seen] -= taken * length
        places[seen] -= taken
        used = max(used, full + int(np.flatnonzero(taken)[-1]) + 1)
        is_open = (room[full:used] > 0) & (places[full:used] > 0)
        full += int(is_open.argmax()) if is_open.any() else len(is_open)
    return rows
