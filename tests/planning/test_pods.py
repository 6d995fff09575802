"""The page of pods: which rows are compiled, and what stays of them."""

import json
import sys

import pytest

from benchmarks import pods

RECORD = {
    "settings": {"model_parallel": 1, "remat": "minimal", "queries": 8},
    "chips": 8,
    "peak_gib_per_chip": 3.0,
    "chip_gib": 15.75,
    "fits": True,
    "step_seconds_roofline": 2.0,
    "step_seconds_serial": 4.0,
    "utilisation": 0.5,
    "utilisation_serial": 0.25,
    "bound": "compute",
    "compile_seconds": 7.0,
}
FIRST, SECOND = pods.Row("train", "t5_1_1_small", "v5e-8"), pods.Row("search", "t5_1_1_xl", "v5e-8")


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page and a file of rows of its own, and a compiler that notes what it is given."""
    monkeypatch.setattr(pods, "ROWS", tmp_path / "pods.jsonl")
    monkeypatch.setattr(pods, "PAGE", tmp_path / "pods.md")
    marks = [mark.format(name) for name in ("train", "search") for mark in (pods.BEGIN, pods.END)]
    pods.PAGE.write_text("\n".join(["text", *marks, "more text"]))
    monkeypatch.setattr(pods, "WANTED", [FIRST, SECOND, FIRST])

    def run(*flags: str, results: dict[pods.Row, dict]) -> list[pods.Row]:
        compiled = []

        def compile_row(row, seconds, hlo):
            del seconds, hlo
            compiled.append(row)
            return {"row": row._asdict()} | results[row]

        monkeypatch.setattr(pods, "compile_row", compile_row)
        monkeypatch.setattr(sys, "argv", ["pods", *flags])
        pods.main()
        return compiled

    return run


def test_a_failed_row_is_tried_again_and_a_compiled_one_is_not(page):
    late = {"failed": "not compiled in 20 minutes"}
    assert page(results={FIRST: RECORD, SECOND: late}) == [FIRST, SECOND]
    assert "*not compiled in 20 minutes*" in pods.PAGE.read_text()
    assert page(results={SECOND: RECORD}) == [SECOND]
    assert "not compiled" not in pods.PAGE.read_text()
    assert page(results={}) == []


def test_again_compiles_all_and_the_last_record_counts(page):
    page(results={FIRST: RECORD, SECOND: RECORD})
    later = RECORD | {"peak_gib_per_chip": 9.0}
    again = page("--again", results={FIRST: later, SECOND: {"failed": "no message"}})
    assert again == [FIRST, SECOND]
    text = pods.PAGE.read_text()
    assert text.startswith("text\n") and text.endswith("\nmore text")
    assert "| small | v5e-8 | 8x1 | minimal | 9.0 |" in text
    assert "| xl | v5e-8 | *no message* |" in text
    assert page(results={SECOND: RECORD}) == [SECOND]
    assert "| xl | v5e-8 | 8x1 | 8 | 3.0 |" in pods.PAGE.read_text()
    assert len(pods.ROWS.read_text().splitlines()) == 5
    assert all(json.loads(line)["row"] for line in pods.ROWS.read_text().splitlines())


def test_the_table_alone_compiles_nothing(page):
    assert page("--table", "--again", results={}) == []
    assert pods.PAGE.read_text().count("*not compiled here*") == 2
