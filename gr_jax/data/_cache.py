"""The token cache: a SeqIO mixture run through once, as flat memory-mapped arrays.

Training reads these arrays in the order of `_order.py`. SeqIO defines what an example is; nothing
of its run-time shuffling, and no TensorFlow, is on the training path.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from gr_jax.data._examples import ExampleSource
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.files import atomic_directory

_READ_BATCH = 4096
_FEATURES = ("inputs", "targets")


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
                        mmap_mode="r" if part == "tokens" else None,
                        allow_pickle=False,
                    )
                    for feature in _FEATURES
                    for part in ("tokens", "offsets")
                }
                tasks.append(
                    TaskCache(
                        name=name,
                        tokens={f: arrays[f"{f}.tokens"] for f in _FEATURES},
                        offsets={f: arrays[f"{f}.offsets"] for f in _FEATURES},
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
    for feature in _FEATURES:
        offsets, tokens = task.offsets[feature], task.tokens[feature]
        if not len(offsets) or offsets[-1] != len(tokens):
            raise ValueError(f"{task.name}.{feature}: the offsets are not those of the tokens")
    if len(task.offsets["inputs"]) != len(task.offsets["targets"]):
        raise ValueError(f"{task.name}: not as many inputs as targets")


def register_prepared(model_dir: str | Path, name: str = "gr_jax") -> str:
    """Registers the SeqIO tasks and the mixture of a prepared model directory.

    Args:
      model_dir: what `gr_jax.pipeline.prepare` filled.
      name: prefix of the tasks, and name of the mixture.

    Returns:
      The mixture's name.

    Raises:
      UserError: the directory is not prepared.
    """
    path = Path(model_dir)
    record = path / "cache" / "mixture.json"
    try:
        header = json.loads(record.read_text("utf-8"))
        rates = dict(zip(header["tasks"], header["rates"], strict=True))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{record}: not a prepared model directory ({error})") from error
    return _register(
        name,
        path / "examples",
        rates,
        path / "vocabulary" / "sentencepiece.model",
        DocidMap.load(path / "docids").vocabulary.size,
    ).name


def _register(
    name: str,
    examples: Path,
    rates: Mapping[str, float],
    sentencepiece: Path,
    target_vocab_size: int,
) -> Any:
    from gr_jax.data import _seqio  # TensorFlow

    for source in rates:
        _seqio.register_task(
            f"{name}_{source}",
            examples / f"{source}.tsv",
            sentencepiece=sentencepiece,
            target_vocab_size=target_vocab_size,
        )
    return _seqio.register_mixture(name, {f"{name}_{s}": rate for s, rate in rates.items()})


def build_cache(
    directory: Path,
    *,
    name: str,
    examples: Path,
    sources: Sequence[ExampleSource],
    sentencepiece: Path,
    target_vocab_size: int,
    input_length: int,
    target_length: int,
) -> MixtureCache:
    """Registers the tasks and the mixture with SeqIO and writes every example's tokens.

    Args:
      directory: where the cache goes; replaced whole.
      name: prefix of the SeqIO names: tasks `<name>_<source>` and mixture `<name>`.
      examples: folder with one `<source>.tsv` per source.
      sources: the tasks and their rates; those without examples are left out.
      sentencepiece: the input vocabulary.
      target_vocab_size: number of docid tokens.
      input_length: inputs are cut to this many tokens, the end token included.
      target_length: the longest docid in tokens.
    """
    lengths = {"inputs": input_length, "targets": target_length}
    rates = {s.name: s.rate for s in sources if s.examples and s.rate > 0}
    mixture = _register(name, Path(examples), rates, Path(sentencepiece), target_vocab_size)
    with atomic_directory(Path(directory)) as temporary:
        for task in mixture.tasks:
            short = task.name.removeprefix(f"{name}_")
            parts = {feature: ([], [np.zeros(1, np.int64)]) for feature in _FEATURES}
            dataset = task.get_dataset(
                sequence_length=lengths, split="train", shuffle=False, num_epochs=1
            )
            for batch in dataset.ragged_batch(_READ_BATCH):
                for feature, (tokens, offsets) in parts.items():
                    values, splits = _flat(batch[feature])
                    tokens.append(values.astype(np.int32))
                    offsets.append(splits[1:] + offsets[-1][-1])
            for feature, (tokens, offsets) in parts.items():
                np.save(temporary / f"{short}.{feature}.tokens.npy", np.concatenate(tokens))
                np.save(temporary / f"{short}.{feature}.offsets.npy", np.concatenate(offsets))
        header = {
            "mixture": name,
            "tasks": [task.name.removeprefix(f"{name}_") for task in mixture.tasks],
            "rates": [mixture.get_rate(task) for task in mixture.tasks],
        }
        (temporary / "mixture.json").write_text(json.dumps(header) + "\n", "utf-8")
    return MixtureCache.load(directory)


def _flat(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values and row splits of a ragged tensor, or of a dense one (all rows of one length)."""
    if hasattr(batch, "flat_values"):
        return batch.flat_values.numpy(), batch.row_splits.numpy().astype(np.int64)
    rows, width = batch.shape
    return batch.numpy().reshape(-1), np.arange(rows + 1, dtype=np.int64) * width
