"""Adafactor against NumPy, against numbers of t5x, and against optax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gr_jax.errors import UserError
from gr_jax.models._layout import stack_layers, unstack_layers
from gr_jax.training import Adafactor, Optimizer
from tests.training.numpy_adafactor import Layer, decay_at

LAYERS = 3
# name -> (shape, its row axis where it is factored by min_dim_size_to_factor=8)
SHAPES = {
    "token_embedder/embedding": ((40, 12), 1),
    "decoder/logits_dense/kernel": ((12, 16), 0),
    "decoder/decoder_norm/scale": ((12,), None),
    "encoder/relpos_bias/rel_embedding": ((4, 32), None),
}
PER_LAYER = {
    "attention/query/kernel": ((12, 10), 1),
    "attention/out/kernel": ((10, 12), 0),
    "mlp/wi_0/kernel": ((12, 20), 0),
    "mlp/wo/kernel": ((20, 12), 1),
    "pre_mlp_layer_norm/scale": ((12,), None),
    "attention/relpos_bias/rel_embedding": ((4, 32), None),
}
RATES = (0.1, 0.3, 0.02, 0.0, 0.2)


def flat_of(tree: Any) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def random_tree(seed: int, *, scale: float = 1.0) -> dict[str, Any]:
    """Unscanned; layers differ in size, so that what is a layer's and what a stack's shows."""
    rng = np.random.default_rng(seed)
    flat = {name: rng.standard_normal(shape) for name, (shape, _) in SHAPES.items()}
    for layer in range(LAYERS):
        for name, (shape, _) in PER_LAYER.items():
            x = 10.0**-layer * rng.standard_normal(shape)
            flat[f"encoder/layers_{layer}/{name}"] = x
    return unflatten_dict({k: jnp.asarray(scale * x, jnp.float32) for k, x in flat.items()}, "/")


def rows_of(name: str) -> int | None:
    short = name.split("/", 2)[2] if "/layers_" in name else name
    return (SHAPES | PER_LAYER)[short][1]


def run(optimizer: Optimizer, params: Any, gradients: list[Any], rates=RATES):
    rule: Any = optimizer.make()
    state = rule.init(params)

    @jax.jit
    def step(gradient, state, params, rate):
        updates, state = rule.update(gradient, state, params, learning_rate=rate)
        return optax.apply_updates(params, updates), state

    for gradient, rate in zip(gradients, rates, strict=True):
        params, state = step(gradient, state, params, rate)
    return params, state


def assert_trees_close(a, b, rtol=2e-5, atol=1e-7):
    a, b = flat_of(a), flat_of(b)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)


def optimizer(**settings) -> Optimizer:
    return Optimizer(
        "adafactor",
        clip_norm=None,
        adafactor=Adafactor(**{"min_dim_size_to_factor": 8, **settings}),
    )


GRADIENTS = [random_tree(seed, scale=0.3 * seed) for seed in range(1, 6)]
VARIANTS = {
    "plain": ({}, {}),
    "momentum": ({"beta1": 0.9}, {"beta1": 0.9}),
    "absolute": ({"multiply_by_parameter_scale": False}, {"scale": False}),
    "unclipped": ({"clipping_threshold": None}, {"clip": None}),
    "clipped": ({"clipping_threshold": 0.5}, {"clip": 0.5}),
    "decayed": ({"weight_decay_rate": 0.01}, {"weight_decay": 0.01}),
    "unfactored": ({"factored": False}, {}),
}


class TestAgainstNumpy:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_several_steps(self, variant):
        ours, theirs = VARIANTS[variant]
        params = random_tree(0)
        found, _ = run(optimizer(**ours), params, GRADIENTS)
        flat = [flat_of(gradient) for gradient in GRADIENTS]
        for name, value in flat_of(found).items():
            rows = None if variant == "unfactored" else rows_of(name)
            layer = Layer(flat_of(params)[name], rows=rows, **theirs)
            for done, (gradient, rate) in enumerate(zip(flat, RATES, strict=True)):
                layer.step(gradient[name], rate, decay_at(done))
            np.testing.assert_allclose(value, layer.param, rtol=2e-5, atol=1e-6, err_msg=name)

    def test_weight_decay_as_a_power_of_the_learning_rate(self):
        settings = {"weight_decay_rate": 0.5, "weight_decay_rate_lr_exponent": 2.0}
        params, rate = random_tree(0), 0.1
        found, _ = run(optimizer(**settings), params, GRADIENTS[:1], [rate])
        expected, _ = run(optimizer(weight_decay_rate=0.5 * rate**2), params, GRADIENTS[:1], [rate])
        assert_trees_close(found, expected)

    @pytest.mark.parametrize("offset", [2, 5])
    def test_step_offset_starts_the_decay_anew(self, offset):
        params = {"decoder": {"decoder_norm": {"scale": jnp.ones(12)}}}
        gradients = [{"decoder": {"decoder_norm": g["decoder"]["decoder_norm"]}} for g in GRADIENTS]
        found, _ = run(optimizer(step_offset=offset), params, gradients)
        layer = Layer(params["decoder"]["decoder_norm"]["scale"])
        for done, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True)):
            value = gradient["decoder"]["decoder_norm"]["scale"]
            layer.step(value, rate, decay_at(max(done - offset, 0)))
        np.testing.assert_allclose(
            found["decoder"]["decoder_norm"]["scale"], layer.param, rtol=2e-5
        )

    def test_bfloat16_parameters_have_float32_statistics(self):
        params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), random_tree(0))
        gradients = [jax.tree.map(lambda x: x.astype(jnp.bfloat16), g) for g in GRADIENTS]
        rule: Any = optimizer(beta1=0.9).make()
        state = rule.init(params)
        layers = {
            name: Layer(np.asarray(x, np.float32), rows=rows_of(name), beta1=0.9)
            for name, x in flat_of(params).items()
        }
        for done, (gradient, rate) in enumerate(zip(gradients, RATES, strict=True)):
            updates, state = rule.update(gradient, state, params, learning_rate=rate)
            params = optax.apply_updates(params, updates)
            for name, x in flat_of(params).items():
                g = np.asarray(flat_of(gradient)[name], np.float32)
                layers[name].step(g, rate, decay_at(done))
                assert x.dtype == jnp.bfloat16
                # half a unit of bfloat16's last place
                np.testing.assert_allclose(
                    np.asarray(x, np.float32), layers[name].param, rtol=2**-8, atol=1e-3
                )
                layers[name].param = np.asarray(x, np.float64)  # what is kept is rounded
        assert {x.dtype for x in jax.tree.leaves(state)} == {
            np.dtype("int32"), np.dtype("float32")
        }  # fmt: skip
        for name, v in flat_of(state.v).items():
            if rows_of(name) is None:
                np.testing.assert_allclose(v, layers[name].v, rtol=1e-5)


class TestScanned:
    """The layers on axis 1 of each leaf give what layers apart give."""

    @pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "unfactored"])
    def test_equals_unscanned(self, variant):
        ours, _ = VARIANTS[variant]
        params = random_tree(0)
        apart, _ = run(optimizer(**ours), params, GRADIENTS)
        stacked = [stack_layers(gradient) for gradient in GRADIENTS]
        found, state = run(optimizer(**ours), stack_layers(params), stacked)
        assert_trees_close(unstack_layers(found), apart)
        assert state.v["encoder"]["encoder"]["attention"]["relpos_bias"]["rel_embedding"].shape == (
            4,
            LAYERS,
            32,
        )

    def test_stacks_are_factored_whatever_their_size_and_tables_are_not(self):
        state: Any = optimizer(min_dim_size_to_factor=128).make().init(stack_layers(random_tree(0)))
        stack = "encoder/encoder"
        shapes = {
            field: {k: x.shape for k, x in flat_of(getattr(state, field)).items()}
            for field in ("m", "v", "v_row", "v_col")
        }
        # rows are the embedding axis (12), wherever it stands
        for name, row, column in (
            ("attention/query", (12, 3), (3, 10)),
            ("attention/out", (3, 12), (10, 3)),
            ("mlp/wi_0", (12, 3), (3, 20)),
            ("mlp/wo", (3, 12), (20, 3)),
        ):
            assert shapes["v_row"][f"{stack}/{name}/kernel"] == row
            assert shapes["v_col"][f"{stack}/{name}/kernel"] == column
            assert shapes["v"][f"{stack}/{name}/kernel"] == (1,)
        assert shapes["v"][f"{stack}/pre_mlp_layer_norm/scale"] == (12, 3)
        assert shapes["v"]["token_embedder/embedding"] == (40, 12)
        assert shapes["v_row"]["token_embedder/embedding"] == (1,)
        assert set(shapes["m"].values()) == {(1,)}

    def test_without_factoring_t5x_takes_a_stack_for_one_array(self):
        params, gradient = stack_layers(random_tree(0)), stack_layers(GRADIENTS[0])
        found, _ = run(optimizer(factored=False), params, [gradient], [0.1])
        name = "encoder/encoder/mlp/wo/kernel"
        layer = Layer(flat_of(params)[name])
        layer.step(flat_of(gradient)[name], 0.1, decay_at(0))
        np.testing.assert_allclose(flat_of(found)[name], layer.param, rtol=2e-5, atol=1e-6)

    def test_optax_takes_a_stack_for_one_array(self):
        """Why gr_jax has an Adafactor of its own: optax's is right for layers apart only."""
        theirs = optax.adafactor(0.1, min_dim_size_to_factor=8)

        def updates(params, gradient):
            ours: Any = optimizer().make()
            a, _ = ours.update(gradient, ours.init(params), params, learning_rate=0.1)
            b, _ = theirs.update(gradient, theirs.init(params), params)
            return flat_of(a), flat_of(b)

        a, b = updates(random_tree(0), GRADIENTS[0])
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-8, err_msg=name)
        a, b = updates(stack_layers(random_tree(0)), stack_layers(GRADIENTS[0]))
        for name in a:
            different = np.abs(a[name] - b[name]).max() / np.abs(a[name]).max()
            if name.startswith("encoder/encoder/"):
                assert different > 0.3, name
            else:
                assert different < 1e-4, name


