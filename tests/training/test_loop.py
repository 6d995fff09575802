"""The loop: resumed, stopped, killed, diverging, out of disk."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from gr_jax.errors import UserError
from gr_jax.training import (
    Interrupted,
    MetricsWriter,
    Schedule,
    load_eval_parameters,
    read_goodput,
    read_metrics,
)
from tests.training.tiny_run import FINGERPRINT, MODEL, STEPS, Altered, train_tiny

LOGGED = list(range(4, STEPS + 1, 4))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def checkpoints_in(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.glob("checkpoint_*"))


def logged_steps(directory: Path) -> list[int]:
    return [int(row["step"]) for row in read_metrics(directory / "train" / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its directory and final state."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, train_tiny(directory, ema_decay=0.9)


def test_a_run_leaves_what_it_promises(whole):
    directory, state = whole
    assert int(state.step) == STEPS
    assert checkpoints_in(directory) == ["checkpoint_20", "checkpoint_24"]  # keep=2
    rows = read_metrics(directory / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == LOGGED
    assert rows[-1]["loss"] < rows[0]["loss"]
    schedule = Schedule(base=1e-2, warmup_steps=2)
    assert [row["learning_rate"] for row in rows] == [schedule(s - 1, STEPS) for s in LOGGED]
    assert all(0 < row["padding_fraction"] < 1 for row in rows)
    assert (directory / "model-info.txt").read_text().startswith("Variable decoder/")
    parameters, step = load_eval_parameters(directory, FINGERPRINT)
    assert step == STEPS
    assert_same(parameters, state.ema)
    again = train_tiny(directory, ema_decay=0.9)  # finished: nothing is done twice
    assert_same(again, state)
    assert logged_steps(directory) == LOGGED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_last_step_and_the_run_goes_on(whole, tmp_path, number):
    seen = []

    def stop_at_8(step, total, scalars):
        seen.append((step, total, scalars["loss"]))
        if step == 8:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at step 8 of 24"):
        train_tiny(tmp_path, ema_decay=0.9, progress=stop_at_8)
    assert signal.getsignal(number) is before
    assert [s for s, _, _ in seen] == [4, 8]
    assert checkpoints_in(tmp_path) == ["checkpoint_5", "checkpoint_8"]
    assert_same(train_tiny(tmp_path, ema_decay=0.9), whole[1])
    assert logged_steps(tmp_path) == LOGGED


def start(directory: Path, cache: Path | None, *arguments: str) -> subprocess.Popen:
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    if cache:  # restarts compile nothing
        environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "tests.training.killed_run", str(directory), *arguments]
    return subprocess.Popen(command, env=environment, cwd=root, stderr=subprocess.PIPE, text=True)


def test_kill_9_changes_nothing(whole, tmp_path):
    """Killed as a save starts and at random, the run ends in the same bits."""
    directory = tmp_path / "run"
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    moments = [
        lambda: any(directory.glob("checkpoint_*tmp")),  # the first save is under way
        lambda: max(logged_steps(directory), default=0) >= 12,
        lambda: max(logged_steps(directory), default=0) >= 20,
    ]
    kills = 0
    for moment in moments:
        process = start(directory, tmp_path / "cache")
        deadline = time.monotonic() + 120
        while not moment() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills == len(moments), f"a run ended before it could be killed (seed {seed})"
    process = start(directory, tmp_path / "cache")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    parameters, step = load_eval_parameters(directory, FINGERPRINT)
    assert step == STEPS, f"seed {seed}"
    assert_same(parameters, whole[1].ema)
    assert logged_steps(directory) == LOGGED
    assert not list(directory.glob("*tmp*"))
    seconds = read_goodput(directory / "train")
    assert seconds["step"] > 0 and seconds["down"] > 0, f"seed {seed}"


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    """Killed while it starts, compiles, steps and saves; the state ends in the same bits."""
    directory, steps, kills = tmp_path / "run", 400, 20
    seed = random.randrange(10**6)
    chance = random.Random(seed)

    def saving() -> bool:
        return any(directory.glob("checkpoint_*tmp*"))

    def stepping(before: int) -> bool:
        return max(logged_steps(directory), default=0) > before

    reached = []
    for kill in range(kills):
        process = start(directory, None, str(steps))
        before = max(logged_steps(directory), default=0)
        deadline = time.monotonic() + 120
        kind = kill % 4
        if kind == 0:  # imports, restoring, compiling: at any moment of them
            time.sleep(chance.random() * 8)
        else:
            while process.poll() is None and time.monotonic() < deadline:
                if saving() if kind == 1 else stepping(before):
                    break
                time.sleep(0.001)
            time.sleep(chance.random() * (0.02 if kind == 1 else 0.5))
        process.kill()
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {kill}, seed {seed}: {errors}"
        reached.append(max(logged_steps(directory), default=0))
    assert reached[-1] > 0 and len(set(reached)) > kills / 4, reached
    process = start(directory, None, str(steps))
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    killed = train_tiny(directory, total_steps=steps, ema_decay=0.9)  # finished: it is only read
    assert int(killed.step) == steps
    assert_same(killed, train_tiny(tmp_path / "whole", total_steps=steps, ema_decay=0.9))
    assert logged_steps(directory) == list(range(4, steps + 1, 4)), f"seed {seed}"


def test_divergence_names_the_step_and_saves_nothing_that_is_not_a_number(tmp_path):
    with pytest.raises(UserError, match=r"training diverged: .* at step \d+; look") as error:
        train_tiny(tmp_path, schedule=Schedule(base=1e38, warmup_steps=1), save_period=1)
    assert "\n" not in str(error.value)
    for path in checkpoints_in(tmp_path):
        assert path.removeprefix("checkpoint_").isdigit()
    if checkpoints_in(tmp_path):
        parameters, _ = load_eval_parameters(tmp_path, FINGERPRINT)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters))


def test_a_refused_run_leaves_the_directory_as_it_was(whole):
    directory, _ = whole
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    other = dataclasses.replace(MODEL, mlp_dim=24)
    changes: list[dict[str, Any]] = [
        {"model": other},
        {"seed": 4},
        {"docid_fingerprint": "0" * 64},
        {"total_steps": 30},
    ]
    for change in changes:
        with pytest.raises(UserError, match=r"checkpoint_24: made with .*another model directory"):
            train_tiny(directory, ema_decay=0.9, **change)
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before


def test_a_broken_batch_is_raised_and_ends_the_threads(tmp_path):
    class Broken(Altered):
        def __call__(self, step):
            if step == 3:
                raise RuntimeError("no such example")
            return self.whole(step)

    with pytest.raises(RuntimeError, match="no such example"):
        train_tiny(tmp_path, batches=Broken(), ema_decay=0.9)


class TestMetricsWriter:
    def write(self, directory, steps, first_step=0):
        writer = MetricsWriter(directory, first_step=first_step)
        for step in steps:
            writer.write(step, {"loss": step / 2})
        writer.close()

    def test_resuming_drops_later_steps(self, tmp_path):
        self.write(tmp_path, [1, 2, 3, 4])
        self.write(tmp_path, [3, 4, 5], first_step=2)
        rows = read_metrics(tmp_path / "metrics.jsonl")
        assert rows == [{"step": s, "loss": s / 2} for s in (1, 2, 3, 4, 5)]

    def test_a_torn_last_line_is_dropped(self, tmp_path):
        self.write(tmp_path, [1, 2])
        path = tmp_path / "metrics.jsonl"
        path.write_text(path.read_text() + '{"step": 3, "lo')
        assert [row["step"] for row in read_metrics(path)] == [1, 2]
        self.write(tmp_path, [3], first_step=2)
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]

    def test_events_are_on_disk_at_once_and_say_from_where_to_purge(self, tmp_path):
        from tensorboardX.proto import event_pb2

        writer = MetricsWriter(tmp_path, first_step=6)
        writer.write(7, {"loss": 0.5})
        [path] = tmp_path.glob("events.out.tfevents*")
        data, events = path.read_bytes(), []  # before it is closed: as after a kill
        while data:  # TFRecord: length, its checksum, the event, its checksum
            stop = 12 + int.from_bytes(data[:8], "little")
            events.append(event_pb2.__dict__["Event"].FromString(data[12:stop]))
            data = data[stop + 4 :]
        writer.close()
        assert any(e.HasField("session_log") and e.step == 7 for e in events)
        [event] = [e for e in events if e.HasField("summary")]
        assert event.step == 7 and event.summary.value[0].tag == "loss"

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_what_is_not_a_number_is_refused(self, tmp_path, value):
        writer = MetricsWriter(tmp_path, first_step=0)
        with pytest.raises(UserError, match=r"training diverged: loss is (nan|inf) at step 3"):
            writer.write(3, {"loss": value})
        writer.close()
        assert read_metrics(tmp_path / "metrics.jsonl") == []

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_is_a_line_also_when_closing(self, tmp_path):
        writer = MetricsWriter(tmp_path, first_step=0)
        writer._stream.close()
        writer._stream = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
        with pytest.raises(UserError, match=r"metrics\.jsonl: the disk is full"):
            writer.write(1, {"loss": 1.0})
        with pytest.raises(UserError, match=r"metrics\.jsonl: the disk is full"):
            writer.close()
