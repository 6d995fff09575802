"""What else a search costs: the constraint, the corpus, memory, compilation (`make bench-decode`).

Each line of JSON is one row. Searches that are compared are timed in turns, in one process; times
are medians in milliseconds per batch, encoder included. Rows:

- `constraint`: the search beside the same search without a trie (every code of every level
  allowed), both without shortcuts, on docids of 8 codes;
- `corpus`: 1M and 10M random docids beside 100k;
- `real`: k-means docids of squad20k, where that data is present (`--squad20k DIR`);
- `greedy`: a beam of 1;
- `atomic`: 8.8M docids of one code in one step, with a narrow model (64 dimensions).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import hugging_face as hf
from benchmarks.decode import (
    CODES,
    MODEL,
    SOURCE_LENGTH,
    add_arguments,
    device_name,
    make_docids,
    make_trie,
    write_record,
)
from gr_jax.corpus import read_corpus
from gr_jax.decoding import BeamSearch, Trie
from gr_jax.decoding import _beam as beam_module
from gr_jax.decoding import _core as core_module
from gr_jax.docids import DocidMap, DocidVocabulary, HierarchicalKMeans
from gr_jax.models import (
    InferenceWeights,
    T5Config,
    encode_cross,
    init_parameters,
    prepare_inference,
)

Call = Callable[[np.ndarray], Any]


class _Unconstrained(core_module._Search):
    """Every code of every level is allowed, and a docid ends after the last."""

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **settings)
        widths = [1]
        for _ in range(self.levels - 1):
            widths.append(min(self.beam, widths[-1] * CODES))
        self.widths = tuple(widths)

    def _children(self, step: int, live: core_module._Live) -> tuple[jax.Array, ...]:
        shape = (*live.total.shape, CODES)
        code = jnp.broadcast_to(jnp.arange(CODES, dtype=jnp.int32), shape)
        zeros = jnp.zeros(shape, jnp.int32)
        return code, zeros, zeros, zeros + 2, jnp.ones(shape, bool)

    def _decided(self, step: int, low: jax.Array, high: jax.Array) -> jax.Array | None:
        return jnp.ones(low.shape, bool) if step + 1 == self.levels else None


def _plain(weights: InferenceWeights, trie: Trie, beam: int, score: Any, kind: type) -> Call:
    """A search without shortcuts, by `_Search` or `_Unconstrained`."""

    @jax.jit
    def program(weights, trie, source):
        settings = {"beam": beam, "k": beam, "score": score, "ends": "all", "whole": True}
        widths = kind(trie, None, len(source), None, None, **settings).widths
        decoder = beam_module._Decoder(weights, encode_cross(weights, source), widths, False)
        return kind(trie, decoder, len(source), None, None, **settings).run(decoder.initial(), None)

    trie = jax.device_put(trie)
    return lambda source: jax.device_get(program(weights, trie, jax.device_put(source)))


def _medians(calls: dict[str, Call], batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds of each call, timed in turns after a warm-up."""
    rng = np.random.default_rng([batch, repeats])
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repetition in range(-2, repeats):
        source = rng.integers(3, MODEL["vocab_size"], (batch, SOURCE_LENGTH), np.int32)
        for name, call in calls.items():
            start = time.perf_counter()
            call(source)
            if repetition >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: float(np.median(x)) for name, x in times.items()}


