"""The search on meshes of eight devices against the search on one."""

import dataclasses
import functools
import itertools
import re
from typing import Any

import jax
import numpy as np
import pytest

from gr_jax.decoding import BeamSearch, Subset, Trie
from gr_jax.decoding import _beam as beam_module
from gr_jax.decoding._core import SCORES
from gr_jax.docids import DocidMap, docid_map_from_tokens
from gr_jax.models import Precision, T5Config, init_parameters, prepare_inference
from gr_jax.training import Partitioner, make_mesh

MODEL_AXES = (1, 2, 4, 8)
CODES, K = 6, 8
CONFIG = T5Config(
    vocab_size=64,
    target_vocab_size=40,
    emb_dim=16,
    num_heads=8,
    head_dim=4,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
)


@functools.cache
def docid_map():
    """60 documents: docids of 1 to 3 codes, prefixes of others and collisions among them."""
    rng = np.random.default_rng(0)
    docids = [rng.integers(0, CODES, rng.integers(2, 4)).tolist() for _ in range(58)]
    return docid_map_from_tokens([f"d{i}" for i in range(60)], [*docids, docids[0], docids[1][:1]])


@functools.cache
def atomic_docids():
    documents = CONFIG.output_vocab_size - 2
    codes = np.random.default_rng(0).permutation(documents)
    return docid_map_from_tokens([f"d{i}" for i in range(documents)], [[c] for c in codes])


@functools.cache
def params():
    return init_parameters(CONFIG, jax.random.key(0))


@functools.cache
def weights(precision: Precision = "float32"):
    return prepare_inference(CONFIG, params(), precision)


@functools.cache
def sharded_weights(model_axis, precision: Precision = "float32"):
    partitioner = Partitioner(make_mesh(model_axis))
    sharded = jax.device_put(params(), partitioner.parameters(CONFIG))
    return prepare_inference(CONFIG, sharded, precision)


def sources(n=8, seed=0):
    rng = np.random.default_rng(seed)
    source = rng.integers(1, CONFIG.vocab_size, (n, 12)).astype(np.int32)
    source[np.arange(12) >= rng.integers(3, 13, n)[:, None]] = 0
    return source


@functools.cache
def alone(score, beam):
    return BeamSearch(weights(), docid_map(), beam=beam, k=K, score=score).search(sources())


# every program takes seconds to compile: each mesh, score and beam once, all together when asked
QUICK = {(2, "full", 5), (4, "children", 1), (8, "level", 5)}


@pytest.mark.parametrize(
    ("model_axis", "score", "beam"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(MODEL_AXES, SCORES, (1, 5))
    ],
)
def test_answers_are_those_of_one_device(model_axis, score, beam):
    search = BeamSearch(sharded_weights(model_axis), docid_map(), beam=beam, k=K, score=score)
    one, many = alone(score, beam), search.search(sources())
    np.testing.assert_array_equal(one.rows, many.rows)
    found = one.rows >= 0
    assert found.any(axis=1).all()
    np.testing.assert_allclose(one.scores[found], many.scores[found], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.exact, many.exact)


@pytest.mark.parametrize("model_axis", MODEL_AXES)
def test_weights_stay_sharded_and_the_trie_is_everywhere(model_axis):
    prepared = sharded_weights(model_axis)
    layer, encoder = prepared.decoder.layers[0], prepared.encoder.layers[0]
    weights_by_axis = {
        -1: [layer.own.out, layer.other.out, layer.mlp.wo, encoder.mlp.wo],
        # what a device computes of its own: heads, hidden units, logits
        -2: [layer.own.qkv, layer.other.query, layer.mlp.wi, prepared.cross, prepared.head],
        0: [prepared.decoder.embedding, prepared.encoder.embedding],
    }
    for axis, arrays in weights_by_axis.items():
        for array in arrays:
            shape = list(array.shape)
            shape[axis] //= model_axis
            shards = array.addressable_shards
            assert {s.device for s in shards} == set(jax.devices())
            assert all(list(s.data.shape) == shape for s in shards)
    search = BeamSearch(prepared, docid_map())
    for array in jax.tree.leaves(search.trie):
        assert all(s.data.shape == array.shape for s in array.addressable_shards)
        assert len(array.addressable_shards) == 8


