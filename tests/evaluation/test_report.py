import dataclasses
import errno
import io
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from gr_jax.errors import UserError
from gr_jax.evaluation import (
    METRICS,
    Split,
    print_report,
    read_report,
    verdict,
    write_report,
)
from gr_jax.evaluation._search import SEARCH_NOTE


class Page(HTMLParser):
    """Collects a page's text, tags and outside references, and checks that tags close."""

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.references, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def write_log(folder: Path, lines: list[str], end: str = "\n") -> Path:
    path = folder / "train" / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + end)
    return path


def log_line(step: int, loss: float = 1.0) -> str:
    rest = {"learning_rate": 1e-3, "examples_per_second": 900.0, "z_loss": 0.1}
    return json.dumps({"step": step, "loss": loss, **rest})


def test_json_has_the_agreed_keys(tmp_path, report):
    write_report(report, tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    agreed = {key: found[key] for key in list(found)[:5]}
    system = dict.fromkeys((*METRICS, "ms_per_query"), float)
    split = {"queries": int, "gr_jax": system, "bm25": system}
    assert shape(agreed) == {
        "documents": int,
        "parameters": int,
        "wall_seconds": {"docids": float, "train": float, "eval": float},
        "steps": int,
        "splits": {"seen": split, "unseen": split},
    }
    assert found["splits"]["seen"]["gr_jax"]["hits@1"] == 0.8125
    assert found["splits"]["unseen"]["bm25"]["ms_per_query"] == 0.3
    assert set(found) - set(agreed) == {
        *("seed", "command", "index_bytes", "docid_fingerprint", "versions", "beam", "device"),
        *("differences", "search", "score", "precision", "exact", "certify"),
        "exposure",
    }
    assert found["differences"]["seen"]["hits@1"] == {"value": 0.0325, "low": 0.01, "high": 0.05}
    assert found["search"] == {
        "seen": {"certified": 0.964, "beam_recall": 0.9985},
        "unseen": {"certified": 0.937, "beam_recall": None},
    }
    assert (found["score"], found["precision"]) == ("level", "bfloat16")
    assert (found["exact"], found["certify"]) == (False, False)


def test_a_report_is_read_back(tmp_path, report):
    changed = dataclasses.replace(report, exact=True, certify=True)
    for written in (report, changed):
        write_report(written, tmp_path)
        assert read_report(tmp_path / "report.json") == written


def test_an_older_report_is_read(tmp_path, report):
    """One that knows nothing of how the search was set or what it may have missed."""
    record = report.to_json()
    for key in ("exposure", "search", "score", "precision", "exact", "certify"):
        del record[key]
    (tmp_path / "report.json").write_text(json.dumps(record))
    found = read_report(tmp_path / "report.json")
    assert [split.search for split in found.splits.values()] == [None, None]
    assert (found.score, found.precision, found.exact, found.certify) == (
        *("full", None),
        *(False, False),
    )
    write_report(found, tmp_path)
    assert found.to_json()["search"] == {"seen": None, "unseen": None}
    page = (tmp_path / "report.html").read_text()
    assert "precision: not known" in page and "certified" not in page
    out = io.StringIO()
    print_report(found, Console(file=out))
    rows = [line.split() for line in out.getvalue().splitlines() if "gr_jax   " in line]
    assert [row[-3:] for row in rows] == [["242.0", "-", "-"]] * 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "beam 20; scores: level; precision: bfloat16"),
        ({"certify": True}, "beam 20, wider where the ranking was not certainly exact; scores"),
        ({"exact": True}, "every document scored; scores: level"),
    ],
)
def test_the_page_says_how_the_search_was_set(tmp_path, report, change, words):
    write_report(dataclasses.replace(report, **change), tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert words in " ".join(page.text)


def test_the_page_says_what_the_search_may_have_missed(tmp_path, report):
    write_report(report, tmp_path)
    text = (tmp_path / "report.html").read_text()
    for heading, ours in [
        ("certified", "0.964"),
        ("beam recall", "0.999"),
        ("certified", "0.937"),
        ("beam recall", "-"),
    ]:
        assert f"<th>{heading}</th><td>{ours}</td><td>-</td>" in text
    assert text.count(SEARCH_NOTE) == 2


def test_the_page_says_how_often_documents_were_seen(tmp_path, report):
    figures = {"min": 2, "median": 1500.0, "mean": 9.0, "max": 4000, "never": 7, "expected": 9.0}
    exposure = {"steps": 9, "documents": 4, "sharing": 0, "total": figures, "tasks": {}}
    write_report(dataclasses.replace(report, exposure=exposure), tmp_path)
    words = " ".join(Page((tmp_path / "report.html").read_text()).text)
    assert "a document was seen 2 to 4,000 times, median 1,500; 7 never" in words
    assert read_report(tmp_path / "report.json").exposure == exposure


def shape(value):
    """The keys and types of a JSON value."""
    return {k: shape(v) for k, v in value.items()} if isinstance(value, dict) else type(value)


def test_wrong_keys_are_refused(report, figures):
    with pytest.raises(ValueError, match="gr_jax has the keys"):
        Split(3, {"hits@1": 0.5}, figures(0.5, 1.0))
    with pytest.raises(ValueError, match="wall_seconds has the keys"):
        dataclasses.replace(report, wall_seconds={"train": 1.0})


def test_page_holds_the_figures_and_nothing_from_outside(tmp_path, report):
    write_log(tmp_path, [log_line(step, 7.0 / (1 + step)) for step in range(0, 5000, 10)])
    write_report(report, tmp_path)
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    words = " ".join(page.text)
    for figure in ("0.812", "0.780", "+0.032", "+0.010 to +0.050", "0.413", "0.791", "-0.378"):
        assert figure in words
    for condition in ("17", "20,000", "--gin.MODEL_DIR='/tmp/<m>'", "NVIDIA H100", "jax 0.12.1"):
        assert condition in words
    assert "4f1c9a77d0e2" in words
    assert "docids 12.5 s, train 35 min 5 s, eval 1 min 35 s" in words
    assert page.tags.count("svg") == 3
    for label in ("loss", "learning rate", "examples per second", "step"):
        assert label in page.text
    assert page.references == []
    assert "url(" not in text
    assert "http" not in text
    assert "script" not in page.tags
    assert "prefers-color-scheme: dark" in text


def test_equal_reports_give_equal_bytes(tmp_path, report):
    for name in ("a", "b"):
        write_log(tmp_path / name, [log_line(0), log_line(10)])
        write_report(report, tmp_path / name)
    for file in ("report.json", "report.html"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_log_may_be_elsewhere_or_absent(tmp_path, report):
    write_report(report, tmp_path / "a")
    assert "No training log" in (tmp_path / "a" / "report.html").read_text()
    log = write_log(tmp_path / "b", [log_line(5)])
    write_report(report, tmp_path / "a", metrics_log=log)
    assert (tmp_path / "a" / "report.html").read_text().count("<svg") == 3


def test_a_full_disk_leaves_the_old_report(tmp_path, report, monkeypatch):
    write_report(report, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.html"}
    whole = Path.write_text

    def write_half_of_the_page(path, text, **options):
        if text.startswith("<"):
            whole(path, text[: len(text) // 2], **options)
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, text, **options)

    monkeypatch.setattr(Path, "write_text", write_half_of_the_page)
    with pytest.raises(UserError, match=r"report\.html: .*free some space"):
        write_report(dataclasses.replace(report, seed=18), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_verdicts_are_honest(report, figures):
    assert verdict("seen", report.splits["seen"]) == (
        "seen (1,851 queries): gr_jax wins on hits@1: gr_jax 0.812, BM25 0.780 "
        "(+0.032, 95 % interval +0.010 to +0.050). Of 5 metrics gr_jax leads on 5, BM25 on 0."
    )
    assert verdict("unseen", report.splits["unseen"]) == (
        "unseen (206 queries): BM25 wins on hits@1: gr_jax 0.413, BM25 0.791 (-0.378). "
        "Of 5 metrics gr_jax leads on 0, BM25 on 5."
    )
    unclear = dataclasses.replace(report.splits["seen"].differences["hits@1"], low=-0.01)
    split = dataclasses.replace(report.splits["seen"], differences={"hits@1": unclear})
    assert "too close to call on hits@1" in verdict("seen", split)
    assert "too close to call" in verdict("s", Split(9, figures(0.5, 1.0), figures(0.5, 1.0)))


def test_console_is_plain_text_where_there_is_no_terminal(report):
    out = io.StringIO()
    console = Console(file=out, width=40)
    print_report(report, console)
    assert console.width == 40
    text = out.getvalue()
    assert "\x1b" not in text
    assert "…" not in text
    rows = [line.split() for line in text.splitlines() if "gr_jax   " in line or "BM25   " in line]
    assert rows[0] == ["seen", "gr_jax", *["0.812"] * 5, "4.25", "242.0", "0.964", "0.999"]
    assert rows[1] == ["BM25", *["0.780"] * 5, "0.31", "1.8", "-", "-"]
    assert rows[2][-2:] == ["0.937", "-"]
    assert rows[3] == ["BM25", *["0.791"] * 5, "0.30", "1.8", "-", "-"]
    assert SEARCH_NOTE in text.splitlines()
    for name, split in report.splits.items():
        assert verdict(name, split) in text.splitlines()


def test_console_shows_the_best_in_bold(report):
    out = io.StringIO()
    print_report(report, Console(file=out, width=120, force_terminal=True, color_system="standard"))
    ours, theirs = (
        next(line for line in out.getvalue().splitlines() if figure in line)
        for figure in ("0.812", "0.780")
    )
    assert ours.count("\x1b[1m") == 5  # the metrics
    assert theirs.count("\x1b[1m") == 2  # speed and size


def test_a_split_name_is_text_not_markup(tmp_path, report):
    odd = dataclasses.replace(report, splits={"[b]<i>": report.splits["seen"]})
    out = io.StringIO()
    print_report(odd, Console(file=out))
    assert out.getvalue().count("[b]<i>") == 2
    write_report(odd, tmp_path)
    assert "<i>:" not in (tmp_path / "report.html").read_text()
