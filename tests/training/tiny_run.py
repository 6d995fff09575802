"""A training run of a second: data in memory, a model of a few thousand parameters."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gr_jax.data import Batches, MixtureCache, TaskCache
from gr_jax.docids import DocidMap
from gr_jax.models import T5Config
from gr_jax.training import Optimizer, Partitioner, Schedule, TrainConfig, make_mesh, train

# every sharded dimension divides by 4, the largest model axis of the tests
MODEL = T5Config(
    vocab_size=32,
    target_vocab_size=16,
    emb_dim=12,
    num_heads=4,
    head_dim=4,
    mlp_dim=20,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
)
FINGERPRINT = "f" * 64
STEPS = 24


def make_cache(examples: int = 20, seed: int = 0) -> MixtureCache:
    """Random inputs of 2 to 6 tokens, each with a docid of 3 tokens, as two tasks."""
    rng = np.random.default_rng(seed)

    def task(name: str) -> TaskCache:
        lengths = rng.integers(2, 7, examples)
        return TaskCache(
            name=name,
            tokens={
                "inputs": rng.integers(2, MODEL.vocab_size, lengths.sum()).astype(np.int32),
                "targets": rng.integers(2, 16, 3 * examples).astype(np.int32),
            },
            offsets={
                "inputs": np.concatenate([[0], lengths.cumsum()]).astype(np.int64),
                "targets": np.arange(examples + 1, dtype=np.int64) * 3,
            },
        )

    return MixtureCache(tasks=(task("indexing"), task("retrieval")), rates=(1.0, 2.0))


def cache_of(docid_map: DocidMap) -> MixtureCache:
    """`make_cache`'s inputs, each with a random docid of the map."""
    rng = np.random.default_rng(1)

    def task(old: TaskCache) -> TaskCache:
        rows = docid_map.tokens[rng.integers(0, len(docid_map), len(old))]
        offsets = np.concatenate([[0], (rows > 0).sum(axis=1).cumsum()]).astype(np.int64)
        return dataclasses.replace(
            old,
            tokens={**old.tokens, "targets": rows[rows > 0]},
            offsets={**old.offsets, "targets": offsets},
        )

    cache = make_cache()
    return dataclasses.replace(cache, tasks=tuple(task(old) for old in cache.tasks))


def make_batches(**changes: Any) -> Batches:
    """Sixteen examples a step, in rows of one fixed shape."""
    settings: dict[str, Any] = {
        "cache": make_cache(),
        "batch_size": 16,
        "row_length": 12,
        "max_targets": 3,
        "target_length": 3,
        "row_multiple": 16,
    }
    return Batches(**(settings | changes))


class Altered:
    """`make_batches()`, but for what a test changes."""

    def __init__(self):
        self.whole = make_batches()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


TRAINER = TrainConfig(
    schedule=Schedule(base=1e-2, warmup_steps=2),
    optimizer=Optimizer(),
    save_period=5,
    keep=2,
    log_period=4,
    seed=3,
)


def partitioner(devices: int = 1, model_parallel: int = 1) -> Partitioner:
    return Partitioner(make_mesh(model_parallel, jax.devices()[:devices]))


def train_tiny(model_dir: Path, *, on: Partitioner | None = None, **changes: Any):
    """`gr_jax.training.train` on the tiny run; changes are `TrainConfig`'s or `train`'s."""
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    config = dataclasses.replace(TRAINER, **{k: v for k, v in changes.items() if k in fields})
    arguments: dict[str, Any] = {
        "model": MODEL,
        "batches": make_batches(),
        "total_steps": STEPS,
        "docid_fingerprint": FINGERPRINT,
        "progress": None,
    } | {k: v for k, v in changes.items() if k not in fields}
    return train(
        config,
        arguments.pop("model"),
        arguments.pop("batches"),
        on or partitioner(),
        Path(model_dir),
        **arguments,
    )
