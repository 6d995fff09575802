"""A training step of a tiny T5 against Hugging Face and torch's AdamW, and NumPy's Adafactor.

`torch_goldens.json` holds losses, gradients and parameter changes that `torch_step.py` wrote; one
test, marked `torch`, makes them anew.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import hugging_face as hf
from gr_jax.training import Adafactor, Optimizer, TrainConfig, TrainState
from gr_jax.training._loop import step_function
from tests.hugging_face import model
from tests.training import torch_step
from tests.training.numpy_adafactor import Layer, decay_at
from tests.training.tiny_run import partitioner

GOLDENS = Path(__file__).with_name("torch_goldens.json")
RATE = torch_step.ADAMW["lr"]


@functools.cache
def goldens() -> dict[str, Any]:
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def steps(name: str, optimizer: Optimizer, count: int, *, microbatches: int = 1):
    """Losses, the last state and the parameters before, of steps on `make_pairs`."""
    config, params = model(name, dropout_rate=0.0)
    rule, on = optimizer.make(), partitioner()
    state = TrainState(
        jnp.zeros((), jnp.int32), jax.tree.map(jnp.asarray, params), rule.init(params), None
    )
    source, targets = torch_step.make_pairs()
    arrays = {
        "encoder_input_tokens": source,
        "encoder_segment_ids": source > 0,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_segment_ids": targets > 0,
    }
    arrays = {key: x.astype(np.int32) for key, x in arrays.items()}
    trainer = TrainConfig(optimizer=optimizer, microbatches=microbatches)
    run, losses = step_function(trainer, config, rule, on), []
    for _ in range(count):
        state, metrics = run(state, arrays, RATE)
        losses.append(float(metrics.loss))
    return losses, state, torch_step.flat(params)


def assert_close(found: dict[str, np.ndarray], expected: dict[str, list[float]], rtol: float):
    summaries = torch_step.summary(found)
    assert summaries.keys() == expected.keys()
    for name, (norm, total, entry) in expected.items():
        scale = norm * np.sqrt(found[name].size)  # of a sum that may cancel
        assert summaries[name][0] == pytest.approx(norm, rel=rtol), name
        assert summaries[name][1] == pytest.approx(total, abs=rtol * scale), name
        assert summaries[name][2] == pytest.approx(entry, abs=rtol * norm), name


def adamw() -> Optimizer:
    (b1, b2), decay = torch_step.ADAMW["betas"], torch_step.ADAMW["weight_decay"]
    return Optimizer("adamw", b1=b1, b2=b2, weight_decay=decay, clip_norm=None)


@functools.cache
def first_gradient(name: str) -> dict[str, np.ndarray]:
    """From AdamW's mean of one gradient."""
    _, state, _ = steps(name, adamw(), 1)
    means: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
        if "mu" in keys:
            means["/".join(keys[keys.index("mu") + 1 :])] = np.asarray(leaf, np.float64) / 0.1
    return means


@pytest.mark.parametrize("name", hf.MODELS)
def test_the_gradient_is_torchs(name):
    assert_close(first_gradient(name), goldens()[name]["gradient"], 1e-4)


@pytest.mark.parametrize(
    ("name", "microbatches"),
    [("t5_1_0", 1), pytest.param("t5_1_1", 1, marks=pytest.mark.slow), ("t5_1_1", 3)],
)
def test_losses_and_parameters_are_those_of_torchs_adamw(name, microbatches):
    losses, state, before = steps(name, adamw(), torch_step.STEPS, microbatches=microbatches)
    np.testing.assert_allclose(losses, goldens()[name]["losses"], rtol=1e-5)
    moved = {k: x - before[k] for k, x in torch_step.flat(state.params).items()}
    assert_close(moved, goldens()[name]["moved"], 1e-3)


@pytest.mark.parametrize("name", hf.MODELS)
def test_adafactor_moves_the_parameters_as_numpys_does(name):
    settings = Adafactor(min_dim_size_to_factor=32)
    _, state, before = steps(name, Optimizer("adafactor", clip_norm=None, adafactor=settings), 1)
    gradient, factored = first_gradient(name), 0
    for key, after in torch_step.flat(state.params).items():
        shape = after.shape
        rows = int(np.argmin(shape)) if len(shape) == 2 and min(shape) >= 32 else None
        factored += rows is not None
        layer = Layer(before[key], rows=rows)
        layer.step(gradient[key], RATE, decay_at(0))
        # entries whose gradient is rounding error only move by a whole step, either way: none here
        np.testing.assert_allclose(after, layer.param, rtol=1e-3, atol=1e-4, err_msg=key)
    assert factored > 20


@pytest.mark.torch
def test_torch_still_answers_so(run_torch, tmp_path):
    written = tmp_path / "goldens.json"
    run_torch("tests.training.torch_step", written)
    fresh = json.loads(written.read_text(encoding="utf-8"))
    for name, golden in goldens().items():
        np.testing.assert_allclose(fresh[name]["losses"], golden["losses"], rtol=1e-5)
        for part in ("gradient", "moved"):
            for leaf, values in golden[part].items():
                scale = abs(values[0])
                np.testing.assert_allclose(
                    fresh[name][part][leaf], values, rtol=1e-3, atol=1e-3 * scale, err_msg=leaf
                )
