"""Weights from a checkpoint: the same bits in the same places, and how much memory that takes."""

import dataclasses
import functools
import os
import shutil

import jax
import numpy as np
import pytest

from gr_jax.errors import UserError
from gr_jax.models import T5Config, count_parameters, prepare_inference
from gr_jax.planning._programs import search_weights
from gr_jax.serving import Index, IndexSpec, SearchConfig
from gr_jax.serving import _parameters as parameters_module
from gr_jax.serving._parameters import SavedParameters
from gr_jax.training import (
    Checkpoints,
    Optimizer,
    Partitioner,
    Partitioning,
    RunIdentity,
    init_state,
    load_eval_parameters,
)
from tests.serving.test_index import make_index


def make_model_dir(beir, folder, **model):
    """What training leaves of a random model whose layers are most of it."""
    made = make_index(beir, folder)
    config = dataclasses.replace(
        made.spec.model,
        emb_dim=64,
        num_heads=4,
        mlp_dim=256,
        num_encoder_layers=3,
        num_decoder_layers=3,
        vocab_size=256,
        target_vocab_size=64,
        dtype="bfloat16",
        **model,
    )
    fingerprint = made.docid_map.fingerprint
    (folder / "vocabulary").mkdir()
    (folder / "corpus").mkdir()
    IndexSpec(config, fingerprint, True, 32, 0, "").save(folder / "index.json")
    made.docid_map.save(folder / "docids")
    shutil.copy(made.tokenizer.path, folder / "vocabulary")
    shutil.copy(beir / "corpus.jsonl", folder / "corpus")
    partitioner = Partitioner.make(Partitioning(), jax.devices()[:1])
    state = init_state(config, Optimizer("adafactor").make(), partitioner, seed=0, ema=True)
    # as far from each other as they are from what they are rounded to
    scaled = jax.tree.map(lambda x: x * 1.3, state.params)
    checkpoints = Checkpoints(folder)
    checkpoints.save(
        7, state._replace(ema=scaled), RunIdentity(fingerprint, config.to_json(), 0, 7)
    )
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def model_dirs(beir, tmp_path_factory):
    @functools.cache
    def make(scanned: bool):
        folder = tmp_path_factory.mktemp("model")
        model = {"scan_layers": True, "logits_via_embedding": True} if scanned else {}
        return make_model_dir(beir, folder, **model)

    return make


def config_of(folder) -> T5Config:
    return IndexSpec.load(folder / "index.json").model


@pytest.mark.parametrize(
    ("scanned", "spread", "precisions"),
    [
        (False, None, ("float32", "int8")),
        (False, Partitioning(model_parallel=4), ("bfloat16",)),
        (True, Partitioning(model_parallel=2, parameter_partitions=2), ("bfloat16", "int8")),
    ],
)
def test_weights_are_those_of_the_whole_tree(model_dirs, scanned, spread, precisions):
    """Bit for bit and device for device."""
    folder = model_dirs(scanned)
    config, partitioner = config_of(folder), spread and Partitioner.make(spread)
    fingerprint = IndexSpec.load(folder / "index.json").docid_fingerprint
    tree, _ = load_eval_parameters(folder, fingerprint)
    if partitioner is not None:
        tree = jax.device_put(tree, partitioner.parameters(config))
    saved = SavedParameters(folder / "checkpoint_7", config, partitioner)
    for precision in precisions:
        read = saved.weights(precision)
        if partitioner is not None:
            planned = search_weights(config, partitioner, precision)
            for plan, found in zip(*map(jax.tree.leaves, (planned, read)), strict=True):
                assert (plan.shape, plan.dtype) == (found.shape, found.dtype)
                assert plan.sharding.is_equivalent_to(found.sharding, found.ndim)
        # in one program, where all is in memory
        whole = jax.jit(lambda p, x=precision: prepare_inference(config, p, x))(tree)
        assert jax.tree.structure(whole) == jax.tree.structure(read)
        for expected, found in zip(*map(jax.tree.leaves, (whole, read)), strict=True):
            assert expected.dtype == found.dtype
            assert expected.sharding.is_equivalent_to(found.sharding, found.ndim)
            np.testing.assert_array_equal(
                np.asarray(expected).view(np.uint8), np.asarray(found).view(np.uint8)
            )


class Memory:
    """The bytes of arrays that were not there before, as they come and go."""

    def __init__(self):
        self.before = jax.live_arrays()  # kept, so that no other array gets their ids
        self.known, self.peak = set(map(id, self.before)), 0

    def bytes(self) -> int:
        now = sum(x.nbytes for x in jax.live_arrays() if id(x) not in self.known)
        self.peak = max(self.peak, now)
        return now


@pytest.mark.parametrize(("scanned", "precision"), [(False, "int8"), (True, "bfloat16")])
def test_loading_needs_the_weights_and_what_one_is_made_of(
    model_dirs, scanned, precision, monkeypatch
):
    folder = model_dirs(scanned)
    config = config_of(folder)
    memory, place = Memory(), SavedParameters._place

    def watched(self, name, array):
        placed = place(self, name, array)
        memory.bytes()
        return placed

    monkeypatch.setattr(SavedParameters, "_place", watched)
    weights = SavedParameters(folder / "checkpoint_7", config).weights(precision)
    left = sum(x.nbytes for x in jax.tree.leaves(weights))
    # the two kernels into the hidden units are the most that one weight is made of
    largest = 2 * 4 * config.emb_dim * config.mlp_dim
    assert left <= memory.bytes() <= left + 1024
    assert left < memory.peak <= left + largest


def test_an_index_that_has_answered_holds_no_float32_copy(model_dirs):
    memory = Memory()
    index = Index.load(model_dirs(False))
    assert memory.bytes() == 0, "nothing is read before it is wanted"
    found = index.find(["tide", "soup"], k=5, config=SearchConfig(beam=8))
    assert (found.rows >= 0).all()
    float32 = 4 * index.parameter_count
    assert float32 / 2 <= memory.bytes() - index.trie.nbytes < 0.6 * float32
    assert memory.peak < 0.6 * float32 + index.trie.nbytes
    assert index.parameter_count == count_parameters(
        load_eval_parameters(model_dirs(False), index.spec.docid_fingerprint)[0]
    )


def test_a_scanned_array_is_read_once(model_dirs, monkeypatch):
    read, saved = [], parameters_module.saved_parameters

    def watched(path):
        leaves = saved(path)
        return {
            name: dataclasses.replace(
                leaf, fetch=lambda index, n=name, x=leaf: read.append(n) or x.fetch(index)
            )
            for name, leaf in leaves.items()
        }

    monkeypatch.setattr(parameters_module, "saved_parameters", watched)
    folder = model_dirs(True)
    SavedParameters(folder / "checkpoint_7", config_of(folder)).weights("bfloat16")
    layers = [name for name in read if "/layers_" in name or name.split("/")[0] == "decoder"]
    assert len(layers) == len(set(layers)) > 10


@pytest.mark.parametrize("harm", ["emptied", "gone"])
def test_a_damaged_checkpoint_is_a_line(model_dirs, tmp_path, harm):
    copy = shutil.copytree(model_dirs(False), tmp_path / "copy")
    index = Index.load(copy)
    checkpoint = copy / "checkpoint_7"
    if harm == "gone":
        shutil.rmtree(checkpoint)
    else:
        for path in (checkpoint / "state" / "ocdbt.process_0" / "d").iterdir():
            os.truncate(path, 0)
    with pytest.raises(UserError, match=f"^{checkpoint}/state") as error:
        index.search("tide")
    assert "\n" not in str(error.value)
