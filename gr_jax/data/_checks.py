"""Whether the examples of somebody else's mixture are of this model's tokens."""

from __future__ import annotations

import numpy as np

from gr_jax.data._cache import MixtureCache, spans
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError

_BLOCK = 2**18  # examples looked at together


def check_tokens(cache: MixtureCache, docid_map: DocidMap, vocab_size: int) -> None:
    """Refuses examples that no `docid_map` and no tokenizer of `vocab_size` pieces have made.

    Raises:
      UserError: an input is empty or has an unknown token, or a target is not a docid of the map.
    """
    width = docid_map.tokens.shape[1]
    row = np.dtype((np.void, docid_map.tokens.dtype.itemsize * width))
    known = np.unique(np.ascontiguousarray(docid_map.tokens).view(row))
    for task in cache.tasks:
        for start in range(0, len(task), _BLOCK):
            examples = np.arange(start, min(start + _BLOCK, len(task)))
            inputs, lengths = task.gather("inputs", examples), task.lengths("inputs", examples)
            if lengths.min() < 1 or inputs.min() < 1 or inputs.max() >= vocab_size:
                raise UserError(
                    f"{task.name}: has inputs without tokens, or with tokens that are not from 1 "
                    f"to {vocab_size - 1}: give its vocabulary as SENTENCEPIECE"
                )
            targets, lengths = task.gather("targets", examples), task.lengths("targets", examples)
            rows = np.zeros((len(examples), max(width, int(lengths.max()))), docid_map.tokens.dtype)
            rows.reshape(-1)[spans(np.arange(len(rows)) * rows.shape[1], lengths)] = targets
            bad = rows[:, width:].any(axis=1)
            bad |= ~np.isin(np.ascontiguousarray(rows[:, :width]).view(row)[:, 0], known)
            if bad.any():
                number = int(bad.argmax())
                raise UserError(
                    f"{task.name}: the target of example {start + number}, "
                    f"{task.example('targets', start + number).tolist()}, is not a docid of "
                    "MODEL_DIR/docids"
                )
