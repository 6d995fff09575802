"""The main job: prepare, train, evaluate. gin files bind the arguments of these functions."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gr_jax import distributed
from gr_jax.corpus import Collection, read_ids, read_queries
from gr_jax.data import Batches
from gr_jax.decoding import Score
from gr_jax.docids import DocidAssigner, DocidMap
from gr_jax.errors import UserError
from gr_jax.evaluation import Report, write_certificates, write_run
from gr_jax.files import local_path
from gr_jax.models import Precision, T5Config
from gr_jax.pipeline._collections import PYTHON_DOCS, load_collection
from gr_jax.pipeline._evaluate import EvalConfig, evaluate, on_this_host, open_index
from gr_jax.pipeline._initial import RANDOM_PARAMETERS, InitialCheckpoint
from gr_jax.pipeline._prepare import DataConfig, Log, Prepared, check_inputs, prepare
from gr_jax.pipeline._workspace import Workspace
from gr_jax.queries import SyntheticQueries
from gr_jax.serving import DEFAULT_MOST_BEAM, DEFAULT_SCORE, IndexSpec, SearchConfig
from gr_jax.training import (
    Partitioner,
    Partitioning,
    Progress,
    TrainConfig,
    describe_goodput,
    measure_steps,
    model_settings,
    read_goodput,
)
from gr_jax.training import train as train_model

_ROW_MULTIPLE = 128  # of token tables


def train(
    *,
    model_dir: str,
    docids: DocidAssigner,
    queries: SyntheticQueries,
    data: DataConfig,
    model: Callable[..., T5Config],
    trainer: TrainConfig,
    initial: InitialCheckpoint = RANDOM_PARAMETERS,
    corpus: str = PYTHON_DOCS,
    strict: bool = False,
    dry_run: bool = False,
    log: Log = lambda _: None,
    progress: Progress | None = None,
    started: Callable[[Path], None] = lambda _: None,
) -> None:
    """Prepares the data and trains; goes on where an interrupted call stopped.

    Args:
      model_dir: where everything goes; see `Workspace`.
      docids: gives documents their docids.
      queries: makes synthetic queries.
      data: what the model reads.
      model: `T5Config`, or `T5Config.from_name`, with all but the vocabulary sizes bound.
      trainer: how to train.
      initial: the checkpoint that training starts from.
      corpus: a BEIR folder, or `python` for the embedded collection.
      strict: refuse documents without text instead of skipping them.
      dry_run: check all of the above, and write nothing.
      log: told what happens, a line at a time.
      progress: told about training as it goes.
      started: called with the model directory when all of the above has been accepted, before the
        first step; entry points keep their configuration there.

    Raises:
      UserError: something in the input or the settings is wrong.
      Interrupted: asked to stop; the state is saved.
    """
    partitioner = Partitioner.make(trainer.partitioning)
    shape = model(vocab_size=1, target_vocab_size=1)  # refused now, not after the data is made
    with contextlib.ExitStack() as held:
        with distributed.first_process_first("preparation") as told:
            workspace = Workspace(model_dir)
            data = initial.check(shape, data, workspace)
            collection = load_collection(corpus, strict=strict)
            log(_describe_collection(collection))
            check_inputs(workspace, collection, docids=docids, data=data)
            if dry_run:
                return
            if distributed.is_first():
                told["holder"] = held.enter_context(workspace.alone())
        with distributed.together("looking for MODEL_DIR"):
            if not distributed.is_first():
                workspace.check_shared(told["holder"])
        with distributed.first_process_first("preparation") as told:
            if not distributed.is_first():
                workspace.follow(told["record"])
            prepared = prepare(
                workspace, collection, docids=docids, queries=queries, data=data, log=log
            )
            told["record"] = workspace.record
        _fit(
            workspace,
            prepared,
            _sized(model, prepared),
            trainer,
            initial,
            partitioner,
            log=log,
            progress=progress,
            started=started,
        )


def _fit(
    workspace: Workspace,
    prepared: Prepared,
    model: T5Config,
    trainer: TrainConfig,
    initial: InitialCheckpoint,
    partitioner: Partitioner,
    *,
    log: Log,
    progress: Progress | None,
    started: Callable[[Path], None],
) -> None:
    """Trains `model` on what is prepared; see `train`."""
    shardings = partitioner.parameters(model)  # refuses what does not divide
    start = initial.origin()
    trained = distributed.from_first("the state of the run", lambda: workspace.trained)
    if not trained:
        start = initial.start(
            model,
            prepared.cache,
            shardings,
            trainer.optimizer,
            seed=trainer.seed,
            docid_fingerprint=prepared.docid_map.fingerprint,
        )
    batches = prepared.batches(
        row_multiple=row_multiple(trainer, partitioner.data_parallel), seed=trainer.seed
    )
    total_steps = _total_steps(
        workspace, trainer, model, batches, prepared.docid_map, partitioner, log
    )
    spec = IndexSpec(
        model=model,
        docid_fingerprint=prepared.docid_map.fingerprint,
        words_only=prepared.tokenizer.words_only,
        input_length=prepared.config.input_length,
        seed=trainer.seed,
        command=_command(),
    )
    writes = distributed.is_first()
    if writes and not trained:  # a run that goes on keeps the record of how it began
        spec.save(workspace.index)
        started(workspace.path)
    log(f"training: {total_steps:,} steps of {prepared.config.batch_size} examples")
    began = time.perf_counter()
    before = workspace.noted("train_seconds") or 0.0 if trained else 0.0
    finished = (workspace.path / f"checkpoint_{total_steps}").exists()
    try:
        train_model(
            trainer,
            model,
            batches,
            partitioner,
            workspace.path,
            total_steps=total_steps,
            docid_fingerprint=prepared.docid_map.fingerprint,
            docid_map=prepared.docid_map,
            start=start,
            progress=progress,
        )
    finally:
        if writes and not finished:
            if sum((seconds := read_goodput(workspace.path / "train")).values()):
                log(describe_goodput(seconds))
            workspace.note("train_seconds", round(before + time.perf_counter() - began, 3))


def run(
    *,
    model_dir: str,
    docids: DocidAssigner,
    queries: SyntheticQueries,
    data: DataConfig,
    model: Callable[..., T5Config],
    trainer: TrainConfig,
    evaluation: EvalConfig,
    initial: InitialCheckpoint = RANDOM_PARAMETERS,
    corpus: str = PYTHON_DOCS,
    strict: bool = False,
    dry_run: bool = False,
    log: Log = lambda _: None,
    progress: Progress | None = None,
    started: Callable[[Path], None] = lambda _: None,
) -> Report | None:
    """The whole job: `train`, then `evaluate`; see both for the arguments.

    Returns:
      The report; None after a dry run, and in all processes but the first.
    """
    if (spread := on_this_host(evaluation.partitioning)) is not None:
        # refused now rather than after training
        spread.parameters(model(vocab_size=_ROW_MULTIPLE, target_vocab_size=_ROW_MULTIPLE))
    train(
        model_dir=model_dir,
        docids=docids,
        queries=queries,
        data=data,
        model=model,
        trainer=trainer,
        initial=initial,
        corpus=corpus,
        strict=strict,
        dry_run=dry_run,
        log=log,
        progress=progress,
        started=started,
    )
    if dry_run:
        return None
    return distributed.only_first(
        "evaluation",
        lambda: evaluate(
            model_dir=model_dir,
            corpus=corpus,
            strict=strict,
            config=evaluation,
            log=log,
            again=False,
        ),
    )


def infer(
    *,
    model_dir: str,
    queries: str | None = None,
    run: str | None = None,
    output_dir: str | None = None,
    checkpoint: str | None = None,
    k: int = 10,
    beam: int = 20,
    score: Score = DEFAULT_SCORE,
    precision: Precision | None = None,
    certify: bool = False,
    most_beam: int = DEFAULT_MOST_BEAM,
    only_file: str | None = None,
    partitioning: Partitioning | None = None,
    dry_run: bool = False,
    log: Log = lambda _: None,
) -> None:
    """Answers every query of a `queries.jsonl` and writes a TREC run.

    Beside it, `RUN.certificates.jsonl` says for each query whether its documents are proven to be
    the best of the corpus.

    Args:
      model_dir: the trained index.
      queries: the file of queries.
      run: the run file; by default `<output_dir>/<name of the queries file>.infer.run`.
      output_dir: by default `MODEL_DIR/runs`.
      checkpoint: `MODEL_DIR/checkpoint_<step>`; the newest by default.
      k: documents per query.
      beam: width of the search.
      score: see `EvalConfig`, as for the next four.
      precision: of the model.
      certify: search until the answers are certainly exact.
      most_beam: the width up to which it does.
      only_file: ids of the documents that may be returned, one on a line; all if None.
      partitioning: of model and queries over this host's devices.
      dry_run: check all of the above, and write nothing.
      log: told what was written.

    Raises:
      UserError: no queries, or nothing trained in `model_dir`.
    """
    if queries is None:
        raise UserError('give the queries to answer: --gin.QUERIES=\\"queries.jsonl\\"')
    if run is not None and output_dir is not None:
        raise UserError("RUN names the run file and INFER_OUTPUT_DIR its folder: give one of them")
    config = SearchConfig(beam, score, precision, exact=certify, most_beam=most_beam)
    workspace = Workspace(model_dir)
    name = Path(queries).name.removesuffix(".gz").removesuffix(".jsonl")
    folder = local_path(output_dir) if output_dir else workspace.runs
    output = local_path(run) if run else folder / f"{name}.infer.run"
    step = workspace.step_of(checkpoint)
    index = open_index(workspace.path, step, config, partitioning)
    asked = list(read_queries(queries).values())
    if not asked:
        raise UserError(f"{queries}: holds no queries")
    only = None if only_file is None else read_ids(only_file)
    if dry_run:
        return
    found = index.find([query.text for query in asked], k=k, config=config, only=only)
    names = [query.query_id for query in asked]
    write_run(output, dict(zip(names, index.documents(found), strict=True)), "gr_jax")
    proofs = zip(found.exact.tolist(), found.beam.tolist(), strict=True)
    write_certificates(output, dict(zip(names, proofs, strict=True)))
    log(
        f"{output}: {len(asked):,} queries, {k} documents each, "
        f"{found.exact.mean():.1%} of the rankings proven exact"
    )


def _sized(model: Callable[..., T5Config], prepared: Prepared) -> T5Config:
    """The model for this tokenizer and these docids.

    Both tables have a multiple of 128 rows, as t5x's have: any usual `model` axis divides them, and
    the parameters of a run do not depend on its mesh.
    """
    pieces = rounded_up(prepared.tokenizer.vocab_size)
    docid_tokens = rounded_up(prepared.docid_map.vocabulary.size)
    config = model(vocab_size=pieces, target_vocab_size=docid_tokens)
    fields = dataclasses.asdict(config)
    if prepared.tokenizer.words_only:
        # learnt here from a corpus: no published table fits, so none of its spare rows is wanted
        fields["vocab_size"] = pieces
    return T5Config(**fields)


def rounded_up(rows: int) -> int:
    """Rows of a token table for so many tokens."""
    return -(-rows // _ROW_MULTIPLE) * _ROW_MULTIPLE


def _command() -> str:
    """The command line of this process, as it can be typed again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name.startswith("gr_jax."):
        return shlex.join(["python", "-m", spec.name, *sys.argv[1:]])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def row_multiple(trainer: TrainConfig, shards: int) -> int:
    """Packed rows come in multiples of this: whole shards of microbatches, and few shapes."""
    least = trainer.microbatches * shards
    return least * max(8 // least, 1)


def _total_steps(
    workspace: Workspace,
    trainer: TrainConfig,
    config: T5Config,
    batches: Batches,
    docid_map: DocidMap,
    partitioner: Partitioner,
    log: Log,
) -> int:
    """The length of the run; one derived from minutes is remembered for when it goes on."""
    if trainer.steps is not None:
        return trainer.steps
    if trainer.minutes is None:
        raise UserError("TrainConfig needs steps or minutes")
    settings = {
        "minutes": trainer.minutes,
        "model": config.to_json(),
        "batch_size": batches.batch_size,
    }
    planned = workspace.noted("plan")
    if planned and _of_models(planned["settings"]) == _of_models(settings):
        return planned["steps"]
    if planned and workspace.trained:
        minutes = planned["settings"]["minutes"]
        raise UserError(
            f"{workspace.path}: was started with minutes={minutes} and other settings; go on with "
            "those, or give another model directory"
        )
    seconds = measure_steps(trainer, config, batches, partitioner, docid_map)
    seconds = distributed.from_first("timing", lambda: seconds)
    steps = max(round(trainer.minutes * 60 / seconds), 1)
    log(f"one step takes {seconds * 1000:.0f} ms: {steps:,} steps in {trainer.minutes:g} minutes")
    if distributed.is_first():
        workspace.note("plan", {"settings": settings, "steps": steps})
    return steps


def _of_models(settings: dict[str, Any]) -> dict[str, Any]:
    return settings | {"model": model_settings(settings["model"])}


def _describe_collection(collection: Collection) -> str:
    parts = [f"{len(collection.corpus):,} documents"]
    if skipped := len(collection.corpus.skipped):
        parts.append(f"{skipped} without text skipped ({', '.join(collection.corpus.skipped)})")
    if collection.train:
        parts.append(f"{len(collection.train):,} training queries")
    parts += [f"{name}: {len(split):,} queries" for name, split in collection.splits.items()]
    return f"corpus {collection.corpus.name}: " + ", ".join(parts)
