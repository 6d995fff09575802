"""Checkpoints: whose they are, where they go, and what damage or a full disk looks like."""

import dataclasses
import errno
import json
import os
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gr_jax.errors import UserError
from gr_jax.training import (
    Adafactor,
    Checkpoints,
    Optimizer,
    RunIdentity,
    Schedule,
    init_state,
    load_eval_parameters,
)
from gr_jax.training._loop import _what_decides
from gr_jax.training._step import abstract_state
from tests.training.tiny_run import (
    FINGERPRINT,
    MODEL,
    TRAINER,
    make_batches,
    make_cache,
    partitioner,
)

IDENTITY = RunIdentity(FINGERPRINT, MODEL.to_json(), seed=3, total_steps=24)
OPTIMIZER = TRAINER.optimizer.make()


def shapes(on=None, *, ema=True):
    return abstract_state(MODEL, OPTIMIZER, on or partitioner(), ema=ema)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def state():
    """A state whose every leaf is its own, on one device."""
    fresh = init_state(MODEL, OPTIMIZER, partitioner(), seed=3, ema=True)
    ema = jax.tree.map(lambda x: x + 1, fresh.params)
    moments = jax.tree.map(lambda x: x + 2, fresh.opt_state)
    return fresh._replace(ema=ema, opt_state=moments, step=fresh.step + 7)


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    checkpoints = Checkpoints(directory)
    assert checkpoints.latest_step is None
    checkpoints.save(7, state, IDENTITY)
    checkpoints.close()
    assert [p.name for p in directory.iterdir()] == ["checkpoint_7"]
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def opened(saved):
    checkpoints = Checkpoints(saved)
    yield checkpoints
    checkpoints.close()


@pytest.mark.parametrize(("devices", "model_parallel"), [(1, 1), (8, 1), (8, 4)])
def test_round_trip_onto_any_mesh(state, opened, devices, model_parallel):
    wanted = shapes(partitioner(devices, model_parallel))
    restored = opened.restore(7, wanted, IDENTITY)
    assert_same(restored, state)
    for x, leaf in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert x.sharding.is_equivalent_to(leaf.sharding, x.ndim) and x.dtype == leaf.dtype


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("docid_fingerprint", "0" * 64),
        ("model", dataclasses.replace(MODEL, dropout_rate=0.2).to_json()),
        ("seed", 4),
        ("total_steps", 25),
    ],
)
def test_another_run_is_refused_in_one_line(saved, opened, field, other):
    ours = dataclasses.replace(IDENTITY, **{field: other})
    with pytest.raises(UserError) as error:
        opened.restore(7, shapes(), ours)
    message = str(error.value)
    named = "model.dropout_rate=0.0, this run has 0.2" if field == "model" else f"{field}="
    assert message.startswith(f"{saved}/checkpoint_7: made with {named}") and "\n" not in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"cache": make_cache(seed=1)}, "training.examples="),
        ({"cache": dataclasses.replace(make_cache(), rates=(2.0, 1.0))}, "training.examples="),
        ({"row_length": 14}, "training.row_length=12, this run has 14"),
        ({"pack": False}, "training.max_per_row=3, this run has 1"),
    ],
)
def test_a_run_on_other_examples_is_refused(state, tmp_path, changes, named):
    checkpoints = Checkpoints(tmp_path)
    ours = dataclasses.replace(IDENTITY, training=_what_decides(TRAINER, make_batches()))
    checkpoints.save(7, state, ours)
    checkpoints.wait()
    other = _what_decides(TRAINER, make_batches(**changes))
    with pytest.raises(UserError, match=f"made with {named}"):
        checkpoints.restore(7, shapes(), dataclasses.replace(ours, training=other))
    again = _what_decides(TRAINER, make_batches(row_multiple=8))  # another mesh
    checkpoints.restore(7, shapes(), dataclasses.replace(ours, training=again))
    checkpoints.close()


def older(text: str, *names: str) -> str:
    """Settings as they were written before `names` existed, at any depth."""

    def without(settings):
        return {
            name: without(value) if isinstance(value, dict) else value
            for name, value in settings.items()
            if name not in names
        }

    return json.dumps(without(json.loads(text)), sort_keys=True)


TRAINING = _what_decides(TRAINER, make_batches())
YOUNGER_OF_MODEL = ("relpos_per_layer", "scan_layers", "remat")
YOUNGER_OF_TRAINING = (
    "softmax", "loss_normalizing_factor", "adafactor", "factors", "decay_factor",
    "steps_per_decay", "steps_per_cycle", "step_offset", "min_learning_rate",
    "row_length", "max_per_row", "examples",
)  # fmt: skip


