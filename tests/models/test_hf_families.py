"""Every family of T5 has Hugging Face's logits for the same weights.

`hf_families.json` holds theirs, written by `hf_families.py`, which says how.
"""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hugging_face as hf
from gr_jax.models import T5Config
from gr_jax.models._layout import stack_layers
from tests.models import hf_families
from tests.models.conftest import jit_logits

GOLDENS = Path(__file__).with_name("hf_families.json")
TOLERANCE = 1e-4  # of the scale of the logits


@functools.cache
def goldens() -> dict[str, np.ndarray]:
    logits = json.loads(GOLDENS.read_text(encoding="utf-8"))["logits"]
    return {family: np.array(rows) for family, rows in logits.items()}


def config_of(family: str) -> T5Config:
    shape = hf_families.SHAPES[family]
    return T5Config.from_name(
        f"{family}_tiny",
        shape["vocab_size"],
        num_encoder_layers=shape["num_layers"],
        num_decoder_layers=shape["num_decoder_layers"],
    )


def logits_of(config: T5Config, family: str) -> np.ndarray:
    """[real target tokens, kept columns]"""
    params = hf.t5x_tree(
        hf_families.SHAPES[family],
        hf_families.weights(family),
        bias_per_layer=config.relpos_per_layer,
    )
    batch = hf_families.batch()
    logits = jit_logits(
        config,
        stack_layers(params) if config.scan_layers else params,
        {
            "encoder_input_tokens": batch["source"],
            "encoder_segment_ids": batch["source_mask"],
            "decoder_input_tokens": batch["target"],
            "decoder_segment_ids": batch["target_mask"],
        },
    )
    return np.asarray(logits)[batch["target_mask"] > 0][:, hf_families.COLUMNS]


def assert_near(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < TOLERANCE * expected.std()


@pytest.mark.parametrize("family", hf_families.SHAPES)
def test_logits_are_hugging_faces(family):
    expected = goldens()[family]
    assert expected.std() > 0.5, "the case says nothing"
    assert_near(logits_of(config_of(family), family), expected)


def test_scanned_layers_have_hugging_faces_logits():
    config = dataclasses.replace(config_of("umt5"), scan_layers=True, remat="minimal")
    assert_near(logits_of(config, "umt5"), goldens()["umt5"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits_via_embedding": True},
        {"mlp_activations": ("silu", "linear")},
        {"relpos_max_distance": 20},
    ],
    ids=str,
)
def test_another_models_logits_are_told_apart(wrong):
    config = dataclasses.replace(config_of("t5_1_1"), **wrong)
    with pytest.raises(AssertionError):
        assert_near(logits_of(config, "t5_1_1"), goldens()["t5_1_1"])


@pytest.mark.torch
def test_transformers_still_has_these_logits(run_torch, tmp_path):
    written = tmp_path / "fresh.json"
    run_torch("tests.models.hf_families", written)
    fresh = json.loads(written.read_text(encoding="utf-8"))["logits"]
    assert fresh.keys() == goldens().keys() == hf_families.SHAPES.keys()
    for family, expected in goldens().items():
        assert_near(np.array(fresh[family]), expected)
        assert_near(logits_of(config_of(family), family), np.array(fresh[family]))
