"""Schedules by value; optimizers against optax and on a task to memorise."""

import itertools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gr_jax.errors import UserError
from gr_jax.models import T5Config, init_parameters
from gr_jax.models._layout import stack_layers, unstack_layers
from gr_jax.training import Optimizer, Schedule

PARAMS: Any = {
    "token_embedder": {"embedding": jnp.full((5, 4), 0.3)},
    "target_embedder": {"embedding": jnp.full((3, 4), -0.4)},
    "encoder": {"wi": {"kernel": jnp.ones((4, 6))}, "norm": {"scale": jnp.ones(4)}},
    "decoder": {
        "logits_dense": {"kernel": jnp.full((4, 3), 0.5)},
        "relpos_bias": {"rel_embedding": jnp.full((2, 8), 0.2)},
    },
}
NAMES = ("adamw", "adafactor", "muon")


def gradients(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), PARAMS)


def assert_trees_close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), a, b)


class TestSchedule:
    def test_warm_up_is_linear_and_reaches_base(self):
        schedule = Schedule(base=2.0, warmup_steps=4, decay="constant")
        assert [schedule(s, 100) for s in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]

    @pytest.mark.parametrize(("decay", "middle"), [("linear", 0.5), ("cosine", 0.5)])
    def test_decays(self, decay, middle):
        schedule = Schedule(base=2.0, warmup_steps=10, decay=decay, final=0.1)
        rates = [schedule(s, 110) for s in range(110)]
        assert rates[10] == pytest.approx(2.0)
        assert rates[60] == pytest.approx(2.0 * (0.1 + 0.9 * middle))
        assert schedule(110, 110) == pytest.approx(0.2)
        assert all(a > b for a, b in itertools.pairwise(rates[10:]))
        quarter = {"linear": 0.75, "cosine": (1 + math.cos(math.pi / 4)) / 2}[decay]
        assert rates[35] == pytest.approx(2.0 * (0.1 + 0.9 * quarter))

    def test_rsqrt_is_t5xs(self):
        schedule = Schedule(base=1.0, warmup_steps=100, decay="rsqrt")
        assert [schedule(s, 10**6) for s in (0, 99, 100, 400, 10_000)] == [
            0.1, 0.1, 0.1, 0.05, 0.01,
        ]  # fmt: skip

    @pytest.mark.parametrize("decay", ["cosine", "linear", "constant", "rsqrt"])
    @pytest.mark.parametrize("warmup", [0, 1, 200])
    @pytest.mark.parametrize("total", [1, 2, 7])
    def test_tiny_runs_move_and_stay_in_range(self, decay, warmup, total):
        rates = [Schedule(1.0, warmup, decay)(s, total) for s in range(total)]
        assert all(0 < rate <= 1 for rate in rates)
        if decay != "rsqrt":
            assert max(rates) == 1

    # t5x's create_learning_rate_scheduler (commit cc342d4), worked out in its formulas by hand:
    # factors and settings -> {step: rate}
    T5X: ClassVar = [
        # pretrain.gin
        ("constant * rsqrt_decay", {"base": 1.0, "warmup_steps": 10_000},
         {0: 0.01, 9_999: 0.01, 10_000: 0.01, 40_000: 0.005, 1_000_000: 0.001}),
        # finetune.gin: no warm-up, whatever warmup_steps says
        ("constant", {"base": 1e-3, "warmup_steps": 1000}, {0: 1e-3, 999: 1e-3, 10**6: 1e-3}),
        # its default
        ("constant * linear_warmup * rsqrt_decay", {"base": 0.5, "warmup_steps": 100},
         {0: 1e-8, 50: 0.025, 100: 0.05, 400: 0.025, 10_000: 0.005}),
        ("constant * linear_warmup * rsqrt_normalized_decay", {"base": 2.0, "warmup_steps": 100},
         {0: 1e-8, 25: 0.5, 100: 2.0, 400: 1.0, 10_000: 0.2}),
        # linear_decay has constant and warm-up in it, and ends at min_learning_rate
        ("linear_decay", {"base": 2.0, "warmup_steps": 100, "decay_factor": 0.01,
                          "min_learning_rate": 1e-5},
         {0: 1e-5, 50: 1.0, 100: 2.0, 150: 1.0, 199: 0.02, 200: 1e-5, 300: 1e-5}),
        ("constant * decay_every", {"base": 1.0, "decay_factor": 0.5, "steps_per_decay": 10},
         {0: 1.0, 9: 1.0, 10: 0.5, 29: 0.25, 30: 0.125}),
        # cycles: from the top again after 40 steps
        ("constant * linear_warmup * cosine_decay",
         {"base": 1.0, "warmup_steps": 10, "steps_per_cycle": 40},
         {5: 0.5, 10: 1.0, 20: 0.8535534, 30: 0.5, 40: 0.1464466, 50: 1.0, 70: 0.5}),
        # a run that goes on from a million steps, and one whose checkpoint began there
        ("constant * rsqrt_decay", {"base": 1.0, "warmup_steps": 10, "step_offset": -1_000_000},
         {0: 1e-3, 3_000_000: 5e-4}),
        ("constant * linear_warmup", {"base": 1.0, "warmup_steps": 10, "step_offset": 100},
         {0: 1e-8, 100: 1e-8, 105: 0.5, 110: 1.0}),
    ]  # fmt: skip

    @pytest.mark.parametrize(("factors", "settings", "rates"), T5X)
    def test_factors_are_t5xs_whatever_the_length_of_the_run(self, factors, settings, rates):
        schedule = Schedule(factors=factors, **settings)
        for total in (1, 100, 10**7):
            found = {step: schedule(step, total) for step in rates}
            assert found == pytest.approx(rates, rel=1e-6)

    @pytest.mark.parametrize(
        ("settings", "total", "steps"),
        [
            ({"warmup_steps": 200}, 5000, 200),
            ({"warmup_steps": 200}, 400, 80),
            ({"warmup_steps": 200}, 3, 1),
            ({"warmup_steps": 0}, 400, 0),
            ({"warmup_steps": 200, "decay": "rsqrt"}, 5000, 0),
            ({"warmup_steps": 200, "factors": "constant"}, 400, 0),
            ({"warmup_steps": 200, "factors": "constant * linear_warmup"}, 400, 200),
            ({"warmup_steps": 200, "factors": "linear_decay"}, 400, 200),
            ({"factors": "constant * linear_warmup", "step_offset": -1_000_000}, 400, 0),
            ({"factors": "constant * linear_warmup", "step_offset": 5}, 400, 205),
        ],
    )
    def test_the_warm_up_is_where_the_rate_rises(self, settings, total, steps):
        schedule = Schedule(base=1.0, min_learning_rate=0.0, **settings)
        assert schedule.warmup(total) == steps
        rates = [schedule(step, total) for step in range(max(steps, 2))]
        assert (rates[-1] > rates[0]) == (steps > 1)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"factors": "constant * exp"}, r"Schedule\.factors has 'exp': .*rsqrt_decay"),
            ({"factors": ""}, r"Schedule\.factors has ''"),
            ({"factors": "constant * linear_decay"}, "leave those out"),
            ({"factors": "linear_warmup", "warmup_steps": 0}, r"Schedule\.warmup_steps is 0"),
            ({"factors": "decay_every", "steps_per_decay": 0}, r"Schedule\.steps_per_decay is 0"),
            ({"factors": "cosine_decay", "steps_per_cycle": 0}, r"Schedule\.steps_per_cycle is 0"),
        ],
    )
    def test_factors_that_make_no_sense(self, settings, message):
        with pytest.raises(UserError, match=message):
            Schedule(**settings)

    def test_unknown_decay(self):
        with pytest.raises(UserError, match=r"Schedule\.decay is 'exp'.*cosine"):
            Schedule(decay="exp")


