"""A model of more than the room that a process is given: addresses, so mapped files count too."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoints import limited_memory
from tests.processes import ended, start


def under_a_limit(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    limited_memory.write_models(folder)
    # as few bytes as can be for what is no array: small stacks, one heap, large blocks given back
    command = [sys.executable, limited_memory.__file__, str(folder), how]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    return subprocess.run(
        ["sh", "-c", 'ulimit -s 1024 && exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


def test_a_model_of_three_times_the_room_is_converted_and_fingerprinted(tmp_path):
    run = under_a_limit(tmp_path, "convert")
    assert run.returncode == 0, run.stderr[-2000:]
    assert len(set(run.stdout.split())) == 1 and len(run.stdout.split()) == 4


def test_one_that_is_read_whole_does_not_fit(tmp_path):
    run = under_a_limit(tmp_path, "eager")
    assert run.returncode and "MemoryError" in run.stderr, run.stderr[-2000:]


def test_processes_load_their_halves_of_a_model_that_fits_into_none(tmp_path, monkeypatch):
    limited_memory.write_models(tmp_path)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 20))
    arguments = (str(tmp_path), "load", "localhost:{port}", "{index}")
    for status, line, errors in ended(
        start("tests.checkpoints.limited_memory", *arguments, devices=1)
    ):
        assert status == 0, errors[-2000:]
        found = json.loads(line)
        assert found["held"] < 0.51 * found["model"] and not found["all_fits"], found
