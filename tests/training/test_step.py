"""The step on one device and on meshes: shardings, losses, memorisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gr_jax.errors import UserError
from gr_jax.models import LossSums, T5Config, init_parameters
from gr_jax.training import (
    Optimizer,
    Partitioner,
    TrainConfig,
    init_state,
    make_mesh,
    measure_steps,
    write_model_info,
)
from gr_jax.training._loop import step_function
from gr_jax.training._step import _accumulated, abstract_state
from tests.training.tiny_run import MODEL, TRAINER, make_batches, partitioner

MESHES = [(8, 1), (8, 2), (8, 4)]  # devices, model_parallel: 8x1, 4x2, 2x4


def run(on: Partitioner, config: TrainConfig, steps: int, rate: float = 1e-2):
    optimizer = config.optimizer.make()
    state = init_state(MODEL, optimizer, on, seed=5, ema=config.ema_decay > 0)
    step_of = step_function(config, MODEL, optimizer, on)
    batches, losses = make_batches(), []
    for step in range(steps):
        state, metrics = step_of(state, batches(step).arrays, rate)
        losses.append(float(metrics.loss))
    return state, losses


CONFIG = dataclasses.replace(TRAINER, ema_decay=0.9, label_smoothing=0.1, z_loss=1e-3)


@pytest.fixture(scope="module")
def on_one_device():
    return run(partitioner(), CONFIG, 5)


@pytest.mark.parametrize(("devices", "model_parallel"), [(8, 1), (8, 4)])
def test_losses_and_parameters_are_those_of_one_device(devices, model_parallel, on_one_device):
    expected_state, expected = on_one_device
    assert len(set(expected)) == 5
    on = partitioner(devices, model_parallel)
    state, losses = run(on, CONFIG, 5)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for name in ("params", "ema"):
        for a, b in zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(expected_state, name)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)
    # the step keeps the shardings it was given
    wanted = abstract_state(MODEL, CONFIG.optimizer.make(), on, ema=True)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
@pytest.mark.parametrize(("devices", "model_parallel"), MESHES)
def test_moments_and_average_stand_where_their_parameter_does(name, devices, model_parallel):
    state = abstract_state(
        MODEL, Optimizer(name=name).make(), partitioner(devices, model_parallel), ema=True
    )
    params = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    on_model = PartitionSpec(None, "model")
    expected = {
        "['token_embedder']['embedding']": PartitionSpec("model", None),
        "['target_embedder']['embedding']": PartitionSpec("model", None),
        "['decoder']['logits_dense']['kernel']": on_model,
        "['encoder']['layers_0']['mlp']['wi_0']['kernel']": on_model,
        "['encoder']['layers_0']['mlp']['wo']['kernel']": PartitionSpec("model", None),
        "['decoder']['layers_0']['self_attention']['query']['kernel']": on_model,
        "['encoder']['relpos_bias']['rel_embedding']": PartitionSpec("model", None),
        "['encoder']['encoder_norm']['scale']": PartitionSpec(None),
    }
    for path, spec in expected.items():
        leaf = params[path]
        wanted = jax.sharding.NamedSharding(leaf.sharding.mesh, spec)
        assert leaf.sharding.is_equivalent_to(wanted, len(leaf.shape)), path
    moments = 0
    for tree in (state.opt_state, state.ema):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            whole = jax.tree_util.keystr(path)
            owner = next((p for p in params if whole.endswith(p)), None)
            if owner and params[owner].shape == leaf.shape:
                assert leaf.sharding == params[owner].sharding, whole
                moments += 1
            else:
                assert leaf.sharding.is_fully_replicated
    count = len(params)
    small = 12  # norms: adafactor keeps a full second moment of vectors only
    assert moments >= {"adamw": 3 * count, "muon": 2 * count, "adafactor": count + small // 2}[name]


@pytest.mark.parametrize(
    "name", ["adamw", pytest.param("muon", marks=pytest.mark.slow), "adafactor"]
)
def test_each_optimizer_memorises(name):
    rate = {"adamw": 1e-2, "muon": 1e-2, "adafactor": 3e-2}[name]
    config = dataclasses.replace(TRAINER, optimizer=Optimizer(name=name))
    _, losses = run(partitioner(), config, 60, rate)
    assert np.mean(losses[-5:]) < 0.6 * losses[0]


def test_average_follows_the_parameters_with_a_short_memory_at_first():
    optimizer = CONFIG.optimizer.make()
    on = partitioner()
    state = init_state(MODEL, optimizer, on, seed=5, ema=True)
    step_of = step_function(CONFIG, MODEL, optimizer, on)
    average = np.asarray(state.params["encoder"]["layers_0"]["mlp"]["wo"]["kernel"])
    for step in range(3):
        state, _ = step_of(state, make_batches()(step).arrays, 1e-2)
        now = np.asarray(state.params["encoder"]["layers_0"]["mlp"]["wo"]["kernel"])
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * now
    ema = state.ema["encoder"]["layers_0"]["mlp"]["wo"]["kernel"]
    np.testing.assert_allclose(ema, average, rtol=1e-4, atol=1e-6)
    assert np.abs(average - now).max() > 1e-4
    assert state.eval_params is state.ema
    assert state._replace(ema=None).eval_params is state.params


def test_initial_state_is_the_same_on_every_mesh_and_is_the_seeds():
    one, sharded, other = (
        init_state(MODEL, TRAINER.optimizer.make(), on, seed=seed)
        for on, seed in ((partitioner(), 1), (partitioner(8, 4), 1), (partitioner(), 2))
    )
    plain = init_parameters(MODEL, jax.random.key(1))
    for a, b, c in zip(*map(jax.tree.leaves, (one.params, sharded.params, plain)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
    assert (
        one.params["token_embedder"]["embedding"] != other.params["token_embedder"]["embedding"]
    ).any()


@pytest.mark.parametrize(
    ("field", "size"), [("num_heads", 3), ("mlp_dim", 7), ("vocab_size", 33),
                        ("target_vocab_size", 17)]
)  # fmt: skip
def test_sizes_that_do_not_divide_are_refused_by_name(field, size):
    config = dataclasses.replace(MODEL, **{field: size})
    partitioner(8, 1).parameters(config)
    with pytest.raises(UserError, match=rf"T5Config\.{field}={size} .*model axis of 2"):
        partitioner(8, 2).parameters(config)


@pytest.mark.parametrize("model_parallel", [0, 3, 16, -1])
def test_meshes_that_do_not_divide_are_refused(model_parallel):
    with pytest.raises(UserError, match=f"model_parallel={model_parallel} does not divide the 8"):
        make_mesh(model_parallel)


def test_batches_are_split_by_rows():
    on = partitioner(8, 2)
    batch = on.put_batch({"a": np.arange(24).reshape(8, 3)})["a"]
    assert on.data_parallel == 4
    assert {s.data.shape for s in batch.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(batch, np.arange(24).reshape(8, 3))


def test_model_info(tmp_path):
    config = T5Config(vocab_size=40, target_vocab_size=12, emb_dim=8, num_heads=2, mlp_dim=16,
                      num_encoder_layers=1, num_decoder_layers=1)  # fmt: skip
    params = jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))
    write_model_info(tmp_path / "info.txt", config, params)
    lines = (tmp_path / "info.txt").read_text("utf-8").splitlines()
    leaves = jax.tree.leaves(params)
    assert len(lines) == len(leaves) + 1
    by_name = {line.split()[1]: line for line in lines[:-1]}
    assert by_name["token_embedder/embedding"].split(maxsplit=2)[2].split() == (
        "size 320 shape (vocab=40, embed=8) partition spec (None, None)".split()
    )
    assert " shape (embed=8, vocab=12) " in by_name["decoder/logits_dense/kernel"]
    assert "(embed=8, joined_kv=128)" in by_name["encoder/layers_0/attention/query/kernel"]
    total = sum(x.size for x in leaves)
    assert lines[-1] == f"Total number of parameters: {total}"
    assert sum(int(line.split()[3]) for line in lines[:-1]) == total


def test_dropout_depends_on_the_step_and_the_seed():
    config = dataclasses.replace(MODEL, dropout_rate=0.5)
    on = partitioner()

    def loss(seed: int, done: int) -> float:
        trainer = dataclasses.replace(TRAINER, seed=seed)
        optimizer = trainer.optimizer.make()
        state = init_state(config, optimizer, on, seed=1)
        state = state._replace(step=jnp.full((), done, jnp.int32))
        _, metrics = step_function(trainer, config, optimizer, on)(
            state, make_batches()(0).arrays, 0.0
        )
        return float(metrics.loss)

    assert loss(1, 0) == loss(1, 0)
    assert len({loss(1, 0), loss(1, 1), loss(2, 0)}) == 3


def test_measure_steps():
    assert 0 < measure_steps(TRAINER, MODEL, make_batches(), partitioner(), timed=3) < 5


# --- microbatches and what the loss is divided by -------------------------------------------------


def one_step(batches=None, *, model=MODEL, on=None, **changes):
    """State and metrics after the first step of a run; changes are `TrainConfig`'s."""
    config = dataclasses.replace(CONFIG, **changes)
    optimizer, on = config.optimizer.make(), on or partitioner()
    state = init_state(model, optimizer, on, seed=5, ema=True)
    arrays = (batches or make_batches())(0).arrays
    return step_function(config, model, optimizer, on)(state, arrays, 1e-2)


