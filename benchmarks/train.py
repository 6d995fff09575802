"""Times gr_jax's training step beside Hugging Face's T5 with torch, in one run.

    python -m benchmarks.train --torch_python PYTHON_WITH_TORCH

T5-small (1.1), the same weights, AdamW with the same settings, no dropout, the same examples, the
same precision, the same device. Sides take turns: ours, torch eager, torch compiled. Rows:

- `text`: 64 examples of 32 tokens with 8 target tokens, both with the output layer over all 32,128
  tokens: the same computation, so that losses must agree;
- `docid`: the same examples; ours has docid tokens (8 levels of 256 codes) as target vocabulary;
- `packed`: 64 examples of the lengths of squad2k's queries in T5's tokens; ours packs them, torch
  pads them to the longest of the batch, as Hugging Face's collators do;
- `large`: as `text`, T5-large and 256 examples of 128 tokens: for accelerators, and only if asked
  for (`make bench-gpu`; see `benchmarks.decode` for what a GPU's run needs).

Model FLOPs utilisation is `gr_jax.models.training_flops` per second, over the rate of large
products in the row's precision, measured in the same run. Times go from arrays on the host to the
new parameters. Tokens per second are real ones: padding does not count. One line of JSON per row
goes to standard output (and `--output`), a table to standard error. As for `benchmarks.decode`,
nothing else may run meanwhile.
"""

from __future__ import annotations

from gr_jax.allocator import keep_freed_memory

if __name__ == "__main__":  # as gr_jax's commands do
    keep_freed_memory()

import argparse
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import hugging_face as hf
from benchmarks.decode import (
    Worker,
    add_hugging_face_arguments,
    check_hugging_face_arguments,
    device_name,
    hugging_face_config,
    matmul_gflops,
    torch_device,
    write_record,
)
from gr_jax.data import Batches, MixtureCache, TaskCache
from gr_jax.models import T5Config, training_flops
from gr_jax.training import Optimizer, Partitioner, TrainConfig, make_mesh
from gr_jax.training._loop import step_function
from gr_jax.training._step import TrainState, init_state

TARGET_LENGTH = 8
LEVEL_SIZES = (256,) * TARGET_LENGTH
LEARNING_RATE = 1e-4
OPTIMIZER = Optimizer("adamw", clip_norm=None)
# Of squad2k's 7,849 queries, how many have 0, 1, 2, ... tokens of T5's, the end token included.
QUERY_LENGTHS = [
    0, 0, 0, 0, 0, 4, 31, 110, 230, 390, 589, 648, 751, 770, 778, 708, 540, 474, 397, 335, 250, 203,
    144, 118, 88, 65, 50, 40, 35, 38, 18, 17, 7, 5, 4, 4, 1, 3, 0, 2, 1, 0, 0, 0, 0, 0, 1,
]  # fmt: skip


class Row(NamedTuple):
    """What is trained.

    Attributes:
      aim: how many times as many real tokens per second as Hugging Face eager it shall reach.
      model: the published T5.
      examples: of a step.
      source_length: tokens of an example, at most.
      docids: whether our target vocabulary has docid tokens, not text.
      pack: whether examples have the lengths of queries, and ours are packed.
    """

    aim: float | None
    model: str = "t5_1_1_small"
    examples: int = 64
    source_length: int = 32
    docids: bool = False
    pack: bool = False


ROWS = {
    "text": Row(1.6),
    "docid": Row(2.0, docids=True),
    "packed": Row(4.0, docids=True, pack=True),
    "large": Row(None, model="t5_1_1_large", examples=256, source_length=128),
}
# Rows, width and inner width of the products whose rate utilisation is relative to.
LARGE_PRODUCT = {"cpu": (4096, 512, 2048), "cuda": (16384, 4096, 16384)}


class Examples(NamedTuple):
    """A batch of examples, one per row, 0 where there is nothing."""

    source: np.ndarray
    target: np.ndarray

    @property
    def tokens(self) -> int:
        """Real tokens of both sides."""
        return int((self.source > 0).sum() + (self.target > 0).sum())


