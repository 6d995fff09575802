"""Compiles the published T5s for TPU slices, and writes the table of docs/pods.md.

    python -m benchmarks.pods            # what is not in docs/pods.jsonl yet, or failed
    python -m benchmarks.pods --again    # all of it, after a change of the model or the planner
    python -m benchmarks.pods --table    # the table alone, from what is there

It needs no TPU, only the TPU's compiler (`pip install -e '.[aot]'`). Each row is a process of its
own, `gr-jax compile`, and is appended when it is done, the last of a row being the one that counts:
an interrupted run goes on where it was (`--again` begins again). A row that is too large, or took
too long to compile, is in the table and says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "pods.md"
ROWS = ROOT / "docs" / "pods.jsonl"
BEGIN, END = "<!-- rows of {} -->", "<!-- end of {} -->"
SIZES = ("small", "base", "large", "xl", "xxl")


class Row(NamedTuple):
    """One program for one slice."""

    program: str
    model: str
    topology: str


# One host or so of each generation, and the pods that the largest model is for.
HOSTS = ("v5e-8", "v5p-16", "v6e-8", "tpu7x-16", "v4-16")
WANTED = [
    *(Row("train", "t5_1_1_xxl", t) for t in ("v5e-256", "v5e-8", "v5p-128")),
    *(Row(program, f"t5_1_1_{s}", "v5e-8") for program in ("train", "search") for s in SIZES),
    *(Row("train", "t5_1_1_xxl", t) for t in HOSTS),
    *(Row("train", "t5_1_1_xxl", t) for t in ("v6e-256", "tpu7x-128", "v4-128")),
    *(Row("search", "t5_1_1_xxl", t) for t in HOSTS),
    *(Row(p, f"t5_1_1_{s}", t) for t in HOSTS for p in ("train", "search") for s in SIZES),
]


def compile_row(row: Row, seconds: float, hlo: Path | None) -> dict[str, Any]:
    """The record of a row: the planner's, or why there is none."""
    command = [
        *(sys.executable, "-m", "gr_jax.compile", "--json", "--tries=0"),
        *(f"--model={row.model}", f"--topology={row.topology}", f"--program={row.program}"),
    ]
    if hlo is not None:
        command.append(f"--hlo={hlo / '_'.join(row)}")
    key = {"row": row._asdict()}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=environment, check=False
        )
    except subprocess.TimeoutExpired:
        return key | {"failed": f"not compiled in {seconds / 60:.0f} minutes"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return key | {"failed": lines[-1][:200]}
    return key | json.loads(done.stdout.splitlines()[-1])


def read_rows() -> dict[Row, dict[str, Any]]:
    """What has been compiled: of each row the last record."""
    if not ROWS.exists():
        return {}
    records = [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()]
    return {Row(**record["row"]): record for record in records}


def rows_to_compile(again: bool) -> list[Row]:
    """Those that are missing or failed; with `again`, all."""
    done = read_rows()
    rows = list(dict.fromkeys(WANTED))
    return [row for row in rows if again or row not in done or "failed" in done[row]]


def table(program: str, rows: dict[Row, dict[str, Any]]) -> str:
    """The rows of one program as Markdown."""
    if program == "train":
        head = (
            "| model | slice | mesh | remat | GiB per chip | of | step | bound by | of peak "
            "| nothing hidden | compiled in |\n|---|---|---|---|--:|--:|--:|---|--:|--:|--:|"
        )
    else:
        head = (
            "| model | slice | mesh | queries | GiB per chip | of | search | bound by "
            "| nothing hidden | compiled in |\n|---|---|---|--:|--:|--:|--:|---|--:|--:|"
        )
    wanted = dict.fromkeys(row for row in WANTED if row.program == program)
    lines = [_line(row, rows.get(row)) for row in sorted(wanted, key=_order)]
    return "\n".join([head, *lines])


def _order(row: Row) -> tuple[int, int, int]:
    kinds = ("v5e", "v5p", "v6e", "tpu7x", "v4")
    kind, _, size = row.topology.partition("-")
    return SIZES.index(row.model.rpartition("_")[2]), kinds.index(kind), int(size)


def _line(row: Row, record: dict[str, Any] | None) -> str:
    """One row."""
    training = row.program == "train"
    model = row.model.rpartition("_")[2]
    empty = " |" * (8 if training else 7)  # the cells after the third
    if record is None or "failed" in record:
        why = "not compiled here" if record is None else record["failed"]
        return f"| {model} | {row.topology} | *{why}* |{empty}"
    s = record["settings"]
    devices = record["chips"] * (2 if row.topology.startswith("tpu7x") else 1)
    mesh = f"{devices // s['model_parallel']}x{s['model_parallel']}"
    size = f"{record['peak_gib_per_chip']:.1f} | {record['chip_gib']:g}"
    which = s["remat"] if training else s["queries"]
    if not record["fits"]:
        return f"| {model} | {row.topology} | {mesh} | {which} | {size} | *too large* |{empty[8:]}"
    step, serial = record["step_seconds_roofline"], record["step_seconds_serial"]
    share = f"{record['utilisation']:.0%} | " if training else ""
    hidden = f"{_time(serial)}"
    if training:
        hidden += f" ({record['utilisation_serial']:.0%})"
    return (
        f"| {model} | {row.topology} | {mesh} | {which} | {size} | {_time(step)} "
        f"| {record['bound']} | {share}{hidden} | {record['compile_seconds']:.0f} s |"
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"


def write_page(rows: dict[Row, dict[str, Any]]) -> None:
    """Puts the tables between their marks in the page."""
    page = PAGE.read_text("utf-8")
    for program in ("train", "search"):
        begin, end = BEGIN.format(program), END.format(program)
        before, _, rest = page.partition(begin)
        _, _, after = rest.partition(end)
        page = f"{before}{begin}\n{table(program, rows)}\n{end}{after}"
    PAGE.write_text(page, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--table", action="store_true", help="only write the page")
    parser.add_argument("--again", action="store_true", help="also what is compiled already")
    parser.add_argument("--minutes", type=float, default=20, help="for a row at most (%(default)s)")
    parser.add_argument("--hlo", type=Path, help="folder to write compiled programs to")
    parser.add_argument("--every", type=int, default=1, help="take every n-th of these rows only")
    parser.add_argument("--first", type=int, default=0, help="beginning with this one")
    options = parser.parse_args()
    rows = rows_to_compile(options.again)
    for row in [] if options.table else rows[options.first :: options.every]:
        print(*row, file=sys.stderr, flush=True)
        record = compile_row(row, options.minutes * 60, options.hlo)
        with ROWS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(_line(row, record), file=sys.stderr, flush=True)
    write_page(read_rows())


if __name__ == "__main__":
    main()