def test_adamw_is_optax_adamw_with_a_changing_rate():
    rates = jnp.array([0.1, 0.01, 0.3, 0.0, 0.05])
    ours = Optimizer(b1=0.8, b2=0.95, weight_decay=0.1, clip_norm=None).make()
    plain = optax.adamw(lambda count: rates[count], b1=0.8, b2=0.95, weight_decay=0.1)
    params, reference = PARAMS, PARAMS
    state, plain_state = ours.init(PARAMS), plain.init(PARAMS)
    for step, rate in enumerate(rates):
        updates, state = ours.update(gradients(step), state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u, r=rate: r * u, updates))
        expected, plain_state = plain.update(gradients(step), plain_state, reference)
        reference = optax.apply_updates(reference, expected)
        assert_trees_close(params, reference)


@pytest.mark.parametrize("name", NAMES)
def test_embedding_and_output_rates_scale_their_parameters_only(name):
    def first_update(**rates) -> Any:
        optimizer = Optimizer(name=name, **rates).make()
        return optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)[0]

    plain = first_update()
    assert all(np.abs(u).max() > 0 for u in jax.tree.leaves(plain))
    scaled = first_update(embedding_rate=3.0, output_rate=0.5)
    expected = dict(plain)
    for table in ("token_embedder", "target_embedder"):
        expected[table] = jax.tree.map(lambda u: 3.0 * u, plain[table])
    expected["decoder"] = dict(plain["decoder"])
    expected["decoder"]["logits_dense"] = jax.tree.map(
        lambda u: 0.5 * u, plain["decoder"]["logits_dense"]
    )
    assert_trees_close(scaled, expected)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_weight_decay_pulls_to_zero_by_rate_times_value(name):
    def update(weight_decay) -> Any:
        optimizer = Optimizer(name=name, weight_decay=weight_decay).make()
        return optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)[0]

    pull = jax.tree.map(lambda a, b: a - b, update(0.2), update(0.0))
    jax.tree.map(
        lambda u, p: np.testing.assert_allclose(u, -0.2 * p, rtol=1e-4, atol=1e-6), pull, PARAMS
    )