def test_int8_weights_are_sharded_too():
    prepared: Any = sharded_weights(4, "int8")
    for weight, axis in ((prepared.decoder.layers[0].mlp.wi, 1), (prepared.head, 0)):
        for array in weight:  # values and scales
            sizes = {s.data.shape[axis] for s in array.addressable_shards}
            assert sizes == {array.shape[axis] // 4}
    atomic = atomic_docids()
    one, many = (
        BeamSearch(w, atomic, beam=1, k=len(atomic), score="full").search(sources())
        for w in (weights("int8"), prepared)
    )
    for q in range(len(one.rows)):
        scores = [r.scores[q][np.argsort(r.rows[q])] for r in (one, many)]
        np.testing.assert_allclose(*scores, atol=0.15)  # bfloat16 sums, split in another way


def test_the_program_is_partitioned(monkeypatch):
    """Devices tell each other sums of activations; what would be a weight is never gathered."""
    # matrix products as accelerators do them: on CPUs, stacked weights are made one
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, cpu, default: default(*x))
    search = BeamSearch(sharded_weights(4), docid_map(), beam=5, k=K, score="full")
    source = jax.device_put(np.pad(sources(), ((0, 0), (0, 4))), search.sharding)
    assert {s.data.shape for s in source.addressable_shards} == {(4, 16)}
    program: Any = beam_module._program.__wrapped__("cpu")
    lowered = program.lower(
        *(search.weights, search.trie, source, None, None),
        **{"beam": search.beam, "k": search.k, "score": search.score, "ends": search.ends},
    )
    text = lowered.compile().as_text()
    assert "num_partitions=8" in text
    found = re.findall(r"= \(?\w+\[([\d,]*)\]\S* .*?(all-[\w-]+|dot)\(", text)
    shapes: dict[str, list] = {"all-reduce": [], "all-gather": [], "dot": []}
    for shape, name in found:
        shapes[name].append(tuple(int(n) for n in shape.split(",") if n))
    # three sums per layer and step over the model axis, for 4 of 8 queries
    sums = [s for s in shapes["all-reduce"] if int(np.prod(s)) == 4 * 5 * CONFIG.emb_dim]
    assert len(sums) >= 3
    # scores of all queries, where the best are chosen
    assert all(len(s) == 2 and s[0] == 8 for s in shapes["all-gather"])
    # a device computes 10 of 40 logits, 2 of 8 heads and 8 of 32 hidden units
    widths = {s[-1] for s in shapes["dot"]}
    assert CONFIG.output_vocab_size // 4 in widths and CONFIG.output_vocab_size not in widths
    assert CONFIG.mlp_dim // 4 in widths and CONFIG.mlp_dim not in widths


def test_batches_that_do_not_divide_and_subsets():
    one = BeamSearch(weights(), docid_map(), beam=5, k=K, score="level")
    many = BeamSearch(sharded_weights(2), docid_map(), beam=5, k=K, score="level", batch_size=6)
    trie = Trie.from_docid_map(docid_map())
    subset = Subset.stack([trie.subset(np.arange(0, 60, 2)), trie.subset(np.arange(30))])
    source, group = sources(11, seed=1), np.arange(11) % 2
    for n, settings in ((1, {}), (11, {"subset": subset, "group": group})):  # in batches of 4, of 8
        expected, found = (search.search(source[:n], **settings) for search in (one, many))
        np.testing.assert_array_equal(expected.rows, found.rows)
        rows = expected.rows >= 0
        np.testing.assert_allclose(expected.scores[rows], found.scores[rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("model_axis", [2, 8])
def test_atomic_docids_over_a_sharded_head(model_axis, score):
    atomic = atomic_docids()
    documents = len(atomic)
    one = BeamSearch(weights(), atomic, beam=1, k=documents, score=score).search(sources())
    many = BeamSearch(sharded_weights(model_axis), atomic, beam=1, k=documents, score=score)
    found = many.search(sources())
    assert found.exact.all() and (np.sort(found.rows, axis=1) == np.arange(documents)).all()
    np.testing.assert_array_equal(one.rows, found.rows)
    np.testing.assert_allclose(one.scores, found.scores, rtol=1e-5, atol=1e-5)


def test_devices_rank_their_own_atomic_docids(monkeypatch):
    """Only each device's best go to the others, and the output layer is not even copied."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *x, cpu, default: default(*x))
    k, shards, documents = 2, 4, 4 * 64 * 3
    config = dataclasses.replace(CONFIG, target_vocab_size=documents + 8)
    parameters = init_parameters(config, jax.random.key(1))
    one = prepare_inference(config, parameters)
    partitioner = Partitioner(make_mesh(shards))
    many = prepare_inference(config, jax.device_put(parameters, partitioner.parameters(config)))
    table = np.random.default_rng(0).permutation(documents)[: documents - 7]  # with holes
    atomic = DocidMap(tuple(map(str, table)), table[:, None], (documents,))
    settings: Any = {"beam": 1, "k": k, "score": "children", "ends": "all"}
    answers = []
    for search in (BeamSearch(w, atomic, beam=1, k=k) for w in (one, many)):
        source = jax.device_put(np.pad(sources(), ((0, 0), (0, 4))), search.sharding)
        arguments = (search.weights, search.trie, source, None, None)
        program: Any = beam_module._program.__wrapped__("cpu")
        compiled = program.lower(*arguments, **settings, mesh=search._mesh).compile()
        answers.append([*map(np.asarray, compiled(*arguments)), compiled.as_text()])
    (rows, scores, exact, alone), (rows_of_mesh, scores_of_mesh, _, text) = answers
    np.testing.assert_array_equal(rows, rows_of_mesh)
    np.testing.assert_allclose(scores, scores_of_mesh, rtol=1e-5, atol=1e-5)
    assert exact.all() and (rows >= 0).all()
    gathered = re.findall(r"= \(?\w+\[([\d,]*)\]\S* .*?all-gather(?:-start)?\(", text)
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in gathered]
    assert max(sizes, default=0) <= len(rows) * k * shards
    width = config.emb_dim
    copies = rf"= f32\[({documents}|{documents - 7}),{width}\]"
    assert not re.search(copies, alone), "a part of the output layer is copied"


def test_no_transfer_between_devices_in_a_search():
    search = BeamSearch(sharded_weights(2), docid_map(), beam=5, k=K, score="full")
    search.search(sources())
    source = jax.device_put(np.pad(sources(), ((0, 0), (0, 4))), search.sharding)
    with jax.transfer_guard("disallow"):
        rows, _, _ = search.run(source)
    np.testing.assert_array_equal(rows, alone("full", 5).rows)
