"""Where the time of a run went: of made-up histories with kills, and of real runs."""

import concurrent.futures
import json
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.errors import UserError
from gr_jax.training import describe_goodput, read_goodput, read_metrics
from gr_jax.training._goodput import KINDS, LEDGER, Interval, Ledger, account, share
from gr_jax.training._loop import _arrived
from tests.training.tiny_run import STEPS, Altered, train_tiny


def process(start: float, first: int, *parts: tuple[int, dict[str, float]]) -> list[Interval]:
    """Intervals of one process: 2 s of init, then (last step, seconds by kind) each."""
    history = [Interval(start + 2.0, first, first, {"init": 2.0})]
    for last, seconds in parts:
        before = history[-1]
        end = before.end + sum(seconds.values())
        history.append(Interval(end, before.last, last, seconds))
    return history


# saved at 10; killed after 17; goes on from 10 after 30 s; killed at 12, before anything is saved;
# goes on from 10 again after 5 s, to 20
KILLED = [
    *process(1000.0, 0, (10, {"compile": 5.0, "step": 10.0, "checkpoint": 1.0}),
             (17, {"step": 7.0, "data": 2.0})),
    *process(1057.0, 10, (12, {"step": 4.0, "compile": 3.0})),
    *process(1071.0, 10, (20, {"compile": 3.0, "step": 9.0, "profile": 0.5})),
]  # fmt: skip


def test_a_history_of_kills():
    seconds = account(KILLED)
    assert seconds == pytest.approx(
        {
            "step": 10.0 + 9.0,  # 0 to 10, and the last 10 to 20
            "redone": 7.0 + 4.0,
            "data": 2.0,
            "compile": 5.0 + 3.0 + 3.0,
            "checkpoint": 1.0,
            "profile": 0.5,
            "init": 3 * 2.0,
            "down": 30.0 + 5.0,
        }
    )
    wall = KILLED[-1].end - KILLED[0].begin
    assert sum(seconds.values()) == pytest.approx(wall)
    assert share(seconds) == pytest.approx(19.0 / wall)
    assert describe_goodput(seconds).startswith(f"goodput {19.0 / wall:.0%} of {wall:,.1f} s: step")


def test_only_the_steps_beyond_the_checkpoint_are_lost():
    history = process(0.0, 0, (10, {"step": 20.0}), (20, {"step": 40.0, "data": 3.0}))
    seconds = account(history, resumed_at=15)
    assert (seconds["step"], seconds["redone"], seconds["data"]) == (20.0 + 20.0, 20.0, 3.0)
    assert account(history, resumed_at=20) == account(history)
    assert account(history, resumed_at=0)["step"] == 0.0
    assert account([], resumed_at=3) == dict.fromkeys(KINDS, 0.0)
    assert share(account([])) == 0.0


def test_a_clock_that_was_set_back_makes_no_time():
    history = [*process(500.0, 0, (5, {"step": 5.0})), *process(100.0, 5, (10, {"step": 5.0}))]
    assert account(history)["down"] == 0.0
    assert sum(account(history).values()) == 14.0


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    lives=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 9), st.floats(0.1, 9), st.floats(0, 50)),
        min_size=1,
        max_size=6,
    )
)
def test_every_second_has_one_kind_and_every_step_counts_once(lives):
    """Each life goes back some steps and then does some, a second each."""
    history, done, end = [], 0, 0.0
    for back, steps, compiling, down in lives:
        first = max(done - back, 0)
        history += process(
            end + down, first, (first + steps, {"step": 1.0 * steps, "compile": compiling})
        )
        done, end = first + steps, history[-1].end
    seconds = account(history)
    assert sum(seconds.values()) == pytest.approx(history[-1].end - history[0].begin)
    assert seconds["step"] == pytest.approx(done)
    assert min(seconds.values()) >= 0


def intervals(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / LEDGER).read_text().splitlines()]