def gradient_of(state):
    """The first step's gradient, from AdamW's mean of it (without clipping)."""
    means = {
        jax.tree_util.keystr(path): np.asarray(leaf) / (1 - CONFIG.optimizer.b1)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
        if ".mu" in jax.tree_util.keystr(path)
    }
    assert len(means) == len(jax.tree.leaves(state.params))
    return means


UNCLIPPED = Optimizer(clip_norm=None)


@pytest.fixture(scope="module")
def at_once():
    return one_step(optimizer=UNCLIPPED)


@pytest.mark.parametrize(("microbatches", "devices", "model_parallel"), [(16, 1, 1), (4, 8, 2)])
def test_microbatches_give_the_loss_and_the_gradients_of_the_whole(
    at_once, microbatches, devices, model_parallel
):
    on = partitioner(devices, model_parallel)
    state, metrics = one_step(optimizer=UNCLIPPED, microbatches=microbatches, on=on)
    np.testing.assert_allclose(metrics[:4], at_once[1][:4], rtol=1e-5)
    found, expected = gradient_of(state), gradient_of(at_once[0])
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


def test_a_packed_batch_has_the_loss_and_the_gradients_of_its_examples_apart(at_once):
    apart = make_batches(pack=False)
    assert apart(0).arrays["encoder_input_tokens"].shape[0] == 16
    assert (make_batches()(0).arrays["encoder_segment_ids"].max(axis=1) > 1).any()
    state, metrics = one_step(apart, optimizer=UNCLIPPED, microbatches=4)
    np.testing.assert_allclose(metrics[:4], at_once[1][:4], rtol=1e-5)
    found, expected = gradient_of(state), gradient_of(at_once[0])
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6, err_msg=name)


