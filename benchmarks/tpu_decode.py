"""Compiles the search for one TPU v5e chip, without a TPU, and says what it would cost there.

    python -m benchmarks.tpu_decode

It needs the `libtpu` that `jax[tpu]` asks for, and no TPU: the compiler alone runs here. What it
prints are the compiler's figures and not times: bytes and FLOPs as XLA counts them (of a
conditional, the costliest branch), the time that the chip's peak rates would need for these, and
the number of operations that run one after another, which is what a search of few queries waits
for. One line of JSON per cell and score goes to standard output (and `--output`), a table to
standard error.

The program is the one of `benchmarks.decode`, T5-small with 8 levels of docids, from source tokens
to ranked documents, encoder included.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

# before jax is imported: the compiler needs no TPU, and would look for one
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.decode import (
    SCORES,
    SOURCE_LENGTH,
    add_arguments,
    make_docids,
    make_trie,
    write_record,
)
from gr_jax.decoding import Trie
from gr_jax.decoding._beam import _program
from gr_jax.models import PRECISIONS, T5Config, init_parameters, prepare_inference

TOPOLOGY = "v5e:1x1"
PEAK_FLOPS, PEAK_BYTES = 197e12, 819e9  # per second: bfloat16 products, and memory
# A prototype's bytes and operations (it had no encoder), per (batch, beam): v4, and v5m.
_SLICED = {(1, 10): (0.87e9, 1954), (16, 100): (25.8e9, 2668)}
TARGETS = {
    "full": {(1, 10): (1.23e9, 3069), (16, 100): (28.0e9, 4041)},
    "level": _SLICED,
    "children": _SLICED,
}
# Instructions that take no time of their own; from "-start" to "-done", memory is copied beside
# what is computed.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


class Operations(NamedTuple):
    """Operations of a computation that run one after another.

    Attributes:
      least: with the shortest branch of every conditional.
      most: with the longest one.
      entry: without branches.
    """

    least: int
    most: int
    entry: int


def count_operations(hlo: str) -> tuple[Operations, list[list[int]]]:
    """Operations of a compiled program, and of each branch of its outermost conditionals.

    Args:
      hlo: `Compiled.as_text()`. The body of a loop counts once.
    """
    bodies: dict[str, list[str]] = {}
    entry = name = ""
    for line in hlo.splitlines():
        # "%computation (arguments) -> result {", "ENTRY %computation ..."
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            name = header[2]
            bodies[name] = []
            entry = name if header[1] else entry
        elif name and re.match(r"\s+(ROOT )?%?[\w.\-]+ = ", line):
            bodies[name].append(line)

    def branches_of(line: str) -> list[str]:
        found = re.search(r"branch_computations=\{([^}]*)\}", line)
        listed = found[1].split(",") if found else re.findall(r"_computation=(%?[\w.\-]+)", line)
        return [b.strip().removeprefix("%") for b in listed]

    @functools.cache
    def count(computation: str) -> Operations:
        least = most = own = 0
        for line in bodies[computation]:
            opcode = re.search(r"\s([a-z][a-z0-9\-]*)\(", line.partition(" = ")[2])
            if not opcode or opcode[1] in _FREE or opcode[1].endswith(("-start", "-done")):
                continue
            own += 1
            inner = []
            if opcode[1] == "conditional":
                inner = [count(b) for b in branches_of(line)]
            elif opcode[1] == "while":
                inner = [count(re.findall(r"body=%?([\w.\-]+)", line)[0])]
            elif opcode[1] == "call":
                inner = [count(re.findall(r"to_apply=%?([\w.\-]+)", line)[0])]
            least += min((i.least for i in inner), default=0)
            most += max((i.most for i in inner), default=0)
        return Operations(own + least, own + most, own)

    outermost = [line for line in bodies[entry] if re.search(r"\sconditional\(", line)]
    return count(entry), [[count(b).most for b in branches_of(line)] for line in outermost]


class Compiler:
    """The abstract model and docids, placed on the chip that is not there."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=TOPOLOGY, chips_per_host_bounds=(1, 1, 1)
        )
        self.device = topology.devices[0]
        config = T5Config.from_name("t5_1_1_small")

        def weights():
            return prepare_inference(
                config, init_parameters(config, jax.random.key(0)), options.precision
            )

        self.weights = self._on_chip(jax.eval_shape(weights))
        codes = make_docids(options.docids, options.seed)
        trie = make_trie(codes)
        self.trie = self._on_chip(Trie.abstract(trie.shape))

    def _on_chip(self, tree: Any) -> Any:
        sharding = SingleDeviceSharding(self.device)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    def record(self, batch: int, beam: int, score: str) -> dict[str, Any]:
        """Compiles one cell and reads what the compiler says of it."""
        source = jax.ShapeDtypeStruct((batch, SOURCE_LENGTH), jnp.int32)
        program: Any = _program("tpu")
        start = time.perf_counter()
        compiled = program.lower(
            self.weights,
            self.trie,
            self._on_chip(source),
            None,
            None,
            beam=beam,
            k=beam,
            score=score,
            ends="all",
        ).compile()
        seconds = time.perf_counter() - start
        hlo = compiled.as_text()
        if self.options.hlo:
            self.options.hlo.mkdir(parents=True, exist_ok=True)
            (self.options.hlo / f"{batch}x{beam}_{score}.hlo").write_text(hlo)
        costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
        operations, branches = count_operations(hlo)
        flops, moved = costs["flops"], costs["bytes accessed"]
        target = TARGETS[score].get((batch, beam), (None, None))
        return {
            "batch": batch,
            "beam": beam,
            "score": score,
            "gigabytes": moved / 1e9,
            "gigaflops": flops / 1e9,
            "roofline_ms": 1e3 * max(moved / PEAK_BYTES, flops / PEAK_FLOPS),
            "operations_least": operations.least,
            "operations_most": operations.most,
            "operations_entry": operations.entry,
            "branches": branches,
            "compile_seconds": seconds,
            "arguments_megabytes": memory.argument_size_in_bytes / 1e6,
            "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
            "code_megabytes": memory.generated_code_size_in_bytes / 1e6,
            "prototype_gigabytes": target[0] and target[0] / 1e9,
            "prototype_operations": target[1],
            "precision": self.options.precision,
            "docids": self.options.docids,
            "device": self.device.device_kind,
            "jax": jax.__version__,
        }