def test_a_run_and_its_restart(tmp_path):
    began = time.time()
    with pytest.raises(RuntimeError, match="no more"):
        train_tiny(tmp_path, batches=Broken(17))  # saved at 15, logged at 16
    time.sleep(0.3)
    train_tiny(tmp_path)
    wall, train = time.time() - began, tmp_path / "train"
    seconds = read_goodput(train)
    assert all(seconds[kind] > 0 for kind in ("step", "redone", "compile", "init", "checkpoint"))
    assert seconds["down"] >= 0.3 and seconds["profile"] == 0.0
    assert wall / 2 < sum(seconds.values()) <= wall + 0.1
    rows = intervals(train)
    assert [r["last"] for r in rows] == [0, 4, 8, 12, 16, 17, 15, 16, 20, 24, 24]
    assert [i for i, r in enumerate(rows) if "init" in r["seconds"]] == [0, 6]
    # what the log says is what the ledger gives
    logged = {row["step"]: row["goodput"] for row in read_metrics(train / "metrics.jsonl")}
    assert list(logged) == list(range(4, STEPS + 1, 4))
    known = [Interval(**row) for row in rows[:-1]]
    assert logged[STEPS] == pytest.approx(share(account(known)), abs=0.01)
    before = (train / LEDGER).read_bytes()
    train_tiny(tmp_path)  # finished: a look at it is no part of the run
    assert (train / LEDGER).read_bytes() == before


class Broken(Altered):
    """Batches that end at a step."""

    def __init__(self, step: int):
        super().__init__()
        self.step = step

    def __call__(self, step):
        if step == self.step:
            raise RuntimeError("no more")
        return self.whole(step)


class Slow(Broken):
    """Batches that come late, and are what the device waits for."""

    def __call__(self, step):
        time.sleep(0.3)
        return self.whole(step)


def test_waiting_for_batches_is_the_datas_time(tmp_path):
    train_tiny(tmp_path, batches=Slow(-1), total_steps=6)
    assert read_goodput(tmp_path / "train")["data"] > 0.3  # of 1.8 s, less what else took long


@pytest.mark.parametrize("comes_first", ["batch", "device"])
def test_waiting_while_the_device_works_is_not(comes_first):
    coming = concurrent.futures.Future()
    asked = []

    class Last:
        """A step whose result is not there yet when it is asked for at first."""

        @property
        def loss(self):
            return self

        def is_ready(self):
            asked.append(True)
            if len(asked) < 3:
                return False
            if comes_first == "batch":
                coming.set_result("batch")
                return False
            threading.Timer(0.2, lambda: coming.set_result("batch")).start()
            return True

    ledger = Ledger(None)
    ledger.resume(0)
    assert _arrived(coming, Last(), ledger) == "batch"  # pyright: ignore[reportArgumentType]
    assert len(asked) == 3
    data = ledger.record()["data"]
    assert data < 0.1 if comes_first == "batch" else data > 0.15


class TestLedger:
    def test_a_line_cut_by_a_kill_is_left_out(self, tmp_path):
        ledger = Ledger(tmp_path)
        ledger.resume(0)
        ledger.done = 5
        ledger.record()
        assert ledger._stream is not None
        ledger._stream.close()  # without the last interval: a kill
        path = tmp_path / LEDGER
        text = path.read_text()
        known = account([Interval(**row) for row in intervals(tmp_path)])
        path.write_text(text + '{"end": 17.5, "fir')
        assert read_goodput(tmp_path) == known
        again = Ledger(tmp_path)
        again.resume(3)
        again.close()
        assert path.read_text().startswith(text)
        assert [row["first"] for row in intervals(tmp_path)] == [0, 0, 3, 3]
        assert again.seconds["redone"] > 0

    def test_nothing_is_written_before_the_run_is_accepted(self, tmp_path):
        Ledger(tmp_path).close()
        assert not list(tmp_path.iterdir())
        assert read_goodput(tmp_path) == dict.fromkeys(KINDS, 0.0)

    def test_processes_that_do_not_write_keep_time_too(self, tmp_path):
        ledger = Ledger(None)
        ledger.resume(0)
        with ledger.spent("data"):
            time.sleep(0.02)
        ledger.done = 3
        seconds = ledger.record()
        assert seconds["data"] >= 0.02 and "step" in seconds
        assert 0 < ledger.goodput < 1
        ledger.close()

    def test_each_batch_shape_compiles_once(self):
        ledger = Ledger(None)
        ledger.resume(0)
        seconds = []
        for _ in range(2):
            for rows in (8, 16):
                with ledger.compiling({"a": np.zeros((rows, 4))}):
                    time.sleep(0.01)
            seconds.append(ledger.record().get("compile", 0.0))
        assert seconds[0] >= 0.02 and seconds[1] == 0.0
        assert ledger.seconds["compile"] == seconds[0]

    def test_a_folder_in_its_place_is_one_line(self, tmp_path):
        (tmp_path / LEDGER).mkdir()
        with pytest.raises(UserError, match=rf"{LEDGER}: cannot be written"):
            Ledger(tmp_path).resume(0)
