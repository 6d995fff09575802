"""Compiles a run for TPUs that are not there: `python -m gr_jax.compile --gin_file=FILE ...`.

t5x's `precompile`, with answers: what the real training step (and, with `--program`, the real
search) needs on a slice, how fast it can be there, and what to change if it does not fit. It needs
no TPU, only the TPU's compiler: `pip install 'gr-jax[aot]'`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gr_jax.console import guarded
from gr_jax.files import atomic_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this command."""
    parser.add_argument("--gin_file", action="append", default=[], help="a run's configuration")
    parser.add_argument("--gin_bindings", action="append", default=[], help="NAME = VALUE")
    parser.add_argument("--gin_search_paths", default="", help="folders of gin files, by commas")
    parser.add_argument("--model", help="instead: a published T5, t5_1_1_xxl for instance")
    parser.add_argument("--topology", help="v5e-256, v5p-128, tpu7x-64, or v5e:16x16")
    parser.add_argument(
        "--smallest", metavar="GENERATION", help="instead: the smallest slice of v5e, say"
    )
    parser.add_argument("--num_slices", type=int, default=1, help="%(default)s")
    parser.add_argument(
        "--program", choices=("train", "search", "both"), default="train", help="%(default)s"
    )
    parser.add_argument("--batch", type=int, help="rows of a step (gin's batch size; 512)")
    parser.add_argument("--input_length", type=int, help="tokens of a row (gin's; 128)")
    parser.add_argument("--target_length", type=int, help="target tokens of a row (gin's; 8)")
    parser.add_argument("--docids", type=int, default=8_841_823, help="documents (%(default)s)")
    parser.add_argument("--levels", type=int, default=4, help="of their docids (%(default)s)")
    parser.add_argument("--codes", type=int, default=256, help="of a level (%(default)s)")
    parser.add_argument("--queries", type=int, default=8, help="of a search (%(default)s)")
    parser.add_argument("--beam", type=int, default=40, help="of a search (%(default)s)")
    parser.add_argument(
        "--tries", type=int, default=4, help="next settings to try if too large (%(default)s)"
    )
    parser.add_argument("--hlo", type=Path, help="folder to write compiled programs to")
    parser.add_argument("--output", type=Path, help="file to write the figures to, as JSON lines")
    parser.add_argument("--json", action="store_true", help="print JSON, a line per program")


def run(args: argparse.Namespace) -> int:
    """Compiles what the flags ask for; too large is an answer, not an error.

    Raises:
      UserError: a flag that does not fit, or there is no compiler.
    """
    from gr_jax.planning import require_compiler, without_accelerators
    from gr_jax.planning._request import Request, answer

    require_compiler()
    without_accelerators()
    same = ("topology", "num_slices", "model", "gin_bindings", "batch", "input_length",
            "target_length", "docids", "levels", "codes", "queries", "beam", "hlo")  # fmt: skip
    request = Request(
        generation=args.smallest,
        gin_files=args.gin_file,
        gin_search_paths=[p for p in args.gin_search_paths.split(",") if p],
        programs=("search", "train") if args.program == "both" else (args.program,),
        tries=max(args.tries, 0),
        **{name: getattr(args, name) for name in same},
    )
    plans = answer(request, log=lambda line: print(line, file=sys.stderr, flush=True))
    lines = [json.dumps(plan.record()) for plan in plans]
    if args.output is not None:
        with atomic_file(args.output) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    print("\n".join(lines) if args.json else "\n\n".join(plan.text() for plan in plans))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gr_jax.compile", description=(__doc__ or "").partition("\n")[0]
    )
    add_arguments(parser)
    from gr_jax.gin_config import rewrite_gin_args

    given = sys.argv[1:] if argv is None else argv
    return guarded(lambda: run(parser.parse_args(rewrite_gin_args(given)))) or 0


if __name__ == "__main__":
    sys.exit(main())
