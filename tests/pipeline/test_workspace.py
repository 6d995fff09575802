"""What a model directory remembers, and what a kill in the middle of a stage leaves."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gr_jax import distributed
from gr_jax.corpus import read_corpus
from gr_jax.errors import UserError
from gr_jax.pipeline import Workspace


class Killed(BaseException):
    pass


def test_a_stage_is_done_once_for_its_settings(tmp_path):
    done = []
    output = tmp_path / "out"

    def build(content: str):
        def run():
            output.write_text(content)
            done.append(content)

        return run

    for _ in range(2):
        Workspace(tmp_path).stage("docids", {"x": 1}, output, build("A"))
    assert done == ["A"]
    Workspace(tmp_path).stage("docids", {"x": 2}, output, build("B"))
    assert done == ["A", "B"] and output.read_text() == "B"
    output.unlink()
    Workspace(tmp_path).stage("docids", {"x": 2}, output, build("B"))
    assert done == ["A", "B", "B"]


def test_a_killed_stage_is_never_taken_for_the_one_before(tmp_path):
    output = tmp_path / "out"

    def half():
        output.write_text("half of B")
        raise Killed

    Workspace(tmp_path).stage("examples", {"x": 1}, output, lambda: output.write_text("A") and None)
    with pytest.raises(Killed):
        Workspace(tmp_path).stage("examples", {"x": 2}, output, half)
    Workspace(tmp_path).stage("examples", {"x": 1}, output, lambda: output.write_text("A") and None)
    assert output.read_text() == "A"


def test_an_unfinished_first_checkpoint_is_not_a_model(tmp_path):
    (tmp_path / "checkpoint_500.orbax-checkpoint-tmp").mkdir()
    assert not Workspace(tmp_path).trained
    (tmp_path / "checkpoint_500").mkdir()
    assert Workspace(tmp_path).trained


def test_claim_remembers_documents_without_text(tmp_path, beir):
    source = tmp_path / "corpus.jsonl"
    text = (beir / "corpus.jsonl").read_text()
    source.write_text('{"_id": "void", "title": "", "text": ""}\n' + text)
    Workspace(tmp_path / "m").claim(read_corpus(source))
    assert Workspace(tmp_path / "m").skipped == ("void",)


HOLD = """
import sys, time
from gr_jax.pipeline import Workspace
with Workspace(sys.argv[1]).alone():
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_trainer_at_a_time_and_a_killed_one_is_none(tmp_path):
    directory = tmp_path / "m"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        holder = rf"process {other.pid} of {socket.gethostname()}, since .*, is training here"
        for _ in range(2):  # being refused leaves the lock as it is
            with pytest.raises(UserError, match=holder), Workspace(directory).alone():
                pass
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=60)
        with Workspace(directory).alone():
            assert (directory / "train.lock").read_text().split()[1] == str(os.getpid())
        with Workspace(directory).alone():  # it was let go
            pass
    finally:
        other.kill()
        other.communicate()


def test_a_directory_that_hosts_do_not_share_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "_FILE_PATIENCE", 0.1)
    with Workspace(tmp_path / "m").alone() as holder:
        Workspace(tmp_path / "m").check_shared(holder)
        with pytest.raises(UserError, match=r"other: not the directory that process 0 has"):
            Workspace(tmp_path / "other").check_shared(holder)
    with Workspace(tmp_path / "other").alone():  # the same process, at another time
        pass
    with pytest.raises(UserError, match="not the directory"):
        Workspace(tmp_path / "other").check_shared(holder)


def test_who_follows_waits_for_files_and_writes_none(tmp_path, monkeypatch, beir):
    monkeypatch.setattr(distributed, "_FILE_PATIENCE", 0.5)
    corpus, output = read_corpus(beir / "corpus.jsonl"), tmp_path / "out"
    first, other = Workspace(tmp_path), Workspace(tmp_path)  # `other` before there was anything
    first.claim(corpus)
    first.stage("docids", {"x": 1}, output, lambda: output.write_text("x") and None)
    output.rename(tmp_path / "unseen")  # by the other host
    first.corpus.unlink()
    other.follow(json.loads(json.dumps(first.record)))
    other.claim(corpus)
    assert not other.corpus.exists()

    def never():
        raise AssertionError("built by who should follow")

    with pytest.raises(UserError, match=r"out: process 0 sees it and this host does not"):
        other.stage("docids", {"x": 1}, output, never)
    with pytest.raises(UserError, match=r"other settings of the docids stage; start the same"):
        other.stage("docids", {"x": 2}, output, never)
    threading.Timer(0.1, (tmp_path / "unseen").rename, [output]).start()
    assert other.stage("docids", {"x": 1}, output, never) == first.record["docids"]["key"]


def test_a_file_system_without_locks_is_gone_on_with(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with Workspace(tmp_path / "m").alone():
        pass


def test_what_another_trainer_did_meanwhile_is_seen(tmp_path, beir):
    corpus = read_corpus(beir / "corpus.jsonl")
    late = Workspace(tmp_path)
    Workspace(tmp_path).claim(corpus)
    late.check(corpus)  # else its files would be somebody else's


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(UserError, match=r"stages\.json: damaged"):
        Workspace(tmp_path)
