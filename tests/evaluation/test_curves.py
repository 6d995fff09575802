import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gr_jax.errors import UserError
from gr_jax.evaluation._curves import Curve, draw_curve, read_curves

WIDTH, HEIGHT = 340, 220


def write_log(path, lines, end="\n"):
    path.write_text("\n".join(lines) + end)
    return path


def test_reads_the_known_curves(tmp_path):
    lines = [json.dumps({"step": s, "loss": 9.0 - s, "learning_rate": 0.1}) for s in (1, 2)]
    loss, rate = read_curves(write_log(tmp_path / "m.jsonl", lines))
    assert (loss.label, loss.steps.tolist(), loss.values.tolist()) == ("loss", [1, 2], [8, 7])
    assert (rate.label, rate.values.tolist()) == ("learning rate", [0.1, 0.1])


def test_a_resumed_run_counts_once(tmp_path):
    steps = [(1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0), (3, 5.0)]
    lines = [json.dumps({"step": s, "loss": v}) for s, v in steps]
    [loss] = read_curves(write_log(tmp_path / "m.jsonl", lines))
    assert (loss.steps.tolist(), loss.values.tolist()) == ([1, 2, 3], [9, 6, 5])


def test_a_torn_last_line_and_values_that_are_no_numbers_are_left_out(tmp_path):
    lines = ['{"step": 1, "loss": 2}', '{"step": 2, "loss": NaN}', "", '{"step": 3, "lo']
    [loss] = read_curves(write_log(tmp_path / "m.jsonl", lines, end=""))
    assert loss.steps.tolist() == [1]
    assert read_curves(tmp_path / "absent.jsonl") == []
    assert read_curves(write_log(tmp_path / "empty.jsonl", [], end="")) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"loss": 1}', '{"step": 1.5}'])
def test_a_broken_line_is_named(tmp_path, line):
    path = write_log(tmp_path / "m.jsonl", ['{"step": 1}', line])
    with pytest.raises(UserError, match=r"m\.jsonl:2: .*remove the line"):
        read_curves(path)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=600))
def test_everything_drawn_lies_inside(values):
    curve = Curve("loss", np.arange(len(values), dtype=float) * 10, np.asarray(values))
    drawing = draw_curve(curve)
    pairs = [p.split(",") for g in re.findall(r'points="([^"]*)"', drawing) for p in g.split()]
    assert len(pairs) >= 1
    for x, y in pairs:
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT
    assert "nan" not in drawing
    assert drawing.count('class="tick"') >= 3
    assert ('class="band"' in drawing) == (len(values) > 240)


@pytest.mark.parametrize(
    ("value", "ticks"),
    [
        (8.0, ["0", "2", "4", "6", "8"]),
        (0.001, ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.001"]),
        (42_000.0, ["0", "10k", "20k", "30k", "40k", "50k"]),
    ],
)
def test_ticks_are_round_numbers(value, ticks):
    drawing = draw_curve(Curve("loss", np.asarray([0.0, 1.0]), np.asarray([0.0, value])))
    assert re.findall(r'text-anchor="end">([^<]*)<', drawing) == ticks
