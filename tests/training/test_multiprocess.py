"""Two processes of four devices each, against one process."""

import dataclasses
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gr_jax.training import (
    Optimizer,
    Partitioner,
    Partitioning,
    load_eval_parameters,
    read_metrics,
)
from tests.processes import ended, start
from tests.training.tiny_run import FINGERPRINT, MODEL, STEPS, partitioner, train_tiny


def losses(directory: Path) -> np.ndarray:
    rows = read_metrics(directory / "train" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return np.array([row["loss"] for row in rows])


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    state = train_tiny(directory, log_period=1, on=partitioner())
    return losses(directory), jax.device_get(state.params)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"model_parallel": 2, "parameter_partitions": 2},
        pytest.param({"model_parallel": 4, "activation_partitions": 2}, marks=pytest.mark.slow),
        {"replicas": 2, "model_parallel": 2, "parameter_partitions": 2, "activation_partitions": 2},
    ],
    ids=str,
)
def test_losses_are_those_of_one_device(settings, on_one_device, tmp_path):
    on = Partitioner.make(Partitioning(**settings))
    state = train_tiny(tmp_path, log_period=1, on=on)
    np.testing.assert_allclose(losses(tmp_path), on_one_device[0], rtol=1e-5)
    close(state.params, on_one_device[1])


# what large models are trained with, gin/runs/pod.gin
POD = {
    "model": dataclasses.replace(
        MODEL, emb_dim=16, scan_layers=True, remat="full", dropout_rate=0.1
    ),
    "optimizer": Optimizer("adafactor"),
    "microbatches": 2,
}


@pytest.fixture(scope="module")
def pod_on_one_device(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pod")
    train_tiny(directory, log_period=1, on=partitioner(), **POD)
    return losses(directory)


@pytest.mark.parametrize("model_parallel", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_losses_of_a_pods_settings_are_those_of_one_device(
    model_parallel, pod_on_one_device, tmp_path
):
    on = Partitioner.make(Partitioning(model_parallel=model_parallel, parameter_partitions=2))
    train_tiny(tmp_path, log_period=1, on=on, **POD)
    np.testing.assert_allclose(losses(tmp_path), pod_on_one_device, rtol=1e-5)


def close(found, expected):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_sigterm_to_one_of_two_stops_both_at_one_step(on_one_device, tmp_path):
    arguments = ("tests.training.multiprocess_run", str(tmp_path), "localhost:{port}", "2")
    processes = start(*arguments, "{index}")
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
    finished = ended(start(*arguments, "{index}", "behind"))
    assert [result[:2] for result in finished] == [(0, "finished")] * 2, finished
    np.testing.assert_allclose(losses(tmp_path), on_one_device[0], rtol=1e-5)
    parameters, last = load_eval_parameters(tmp_path, FINGERPRINT)
    assert last == STEPS
    close(parameters, on_one_device[1])
