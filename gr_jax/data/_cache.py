"""The token cache: a SeqIO mixture run through once, as flat memory-mapped arrays.

Training reads these arrays in the order of `_order.py`; `_build.py` writes them. SeqIO defines what
an example is; nothing of its run-time shuffling, and no TensorFlow, is on the training path.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int

from gr_jax.errors import UserError

FEATURES = ("inputs", "targets")
_BLOCK = 2**20  # examples looked at together
_FINGERPRINTED = 2048  # examples of a task


@dataclasses.dataclass(frozen=True)
class TaskCache:
    """The tokenised examples of one task.

    Attributes:
      name: of the task.
      tokens: per feature, the tokens of all examples end to end.
      offsets: per feature, int64 [examples + 1]: where each example starts.
    """

    name: str
    tokens: Mapping[str, Int[np.ndarray, " total"]]
    offsets: Mapping[str, Int[np.ndarray, " examples_1"]]

    def __len__(self) -> int:
        return len(self.offsets["inputs"]) - 1

    def lengths(self, feature: str, examples: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Number of tokens of each example."""
        offsets = self.offsets[feature]
        return (offsets[examples + 1] - offsets[examples]).astype(np.int64)

    def longest(self, feature: str) -> int:
        """Tokens of the longest example."""
        blocks = (np.arange(at, min(at + _BLOCK, len(self))) for at in range(0, len(self), _BLOCK))
        return max(int(self.lengths(feature, block).max()) for block in blocks)

    def gather(self, feature: str, examples: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
        """The tokens of some examples, end to end."""
        starts = self.offsets[feature][examples]
        return self.tokens[feature][spans(starts, self.lengths(feature, examples))]

    def example(self, feature: str, index: int) -> Int[np.ndarray, " length"]:
        """The tokens of one example."""
        offsets = self.offsets[feature]
        return self.tokens[feature][offsets[index] : offsets[index + 1]]


def spans(
    starts: Int[np.ndarray, " n"], lengths: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " total"]:
    """The numbers from each start on, as many as its length says, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))


@dataclasses.dataclass(frozen=True)
class MixtureCache:
    """The caches of a mixture's tasks, with their rates."""

    tasks: tuple[TaskCache, ...]
    rates: tuple[float, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Examples of each task."""
        return tuple(len(task) for task in self.tasks)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the order-dependent whole: names, rates, sizes, and some thousand examples of each."""
        digest = hashlib.sha256(repr(self.rates).encode())
        for task in self.tasks:
            some = np.unique(np.linspace(0, len(task) - 1, _FINGERPRINTED).astype(np.int64))
            digest.update(f"{task.name} {len(task)}".encode())
            for feature in FEATURES:
                digest.update(f"{feature} {len(task.tokens[feature])}".encode())
                digest.update(task.lengths(feature, some).tobytes())
                digest.update(task.gather(feature, some).astype("<i4").tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, directory: Path) -> MixtureCache:
        """Memory-maps what `build_cache` wrote.

        Raises:
          UserError: a file is missing or damaged.
        """
        directory = Path(directory)
        try:
            header = json.loads((directory / "mixture.json").read_text("utf-8"))
            tasks = []
            for name in header["tasks"]:
                arrays = {
                    f"{feature}.{part}": np.load(
                        directory / f"{name}.{feature}.{part}.npy",
                        mmap_mode="r",  # the offsets too: a billion of them are eight gigabytes
                        allow_pickle=False,
                    )
                    for feature in FEATURES
                    for part in ("tokens", "offsets")
                }
                tasks.append(
                    TaskCache(
                        name=name,
                        tokens={f: arrays[f"{f}.tokens"] for f in FEATURES},
                        offsets={f: arrays[f"{f}.offsets"] for f in FEATURES},
                    )
                )
                _check(tasks[-1])
            rates = tuple(float(rate) for rate in header["rates"])
            if len(rates) != len(tasks):
                raise ValueError(f"{len(rates)} rates for {len(tasks)} tasks")
        except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
            raise UserError(
                f"{directory}: the token cache is missing or damaged ({error}); "
                "delete the directory and run again"
            ) from error
        return cls(tasks=tuple(tasks), rates=rates)


def _check(task: TaskCache) -> None:
    """Raises ValueError where the arrays do not fit together."""
    for feature in FEATURES:
        offsets, tokens = task.offsets[feature], task.tokens[feature]
        if not len(offsets) or offsets[-1] != len(tokens):
            raise ValueError(f"{task.name}.{feature}: the offsets are not those of the tokens")
    if len(task.offsets["inputs"]) != len(task.offsets["targets"]):
        raise ValueError(f"{task.name}: not as many inputs as targets")
