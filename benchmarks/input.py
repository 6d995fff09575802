"""Times the input pipeline alone beside what the accelerators could consume.

    python -m benchmarks.input

Two settings, each with one example to a row and packed: T5 1.1 XXL on v5e-256, which has 64 hosts,
and T5 1.1 base on v5e-8, which has one; 512 rows of 128 tokens, docids of 8 tokens, a mixture of
document chunks (128 tokens) and queries (of the lengths of squad2k's). A packed row has room for 8
examples; as many are read as fill about 512 rows.

- `alone`: one thread makes whole batches, as one host for all devices would;
- `share`: one thread makes a host's rows: all hosts plan the batch, each fills its own;
- `prefetched`: a host's rows again, made by the thread that training's loop takes them from;
- `cold`: a host's first batches with nothing of the cache in memory: this machine's disk;
- `start`: a new process that begins at step 1,000,000, its imports included.

They are held against the least time that a step can take: its model FLOPs at the chips' peak, or,
with `--pods FILE`, what `benchmarks.pods` has found to be the compiled program's roofline there. So
`times` is how much faster than the fastest step a host's rows are made; 1 keeps up, and a real run
is slower than its roofline. One line of JSON per row goes to standard output (and `--output`), a
table to standard error. Figures of a machine that is doing something else are too low.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.decode import device_name, write_record
from benchmarks.train import QUERY_LENGTHS
from gr_jax.data import Batches, MixtureCache
from gr_jax.models import T5Config, training_flops
from gr_jax.training._loop import _prefetched

ROWS, INPUT_LENGTH, DOCID_LENGTH = 512, 128, 8
MAX_PER_ROW, PACKED_EXAMPLES = 8, 3072
TARGET_VOCABULARY = 2048  # 8 levels of 256 codes, less a little
V5E_PEAK = 197e12  # bfloat16 FLOPs per second of a chip
START_STEP = 1_000_000
RATES = {"index": 0.05, "synthetic": 0.8, "queries": 0.15}


class Setting(NamedTuple):
    """A model of so many parameters, more or less, on a slice."""

    model: str
    parameters: float
    slice: str
    chips: int
    hosts: int


SETTINGS = {
    "xxl": Setting("t5_1_1_xxl", 11e9, "v5e-256", chips=256, hosts=64),
    "base": Setting("t5_1_1_base", 0.24e9, "v5e-8", chips=8, hosts=1),
}


def write_cache(folder: Path, examples: int, seed: int) -> None:
    """A token cache of random tokens: `examples` in all, as many of each task as its rate says."""
    rng = np.random.default_rng(seed)
    queries = np.array(QUERY_LENGTHS)
    for name, rate in RATES.items():
        count = max(round(examples * rate), 1)
        of_inputs = np.full(count, INPUT_LENGTH)
        if name != "index":
            of_inputs = rng.choice(len(queries), count, p=queries / queries.sum())
        for feature, lengths in (("inputs", of_inputs), ("targets", np.full(count, DOCID_LENGTH))):
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            tokens = rng.integers(2, TARGET_VOCABULARY, offsets[-1], np.int32)
            np.save(folder / f"{name}.{feature}.offsets.npy", offsets)
            np.save(folder / f"{name}.{feature}.tokens.npy", tokens)
    header = {"mixture": "input", "tasks": list(RATES), "rates": list(RATES.values())}
    (folder / "mixture.json").write_text(json.dumps(header), "utf-8")


def make_batches(cache: MixtureCache, pack: bool, multiple: int) -> Batches:
    return Batches(
        cache,
        PACKED_EXAMPLES if pack else ROWS,
        row_length=INPUT_LENGTH,
        max_targets=MAX_PER_ROW,
        target_length=DOCID_LENGTH,
        row_multiple=multiple,
        pack=pack,
    )


def forget(folder: Path) -> None:
    """Drops a folder's files from memory, so that the next reader finds them on disk."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_each(make: Callable[[int], Any], steps: range) -> float:
    """The median time of a step."""
    times = []
    for step in steps:
        start = time.perf_counter()
        make(step)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


_START = """
import sys
from pathlib import Path
from benchmarks.input import START_STEP, make_batches
from gr_jax.data import MixtureCache
make_batches(MixtureCache.load(Path(sys.argv[1])), True, 64).shards(START_STEP, (0,), 64)
"""


def seconds_to_start(folder: Path) -> float:
    """Of a new process to its first batch, at a late step, from disk."""
    forget(folder)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", _START, str(folder)], check=True)
    return time.perf_counter() - start


