"""Which parameters a T5 has, and which T5 parameters are."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gr_jax.checkpoints import from_parameters, parameter_shapes
from gr_jax.checkpoints._load import layout_shapes
from gr_jax.checkpoints._shapes import infer_config
from gr_jax.errors import UserError
from gr_jax.models import init_parameters
from tests.checkpoints.conftest import CONFIGS, arrays_of


@pytest.mark.parametrize("scan", [False, True])
def test_names_and_shapes_are_those_of_the_model(config, scan):
    config = dataclasses.replace(config, scan_layers=scan)
    tree = jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))
    leaves: dict[str, Any] = dict(flatten_dict(tree, sep="/"))
    made = {name: leaf.shape for name, leaf in leaves.items()}
    assert (layout_shapes if scan else parameter_shapes)(config) == made


def test_shapes_tell_the_config(config):
    leaves = {n: np.empty(s) for n, s in parameter_shapes(config).items()}
    assert infer_config("x", leaves) == config
    assert infer_config("x", leaves, known={"dropout_rate": 0.3}) == dataclasses.replace(
        config, dropout_rate=0.3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoder/layers_1/mlp/wo/kernel": None}, "has no decoder/layers_1/mlp/wo/kernel"),
        ({"encoder/layers_0/mlp/wo/kernel": (6, 9)}, r"is \(6, 9\), but the rest .* \(6, 10\)"),
        ({"decoder/router/kernel": (3, 3)}, "also has decoder/router/kernel"),
        ({"token_embedder/embedding": None}, "not a T5: it has no token_embedder/embedding"),
    ],
)
def test_what_is_not_a_whole_t5_is_refused(change, words):
    shapes = parameter_shapes(CONFIGS["t5_1_1"]) | change
    leaves = {name: np.empty(shape) for name, shape in shapes.items() if shape is not None}
    with pytest.raises(UserError, match=words) as error:
        infer_config("model", leaves)
    assert str(error.value).startswith("model: ") and "\n" not in str(error.value)
    with pytest.raises(UserError, match="it has no parameters"):
        infer_config("model", {})


def test_a_tree_that_is_not_the_configs_is_refused():
    tree = unflatten_dict(arrays_of(CONFIGS["t5_1_1"]), sep="/")
    for change in ({"num_heads": 1, "head_dim": 12}, {"vocab_size": 15}):
        with pytest.raises(UserError, match=r"the rest of the model|not those of the model"):
            from_parameters(tree, dataclasses.replace(CONFIGS["t5_1_1"], **change))
