"""What the log of a run says: per task, against the device's peak, and a trace on request."""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gr_jax.errors import UserError
from gr_jax.models import cross_entropy_loss, training_flops
from gr_jax.training import TrainConfig, read_metrics
from gr_jax.training._loop import _peak_flops, step_function
from gr_jax.training._peak import peak_flops
from gr_jax.training._step import init_state
from tests.training.test_goodput import Broken
from tests.training.tiny_run import MODEL, TRAINER, make_batches, partitioner, train_tiny

TASKS = ("indexing", "retrieval")


def log(directory) -> list[dict[str, float]]:
    return read_metrics(directory / "train" / "metrics.jsonl")


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


# --- per task -------------------------------------------------------------------------------------


def sums_of_a_step(devices, model_parallel, microbatches, num_tasks=2):
    config = dataclasses.replace(TRAINER, microbatches=microbatches, z_loss=1e-3)
    optimizer, on = config.optimizer.make(), partitioner(devices, model_parallel)
    state = init_state(MODEL, optimizer, on, seed=5)
    run = step_function(config, MODEL, optimizer, on, num_tasks=num_tasks)
    return run(state, make_batches()(3).arrays, 1e-2)


@pytest.fixture(scope="module")
def of_one_task_only():
    """The sums of each task's examples by themselves: the others' targets are made padding."""
    config = dataclasses.replace(TRAINER, z_loss=1e-3)
    optimizer, on = config.optimizer.make(), partitioner()
    run = step_function(config, MODEL, optimizer, on)
    arrays, found = make_batches()(3).arrays, []
    for task in (1, 2):
        targets = np.where(arrays["decoder_task_ids"] == task, arrays["decoder_target_tokens"], 0)
        state = init_state(MODEL, optimizer, on, seed=5)
        found.append(run(state, arrays | {"decoder_target_tokens": targets}, 1e-2)[1].sums)
    return found


@pytest.mark.parametrize(
    ("devices", "model_parallel", "microbatches"),
    [pytest.param(1, 1, 1, marks=pytest.mark.slow), (8, 2, 4)],
)
def test_a_step_tells_tasks_apart(of_one_task_only, devices, model_parallel, microbatches):
    state, metrics = sums_of_a_step(devices, model_parallel, microbatches)
    for name in metrics.sums._fields:
        both = getattr(metrics.sums, name)
        assert both.shape == (2,)
        apart = [getattr(sums, name) for sums in of_one_task_only]
        np.testing.assert_allclose(both, apart, rtol=1e-5, err_msg=name)
    tokens = metrics.sums.weight.sum()
    np.testing.assert_allclose(metrics.sums.loss.sum() / tokens, metrics.loss, rtol=1e-6)
    np.testing.assert_allclose(metrics.sums.correct.sum() / tokens, metrics.accuracy, rtol=1e-6)
    if devices > 1:
        return
    together, one_sum = sums_of_a_step(devices, model_parallel, microbatches, num_tasks=0)
    assert_same(together.params, state.params)  # telling apart changes no bit
    assert one_sum.sums.loss.shape == ()


def test_a_loss_that_is_not_a_number_stays_with_its_task():
    logits = jnp.zeros((1, 3, 4)).at[0, 2].set(jnp.nan)
    targets, tasks = jnp.array([[1, 2, 3]]), jnp.array([[1, 1, 3]])
    sums = cross_entropy_loss(logits, targets, tasks=tasks, num_tasks=3)
    np.testing.assert_allclose(sums.loss[:2], [2 * np.log(4), 0.0], rtol=1e-6)
    assert np.isnan(sums.loss[2])
    assert sums.weight.tolist() == [2, 0, 1]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain")
    return directory, train_tiny(directory, total_steps=12)


def test_the_weighted_losses_of_the_tasks_are_the_loss(plain):
    batches = make_batches()
    for row in log(plain[0]):
        ids = np.concatenate(
            [batches(step).arrays["decoder_task_ids"].ravel()
             for step in range(int(row["step"]) - 4, int(row["step"]))]
        )  # fmt: skip
        weights = np.array([(ids == 1).sum(), (ids == 2).sum()])
        assert weights.min() > 0
        for name in ("loss", "accuracy"):
            parts = [row[f"{name}/{task}"] for task in TASKS]
            assert len(set(parts)) == 2
            assert np.average(parts, weights=weights) == pytest.approx(row[name], abs=1e-6)


