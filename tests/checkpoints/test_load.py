"""Checkpoints onto devices: only what they hold is read, and only what is new is made."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gr_jax.checkpoints import (
    LazyArray,
    fingerprint,
    from_parameters,
    initialise_from,
    load_parameters,
    new_parameters,
    open_checkpoint,
)
from gr_jax.checkpoints._source import make_source
from gr_jax.cli import main
from gr_jax.errors import UserError
from gr_jax.models import T5Config, init_parameters
from gr_jax.models._layout import stack_layers
from gr_jax.training import Checkpoints, Partitioner, RunIdentity, TrainState, init_state, make_mesh
from tests.checkpoints.conftest import CONFIGS, T5_1_1, arrays_of, source_of
from tests.training.tiny_run import FINGERPRINT, MODEL, TRAINER, partitioner

# every sharded dimension divides by 8
WIDE = T5Config(
    vocab_size=16,
    emb_dim=8,
    num_heads=8,
    head_dim=2,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relpos_buckets=4,
    relpos_max_distance=8,
)


def assert_trees(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def counted(config: T5Config):
    """A source that counts the elements that are read of each parameter."""
    read: dict[str, int] = {}

    def count(name: str, array: np.ndarray):
        def fetch(index):
            part = array[index]
            read[name] = read.get(name, 0) + part.size
            return part

        return LazyArray(array.shape, array.dtype, fetch)

    arrays = arrays_of(config)
    source = make_source("x", "memory", {n: count(n, a) for n, a in arrays.items()}, config=config)
    read.clear()
    return source, read


@pytest.mark.parametrize("scan", [False, True])
def test_the_tree_of_either_layout(config, scan):
    config = dataclasses.replace(config, scan_layers=scan)
    tree = unflatten_dict(arrays_of(dataclasses.replace(config, scan_layers=False)), sep="/")
    loaded = load_parameters(source_of(dataclasses.replace(config, scan_layers=False)), config)
    assert_trees(loaded, stack_layers(tree) if scan else tree)
    made = jax.eval_shape(lambda: init_parameters(config, jax.random.key(0)))
    assert jax.tree.map(lambda x: x.shape, loaded) == jax.tree.map(lambda x: x.shape, made)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("model_parallel", [1, 4, 8])
def test_each_slice_is_read_once(scan, model_parallel):
    config = dataclasses.replace(WIDE, scan_layers=scan)
    source, read = counted(WIDE)
    shardings = Partitioner(make_mesh(model_parallel)).parameters(config)
    loaded = load_parameters(source, config, shardings)
    jax.tree.map(
        lambda x, s: np.testing.assert_equal(x.sharding.is_equivalent_to(s, x.ndim), True),
        loaded,
        shardings,
    )
    tree = unflatten_dict(arrays_of(WIDE), sep="/")
    assert_trees(jax.tree.map(np.asarray, loaded), stack_layers(tree) if scan else tree)
    # all devices are this process's: together they hold everything, replicas hold the same
    assert read == {name: array.size for name, array in arrays_of(WIDE).items()}


def test_a_process_reads_what_its_devices_hold():
    """The part of one device of eight: what a process with that device alone would read."""
    source, read = counted(WIDE)
    shardings = Partitioner(make_mesh(8)).parameters(WIDE)
    placed: dict[str, Any] = dict(flatten_dict(shardings, sep="/"))
    for name, sharding in placed.items():
        index = sharding.addressable_devices_indices_map(source.leaves[name].shape)
        source.read(name, index[jax.devices()[3]])
    for name, array in arrays_of(WIDE).items():
        whole = name.endswith("scale")
        assert read[name] == array.size // (1 if whole else 8), name


def test_rounding_to_a_dtype():
    loaded = load_parameters(source_of(T5_1_1), T5_1_1, dtype="bfloat16")
    wanted = arrays_of(T5_1_1)["token_embedder/embedding"].astype(jax.numpy.bfloat16)
    np.testing.assert_array_equal(loaded["token_embedder"]["embedding"], wanted)


# --- docid models from text models ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "tied", "scan"), [("t5_1_0", False, True), ("t5_1_1", True, False)]
)
def test_docid_tables_are_fresh_and_the_rest_is_read(text, tied, scan):
    pretrained = CONFIGS[text]
    config = dataclasses.replace(
        pretrained, target_vocab_size=32, logits_via_embedding=tied, scan_layers=scan
    )
    source = source_of(pretrained)
    new = {"target_embedder/embedding"} | (set() if tied else {"decoder/logits_dense/kernel"})
    assert new_parameters(source, config) == new
    shardings = Partitioner(make_mesh(1)).parameters(config)
    key = jax.random.key(5)
    tree = initialise_from(source, config, key, shardings)
    loaded: dict[str, Any] = dict(flatten_dict(tree, sep="/"))
    fresh: dict[str, Any] = dict(flatten_dict(init_parameters(config, key), sep="/"))
    assert loaded.keys() == fresh.keys()
    read = stack_layers(unflatten_dict(arrays_of(pretrained), sep="/"))
    if not scan:
        read = unflatten_dict(arrays_of(pretrained), sep="/")
    given: dict[str, Any] = dict(flatten_dict(read, sep="/"))
    for name, array in loaded.items():
        np.testing.assert_allclose(array, (fresh if name in new else given)[name], rtol=1e-6)
    with pytest.raises(UserError, match="for this model; initialise it afresh"):
        load_parameters(source, config, shardings)


def test_only_new_parameters_are_initialised():
    """A fresh model is never made: its flops and memory are not in the compiled program."""
    from gr_jax.checkpoints import _load

    config = dataclasses.replace(T5_1_1, vocab_size=50_000, target_vocab_size=4)
    new = new_parameters(source_of(dataclasses.replace(T5_1_1, vocab_size=50_000)), config)
    compiled = jax.jit(_load.fresh_parameters(config, new)).lower(jax.random.key(0)).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 50_000


def test_a_docid_checkpoint_gives_its_docid_tables():
    config = CONFIGS["docids"]
    assert not new_parameters(source_of(config), config)
    loaded = initialise_from(source_of(config), config, jax.random.key(0))
    assert_trees(loaded, unflatten_dict(arrays_of(config), sep="/"))


def test_a_shared_bias_goes_to_every_layer():
    config = dataclasses.replace(T5_1_1, relpos_per_layer=True)
    loaded = dict(flatten_dict(load_parameters(source_of(T5_1_1), config), sep="/"))
    for i in range(2):
        np.testing.assert_array_equal(
            loaded[f"decoder/layers_{i}/relpos_bias/rel_embedding"],
            arrays_of(T5_1_1)["decoder/relpos_bias/rel_embedding"],
        )


# --- tables of other sizes ------------------------------------------------------------------------

TABLES = ("token_embedder/embedding", "decoder/logits_dense/kernel")


@pytest.mark.parametrize("model_parallel", [8])
def test_resized_tables(model_parallel):
    key = jax.random.key(1)
    for vocab in (8, 16, 24):
        config = dataclasses.replace(WIDE, vocab_size=vocab)
        shardings = Partitioner(make_mesh(model_parallel)).parameters(config)
        source = source_of(WIDE)
        assert new_parameters(source, config, resized=TABLES) == (
            set(TABLES) if vocab > 16 else set()
        )
        loaded = initialise_from(source, config, key, shardings, resized=TABLES)
        fresh = init_parameters(config, key)
        n = min(vocab, 16)
        table, head = loaded["token_embedder"]["embedding"], loaded["decoder"]["logits_dense"]
        np.testing.assert_array_equal(table[:n], arrays_of(WIDE)[TABLES[0]][:n])
        np.testing.assert_array_equal(head["kernel"][:, :n], arrays_of(WIDE)[TABLES[1]][:, :n])
        np.testing.assert_allclose(table[n:], fresh["token_embedder"]["embedding"][n:], rtol=1e-6)
        np.testing.assert_allclose(
            head["kernel"][:, n:], fresh["decoder"]["logits_dense"]["kernel"][:, n:], rtol=1e-6
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 15}, r"embedding is \(14, 10\), the model's is \(15, 10\); declare the"),
        ({"mlp_dim": 7}, r"kernel is \(10, 6\), the model's is \(10, 7\); give the model"),
        ({"num_decoder_layers": 3}, "has no decoder/layers_2/.*their depths"),
        ({"num_decoder_layers": 1}, "has decoder/layers_1/.*which the model has not"),
        (
            {"mlp_activations": ("relu",)},
            "has .*/mlp/wi_0/kernel, which the model has not.*activation",
        ),
        ({"logits_via_embedding": True}, "logits_dense/kernel, which the model has not.*via_emb"),
    ],
)
def test_another_model_is_refused_in_one_line(changes, words):
    config = dataclasses.replace(T5_1_1, **changes)
    for load in (load_parameters, lambda s, c: initialise_from(s, c, jax.random.key(0))):
        with pytest.raises(UserError, match=words) as error:
            load(source_of(T5_1_1), config)
        assert "\n" not in str(error.value)


def test_what_text_models_cannot_take():
    with pytest.raises(UserError, match="target_embedder/embedding, which the model has not"):
        load_parameters(source_of(CONFIGS["docids"]), T5_1_1)
    with pytest.raises(UserError, match="has no decoder/logits_dense/kernel, which the model has"):
        load_parameters(
            source_of(CONFIGS["t5_1_0"]), dataclasses.replace(T5_1_1, mlp_activations=("relu",))
        )
    with pytest.raises(UserError, match=r"relpos_per_layer"):
        load_parameters(source_of(CONFIGS["umt5"]), T5_1_1)


# --- checkpoints of training ----------------------------------------------------------------------


def assert_command_line(folder: Path, state: TrainState, capsys):
    """`convert` writes the parameters that are asked for, and `inspect` tells of the average."""
    wanted = {"eval": state.eval_params, "params": state.params}
    for number, parameters in enumerate((None, "eval", "params")):
        asked = [] if parameters is None else [f"--parameters={parameters}"]
        assert main(["convert", str(folder), str(folder / str(number)), "--to=hf", *asked]) == 0
        written = fingerprint(open_checkpoint(folder / str(number)))
        assert written == fingerprint(from_parameters(wanted[parameters or "eval"]))
    arguments = ["convert", str(folder), str(folder / "x"), "--to=t5x", "--optimizer=keep"]
    assert main(arguments) == 2
    refusal = "is not of the average" if state.ema is not None else "holds no t5x optimizer state"
    assert refusal in capsys.readouterr().err
    assert main(["inspect", str(folder), "--no_fingerprint"]) == 0
    text = capsys.readouterr().out
    assert ("\nema " in text) == (state.ema is not None)
    assert "\noptimizer " in text
    assert main(["inspect", str(folder), "--no_fingerprint", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["averaged"] == (state.ema is not None)


@pytest.mark.parametrize(("ema", "scan"), [(False, True), (True, False)])
def test_our_own_checkpoints(tmp_path: Path, ema, scan, capsys):
    model = dataclasses.replace(MODEL, scan_layers=scan, num_encoder_layers=2)
    fresh = init_state(model, TRAINER.optimizer.make(), partitioner(), seed=3, ema=ema)
    params = jax.tree.map(lambda x: x + 1, fresh.params)
    state = fresh._replace(params=params, step=fresh.step + 7)
    identity = RunIdentity(FINGERPRINT, model.to_json(), seed=3, total_steps=24)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, identity)
    checkpoints.close()
    source = open_checkpoint(tmp_path)
    assert (source.format, source.step) == ("gr-jax", 7)
    assert source.layout == ("stacked" if scan else "layers")
    assert source.docid_fingerprint == FINGERPRINT
    assert source.config == dataclasses.replace(model, scan_layers=False)
    assert_trees(load_parameters(source, model), state.eval_params)
    assert fingerprint(source) == fingerprint(from_parameters(state.eval_params))
    assert source.averaged == ema
    assert_trees(load_parameters(open_checkpoint(tmp_path, "params"), model), state.params)
    assert_command_line(tmp_path, state, capsys)
    metadata = tmp_path / "checkpoint_7" / "identity" / "metadata"
    metadata.write_text(metadata.read_text("utf-8")[:-9], "utf-8")
    with pytest.raises(UserError, match="identity: damaged") as error:
        open_checkpoint(tmp_path)
    assert "\n" not in str(error.value)