@pytest.fixture(scope="module")
def old(state, tmp_path_factory):
    identity = dataclasses.replace(
        IDENTITY,
        model=older(IDENTITY.model, *YOUNGER_OF_MODEL),
        training=older(TRAINING, *YOUNGER_OF_TRAINING),
    )
    assert "scan_layers" not in identity.model and "factors" not in identity.training
    assert json.loads(identity.training)["schedule"].keys() == {
        "base", "warmup_steps", "decay", "final"
    }  # fmt: skip
    directory = tmp_path_factory.mktemp("old")
    checkpoints = Checkpoints(directory)
    checkpoints.save(7, state, identity)
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


class TestOlderCheckpoints:
    """A checkpoint from before a setting existed goes on with the setting's default only."""

    def test_goes_on(self, old, state):
        ours = dataclasses.replace(IDENTITY, training=TRAINING)
        assert_same(old.restore(7, shapes(), ours), state)

    def test_goes_on_with_other_execution(self, old, state):
        model = dataclasses.replace(MODEL, remat="full").to_json()
        ours = dataclasses.replace(IDENTITY, training=TRAINING, model=model)
        assert_same(old.restore(7, shapes(), ours), state)

    @pytest.mark.parametrize(
        ("changes", "named"),
        [
            ({"schedule": Schedule(factors="constant")}, "training.schedule."),
            ({"loss_normalizing_factor": 10.0}, "training.loss_normalizing_factor=None, this"),
            (
                {"optimizer": Optimizer(adafactor=Adafactor(beta1=0.9))},
                r"training.optimizer.adafactor.beta1=None, this run has 0.9",
            ),
        ],
    )
    def test_other_training_is_refused_by_name(self, old, changes, named):
        training = _what_decides(dataclasses.replace(TRAINER, **changes), make_batches())
        with pytest.raises(UserError, match=named):
            old.restore(7, shapes(), dataclasses.replace(IDENTITY, training=training))

    def test_another_layout_is_refused_by_name(self, old):
        model = dataclasses.replace(MODEL, scan_layers=True).to_json()
        with pytest.raises(UserError, match=r"model\.scan_layers=False, this run has True"):
            old.restore(7, shapes(), dataclasses.replace(IDENTITY, model=model))


def test_another_optimizer_or_average_is_refused_in_one_line(opened):
    others = (shapes(ema=False), abstract_state(
        MODEL, dataclasses.replace(TRAINER.optimizer, name="muon").make(), partitioner(), ema=True
    ))  # fmt: skip
    for other in others:
        with pytest.raises(UserError, match="optimizer or without ema_decay") as error:
            opened.restore(7, other, IDENTITY)
        assert "\n" not in str(error.value)


def test_eval_parameters_are_the_average_where_there_is_one(saved, state, tmp_path):
    parameters, step = load_eval_parameters(saved, FINGERPRINT)
    assert step == 7
    assert_same(parameters, state.ema)
    assert {x.sharding.num_devices for x in jax.tree.leaves(parameters)} == {1}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(9, state._replace(ema=None), IDENTITY)
    checkpoints.close()
    parameters, step = load_eval_parameters(tmp_path, FINGERPRINT)
    assert step == 9
    assert_same(parameters, state.params)


def test_eval_refuses_other_docids_and_an_empty_directory(saved, tmp_path):
    with pytest.raises(UserError, match=f"checkpoint_7: trained on docids {FINGERPRINT[:12]}, "):
        load_eval_parameters(saved, "0" * 64)
    with pytest.raises(UserError, match="no checkpoint yet; train first"):
        load_eval_parameters(tmp_path, FINGERPRINT)
    with pytest.raises(UserError, match="no checkpoint yet; train first"):
        load_eval_parameters(tmp_path / "absent", FINGERPRINT)
    assert not (tmp_path / "absent").exists()


def test_reading_leaves_a_save_in_flight_alone(copy):
    flight = copy / "checkpoint_8.orbax-checkpoint-tmp"
    flight.mkdir()
    (flight / "half").write_text("x")
    load_eval_parameters(copy, FINGERPRINT)
    assert (flight / "half").exists(), "a reader removed what training is writing"
    Checkpoints(copy).close()
    deadline = time.monotonic() + 30  # Orbax clears in a thread of its own
    while flight.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not flight.exists(), "training clears what a killed run left"