def test_a_task_without_examples_in_a_period_has_no_loss(tmp_path):
    cache = make_batches().cache
    rare = dataclasses.replace(cache, rates=(1.0, 1e-9))
    train_tiny(tmp_path, total_steps=4, batches=make_batches(cache=rare))
    [row] = log(tmp_path)
    assert "loss/retrieval" not in row and "accuracy/retrieval" not in row
    assert row["loss/indexing"] == pytest.approx(row["loss"])


# --- the device's peak ----------------------------------------------------------------------------


def test_utilisation_is_model_flops_over_the_peak(tmp_path):
    train_tiny(tmp_path, total_steps=8, peak_flops=2e9)
    rows = log(tmp_path)
    ledger = (tmp_path / "train" / "goodput.jsonl").read_text().splitlines()
    spent = [json.loads(line) for line in ledger]
    spent = [s["seconds"] for s in spent if s["first"] < s["last"]]
    assert len(rows) == len(spent) == 2
    flops = 4 * training_flops(MODEL, rows=16, input_length=12, target_length=9)
    for row, seconds in zip(rows, spent, strict=True):
        training = seconds["step"] + seconds.get("data", 0.0)
        expected = flops / training / 2e9
        assert row["model_flops_utilisation"] == pytest.approx(expected, rel=0.02)


def test_the_peak_is_of_all_devices():
    on = partitioner(8, 2)
    assert _peak_flops(TrainConfig(peak_flops=2e9), on) == 8 * 2e9
    assert _peak_flops(TrainConfig(), on) is None  # a CPU


def test_without_a_peak_there_is_no_utilisation(plain):
    assert all("model_flops_utilisation" not in row for row in log(plain[0]))


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 2307e12 / 2),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("cpu", None),
        ("", None),
    ],
)
def test_peaks_are_known_by_kind(kind, peak):
    assert peak_flops(kind) == peak


# --- a trace --------------------------------------------------------------------------------------


def traced_steps(directory) -> list[int]:
    """The numbers of the steps in the only trace of a run."""
    [binary] = directory.glob("train/plugins/profile/*/*.xplane.pb")
    assert binary.stat().st_size > 0
    [events] = directory.glob("train/plugins/profile/*/*.trace.json.gz")
    trace = json.loads(gzip.decompress(events.read_bytes()))["traceEvents"]
    return sorted(int(e["args"]["step_num"]) for e in trace if e.get("name") == "train")


def test_a_trace_is_of_its_steps_and_changes_nothing(plain, tmp_path):
    state = train_tiny(tmp_path, total_steps=12, profile_steps=(6, 3))
    assert traced_steps(tmp_path) == [6, 7, 8]
    assert_same(state, plain[1])


def test_a_run_that_ends_early_leaves_its_trace(tmp_path):
    with pytest.raises(RuntimeError, match="no more"):
        train_tiny(tmp_path, total_steps=12, batches=Broken(7), profile_steps=(6, 30))
    assert traced_steps(tmp_path) == [6, 7]
    train_tiny(tmp_path, total_steps=12)  # and another can be made in this process
    assert traced_steps(tmp_path) == [6, 7]


def test_no_place_for_a_trace_is_one_line(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "plugins").write_text("in the way")
    with pytest.raises(UserError, match=r"train: .*trace") as error:
        train_tiny(tmp_path, total_steps=4, profile_steps=(2, 2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "change",
    [{"profile_steps": (0, 2)}, {"profile_steps": (3,)}, {"profile_steps": 7},
     {"profile_steps": (1.5, 2)}, {"peak_flops": 0.0}, {"peak_flops": float("inf")}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(change):
    [field] = change
    with pytest.raises(UserError, match=rf"TrainConfig\.{field} is "):
        TrainConfig(**change)
