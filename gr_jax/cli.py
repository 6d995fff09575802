"""`gr-jax VERB`: the entry points for people."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gr_jax import __version__
from gr_jax.allocator import keep_freed_memory
from gr_jax.console import guarded

_DEFAULT_MODEL_DIR = "model"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gr-jax",
        description="Train a T5 to be a search index, and search with it.",
    )
    parser.add_argument("--version", action="version", version=f"gr-jax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    quickstart = verbs.add_parser(
        "quickstart", help="index a corpus: docids, training, evaluation beside BM25"
    )
    quickstart.add_argument(
        "--corpus",
        default=None,
        help="a BEIR folder (corpus.jsonl, queries.jsonl, qrels/*.tsv); "
        "default: the documentation of Python and its numerical packages",
    )
    _model_dir(quickstart)
    length = quickstart.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_positive(float), help="training time to aim for")
    length.add_argument("--steps", type=_positive(int), help="training steps")
    quickstart.add_argument("--embeddings", help=".npy [documents, dimensions] to make docids from")
    quickstart.add_argument("--sentencepiece", help="a SentencePiece model, T5's for instance")
    quickstart.add_argument("--seed", type=int, default=None)
    quickstart.add_argument("--strict", action="store_true", help="refuse documents without text")
    quickstart.add_argument("--gin_file", action="append", help="use this configuration instead")
    quickstart.add_argument(
        "--gin_bindings", action="append", default=[], help="NAME = VALUE; may be repeated"
    )

    search = verbs.add_parser("search", help="ask a trained index")
    search.add_argument("query", nargs="+")
    _model_dir(search)
    search.add_argument("--k", type=_positive(int), default=10, help="documents to return")
    _search_settings(search, beam=20)
    search.add_argument(
        "--only",
        action="append",
        metavar="DOC_ID",
        help="search among these documents only; may be repeated",
    )
    search.add_argument(
        "--only_file", metavar="FILE", help="and among those of this file, one id on a line"
    )
    search.add_argument(
        "--json",
        action="store_true",
        help='print JSON: {"exact": ..., "beam": ..., "results": [...]}',
    )

    evaluate = verbs.add_parser("eval", help="measure a trained index on your queries")
    _model_dir(evaluate)
    evaluate.add_argument("--queries", required=True, help="queries.jsonl")
    evaluate.add_argument("--qrels", required=True, help="qrels.tsv")
    evaluate.add_argument("--run", required=True, help="TREC run file to write")
    _search_settings(evaluate, beam=100)
    evaluate.add_argument(
        "--exact", action="store_true", help="score every document instead of searching"
    )
    evaluate.add_argument("--json", action="store_true", help="print JSON")

    exposure = verbs.add_parser("exposure", help="how often training has seen each document")
    _model_dir(exposure)
    exposure.add_argument(
        "--step", type=_positive(int), help="up to which step; default: the newest checkpoint's"
    )
    exposure.add_argument(
        "--tsv", metavar="FILE", help="write a line for each document, with a column for each task"
    )
    exposure.add_argument("--json", action="store_true", help="print JSON")

    convert = verbs.add_parser("convert", help="write a T5 checkpoint in another format")
    convert.add_argument("source", metavar="SRC", help="a checkpoint of any format")
    convert.add_argument("destination", metavar="DST", help="a directory that does not exist yet")
    convert.add_argument(
        "--to",
        choices=("hf", "t5x", "t5x-orbax"),
        default="hf",
        help="Hugging Face's safetensors, t5x's own format, or t5x's Orbax format (%(default)s)",
    )
    convert.add_argument(
        "--scanned", action="store_true", help="t5x's scalable_t5 layout, all layers in one array"
    )
    convert.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="default: as it is in the source"
    )
    convert.add_argument(
        "--optimizer",
        choices=("keep", "drop"),
        default="drop",
        help="t5x's optimizer state, between t5x's formats (%(default)s)",
    )
    convert.add_argument(
        "--parameters",
        choices=("eval", "params"),
        default="eval",
        help="of gr-jax's own checkpoints: what eval takes, which is the average (ema) where there "
        "is one, or what is trained (%(default)s)",
    )

    inspect = verbs.add_parser("inspect", help="what a T5 checkpoint holds")
    inspect.add_argument("checkpoint", metavar="CKPT", help="a checkpoint of any format")
    inspect.add_argument(
        "--no_fingerprint", action="store_true", help="names and shapes only: reads no parameter"
    )
    inspect.add_argument("--json", action="store_true", help="print JSON")

    from gr_jax import compile as compiling

    compiling.add_arguments(
        verbs.add_parser("compile", help="what a run needs on TPUs, compiled without one")
    )
    return parser


def _model_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model_dir", default=_DEFAULT_MODEL_DIR, help="default: %(default)s")


def _search_settings(parser: argparse.ArgumentParser, *, beam: int) -> None:
    """Flags of a `SearchConfig`, which checks them: it is not imported for `--help`."""
    parser.add_argument(
        "--beam", type=_positive(int), default=beam, help="width of the search (%(default)s)"
    )
    parser.add_argument(
        "--score",
        help="what scores are relative to: full (all tokens), level (the codes of the level) or "
        "children (the docids that there are)",
    )
    parser.add_argument(
        "--precision",
        help="float32, bfloat16 or int8; default: what the model was trained in",
    )
    parser.add_argument(
        "--certify", action="store_true", help="widen the beam until the answer is proven exact"
    )
    parser.add_argument(
        "--most_beam", type=_positive(int), help="the width that --certify does not go beyond"
    )


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that have a default of their own, where the command line has none."""
    names = ("score", "precision", "most_beam")
    return {n: getattr(args, n) for n in names if getattr(args, n) is not None}