def table_row(record: dict[str, Any]) -> str:
    """A record as people read it; see `HEADER`."""
    cell = f"{record['batch']}x{record['beam']}"
    memory = record["arguments_megabytes"] + record["temporary_megabytes"]
    return (
        f"{cell:>7} {record['score']:>9} {record['gigabytes']:>7.2f} {record['gigaflops']:>8.1f} "
        f"{record['roofline_ms']:>8.2f} {record['operations_least']:>6} "
        f"{record['operations_most']:>6} {record['operations_entry']:>6} {memory:>7.0f} "
        f"{record['compile_seconds']:>8.0f}"
    )


HEADER = (
    f"{'cell':>7} {'score':>9} {'GB':>7} {'GFLOP':>8} {'peak ms':>8} "
    f"{'least':>6} {'most':>6} {'entry':>6} {'MB':>7} {'compile':>8}"
)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser, [(1, 10), (16, 100)])
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=SCORES)
    parser.add_argument("--precision", default="bfloat16", choices=PRECISIONS)
    parser.add_argument("--docids", type=int, default=100_000, help="size of the corpus")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hlo", type=Path, help="also write the compiled programs to this folder")
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    compiler = Compiler(options)
    print(HEADER, file=sys.stderr, flush=True)
    for batch, beam in options.cells:
        for score in options.scores:
            record = compiler.record(batch, beam, score)
            print(table_row(record), file=sys.stderr, flush=True)
            write_record(record, options.output)


if __name__ == "__main__":
    main()
