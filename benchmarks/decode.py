"""Times gr_jax's constrained beam search beside Hugging Face's `generate`, in one run.

    python -m benchmarks.decode --torch_python PYTHON_WITH_TORCH

Both sides answer the same queries with the same random T5 and the same docids, on the same device:
a GPU's half needs a Python whose torch finds it, and XLA_PYTHON_CLIENT_PREALLOCATE=false, so that
both have memory (`make bench-gpu`). Each repetition has queries of its own. Calls take turns: while
one side is timed, the other waits. Times go from source tokens on the host to answers on the host
and include the encoder. One line of JSON per cell and score goes to standard output (and
`--output`), a table to standard error.

Nothing else may run meanwhile: torch's threads wait for each other actively, and where another
process takes a core, its times grow tenfold while ours hardly double. `load` and `ratio_of_minima`
in the records tell.
"""

from __future__ import annotations

from gr_jax.allocator import keep_freed_memory

if __name__ == "__main__":  # as gr_jax's commands do
    keep_freed_memory()

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import hugging_face as hf
from gr_jax.checkpoints._hugging_face_config import SIZES
from gr_jax.decoding import BeamSearch, Trie
from gr_jax.docids import DocidMap, DocidVocabulary
from gr_jax.models import VARIANTS, T5Config, prepare_inference

LEVELS, SHORTEST, CODES = 8, 4, 256
SOURCE_LENGTH = 32
SCORES = ("full", "level", "children")
# How many times faster than Hugging Face a search shall be, per (batch, beam): T5-small on a CPU.
TARGETS = {
    "full": {(1, 10): 5, (16, 10): 5, (1, 100): 3, (16, 100): 8},
    "level": {(1, 10): 7, (16, 10): 7, (1, 100): 9, (16, 100): 13},
    "children": {(1, 10): 10, (16, 10): 10, (1, 100): 15, (16, 100): 25},
}


