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
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
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
from gr_jax.planning import parse_topology, without_accelerators
from gr_jax.planning._hlo import Program

SLICE = parse_topology("v5e:1x1")
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
    program = Program(hlo)

    @functools.cache
    def count(computation: str) -> Operations:
        least = most = own = 0
        for instruction in program.computations[computation]:
            opcode = instruction.opcode
            if not opcode or opcode in _FREE or opcode.endswith(("-start", "-done")):
                continue
            own += 1
            inner = []
            if opcode == "conditional":
                inner = [count(branch) for branch in instruction.branches()]
            elif opcode == "while":
                inner = [count(instruction.called("body"))]
            elif opcode == "call":
                inner = [count(instruction.called("to_apply"))]
            least += min((i.least for i in inner), default=0)
            most += max((i.most for i in inner), default=0)
        return Operations(own + least, own + most, own)

    outermost = [i for i in program.computations[program.entry] if i.opcode == "conditional"]
    return count(program.entry), [[count(b).most for b in each.branches()] for each in outermost]


class Compiler:
    """The abstract model and docids, placed on the chip that is not there."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        (self.device,) = SLICE.devices()
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
        chip = SLICE.chip
        flops, moved = costs["flops"], costs["bytes accessed"]
        target = TARGETS[score].get((batch, beam), (None, None))
        return {
            "batch": batch,
            "beam": beam,
            "score": score,
            "gigabytes": moved / 1e9,
            "gigaflops": flops / 1e9,
            "roofline_ms": 1e3 * max(moved / chip.memory_bandwidth, flops / chip.flops),
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
    without_accelerators()
    compiler = Compiler(options)
    print(HEADER, file=sys.stderr, flush=True)
    for batch, beam in options.cells:
        for score in options.scores:
            record = compiler.record(batch, beam, score)
            print(table_row(record), file=sys.stderr, flush=True)
            write_record(record, options.output)


if __name__ == "__main__":
    main()
