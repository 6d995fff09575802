"""Two processes of four devices each, against one process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gr_jax.training import Partitioner, Partitioning, load_eval_parameters, read_metrics
from tests.training.tiny_run import FINGERPRINT, STEPS, partitioner, train_tiny

ROOT = Path(__file__).parents[2]


def losses(directory: Path) -> np.ndarray:
    rows = read_metrics(directory / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([row["loss"] for row in rows])


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    state = train_tiny(directory, log_period=1, on=partitioner())
    return losses(directory), jax.device_get(state.params)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start_two(module: str, *arguments: str) -> list[subprocess.Popen]:
    """Two processes; `{port}` and `{index}` in the arguments are filled in."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *(a.format(port=port, index=i) for a in arguments)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, last line of output and errors of each; none of them outlives the test.

    XLA's collectives on CPUs announce themselves in the lines before.
    """
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, (output.splitlines() or [""])[-1], errors)
        for process, (output, errors) in zip(processes, outputs, strict=True)
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"model_parallel": 2, "parameter_partitions": 2},
        {"model_parallel": 4, "activation_partitions": 2},
        {"replicas": 2, "model_parallel": 2, "parameter_partitions": 2, "activation_partitions": 2},
    ],
    ids=str,
)
def test_losses_are_those_of_one_device(settings, on_one_device, tmp_path):
    on = Partitioner.make(Partitioning(**settings))
    state = train_tiny(tmp_path, log_period=1, on=on)
    np.testing.assert_allclose(losses(tmp_path), on_one_device[0], rtol=1e-5)
    close(state.params, on_one_device[1])


def close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_sigterm_to_one_of_two_stops_both_at_one_step(on_one_device, tmp_path):
    arguments = ("tests.training.multiprocess_run", str(tmp_path), "localhost:{port}", "2")
    processes = start_two(*arguments, "{index}")
    metrics = tmp_path / "train" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while len(read_metrics(metrics)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
        assert all(p.poll() is None for p in processes), ended(processes)
    processes[1].send_signal(signal.SIGTERM)
    stopped = ended(processes)
    assert [status for status, *_ in stopped] == [130, 130], stopped
    assert stopped[0][1] == stopped[1][1]
    step = int(stopped[0][1].split()[3])
    assert 3 <= step < STEPS and (tmp_path / f"checkpoint_{step}").exists()
    finished = ended(start_two(*arguments, "{index}"))
    assert [result[:2] for result in finished] == [(0, "finished")] * 2, finished
    np.testing.assert_allclose(losses(tmp_path), on_one_device[0], rtol=1e-5)
    parameters, last = load_eval_parameters(tmp_path, FINGERPRINT)
    assert last == STEPS
    close(parameters, on_one_device[1])


def test_a_failure_of_the_first_process_ends_the_others(tmp_path):
    finished = ended(
        start_two(
            "gr_jax.train",
            "--gin_file=gin/runs/beir.gin",
            f'--gin.MODEL_DIR="{tmp_path / "model"}"',
            f'--gin.CORPUS="{tmp_path / "nowhere"}"',
            "--coordinator_address=localhost:{port}",
            "--process_count=2",
            "--process_index={index}",
        )
    )
    assert [status for status, *_ in finished] == [2, 2], finished
    for _, output, errors in finished:
        assert not output and errors.count("\n") == 1 and "no such corpus folder" in errors, errors
    assert "preparation failed in process 0: " in finished[1][2]