def hugging_face_config(name: str) -> dict[str, Any]:
    """The shape of a published T5 1.1 as Hugging Face's `T5Config` has it."""
    config = T5Config.from_name(name)
    return {
        "vocab_size": config.vocab_size,
        **{theirs: getattr(config, ours) for theirs, ours in SIZES.items()},
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


MODEL = hugging_face_config("t5_1_1_small")


def torch_device() -> str:
    """Where torch computes beside us: on the kind of device that JAX has found."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


class Worker:
    """A script of this folder, `hugging_face.py` for one, that serves under another Python."""

    def __init__(self, python: str, script: str):
        self._process = subprocess.Popen(
            [python, script, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        """One request and its answer; an error ends the benchmark."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": "the worker ended"}
        if "error" in answer:
            raise SystemExit(f"Hugging Face, {op}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the worker, which it does when its input ends."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def make_docids(n: int, seed: int) -> np.ndarray:
    """Distinct random docids of 4 to 8 codes: int32 [n, levels], -1 after a docid's end."""
    rng = np.random.default_rng([seed, 1])
    codes = np.zeros((0, LEVELS), np.int32)
    while len(codes) < n:
        more = rng.integers(0, CODES, (n, LEVELS), np.int32)
        more[np.arange(LEVELS) >= rng.integers(SHORTEST, LEVELS + 1, n)[:, None]] = -1
        codes = np.unique(np.concatenate([codes, more]), axis=0)
    return codes[np.sort(rng.permutation(len(codes))[:n])]


def make_trie(docids: np.ndarray, *, eos: bool = True) -> Trie:
    """The trie of docids whose levels share their tokens, as a user of Hugging Face has them.

    With the room that an index's has.
    """
    sizes = (CODES,) * LEVELS
    names = tuple(map(str, range(len(docids))))
    vocabulary = DocidVocabulary(sizes, eos=eos, first_tokens=(hf.FIRST_TOKEN,) * LEVELS)
    return Trie.from_docid_map(DocidMap(names, docids, sizes), vocabulary).bucketed()


def matmul_gflops(dtype: str, shape: tuple[int, int, int] = (1600, 512, 1152)) -> float:
    """The rate of matrix products on the default device.

    Args:
      dtype: of the matrices.
      shape: rows, width and inner width of a feed-forward layer: a search's, by default.
    """
    rows, width, inner = shape
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((rows, width)), dtype)
    a = jnp.asarray(rng.standard_normal((width, inner)) / width**0.5, dtype)
    b = jnp.asarray(rng.standard_normal((inner, width)) / inner**0.5, dtype)
    chain = jax.jit(lambda x: jax.lax.fori_loop(0, 10, lambda _, y: y @ a @ b, x))
    chain(x).block_until_ready()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        chain(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 10 * 4 * rows * width * inner / float(np.median(times)) / 1e9


def search_flops(
    model: dict[str, Any], docids: np.ndarray, batch: int, beam: int, score: str
) -> float:
    """Floating point operations of a plain search: every live prefix through the whole decoder.

    The encoder runs, and its output is projected to keys and values, once per query; step 0 has one
    prefix, and a step no more than there are prefixes. A search that leaves out steps whose outcome
    is certain (`children`) needs fewer.
    """
    d, ff = model["d_model"], model["d_ff"]
    inner, source = model["num_heads"] * model["d_kv"], SOURCE_LENGTH
    columns = model["vocab_size"] if score == "full" else CODES + 1
    feed_forward = 2 * 3 * d * ff
    token = 2 * 4 * d * inner + 4 * source * inner + feed_forward
    total = model["num_layers"] * source * token
    total += model["num_decoder_layers"] * source * 2 * 2 * d * inner
    for step in range(LEVELS + 1):
        prefixes = docids[docids[:, step - 1] >= 0, :step] if step else docids[:1, :0]
        live = min(beam, len(np.unique(prefixes, axis=0)) if step else 1)
        layer = 2 * 6 * d * inner + 4 * (source + step + 1) * inner + feed_forward
        total += live * (model["num_decoder_layers"] * layer + 2 * d * columns)
    return float(batch * total)


def device_name() -> str:
    """The accelerator, or which processor and how much of it."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return device.device_kind
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def same_answers(rows: np.ndarray, tokens: np.ndarray, row_of: dict[tuple[int, ...], int]) -> float:
    """Share of queries with the same ranked list on both sides."""
    same = []
    for ours, sequences in zip(rows.tolist(), tokens[:, :, 1:].tolist(), strict=True):
        cut = [s[: s.index(hf.EOS) + 1] if hf.EOS in s else s for s in sequences]
        same.append(ours == [row_of.get(tuple(s), -1) for s in cut])
    return float(np.mean(same))


class Benchmark:
    """Both sides, loaded and ready."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.docids = make_docids(options.docids, options.seed)
        tokens = hf.docid_tokens(
            [tuple(c for c in row if c >= 0) for row in self.docids.tolist()],
            (hf.FIRST_TOKEN,) * LEVELS,
        )
        self.row_of = {tuple(t for t in row if t): i for i, row in enumerate(tokens.tolist())}
        self.model = hugging_face_config(options.model)
        weights = hf.make_weights(self.model, options.seed)
        config = T5Config.from_name(options.model)
        parameters = jax.device_put(hf.t5x_tree(self.model, weights))
        self.weights = prepare_inference(config, parameters, options.precision)
        self.trie = make_trie(self.docids)
        self.facts: dict[str, Any] = {
            "model": options.model,
            "precision": options.precision,
            "docids": len(self.docids),
            "device": device_name(),
            "python": platform.python_version(),
            "jax": jax.__version__,
            "matmul_gflops": matmul_gflops(self.weights.config.dtype),
        }
        self.worker = None
        if options.no_hf:
            return
        np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType]
        np.savez(folder / "docids.npz", tokens=tokens)
        dtype = options.hf_dtype
        self.worker = Worker(options.torch_python, hf.__file__)
        self.worker.ask(
            "load",
            config=self.model,
            model=str(folder / "weights.npz"),
            docids=str(folder / "docids.npz"),
            threads=len(os.sched_getaffinity(0)),
            dtype=dtype,
            device=torch_device(),
        )
        self.facts["hf_dtype"] = dtype
        self.facts["hf_matmul_gflops"] = self.worker.ask("matmul")["gflops"]
        self.facts["hf"] = self.worker.ask("info")

    def cell(self, batch: int, beam: int) -> list[dict[str, Any]]:
        """Times one batch size and beam: a record for each score."""
        options = self.options
        searches = {
            score: BeamSearch(
                self.weights,
                self.trie,
                beam=beam,
                k=beam,
                score=score,
                ends="ranked" if score == "full" else "all",  # as Hugging Face
            )
            for score in options.scores
        }
        sides = [*searches, *(["hf"] if self.worker else [])]
        times: dict[str, list[float]] = {side: [] for side in sides}
        rng = np.random.default_rng([options.seed, 2, batch, beam])
        shape = (batch, SOURCE_LENGTH)
        full_rows, same = None, []
        for repetition in range(-1, options.repeats):  # -1 compiles and warms up
            source = rng.integers(hf.FIRST_TOKEN, self.model["vocab_size"], shape, np.int32)
            shift = repetition % len(sides)
            for side in sides[shift:] + sides[:shift]:  # no side always comes first
                time.sleep(0.05)  # threads of the side before come to rest
                if side == "hf":
                    ms = self._generate(source, beam)
                else:
                    start = time.perf_counter()
                    result = searches[side].search(source)
                    ms = 1e3 * (time.perf_counter() - start)
                    full_rows = result.rows if side == "full" else full_rows
                if repetition >= 0:
                    times[side].append(ms)
            if self.worker and full_rows is not None:
                tokens = np.load(self.folder / "answers.npz")["tokens"]
                same.append(same_answers(full_rows, tokens, self.row_of))
        return [self._record(batch, beam, score, times, same) for score in searches]

    def _generate(self, source: np.ndarray, beam: int) -> float:
        assert self.worker
        np.save(self.folder / "source.npy", source)
        answer = self.worker.ask(
            "generate",
            source=str(self.folder / "source.npy"),
            beams=beam,
            answers=str(self.folder / "answers.npz"),
        )
        return answer["ms"][0]

    def _record(
        self, batch: int, beam: int, score: str, times: dict[str, list[float]], same: list[float]
    ) -> dict[str, Any]:
        ours = float(np.median(times[score]))
        theirs = float(np.median(times["hf"])) if "hf" in times else None
        aims = TARGETS[score] if self.model == MODEL and torch_device() == "cpu" else {}
        rate = search_flops(self.model, self.docids, batch, beam, score) / ours / 1e6
        return {
            "batch": batch,
            "beam": beam,
            "score": score,
            "ours_ms": ours,
            "ours_min_ms": min(times[score]),
            "hf_ms": theirs,
            "hf_min_ms": min(times["hf"]) if theirs else None,
            "ratio": theirs / ours if theirs else None,
            "ratio_of_minima": min(times["hf"]) / min(times[score]) if theirs else None,
            "target": aims.get((batch, beam)),
            "same_answers": float(np.mean(same)) if same and score == "full" else None,
            "repeats": self.options.repeats,
            "load": os.getloadavg()[0],
            "gflops": rate,
            "of_matmul_rate": rate / self.facts["matmul_gflops"],
            **self.facts,
        }