def make_lengths(row: Row, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each example: the same in every step, so that each side compiles once."""
    if not row.pack:
        return np.full(row.examples, row.source_length)
    counts = np.array(QUERY_LENGTHS)
    return rng.choice(len(counts), row.examples, p=counts / counts.sum())


def make_examples(lengths: np.ndarray, vocab_size: int, rng: np.random.Generator) -> Examples:
    """Random tokens; targets have a code of each level, as tokens of a docid vocabulary."""
    source = rng.integers(3, vocab_size, (len(lengths), lengths.max()), np.int32)
    source[np.arange(lengths.max()) >= lengths[:, None]] = 0
    offsets = 2 + np.cumsum((0, *LEVEL_SIZES[:-1]))
    codes = rng.integers(0, LEVEL_SIZES[0], (len(lengths), TARGET_LENGTH))
    return Examples(source, (codes + offsets).astype(np.int32))


def packed_arrays(examples: Examples, row: Row) -> dict[str, np.ndarray]:
    """The examples as gr_jax's training has them."""
    tokens, offsets = {}, {}
    for name, rows in (("inputs", examples.source), ("targets", examples.target)):
        tokens[name] = rows[rows > 0]
        offsets[name] = np.concatenate([[0], np.cumsum((rows > 0).sum(axis=1))])
    batches = Batches(
        MixtureCache((TaskCache("queries", tokens, offsets),), (1.0,)),
        batch_size=len(examples.source),
        row_length=2 * row.source_length if row.pack else examples.source.shape[1],
        max_targets=5,  # seldom more fit into a row
        target_length=TARGET_LENGTH,
        row_multiple=1,
        pack=row.pack,
    )
    return batches(0).arrays


class Ours:
    """gr_jax's training step on a model of its own."""

    def __init__(self, row: Row, dtype: str, weights: dict[str, np.ndarray]):
        self.row = row
        self.config = config = T5Config.from_name(
            row.model,
            target_vocab_size=2 + sum(LEVEL_SIZES) if row.docids else None,
            dropout_rate=0.0,
            dtype=dtype,
        )
        optimizer, partitioner = OPTIMIZER.make(), Partitioner(make_mesh())
        self.state: TrainState = init_state(config, optimizer, partitioner, seed=0)
        if not row.docids:
            tree = hf.t5x_tree(hugging_face_config(row.model), weights)
            params = jax.device_put(tree, partitioner.replicated)
            self.state = self.state._replace(params=params)
        self.run = step_function(TrainConfig(), config, optimizer, partitioner)

    def step(self, examples: Examples) -> tuple[float, float]:
        """Milliseconds and loss of one step."""
        arrays = packed_arrays(examples, self.row)
        self.shape = {
            "rows": len(arrays["encoder_input_tokens"]),
            "input_length": arrays["encoder_input_tokens"].shape[1],
            "target_length": arrays["decoder_target_tokens"].shape[1],
        }
        start = time.perf_counter()
        self.state, metrics = self.run(self.state, arrays, LEARNING_RATE)
        jax.block_until_ready(self.state)
        return 1e3 * (time.perf_counter() - start), float(metrics.loss)


class Theirs:
    """A worker that trains Hugging Face's model."""

    def __init__(self, row: Row, options: argparse.Namespace, folder: Path, compiled: bool):
        script = Path(__file__).with_name("hugging_face_train.py")
        self._batch = folder / f"batch_{compiled}.npz"
        self._worker = Worker(options.torch_python, str(script))
        self._worker.ask(
            "load",
            config=hugging_face_config(row.model) | {"dropout_rate": 0.0},
            model=str(folder / "weights.npz"),
            threads=len(os.sched_getaffinity(0)),
            dtype=options.precision,
            device=torch_device(),
            compiled=compiled,
            learning_rate=LEARNING_RATE,
            b1=OPTIMIZER.b1,
            b2=OPTIMIZER.b2,
        )
        self.info = self._worker.ask("info")

    def step(self, examples: Examples) -> tuple[float, float]:
        """Milliseconds and loss of one step."""
        np.savez(self._batch, source=examples.source, target=examples.target)
        answer = self._worker.ask("step", batch=str(self._batch))
        return answer["ms"], answer["loss"]

    def close(self) -> None:
        """Ends the worker."""
        self._worker.close()


def measure(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One row: every side makes the same steps, in turns."""
    row = ROWS[name]
    if options.examples:
        row = row._replace(examples=options.examples)
    model = hugging_face_config(row.model)
    weights = hf.make_weights(model, options.seed)
    np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType]
    ours = Ours(row, options.precision, weights)
    sides: dict[str, Any] = {"ours": ours}
    if not options.no_hf:
        sides["eager"] = Theirs(row, options, folder, compiled=False)
        sides["compiled"] = Theirs(row, options, folder, compiled=True)
    del weights
    rng = np.random.default_rng([options.seed, 3])
    lengths = make_lengths(row, rng)
    times: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {side: [] for side in sides}
    tokens = []
    names = list(sides)
    for repetition in range(-options.warmup, options.repeats):
        examples = make_examples(lengths, model["vocab_size"], rng)
        shift = repetition % len(names)
        for side in names[shift:] + names[:shift]:  # no side always comes first
            time.sleep(0.05)  # threads of the side before come to rest
            milliseconds, loss = sides[side].step(examples)
            losses[side].append(loss)
            if repetition >= 0:
                times[side].append(milliseconds)
        if repetition >= 0:
            tokens.append(examples.tokens)
    ms = {side: float(np.median(t)) for side, t in times.items()}
    info = None if options.no_hf else sides["eager"].info
    for side in sides.values():
        if isinstance(side, Theirs):
            side.close()
    gflops = training_flops(ours.config, **ours.shape) / ms["ours"] / 1e6
    peak = matmul_gflops(options.precision, LARGE_PRODUCT[torch_device()])
    return {
        "row": name,
        "model": row.model,
        "examples": row.examples,
        "precision": options.precision,
        "ms": ms,
        "min_ms": {side: min(t) for side, t in times.items()},
        "real_tokens_per_second": 1e3 * float(np.mean(tokens)) / ms["ours"],
        "examples_per_second": 1e3 * row.examples / ms["ours"],
        "ratio": {side: ms[side] / ms["ours"] for side in ms if side != "ours"},
        "target": row.aim,
        "model_gflops": gflops,
        "mfu": gflops / peak,
        # of the same computation: the first steps of rows that have it
        "losses": {side: each[:3] for side, each in losses.items()},
        "repeats": options.repeats,
        "load": os.getloadavg()[0],
        "device": device_name(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "matmul_gflops": peak,
        "hf": info,
    }


def table_row(record: dict[str, Any]) -> str:
    """A record as people read it; see `HEADER`."""
    ms, ratio = record["ms"], record["ratio"]

    def column(values: dict[str, float], side: str, form: str) -> str:
        return format(values[side], form) if side in values else "-"

    return (
        f"{record['row']:>7} {ms['ours']:>9.0f} {column(ms, 'eager', '.0f'):>9} "
        f"{column(ms, 'compiled', '.0f'):>11} {column(ratio, 'eager', '.2f'):>7} "
        f"{column(ratio, 'compiled', '.2f'):>11} {record['target'] or '-':>7} "
        f"{record['real_tokens_per_second']:>9.0f} {record['examples_per_second']:>11.1f} "
        f"{record['mfu']:>5.0%}"
    )


HEADER = (
    f"{'row':>7} {'ours ms':>9} {'eager ms':>9} {'compiled ms':>11} {'x eager':>7} "
    f"{'x compiled':>11} {'target':>7} {'tokens/s':>9} {'examples/s':>11} {'MFU':>5}"
)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    usual = [name for name, row in ROWS.items() if row.aim]
    parser.add_argument("--rows", nargs="+", default=usual, choices=list(ROWS))
    parser.add_argument("--examples", type=int, help="of a step, if not the row's own")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7, help="timed steps per side and row")
    parser.add_argument("--warmup", type=int, default=3, help="steps before, which compile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also append the lines of JSON to this file")
    add_hugging_face_arguments(parser)
    options = parser.parse_args()
    if min(options.repeats, options.warmup) < 1:
        parser.error("--repeats and --warmup must be at least 1")
    check_hugging_face_arguments(parser, options)
    return options


def main() -> None:
    options = parse_options()
    print(HEADER, file=sys.stderr, flush=True)
    for row in options.rows:
        with tempfile.TemporaryDirectory() as folder:
            record = measure(row, options, Path(folder))
        print(table_row(record), file=sys.stderr, flush=True)
        write_record(record, options.output)


if __name__ == "__main__":
    main()