def test_microbatches_of_only_padding_add_nothing(at_once):
    # 32 rows where 6 are needed: with 16 microbatches most hold no token
    more = make_batches(row_multiple=32)
    assert more(0).arrays["encoder_input_tokens"].shape[0] == 32
    state, metrics = one_step(more, optimizer=UNCLIPPED, microbatches=16)
    np.testing.assert_allclose(metrics[:4], at_once[1][:4], rtol=1e-5)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


def test_microbatches_must_divide_the_rows():
    with pytest.raises(UserError, match=r"microbatches=3 does not divide the batch's 16 rows"):
        one_step(microbatches=3)


def test_each_microbatch_has_its_rows_and_its_own_dropout_key():
    rows = jnp.arange(12).reshape(6, 2)

    def gradients(params, batch, key):
        seen = jnp.zeros(12).at[batch["decoder_target_tokens"].reshape(-1)].add(1.0)
        drawn = jax.random.uniform(key)
        return {"seen": seen, "drawn": drawn}, LossSums(drawn**2, *3 * [jnp.float32(1.0)])

    params = {"seen": jnp.zeros(12), "drawn": jnp.zeros(())}
    batch, key = {"decoder_target_tokens": rows}, jax.random.key(0)
    total, sums = _accumulated(gradients, params, batch, key, (), 3)
    assert total["seen"].tolist() == [1.0] * 12
    assert sums.weight == 3.0
    # the mean square is more than the square of the mean: the draws differ
    assert sums.loss / 3 > (total["drawn"] / 3) ** 2 + 1e-3


def test_the_loss_is_divided_by_the_target_tokens_or_by_a_number(at_once):
    tokens = (make_batches()(0).arrays["decoder_target_tokens"] > 0).sum()
    state, metrics = one_step(optimizer=UNCLIPPED, loss_normalizing_factor=100.0, microbatches=2)
    factor = tokens / 100.0
    np.testing.assert_allclose(metrics[:3], at_once[1][:3], rtol=1e-5)  # means as ever
    np.testing.assert_allclose(metrics.gradient_norm, factor * at_once[1].gradient_norm, rtol=1e-5)
    for name, gradient in gradient_of(at_once[0]).items():
        np.testing.assert_allclose(
            gradient_of(state)[name], factor * gradient, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "change",
    [{"microbatches": 0}, {"loss_normalizing_factor": "AVERAGE_PER_SEQUENCE"},
     {"loss_normalizing_factor": 0.0}, {"spike_factor": 0.5}],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(change):
    [field] = change
    with pytest.raises(UserError, match=rf"TrainConfig\.{field} is "):
        TrainConfig(**change)