def _squad20k(folder: Path) -> Trie:
    """Two-level k-means docids, as `gin/runs/beir.gin` makes them."""
    docid_map = HierarchicalKMeans(levels=2).assign(read_corpus(folder / "corpus.jsonl"))
    sizes = docid_map.level_sizes
    vocabulary = DocidVocabulary(sizes, first_tokens=(hf.FIRST_TOKEN,) * len(sizes))
    return Trie.from_docid_map(docid_map, vocabulary).bucketed()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser, [(1, 10), (16, 10)])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--docids", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--atomic", type=int, default=8_800_000, help="docids; 0 to leave it out")
    parser.add_argument("--squad20k", type=Path, help="a BEIR folder, for the row `real`")
    options = parser.parse_args()
    config = T5Config.from_name("t5_1_1_small")
    parameters = jax.jit(init_parameters, static_argnums=0)(config, jax.random.key(0))
    weights = prepare_inference(config, parameters, options.precision)
    facts = {
        "precision": options.precision,
        "device": device_name(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }

    def write(row: str, **figures: Any) -> None:
        record = {"row": row, **figures, "load": os.getloadavg()[0], **facts}
        write_record(record, options.output)

    tries = {}
    for n in options.docids:
        start = time.perf_counter()
        tries[f"{n}"] = make_trie(make_docids(n, 0))
        built = time.perf_counter() - start
        write("trie", docids=n, bytes_per_docid=tries[f"{n}"].nbytes / n, docids_and_trie_s=built)
    if options.squad20k:
        tries["squad20k"] = _squad20k(options.squad20k)
    fixed = make_docids(options.docids[0], 0)
    fixed = np.where(fixed < 0, np.random.default_rng(3).integers(0, CODES, fixed.shape), fixed)
    fixed_trie = make_trie(np.unique(fixed, axis=0).astype(np.int32), eos=False)

    for batch, beam in options.cells:
        for score in ("full", "level"):
            kinds = {"ours": core_module._Search, "unconstrained": _Unconstrained}
            calls = {k: _plain(weights, fixed_trie, beam, score, v) for k, v in kinds.items()}
            ms = _medians(calls, batch, options.repeats)
            ratio = ms["ours"] / ms["unconstrained"]
            write("constraint", batch=batch, beam=beam, score=score, ratio=ratio, ms=ms)
        for score in ("full", "level", "children"):
            searches = {
                name: BeamSearch(weights, trie, beam=beam, k=beam, score=score)
                for name, trie in tries.items()
            }
            base = next(iter(searches))
            start = time.perf_counter()
            searches[base].search(np.full((batch, SOURCE_LENGTH), 3, np.int32))
            compile_s = time.perf_counter() - start
            ms = _medians({k: s.search for k, s in searches.items()}, batch, options.repeats)
            ratios = {name: x / ms[base] for name, x in ms.items()}
            one = searches[base]
            source = jax.ShapeDtypeStruct((batch, SOURCE_LENGTH), jnp.int32)
            memory = (
                beam_module._program(jax.default_backend())
                .lower(weights, one.trie, source, None, None,
                       beam=beam, k=beam, score=score, ends="all")
                .compile()
                .memory_analysis()
            )  # fmt: skip
            write(
                "corpus",
                batch=batch,
                beam=beam,
                score=score,
                ms=ms,
                ratio=ratios,
                compile_s=compile_s,
                arguments_mib=memory.argument_size_in_bytes / 2**20,
                temporaries_mib=memory.temp_size_in_bytes / 2**20,
            )
        greedy = BeamSearch(weights, next(iter(tries.values())), beam=1, k=1, score="level")
        write("greedy", batch=batch, beam=1, ms=_medians({"ms": greedy.search}, batch, 9)["ms"])
    if options.atomic:
        narrow = T5Config(
            vocab_size=MODEL["vocab_size"],
            target_vocab_size=2 + options.atomic,
            emb_dim=64,
            num_heads=1,
            mlp_dim=128,
            num_encoder_layers=1,
            num_decoder_layers=1,
        )
        parameters = jax.jit(init_parameters, static_argnums=0)(narrow, jax.random.key(0))
        weights = prepare_inference(narrow, parameters, "bfloat16")
        del parameters
        names = tuple(map(str, range(options.atomic)))
        codes = np.arange(options.atomic, dtype=np.int32)[:, None]
        trie = Trie.from_docid_map(DocidMap(names, codes, (options.atomic,))).bucketed()
        for batch in (1, 16):
            search = BeamSearch(weights, trie, beam=1, k=100, score="children")
            ms = _medians({"ms": search.search}, batch, options.repeats)["ms"]
            write("atomic", docids=options.atomic, batch=batch, k=100, ms=ms)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    write("process", peak_rss_gib=peak)


if __name__ == "__main__":
    sys.exit(main())