def test_muon_orthogonalises_matrices_and_leaves_the_rest_to_adamw():
    muon, adamw = (Optimizer(name=n, clip_norm=None).make() for n in ("muon", "adamw"))
    a: Any = muon.update(gradients(0), muon.init(PARAMS), PARAMS)[0]
    b: Any = adamw.update(gradients(0), adamw.init(PARAMS), PARAMS)[0]
    values = np.linalg.svd(np.asarray(a["encoder"]["wi"]["kernel"]), compute_uv=False)
    assert values.max() / values.min() < 2, "its singular values are about equal"
    for tree in (a, b):
        del tree["encoder"]["wi"]
    assert_trees_close(a, b)


def test_clipping_is_by_global_norm():
    # AdamW's second step remembers the size of the first gradient
    def second(clip, scale) -> Any:
        optimizer = Optimizer(clip_norm=clip).make()
        state = optimizer.init(PARAMS)
        big = jax.tree.map(lambda g: scale * g, gradients(0))
        _, state = optimizer.update(big, state, PARAMS)
        return optimizer.update(gradients(1), state, PARAMS)[0]

    assert_trees_close(second(1.0, 100.0), second(1.0, 1000.0))
    difference = jax.tree.map(
        lambda a, b: float(jnp.abs(a - b).max()), second(None, 100.0), second(None, 1000.0)
    )
    assert max(jax.tree.leaves(difference)) > 1e-3


def test_equal_optimizers_share_a_compiled_step():
    assert Optimizer(b2=0.9).make() is Optimizer(b2=0.9).make()
    assert Optimizer(b2=0.9).make() is not Optimizer(b2=0.99).make()


def test_unknown_optimizer():
    with pytest.raises(UserError, match="unknown optimizer 'sgd': choose adamw"):
        Optimizer(name="sgd")


def test_muon_treats_scanned_layers_as_the_layers_that_they_are():
    config = T5Config(
        vocab_size=20, target_vocab_size=10, emb_dim=16, num_heads=2, head_dim=8, mlp_dim=24,
        num_encoder_layers=3, num_decoder_layers=2,
    )  # fmt: skip
    params, grads = (init_parameters(config, jax.random.key(i)) for i in range(2))
    muon = Optimizer("muon").make()

    @jax.jit
    def updates(params, grads):
        return muon.update(grads, muon.init(params), params)[0]

    apart = updates(params, grads)
    scanned = unstack_layers(updates(stack_layers(params), stack_layers(grads)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), apart, scanned)
