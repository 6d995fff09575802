"""The one evaluation path: ranked documents -> TREC runs -> metrics -> report."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from gr_jax import __version__
from gr_jax.corpus import QuerySet, read_query_set
from gr_jax.decoding import Score, SearchResult
from gr_jax.errors import UserError
from gr_jax.evaluation import (
    BM25,
    Report,
    Run,
    SearchQuality,
    Split,
    beam_recall,
    evaluate_run,
    measure_split,
    read_report,
    write_report,
    write_run,
)
from gr_jax.files import local_path
from gr_jax.models import Precision
from gr_jax.pipeline._collections import PYTHON_DOCS, load_collection
from gr_jax.pipeline._exposure import exposure
from gr_jax.pipeline._prepare import Log
from gr_jax.pipeline._workspace import Workspace
from gr_jax.serving import DEFAULT_MOST_BEAM, DEFAULT_SCORE, Index, SearchConfig
from gr_jax.training import Partitioner, Partitioning


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How to evaluate.

    Attributes:
      beam: width of the search for 100 documents per query; what is timed as well.
      exact: score every document instead of searching.
      score: over what each step is normalised; see `SearchConfig`.
      precision: of the model; None for the one that it was trained in.
      certify: search with wider and wider beams until the ranking is certainly exact.
      most_beam: the width that `certify` does not go beyond.
      partitioning: spreads the model, and each batch of queries, over this host's devices; None for
        one device.
    """

    beam: int = 100
    exact: bool = False
    score: Score = DEFAULT_SCORE
    precision: Precision | None = None
    certify: bool = False
    most_beam: int = DEFAULT_MOST_BEAM
    partitioning: Partitioning | None = None

    def __post_init__(self):
        _ = self.search  # refused now rather than after training
        if self.exact and self.certify:
            raise UserError("exact scores every document: leave out certify, or exact")

    @property
    def search(self) -> SearchConfig:
        """How to search, unless every document is scored."""
        return SearchConfig(
            self.beam, self.score, self.precision, exact=self.certify, most_beam=self.most_beam
        )


_DEPTH = 100  # documents per query of a run
_MOST_CHECKED = 200  # queries of a split for which every document is scored, to check the search
# Queries x documents beyond which they are not. On 2 cores a pair takes 0.3 to 3 microseconds with
# the model of gin/runs/beir.gin (more levels, more time), and compilation half a minute; with a
# T5 of 6 layers and 512 dimensions, 14 microseconds.
_MOST_PAIRS = 5_000_000


def evaluate(
    *,
    model_dir: str,
    config: EvalConfig,
    corpus: str = PYTHON_DOCS,
    strict: bool = False,
    checkpoint: str | None = None,
    output_dir: str | None = None,
    dry_run: bool = False,
    log: Log = lambda _: None,
    again: bool = True,
) -> Report | None:
    """Measures a checkpoint and BM25 on every split of the collection.

    Writes `runs/`, `report.json` and `report.html`. Without `again`, a report of the same
    checkpoint, queries and settings is read instead.

    Args:
      model_dir: the trained index.
      config: how to evaluate.
      corpus: what it is an index of.
      strict: refuse documents without text instead of skipping them.
      checkpoint: `MODEL_DIR/checkpoint_<step>`; the newest by default.
      output_dir: where the files go; the model directory by default.
      dry_run: check all of the above, and write nothing.
      log: told what happens, a line at a time.
      again: see above.

    Returns:
      The report; None after a dry run.

    Raises:
      UserError: nothing trained there, or another corpus's index.
    """
    workspace = Workspace(model_dir)
    output = local_path(output_dir) if output_dir else workspace.path
    step = workspace.step_of(checkpoint)
    index = open_index(workspace.path, step, config.search, config.partitioning)
    collection = load_collection(corpus, strict=strict)
    workspace.check(collection.corpus)
    if dry_run:
        return None
    workspace.claim(collection.corpus)
    done = {
        "checkpoint": index.step,
        "docids": index.docid_map.fingerprint,
        "config": dataclasses.asdict(config),
        "queries": _fingerprint(collection.splits),
    }
    written = workspace.path / "report.json"
    if not again and workspace.noted("evaluation") == done and written.exists():
        return read_report(written)
    if not collection.splits:
        log("no evaluation split: the corpus has no qrels beside train")
    seen = None
    if workspace.cache.exists():  # it may have been deleted to save room: no search needs it
        seen = exposure(model_dir=model_dir, step=index.step).summary()
    start = time.perf_counter()
    bm25 = BM25(collection.corpus)
    splits: dict[str, Split] = {}
    for name, queries in collection.splits.items():
        log(f"evaluating {name}: {len(queries):,} queries")
        found = _find(index, queries, config)
        ours = _run_of(index, queries, found), _latency(index, queries, config)
        theirs = bm25.rank(queries, k=_DEPTH)
        write_run(output / "runs" / f"{name}.gr_jax.run", ours[0], "gr_jax")
        write_run(output / "runs" / f"{name}.bm25.run", theirs[0], "bm25")
        quality = SearchQuality(
            certified=float(np.mean(found.exact)),
            beam_recall=_beam_recall(index, queries, found, config),
        )
        splits[name] = measure_split(queries.qrels, ours, theirs, index.spec.seed, quality)
    report = Report(
        documents=len(index.docid_map),
        parameters=index.parameter_count,
        steps=index.step,
        wall_seconds={
            "docids": workspace.seconds("docids"),
            "train": workspace.noted("train_seconds") or 0.0,
            "eval": round(time.perf_counter() - start, 3),
        },
        splits=splits,
        seed=index.spec.seed,
        command=index.spec.command,
        docid_fingerprint=index.docid_map.fingerprint,
        beam=config.search.width(_depth(index)),
        score=config.score,
        precision=index.precision(config.precision),
        exact=config.exact,
        certify=config.certify,
        exposure=seen,
        index_bytes={"gr_jax": index.nbytes(config.precision), "bm25": bm25.index_bytes},
        device=_device(),
        versions={"python": platform.python_version(), "gr_jax": __version__}
        | {
            name: importlib.metadata.version(name)
            for name in ("jax", "flax", "optax", "numpy", "scikit-learn", "sentencepiece", "bm25s")
        },
    )
    write_report(report, output, workspace.path / "train" / "metrics.jsonl")
    if output == workspace.path:
        workspace.note("evaluation", done)
    return report


