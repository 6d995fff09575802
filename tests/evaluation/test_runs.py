import errno
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.errors import UserError
from gr_jax.evaluation import read_run, write_run

SCORES = st.floats(-1e30, 1e30, allow_nan=False)
RUNS = st.dictionaries(
    st.sampled_from(["q1", "q2", "q3", "ü"]),
    st.lists(SCORES, min_size=1, max_size=12).flatmap(
        lambda scores: st.permutations([f"d{i}" for i in range(len(scores))]).map(
            lambda ids: list(zip(ids, scores, strict=True))
        )
    ),
)


def write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_writes_six_columns(tmp_path):
    path = tmp_path / "new" / "a.run"
    write_run(path, {"q2": [("d9", -0.5)], "q1": [("d1", 2.0), ("d2", 0.1)]}, "mine")
    assert path.read_bytes() == b"q1 Q0 d1 1 2.0 mine\nq1 Q0 d2 2 0.1 mine\nq2 Q0 d9 1 -0.5 mine\n"


@given(RUNS)
def test_order_survives_the_file_and_the_sorting_of_trec_tools(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "a.run", run, "t")
    back = read_run(folder / "a.run")
    assert {q: [d for d, _ in r] for q, r in back.items()} == {
        q: [d for d, _ in r] for q, r in run.items()
    }
    for ranking in back.values():
        single = [np.float32(score) for _, score in ranking]
        assert all(a > b for a, b in itertools.pairwise(single))
    write_run(folder / "b.run", dict(reversed(run.items())), "t")
    assert (folder / "a.run").read_bytes() == (folder / "b.run").read_bytes()


def test_scores_that_fall_are_written_exactly(tmp_path):
    ranking = [("a", 1 / 3), ("b", float(np.float32(0.1))), ("c", 1e-20)]
    write_run(tmp_path / "a.run", {"q": ranking}, "t")
    assert read_run(tmp_path / "a.run") == {"q": ranking}


def test_ties_and_rises_are_nudged_by_the_smallest_step(tmp_path):
    # 1 - 1e-12 is below 1, but not in trec_eval's single precision.
    run = {"q": [("a", 1.0), ("b", 1.0), ("c", 1 - 1e-12), ("d", 5.0), ("e", 0.5)]}
    write_run(tmp_path / "a.run", run, "t")
    scores = [score for _, score in read_run(tmp_path / "a.run")["q"]]
    step = 2.0**-24
    assert scores == [1.0, 1 - step, 1 - 2 * step, 1 - 3 * step, 0.5]


def test_reads_a_foreign_run_in_the_order_of_trec_eval(tmp_path):
    path = write_text(tmp_path / "a.run", "q Q0 a 1 1 t\nq\tQ0\tb\t2\t1\tt\r\n\nq Q0 c 9 7e0 t\n")
    assert read_run(path) == {"q": [("c", 7.0), ("b", 1.0), ("a", 1.0)]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 d 1 0.5", "5 columns where a run has 6"),
        ("q Q0 my doc 1 0.5 t", "7 columns where a run has 6"),
        ("q Q0 d 1 high t", "'high' is not a finite number"),
        ("q Q0 d 1 nan t", "'nan' is not a finite number"),
        ("q Q0 a 2 0.1 t", "'a' comes twice for query 'q'"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = write_text(tmp_path / "a.run", f"q Q0 a 1 1.0 t\n{line}\n")
    with pytest.raises(UserError, match=message) as caught:
        read_run(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.run: cannot be read: No such file"):
        read_run(tmp_path / "absent.run")
    (tmp_path / "latin.run").write_bytes("q Q0 é 1 1 t\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.run: not UTF-8"):
        read_run(tmp_path / "latin.run")


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q": [("a", 1.0), ("a", 0.5)]}, "t", "'a' is ranked twice for query 'q'"),
        ({"q": [("a b", 1.0)]}, "t", "document id 'a b' is empty or has white space"),
        ({"": [("a", 1.0)]}, "t", "query id '' is empty"),
        ({}, "my run", "the tag 'my run' is empty or has white space"),
        ({"q": [("a", math.nan)]}, "t", "query 'q' has a score outside"),
        ({"q": [("a", 1e300)]}, "t", "query 'q' has a score outside"),
        ({"q": [("a", -3.4028234663852886e38), ("b", 0.0)]}, "t", "query 'q' has a score outside"),
    ],
)
def test_refuses_what_the_format_cannot_hold(tmp_path, run, tag, message):
    with pytest.raises(UserError, match=message):
        write_run(tmp_path / "a.run", run, tag)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_run(tmp_path, full_disk):
    path = tmp_path / "a.run"
    write_run(path, {"q": [("a", 1.0)]}, "t")
    before = path.read_bytes()
    full_disk()
    with pytest.raises(UserError, match=r"a\.run: .*free some space"):
        write_run(path, {"q": [("b", 1.0)]}, "t")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full_disk(monkeypatch):
    """Call it, and from then on a written text ends in the middle: no space left."""

    def write_half(path, text, **_):
        path.write_bytes(text.encode()[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(Path, "write_text", write_half)