def _positive(kind):
    def parse(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a positive number")
        return value

    parse.__name__ = kind.__name__
    return parse


def _quickstart(args: argparse.Namespace) -> int:
    from gr_jax import gin_config
    from gr_jax.train import main as train

    macros = {
        "MODEL_DIR": args.model_dir,
        "CORPUS": args.corpus,
        "TRAIN_STEPS": args.steps,
        "MINUTES": args.minutes,
        "EMBEDDINGS": args.embeddings,
        "SENTENCEPIECE": args.sentencepiece,
        "RANDOM_SEED": args.seed,
        "STRICT": args.strict or None,
    }
    if args.minutes is not None:
        args.gin_bindings = ["TRAIN_STEPS = None", *args.gin_bindings]
    default = "gin/runs/quickstart.gin" if args.corpus is None else "gin/runs/beir.gin"
    gin_config.parse(
        args.gin_file or [default],
        [f"{name} = {value!r}" for name, value in macros.items() if value is not None]
        + args.gin_bindings,
    )
    return train()


def _search(args: argparse.Namespace) -> int:
    from gr_jax.corpus import read_ids
    from gr_jax.serving import Index, SearchConfig

    config = SearchConfig(beam=args.beam, exact=args.certify, **_given(args))
    index = Index.load(args.model_dir)
    only = args.only
    if args.only_file:
        only = [*(only or ()), *read_ids(args.only_file)]
    found = index.find([" ".join(args.query)], k=args.k, config=config, only=only)
    (results,) = index.results(found)
    exact, beam = bool(found.exact[0]), int(found.beam[0])
    if args.json:
        answer = {"exact": exact, "beam": beam, "results": [r._asdict() for r in results]}
        print(json.dumps(answer, ensure_ascii=False))
        return 0
    for result in results:
        name = f"{result.doc_id}  {result.title}" if result.title != result.doc_id else result.title
        print(f"{result.rank:3d}. {result.score:8.3f}  {name}  [{result.docid}]")
    if exact:
        print(f"proven exact, with a beam of {beam}")
    else:
        mend = "--most_beam" if args.certify else "--certify"
        print(f"not proven exact: a beam of {beam} is too narrow ({mend} widens it)")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from gr_jax.pipeline import EvalConfig, evaluate_queries

    figures = evaluate_queries(
        model_dir=args.model_dir,
        queries=args.queries,
        qrels=args.qrels,
        run=args.run,
        config=EvalConfig(beam=args.beam, exact=args.exact, certify=args.certify, **_given(args)),
    )
    if args.json:
        print(json.dumps(figures))
        return 0
    for name, value in figures.items():
        print(f"{name:12s} {value:,}" if name == "queries" else f"{name:12s} {value:.4f}")
    return 0


def _exposure(args: argparse.Namespace) -> int:
    from gr_jax.pipeline import exposure

    found = exposure(model_dir=args.model_dir, step=args.step)
    if args.tsv:
        found.write(Path(args.tsv))
    summary = found.summary()
    if args.json:
        print(json.dumps(summary))
        return 0
    print(
        f"{summary['steps']:,} steps of {found.batch_size:,} examples, "
        f"{summary['documents']:,} documents: how often a document was seen"
    )
    figures = ("min", "median", "mean", "max", "never", "expected")
    print(f"{'':12s}" + "".join(f"{name:>12s}" for name in figures))
    for part, row in {"total": summary["total"], **summary["tasks"]}.items():
        print(f"{part:12s}" + "".join(f"{round(row[name], 2):>12,}" for name in figures))
    if summary["sharing"]:
        print(f"{summary['sharing']:,} documents share a docid: an example counts for each of its")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from gr_jax.checkpoints import convert, export_notes

    written = convert(
        args.source,
        args.destination,
        to=args.to,
        scanned=args.scanned,
        dtype=args.dtype,
        optimizer=args.optimizer == "keep",
        parameters=args.parameters,
    )
    print(f"{written.path}: {written.format}, {written.nbytes:,} bytes of parameters")
    for note in export_notes(written) if args.to == "hf" else []:
        print(note)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from gr_jax.checkpoints import describe, describe_text, open_checkpoint

    source, digest = open_checkpoint(args.checkpoint), not args.no_fingerprint
    if args.json:
        print(json.dumps(describe(source, digest=digest)))
    else:
        print(describe_text(source, digest=digest))
    return 0


def _compile(args: argparse.Namespace) -> int:
    from gr_jax.compile import run

    return run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb; returns the exit status."""
    args = _parser().parse_args(argv)
    verbs = {
        "quickstart": _quickstart,
        "search": _search,
        "eval": _eval,
        "exposure": _exposure,
        "convert": _convert,
        "inspect": _inspect,
        "compile": _compile,
    }
    if args.verb in ("quickstart", "search", "eval"):
        keep_freed_memory()  # before the imports that begin threads
    try:
        return guarded(lambda: verbs[args.verb](args)) or 0
    except BrokenPipeError:  # `gr-jax search ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