def damage(copy, kind):
    checkpoint = copy / "checkpoint_7"
    if kind == "emptied":
        shutil.rmtree(checkpoint)
        checkpoint.mkdir()
    elif kind in ("no state", "no identity"):
        shutil.rmtree(checkpoint / kind.removeprefix("no "))
    elif kind == "cut identity":
        os.truncate(checkpoint / "identity" / "metadata", 40)
    elif kind in ("no tree", "cut tree"):
        tree = checkpoint / "state" / "_METADATA"
        tree.unlink() if kind == "no tree" else os.truncate(tree, 1000)
    else:
        # all of the array data: the index in d/, the values in ocdbt.process_0/d/
        folder = "state/d" if "index" in kind else "state/ocdbt.process_0/d"
        for path in (checkpoint / folder).iterdir():
            # values are written in any order: only an empty file lacks those that are read
            size = path.stat().st_size // 20 if "index" in kind else 0
            path.unlink() if "no " in kind else os.truncate(path, size)


# Orbax's abandoned coroutines say on stderr what the exception has said already
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "kind",
    ["emptied", "no state", "no identity", "cut identity", "no tree", "cut tree", "no index",
     "cut index", "no values", "cut values"],
)  # fmt: skip
def test_damage_is_a_line_that_names_the_path(copy, kind):
    damage(copy, kind)
    before = sorted(copy.rglob("*"))
    checkpoints = Checkpoints(copy)
    latest = checkpoints.latest_step
    assert latest == 7, "a damaged checkpoint is not passed over in silence"
    for read in (
        lambda: checkpoints.restore(7, shapes(), IDENTITY),
        lambda: load_eval_parameters(copy, FINGERPRINT),
    ):
        with pytest.raises(UserError) as error:
            read()
        message = str(error.value)
        assert message.startswith(f"{copy}/checkpoint_7")
        assert "damaged" in message or "missing" in message
        assert "\n" not in message and len(message) < 500
    checkpoints.close()
    assert sorted(copy.rglob("*")) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "removed"])
def test_no_file_can_be_harmed_unnoticed(saved, state, copy, harm):
    """With any one file cut or gone, a checkpoint is refused, or what is read is all of it."""
    refused = []
    for whole in sorted(path for path in saved.rglob("*") if path.is_file()):
        harmed = copy / whole.relative_to(saved)
        if harm == "cut":
            os.truncate(harmed, whole.stat().st_size // 2)
        else:
            harmed.unlink()
        checkpoints = Checkpoints(copy, read_only=True)
        try:
            assert_same(checkpoints.restore(7, shapes(), IDENTITY), state)
        except UserError as error:
            assert "damaged" in str(error)
            refused.append(harmed.name)
        finally:
            checkpoints.close()
            shutil.copyfile(whole, harmed)
    assert {"metadata", "manifest.ocdbt", "_METADATA"} <= set(refused), refused


def test_a_damaged_checkpoint_names_the_one_before(copy, state):
    checkpoints = Checkpoints(copy)
    checkpoints.save(9, state, IDENTITY)
    checkpoints.wait()
    for step, mend in ((9, "delete it to go on from checkpoint_7"), (7, "to begin again")):
        (copy / f"checkpoint_{step}" / "state" / "_METADATA").unlink()
        with pytest.raises(UserError, match=mend):
            checkpoints.restore(step, shapes(), IDENTITY)
    checkpoints.close()


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        # what TensorStore raises, recorded on a full disk
        ValueError("RESOURCE_EXHAUSTED: Error writing ... [os_error_code='28'] [source='x']"),
    ],
)
@pytest.mark.parametrize("method", ["save", "wait_until_finished"])
def test_full_disk_is_a_line(copy, state, monkeypatch, failure, method):
    def fail(*_, **__):
        raise failure

    checkpoints = Checkpoints(copy)
    monkeypatch.setattr(ocp.CheckpointManager, method, fail)
    with pytest.raises(UserError, match=f"{copy}: the disk is full; free some space"):
        if method == "save":
            checkpoints.save(8, state, IDENTITY)
        else:
            checkpoints.wait()
    monkeypatch.undo()
    checkpoints.close()


def test_other_failures_to_save_are_not_hidden(copy, state, monkeypatch):
    def fail(*_, **__):
        raise ValueError("a bug")

    checkpoints = Checkpoints(copy)
    monkeypatch.setattr(ocp.CheckpointManager, "save", fail)
    with pytest.raises(ValueError, match="a bug"):
        checkpoints.save(8, state, IDENTITY)
    monkeypatch.undo()
    checkpoints.close()