def fastest_step(setting: Setting, rows: int, pack: bool, pods: Path | None) -> tuple[float, str]:
    """The least seconds of a step, and where that is from."""
    config = T5Config.from_name(
        setting.model, vocab_size=32_128, target_vocab_size=TARGET_VOCABULARY
    )
    flops = training_flops(
        config,
        rows=rows,
        input_length=INPUT_LENGTH,
        target_length=DOCID_LENGTH * (MAX_PER_ROW if pack else 1),
    )
    ideal = flops / (setting.chips * V5E_PEAK)
    records = map(json.loads, pods.read_text("utf-8").splitlines()) if pods else ()
    utilisations = [
        record["utilisation"]
        for record in records
        if record.get("topology") == setting.slice
        and record.get("utilisation")
        and record["program"] == "train"
        and 0.8 < record["parameters"] / setting.parameters < 1.2
    ]
    if utilisations:
        return ideal / max(utilisations), "roofline"
    return ideal, "peak FLOPs"


def measure(name: str, pack: bool, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One row's record."""
    setting = SETTINGS[name]
    forget(folder)
    batches = make_batches(MixtureCache.load(folder), pack, max(setting.hosts, 8))
    share = functools.partial(batches.shards, shards=(0,), of=setting.hosts)
    cold = seconds_each(share, range(START_STEP, START_STEP + 5))
    whole = batches(0)  # and warms up
    steps = range(options.steps)
    alone, of_host = seconds_each(batches, steps), seconds_each(share, steps)
    start = time.perf_counter()
    for _, coming in _prefetched(share, 0, options.steps):
        coming.result()
    prefetched = (time.perf_counter() - start) / options.steps
    step, source = fastest_step(setting, whole.rows, pack, options.pods)
    return {
        "row": f"{name}, {'packed' if pack else 'unpacked'}",
        "slice": setting.slice,
        "hosts": setting.hosts,
        "examples": whole.examples,
        "rows": whole.rows,
        "padding_fraction": round(1 - whole.tokens / (whole.rows * INPUT_LENGTH), 3),
        "ms": {
            "alone": alone * 1e3,
            "share": of_host * 1e3,
            "prefetched": prefetched * 1e3,
            "cold": cold * 1e3,
        },
        "step_ms": step * 1e3,
        "step_from": source,
        "examples_per_second": {
            "alone": whole.examples / alone,
            "share": whole.examples / of_host,
            "prefetched": whole.examples / prefetched,
            "consumed": whole.examples / step,
        },
        "times": step / prefetched,
        "start_seconds": seconds_to_start(folder),
        "cached_examples": sum(batches.cache.sizes),
        "steps": options.steps,
        "load": os.getloadavg()[0],
        "machine": device_name(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


HEADER = (
    f"{'row':>14} {'hosts':>5} {'examples':>8} {'rows':>5} {'alone ms':>9} {'share ms':>9} "
    f"{'thread ms':>9} {'cold ms':>8} {'step ms':>8} {'made/s':>9} {'eaten/s':>9} {'times':>6} "
    f"{'start s':>7}"
)


def table_row(record: dict[str, Any]) -> str:
    """A record as people read it; see `HEADER`. `made/s` and `eaten/s` are examples."""
    ms, rate = record["ms"], record["examples_per_second"]
    return (
        f"{record['row']:>14} {record['hosts']:>5} {record['examples']:>8} {record['rows']:>5} "
        f"{ms['alone']:>9.1f} {ms['share']:>9.1f} {ms['prefetched']:>9.1f} {ms['cold']:>8.1f} "
        f"{record['step_ms']:>8.1f} {rate['prefetched']:>9,.0f} {rate['consumed']:>9,.0f} "
        f"{record['times']:>6.1f} {record['start_seconds']:>7.1f}"
    )


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--cached_examples", type=int, default=4_000_000, help="in the cache")
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pods", type=Path, help="lines of JSON of benchmarks.pods")
    parser.add_argument("--output", type=Path, help="also append the lines of JSON to this file")
    options = parser.parse_args()
    if min(options.steps, options.cached_examples) < 1:
        parser.error("--steps and --cached_examples must be at least 1")
    return options


def main() -> None:
    options = parse_options()
    print(HEADER, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder), options.cached_examples, options.seed)
        for name in options.settings:
            for pack in (False, True):
                record = measure(name, pack, Path(folder), options)
                print(table_row(record), file=sys.stderr, flush=True)
                write_record(record, options.output)


if __name__ == "__main__":
    main()