def _number(x: float | None, form: str) -> str:
    return "-" if x is None else format(x, form)


def table_row(record: dict[str, Any]) -> str:
    """A record as people read it; see `HEADER`."""
    cell = f"{record['batch']}x{record['beam']}"
    return (
        f"{cell:>7} {record['score']:>9} {record['ours_ms']:>9.1f} "
        f"{_number(record['hf_ms'], '.1f'):>9} {_number(record['ratio'], '.2f'):>6} "
        f"{_number(record['target'], '.1f'):>6} {_number(record['same_answers'], '.0%'):>5} "
        f"{record['gflops']:>8.0f} {record['of_matmul_rate']:>7.0%}"
    )


HEADER = (
    f"{'cell':>7} {'score':>9} {'ours ms':>9} {'HF ms':>9} {'ratio':>6} {'target':>6} "
    f"{'same':>5} {'GFLOP/s':>8} {'of peak':>7}"
)


def add_arguments(parser: argparse.ArgumentParser, cells: list[tuple[int, int]]) -> None:
    """The options that the benchmarks of a search have in common."""

    def cell(text: str) -> tuple[int, int]:
        batch, beam = (int(n) for n in text.split("x", 1))
        if min(batch, beam) < 1:
            raise ValueError
        return batch, beam

    cell.__name__ = "pair such as 16x100"  # argparse: "invalid pair such as 16x100 value: ..."
    parser.add_argument("--cells", nargs="+", type=cell, default=cells, metavar="BATCHxBEAM")
    parser.add_argument("--output", type=Path, help="also append the lines of JSON to this file")


def add_hugging_face_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark that has Hugging Face beside it."""
    parser.add_argument("--no_hf", action="store_true", help="time gr_jax alone")
    parser.add_argument(
        "--torch_python",
        default=os.environ.get("GR_JAX_TORCH_PYTHON"),
        help="a Python that has torch and transformers (default: $GR_JAX_TORCH_PYTHON)",
    )


def check_hugging_face_arguments(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
    """Ends the program where there is no Hugging Face to compare with."""
    if not options.no_hf and not options.torch_python:
        parser.error("name a Python that has torch with --torch_python, or say --no_hf")


def write_record(record: dict[str, Any], output: Path | None) -> None:
    """One line of JSON, to standard output and at the end of a file."""
    line = json.dumps(record)
    print(line, flush=True)
    if output:
        with output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser, list(TARGETS["full"]))
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=SCORES)
    known = [name for name in VARIANTS if name.startswith("t5_1_1_")]
    parser.add_argument("--model", default="t5_1_1_small", choices=known)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--hf_dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--docids", type=int, default=100_000, help="size of the corpus")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls per side and cell")
    parser.add_argument("--seed", type=int, default=0)
    add_hugging_face_arguments(parser)
    options = parser.parse_args()
    if min(options.repeats, options.docids) < 1:
        parser.error("--repeats and --docids must be at least 1")
    check_hugging_face_arguments(parser, options)
    return options


def main() -> None:
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        benchmark = Benchmark(options, Path(folder))
        print(json.dumps(benchmark.facts), HEADER, sep="\n", file=sys.stderr, flush=True)
        for batch, beam in options.cells:
            for record in benchmark.cell(batch, beam):
                print(table_row(record), file=sys.stderr, flush=True)
                write_record(record, options.output)
        if benchmark.worker:
            benchmark.worker.close()


if __name__ == "__main__":
    main()