class TestNumbersOfT5x:
    """What t5x's adafactor_test.py expects: a (3, 2) matrix of ones, gradient one, step 1."""

    @pytest.mark.parametrize(
        ("clip_norm", "row", "column"),
        [(None, 0.9574349, 0.6169143), (1.0, 0.478811, 0.13829)],
    )
    def test_factored(self, clip_norm, row, column):
        rule: Any = Optimizer(
            "adafactor", clip_norm=clip_norm, adafactor=Adafactor(min_dim_size_to_factor=0)
        ).make()
        params = {"x": jnp.ones((3, 2))}
        state = rule.init(params)
        state = state._replace(
            count=state.count + 1,
            v_row={"x": jnp.full(2, 0.9)},
            v_col={"x": jnp.full(3, 0.1)},
        )
        updates, state = rule.update(params, state, params, learning_rate=0.1)
        np.testing.assert_allclose(params["x"] + updates["x"], 0.9, rtol=1e-6)
        np.testing.assert_allclose(state.v_row["x"], row, rtol=1e-5)
        np.testing.assert_allclose(state.v_col["x"], column, rtol=1e-5)
        assert state.count == 2

    def test_unfactored_with_momentum(self):
        rule: Any = optimizer(beta1=0.0, min_dim_size_to_factor=32).make()
        params = {"x": jnp.ones((3, 2))}
        state = rule.init(params)
        state = state._replace(count=state.count + 1, v={"x": jnp.full((3, 2), 0.5)})
        updates, state = rule.update(params, state, params, learning_rate=0.1)
        np.testing.assert_allclose(params["x"] + updates["x"], 0.9, rtol=1e-6)
        np.testing.assert_allclose(state.v["x"], 0.787174, rtol=1e-6)
        np.testing.assert_allclose(state.m["x"], 0.1, rtol=1e-6)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match=r"Adafactor\.beta1 is 1\.0"):
        Adafactor(beta1=1.0)
    with pytest.raises(UserError, match=r"Adafactor\.clipping_threshold is 0"):
        Adafactor(clipping_threshold=0)
    with pytest.raises(UserError, match=r"Optimizer\.weight_decay is 0\.1.*weight_decay_rate"):
        Optimizer("adafactor", weight_decay=0.1)
    with pytest.raises(UserError, match=r"Optimizer\.clip_norm is 0"):
        Optimizer(clip_norm=0)
