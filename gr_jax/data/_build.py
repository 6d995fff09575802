"""Writes the token cache: every file of a SeqIO mixture is run through once, in bounded memory.

A file is tokenised by itself, by this process or another one, into two plain files of numbers per
feature; these are then put end to end. So the cache is the same byte for byte whatever the number
of processes, and nothing is held but a few thousand examples at a time.
"""

from __future__ import annotations

import concurrent.futures.process
import contextlib
import json
import multiprocessing
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from gr_jax.data._cache import FEATURES, MixtureCache
from gr_jax.data._growing import GrowingArray
from gr_jax.data._mixture import MixtureSource
from gr_jax.errors import UserError
from gr_jax.files import atomic_directory

_READ_BATCH = 4096
_BLOCK = 2**16  # lengths that are added up at a time
_SAMPLES = 64  # examples of a task that must be in its SeqIO cache


class _Shard(NamedTuple):
    """One file of a task to tokenise.

    Attributes:
      task: SeqIO's name.
      number, of: which file.
      lengths: tokens of each feature at most.
      cached: whether SeqIO reads its own cache.
      samples: see `_sample`: what to look for among the examples.
      stem: path and beginning of the name of what is written.
    """

    task: str
    number: int
    of: int
    lengths: Mapping[str, int]
    cached: bool
    samples: frozenset[bytes]
    stem: Path

    def path(self, feature: str, part: str) -> Path:
        """Of the numbers written: `tokens`, or the `lengths` of the examples."""
        return self.stem.with_name(f"{self.stem.name}.{feature}.{part}")


def build_cache(
    directory: Path,
    mixture: MixtureSource,
    *,
    input_length: int,
    target_length: int,
    cache_dirs: tuple[str, ...] = (),
    workers: int = 1,
) -> MixtureCache:
    """Registers the tasks and the mixture with SeqIO and writes every example's tokens.

    Args:
      directory: where the cache goes; replaced whole.
      mixture: what to read.
      input_length: inputs are cut to this many tokens, the end token included.
      target_length: the longest docid in tokens.
      cache_dirs: where `seqio_cache_tasks` has written the tasks' caches, to read these instead of
        the examples.
      workers: processes that tokenise; 1 is this one.

    Raises:
      UserError: a task is in none of `cache_dirs`, or what is there is of other examples.
    """
    seqio_mixture = _prepare(mixture, cache_dirs)
    lengths = {"inputs": input_length, "targets": target_length}
    with atomic_directory(Path(directory)) as temporary:
        parts = temporary / "parts"
        parts.mkdir()
        shards = {
            task.name: _shards(task, mixture, parts, lengths, cached=bool(cache_dirs))
            for task in seqio_mixture.tasks
        }
        every = [shard for of_task in shards.values() for shard in of_task]
        with contextlib.closing(_run(mixture, cache_dirs, workers, every)) as found:
            for task, of_task in shards.items():
                short, missing = mixture.short(task), of_task[0].samples
                with _Joined(temporary, short) as joined:
                    for shard in of_task:
                        missing -= next(found)
                        joined.append(shard)
                    if missing or mixture.examples(task) not in (None, joined.examples):
                        raise UserError(
                            f"the SeqIO cache of {task} is of other examples than the task has; "
                            "delete it, or make it again with --overwrite"
                        )
        parts.rmdir()
        header = {
            "mixture": mixture.name,
            "tasks": [mixture.short(task.name) for task in seqio_mixture.tasks],
            "rates": [seqio_mixture.get_rate(task) for task in seqio_mixture.tasks],
        }
        (temporary / "mixture.json").write_text(json.dumps(header) + "\n", "utf-8")
    return MixtureCache.load(directory)


def _prepare(mixture: MixtureSource, cache_dirs: tuple[str, ...]) -> Any:
    """Registers with the SeqIO of this process."""
    registered = mixture.register()
    if cache_dirs:
        from gr_jax.data import _seqio

        for task in registered.tasks:
            if not _seqio.find_cache(task, cache_dirs):
                raise UserError(
                    f"{task.name} is in no SeqIO cache; make one with "
                    f"{mixture.caching_command(cache_dirs[-1])}"
                )
    return registered


def _shards(
    task: Any, mixture: MixtureSource, folder: Path, lengths: Mapping[str, int], *, cached: bool
) -> list[_Shard]:
    of = len(task.source.list_shards("train"))
    samples = frozenset()
    if cached:
        from gr_jax.data import _seqio

        of = _seqio.cached_shards(task)
        if mixture.examples(task.name) is not None:
            samples = _sample(task, lengths)
    stems = (folder / f"{mixture.short(task.name)}-{number:05}" for number in range(of))
    return [
        _Shard(task.name, number, of, lengths, cached, samples, stem)
        for number, stem in enumerate(stems)
    ]