def evaluate_queries(
    *,
    model_dir: str,
    queries: str,
    qrels: str,
    run: str,
    config: EvalConfig,
) -> dict[str, float]:
    """Measures a finished index on queries of the user's own and writes the TREC run.

    Args:
      model_dir: the trained index.
      queries: a `queries.jsonl`.
      qrels: a BEIR or TREC qrels file; queries that it does not name are left out.
      run: the TREC run file to write.
      config: how to search.

    Returns:
      The metrics; `queries`, their number; and `certified`, the share of them whose ranking is
      certainly the best of the whole corpus.
    """
    output = local_path(run)
    if output.is_dir():
        raise UserError(f"{run}: is a directory; name the run file to write")
    index = open_index(model_dir, None, config.search, config.partitioning)
    asked = read_query_set(
        queries,
        qrels,
        index.docid_map.index_of.keys(),
        Path(queries).stem,
        skipped=Workspace(model_dir).skipped,
    )
    found = _find(index, asked, config)
    ranked = _run_of(index, asked, found)
    write_run(output, ranked, "gr_jax")
    figures = evaluate_run(ranked, asked.qrels)
    return {"queries": len(asked), **figures, "certified": float(np.mean(found.exact))}


def open_index(
    model_dir: str | Path, step: int | None, search: SearchConfig, partitioning: Partitioning | None
) -> Index:
    """`Index.load` on this host's devices, ready to search.

    Its weights are read now: a run that goes on may delete the checkpoint.
    """
    index = Index.load(model_dir, step, on_this_host(partitioning))
    index.weights(search.precision)
    return index


def on_this_host(partitioning: Partitioning | None) -> Partitioner | None:
    """The partitioner of a search: other hosts take no part in it."""
    return partitioning and Partitioner.make(partitioning, jax.local_devices())


def _fingerprint(splits: Mapping[str, QuerySet]) -> str:
    """Changes with any query or judgement."""
    content = [(name, s.queries, sorted(s.qrels.items())) for name, s in splits.items()]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _depth(index: Index) -> int:
    """Documents per query."""
    return min(_DEPTH, len(index.docid_map))


def _texts(queries: QuerySet) -> list[str]:
    return [query.text for query in queries.queries]


def _find(index: Index, queries: QuerySet, config: EvalConfig) -> SearchResult:
    find = index.find_exactly if config.exact else index.find
    return find(_texts(queries), k=_depth(index), config=config.search)


def _latency(index: Index, queries: QuerySet, config: EvalConfig) -> float:
    """Milliseconds per query of what `_find` does."""
    return index.latency(
        _texts(queries), k=_depth(index), config=config.search, exactly=config.exact
    ).median


def _beam_recall(
    index: Index, queries: QuerySet, found: SearchResult, config: EvalConfig
) -> float | None:
    """What the search found of the best documents; None where scoring them all takes too long."""
    if config.exact:
        return 1.0
    # from all over the split: neighbours may be about the same document
    count = min(len(queries), _MOST_CHECKED)
    checked = np.linspace(0, len(queries) - 1, count).round().astype(int)
    if count * len(index.docid_map) > _MOST_PAIRS:
        return None
    texts = _texts(queries)
    scores = index.score_documents([texts[i] for i in checked], config.search)
    return beam_recall(found.rows[checked], scores)


def _run_of(index: Index, queries: QuerySet, found: SearchResult) -> Run:
    ranked = index.documents(found)
    return {q.query_id: r for q, r in zip(queries.queries, ranked, strict=True)}


def _device() -> str:
    devices = jax.local_devices()
    device = devices[0]
    name = device.device_kind
    if device.platform == "cpu":
        cores = _cores()
        name = f"{_cpu_model()}, {cores} cores"
    return f"{len(devices)} x {name}" if len(devices) > 1 else name


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or platform.machine()
    return platform.machine()