def _run(
    mixture: MixtureSource, cache_dirs: tuple[str, ...], workers: int, shards: list[_Shard]
) -> Generator[frozenset[bytes]]:
    """`_tokenize` of every shard, in order."""
    if workers == 1 or len(shards) == 1:
        yield from map(_tokenize, shards)
        return
    pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(shards)),
        multiprocessing.get_context("spawn"),  # TensorFlow does not survive a fork
        initializer=_prepare,
        initargs=(mixture, cache_dirs),
    )
    try:
        yield from pool.map(_tokenize, shards)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            f"one of the {workers} processes that tokenise was killed; if that was for want of "
            "memory, lower DataConfig.workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _tokenize(shard: _Shard) -> frozenset[bytes]:
    """Writes a shard's numbers and returns which samples were among its examples."""
    found = set()
    with contextlib.ExitStack() as stack:
        streams = {
            (feature, part): stack.enter_context(shard.path(feature, part).open("wb"))
            for feature in FEATURES
            for part in ("tokens", "lengths")
        }
        for batch in _read(shard):
            for feature, (values, splits) in batch.items():
                streams[feature, "tokens"].write(values.tobytes())
                streams[feature, "lengths"].write(np.diff(splits).tobytes())
            if shard.samples:
                found |= shard.samples.intersection(_keys(batch))
    return frozenset(found)


def _read(shard: _Shard) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Batches of a shard's examples: per feature the tokens, int32, and their splits, int64."""
    from gr_jax.data import _seqio

    dataset = _seqio.seqio.TaskRegistry.get(shard.task).get_dataset(
        sequence_length=dict(shard.lengths),
        split="train",
        shuffle=False,
        num_epochs=1,
        use_cached=shard.cached,
        shard_info=_seqio.seqio.ShardInfo(shard.number, shard.of),
        try_in_mem_cache=False,
    )
    for batch in dataset.ragged_batch(_READ_BATCH):
        yield {feature: _flat(batch[feature]) for feature in FEATURES}


def _sample(task: Any, lengths: Mapping[str, int]) -> frozenset[bytes]:
    """A task's first examples, tokenised now: what its SeqIO cache must have somewhere."""
    dataset = task.get_dataset(
        sequence_length=dict(lengths), split="train", shuffle=False, num_epochs=1
    )
    (batch,) = dataset.take(_SAMPLES).ragged_batch(_SAMPLES)
    return frozenset(_keys({feature: _flat(batch[feature]) for feature in FEATURES}))


def _keys(batch: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Iterator[bytes]:
    """The tokens of each example as bytes."""
    (inputs, input_splits), (targets, target_splits) = (batch[feature] for feature in FEATURES)
    for i in range(len(input_splits) - 1):
        text = inputs[input_splits[i] : input_splits[i + 1]]
        docid = targets[target_splits[i] : target_splits[i + 1]]
        yield text.tobytes() + b"\t" + docid.tobytes()


def _flat(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Values and row splits of a ragged tensor, or of a dense one (all rows of one length)."""
    if hasattr(batch, "flat_values"):
        values, splits = batch.flat_values.numpy(), batch.row_splits.numpy()
    else:
        rows, width = batch.shape
        values, splits = batch.numpy().reshape(-1), np.arange(rows + 1) * width
    return values.astype(np.int32), splits.astype(np.int64)


class _Joined:
    """A task's arrays, growing by a shard at a time."""

    def __init__(self, folder: Path, task: str):
        self.examples = 0
        self._tokens = {
            f: GrowingArray(folder / f"{task}.{f}.tokens.npy", np.int32) for f in FEATURES
        }
        self._offsets = {
            f: GrowingArray(folder / f"{task}.{f}.offsets.npy", np.int64) for f in FEATURES
        }
        for offsets in self._offsets.values():
            offsets.append(np.zeros(1, np.int64))

    def __enter__(self) -> Self:
        return self

    def append(self, shard: _Shard) -> None:
        """Adds what `_tokenize` wrote, and deletes it."""
        for feature in FEATURES:
            tokens, offsets = self._tokens[feature], self._offsets[feature]
            ends, examples = tokens.length, 0
            with shard.path(feature, "lengths").open("rb") as stream:
                while len(lengths := np.fromfile(stream, np.int64, _BLOCK)):
                    offsets.append(ends + np.cumsum(lengths))
                    ends += int(lengths.sum())
                    examples += len(lengths)
            tokens.append_file(shard.path(feature, "tokens"))
            if feature == "inputs":
                self.examples += examples
            for part in ("tokens", "lengths"):
                shard.path(feature, part).unlink()

    def __exit__(self, *_: object) -> None:
        for array in (*self._tokens.values(), *self._offsets.values()):
            array.close()
