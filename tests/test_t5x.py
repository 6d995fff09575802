"""The decode function for t5x, driven as t5x drives one, against gr_jax's own search."""

import functools
import inspect
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import core

import gin
from gr_jax import gin_config
from gr_jax.decoding import BeamSearch, Trie, score_all
from gr_jax.decoding._core import SCORES
from gr_jax.docids import DocidMap, DocidVocabulary, docid_map_from_tokens
from gr_jax.errors import UserError
from gr_jax.models import T5Config, encode, init_parameters, prepare_inference
from gr_jax.models._layers import relative_position_bucket
from gr_jax.t5x import NO_ANSWER, constrained_beam_search
from tests.decoding.reference_search import (
    extend,
    hash_logits,
    hash_logits_of,
    make_map,
    reference_search,
)

CONFIG = T5Config(
    vocab_size=40,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=2,
)
LENGTH = 7  # task_feature_lengths of the targets
PREFIX_FREE = [(0, 0), (0, 1, 2), (0, 1, 3), (3, 3, 1), (3, 4, 1), (5, 0, 1, 1), (5, 0, 1, 2), (2,)]
PREFIXES = [(0,), (0, 1), (0, 1, 2), (3, 3), (3, 4), (5, 0, 0, 0), (5, 0, 0, 1), (2,), (2, 2, 2)]


@functools.cache
def params():
    return init_parameters(CONFIG, jax.random.key(0))


def sources(n=3):
    rng = np.random.default_rng(0)
    source = rng.integers(1, CONFIG.vocab_size, (n, 9)).astype(np.int32)
    source[np.arange(9) >= rng.integers(3, 10, n)[:, None]] = 0
    return source


def saved(folder, docids) -> str:
    docid_map_from_tokens([f"d{i}" for i in range(len(docids))], docids).save(folder / "docids")
    return str(folder / "docids")


# --- t5x's protocol -------------------------------------------------------------------------------


def _norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _heads(x):
    return x.reshape(*x.shape[:-1], CONFIG.num_heads, CONFIG.head_dim)


def _attend(query, key, value, bias):
    """[rows, 1, heads, e], [rows, heads, e, keys] twice -> [rows, 1, heads * e]."""
    weights = jax.nn.softmax(jnp.einsum("bqhe,bhek->bhqk", query, key) + bias, axis=-1)
    return jnp.einsum("bhqk,bhek->bqhe", weights, value).reshape(*query.shape[:2], -1)


class FakeT5x:
    """t5x's `EncoderDecoderModel` as a decode function sees it, around gr_jax's parameters.

    The cache is that of t5x's T5: keys and values [rows, heads, head_dim, length], written by
    adding to zeros at `cache_index`, which has no rows, nor has `cached_bias`; with `scanned`, the
    layers are one, and the first axis of every entry.
    """

    def __init__(self, decode_fn=None, *, scanned: bool = False):
        self.decode_fn: Any = decode_fn
        self.params = params()
        self.scanned = scanned
        self.calls = 0

    def initial_cache(self, batch: int) -> dict[str, Any]:
        c = CONFIG
        distance = np.minimum(np.arange(LENGTH)[None] - np.arange(LENGTH)[:, None], 0)
        buckets = relative_position_bucket(
            distance, bidirectional=False, num_buckets=c.relpos_buckets,
            max_distance=c.relpos_max_distance,
        )  # fmt: skip
        bias = self.params["decoder"]["relpos_bias"]["rel_embedding"][:, buckets][None]
        axes = (c.num_decoder_layers,) if self.scanned else ()
        layer = {
            "self_attention": {
                "cached_key": jnp.zeros((*axes, batch, c.num_heads, c.head_dim, LENGTH)),
                "cached_value": jnp.zeros((*axes, batch, c.num_heads, c.head_dim, LENGTH)),
                "cache_index": jnp.zeros(axes, jnp.int32),
            }
        }
        names = ["layers"] if self.scanned else [f"layers_{i}" for i in range(c.num_decoder_layers)]
        cache = {name: jax.tree.map(jnp.array, layer) for name in names}
        return {"decoder": {**cache, "relpos_bias": {"cached_bias": bias}}}

    def tokens_to_logits(self, state, encoded, mask) -> tuple[Any, Any]:
        self.calls += 1
        assert state.cur_token.shape == (len(encoded), 1)
        assert state.sequences.shape == (len(encoded), LENGTH + 1)
        decoder, cache = self.params["decoder"], state.cache["decoder"]
        x = self.params["token_embedder"]["embedding"][state.cur_token]
        written = []
        for i in range(CONFIG.num_decoder_layers):
            layer = decoder[f"layers_{i}"]
            entry = (
                jax.tree.map(lambda x, i=i: x[i], cache["layers"])
                if self.scanned
                else cache[f"layers_{i}"]
            )["self_attention"]
            own = layer["self_attention"]
            h = _norm(x, layer["pre_self_attention_layer_norm"]["scale"])
            query, key, value = (_heads(h @ own[n]["kernel"]) for n in ("query", "key", "value"))
            index = entry["cache_index"]
            here = jax.nn.one_hot(index, LENGTH)
            key = entry["cached_key"] + jnp.moveaxis(key, -3, -1) * here
            value = entry["cached_value"] + jnp.moveaxis(value, -3, -1) * here
            new = {"cached_key": key, "cached_value": value, "cache_index": index + 1}
            written.append({"self_attention": new})
            bias = cache["relpos_bias"]["cached_bias"]
            bias = jax.lax.dynamic_slice_in_dim(bias, index, 1, axis=2)
            bias = jnp.where(jnp.arange(LENGTH) <= index, bias, -1e10)
            x = x + _attend(query, key, value, bias) @ own["out"]["kernel"]
            other = layer["encoder_decoder_attention"]
            h = _norm(x, layer["pre_cross_attention_layer_norm"]["scale"])
            key, value = (
                jnp.moveaxis(_heads(encoded @ other[n]["kernel"]), -3, -1) for n in ("key", "value")
            )
            query = _heads(h @ other["query"]["kernel"])
            bias = jnp.where(mask, 0, -1e10)[:, None, None]
            x = x + _attend(query, key, value, bias) @ other["out"]["kernel"]
            h, mlp = _norm(x, layer["pre_mlp_layer_norm"]["scale"]), layer["mlp"]
            h = jax.nn.gelu(h @ mlp["wi_0"]["kernel"]) * (h @ mlp["wi_1"]["kernel"])
            x = x + h @ mlp["wo"]["kernel"]
        x = _norm(x, decoder["decoder_norm"]["scale"])
        layers = (
            {"layers": jax.tree.map(lambda *xs: jnp.stack(xs), *written)}
            if self.scanned
            else {f"layers_{i}": w for i, w in enumerate(written)}
        )
        cache = {"decoder": {**layers, "relpos_bias": cache["relpos_bias"]}}
        return (x @ decoder["logits_dense"]["kernel"])[:, 0], core.freeze(cache)

    def predict(self, source, num_decodes: int, **decoder_params):
        """As `predict_batch_with_aux` with `return_all_decodes`."""
        # t5x would prefill a prompt otherwise
        assert "initial_index" not in inspect.signature(self.decode_fn).parameters
        encoded = encode(CONFIG, self.params, source)
        return self.decode_fn(
            inputs=jnp.zeros((len(source), LENGTH), jnp.int32),
            cache=core.freeze(self.initial_cache(len(source))),
            tokens_to_logits=functools.partial(
                self.tokens_to_logits,
                encoded=jnp.repeat(encoded, num_decodes, axis=0),
                mask=jnp.repeat(source > 0, num_decodes, axis=0),
            ),
            num_decodes=num_decodes,
            cache_offset=1 if self.scanned else 0,
            decode_rng=jax.random.key(0),
            **{"eos_id": 1, **decoder_params},
        )


def predict(directory, source, num_decodes, *, scanned=False, **settings):
    """Under `jax.jit`, as t5x runs it."""
    decode_fn = functools.partial(constrained_beam_search, docids=directory, **settings)
    model = FakeT5x(decode_fn, scanned=scanned)
    run = jax.jit(model.predict, static_argnums=1)
    sequences, scores = run(source, num_decodes)
    assert sequences.shape == (len(source), num_decodes, LENGTH)
    assert scores.shape == (len(source), num_decodes)
    return np.asarray(sequences), np.asarray(scores)


def expected_sequences(docid_map, vocabulary, rows):
    """Tokens of rows of the map, an end token, zeros; of no row, zeros."""
    tokens = np.zeros((len(docid_map) + 1, LENGTH), np.int32)
    encoded = vocabulary.encode(docid_map.codes)
    tokens[: len(docid_map), : encoded.shape[1]] = encoded
    tokens[np.arange(len(docid_map)), docid_map.lengths] = 1
    return tokens[rows]  # -1 is the last row


# --- the tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("docids", "eos", "score", "num_decodes", "scanned"),
    [
        (PREFIX_FREE, None, "full", 3, False),
        pytest.param(PREFIX_FREE, True, "full", 2, False, marks=pytest.mark.slow),
        (PREFIXES, None, "level", 3, False),
        pytest.param(PREFIXES, None, "children", 4, False, marks=pytest.mark.slow),
        (PREFIXES, None, "full", 20, False),
        (PREFIXES, None, "full", 3, True),
    ],
)
def test_it_answers_like_beam_search(tmp_path, docids, eos, score, num_decodes, scanned):
    directory = saved(tmp_path, docids)
    docid_map, source = DocidMap.load(tmp_path / "docids"), sources()
    vocabulary = DocidVocabulary(docid_map.level_sizes, docid_map.vocabulary.eos or bool(eos))
    trie = Trie.from_docid_map(docid_map, vocabulary)
    weights = prepare_inference(CONFIG, params())
    own = BeamSearch(weights, trie, beam=num_decodes, k=num_decodes, score=score).search(source)
    sequences, scores = predict(
        directory, source, num_decodes, eos=eos, score=score, scanned=scanned
    )
    expected = expected_sequences(docid_map, vocabulary, own.rows)
    np.testing.assert_array_equal(sequences[:, ::-1], expected)
    found = own.rows >= 0
    np.testing.assert_allclose(scores[:, ::-1][found], own.scores[found], rtol=1e-4, atol=1e-4)
    assert (scores[:, ::-1][~found] == NO_ANSWER).all()
    assert (np.diff(scores, axis=1) >= 0).all(), "best last"
    if num_decodes > len(docids):  # everything, so the oracle can tell
        oracle = np.sort(score_all(weights, docid_map, source, score, vocabulary), axis=1)
        np.testing.assert_allclose(scores[:, -len(docids) :], oracle, rtol=1e-4, atol=1e-4)
        assert (sequences[:, : -len(docids)] == 0).all()


class HashT5x:
    """A decoder whose state is a hash of the tokens before: any mistake in a row tells."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, state):
        hashed = state.cache["hash"]
        token = state.cur_token[:, 0].astype(jnp.uint32)
        hashed = jnp.where(state.cache["cache_index"] > 0, extend(hashed, token), hashed)
        # what it is told of the past is what it has seen of it
        past = jnp.take(state.sequences, state.cur_index, axis=1)
        logits = jnp.where(past[:, None] == state.cur_token, hash_logits(hashed, self.scale), 0)
        return logits, {"hash": hashed, "cache_index": state.cache["cache_index"] + 1}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("docids", [PREFIX_FREE, PREFIXES], ids=["prefix_free", "prefixes"])
def test_it_equals_a_search_over_a_dict(tmp_path, docids, score):
    docid_map = make_map(docids)  # the levels of the hash
    docid_map.save(tmp_path / "docids")
    vocabulary, seeds = docid_map.vocabulary, [5, 6, 7, 8]
    for beam in (2, 5):
        decode = functools.partial(
            constrained_beam_search,
            inputs=jnp.zeros((len(seeds), LENGTH), jnp.int32),
            tokens_to_logits=HashT5x(np.float32(8)),
            num_decodes=beam,
            docids=str(tmp_path / "docids"),
            score=score,
        )
        cache = {"hash": jnp.array(seeds, jnp.uint32), "cache_index": jnp.array(0)}
        sequences, scores = jax.jit(lambda cache, decode=decode: decode(cache=cache))(cache)
        for q, seed in enumerate(seeds):
            expected, _ = reference_search(
                docids, hash_logits_of(seed, 8.0), beam=beam, k=beam, score=score,
                eos=vocabulary.eos,
            )  # fmt: skip
            rows = [row for _, row in expected]
            found = expected_sequences(docid_map, vocabulary, rows)
            np.testing.assert_array_equal(sequences[q, ::-1][: len(rows)], found)
            np.testing.assert_allclose(
                scores[q, ::-1][: len(rows)], [s for s, _ in expected], rtol=1e-5, atol=1e-5
            )


def test_documents_with_one_docid_are_one_sequence(tmp_path):
    directory = saved(tmp_path, [(1, 1), (0, 2), (1, 1), (0, 2), (1, 0)])
    sequences, scores = predict(directory, sources(), 4)
    assert (sequences[:, 0] == 0).all() and (scores[:, 0] == NO_ANSWER).all()
    for query in sequences[:, 1:]:
        assert sorted(query[:, :3].tolist()) == [[2, 6, 1], [3, 4, 1], [3, 5, 1]]


def test_tokens_of_a_text_vocabulary(tmp_path):
    directory = saved(tmp_path, [(7, 9), (7, 8), (30, 5)])
    sequences, _ = predict(directory, sources(), 3, first_tokens=(0, 0), eos=True)
    for query in sequences:
        assert sorted(query[:, :3].tolist()) == [[7, 8, 1], [7, 9, 1], [30, 5, 1]]


def test_gin_binds_it_and_the_docids_are_loaded_once(tmp_path, monkeypatch):
    directory = saved(tmp_path, PREFIXES)
    config = tmp_path / "decode.gin"
    config.write_text(
        "from __gin__ import dynamic_registration\n"
        "import gr_jax.t5x\n"
        "from tests import test_t5x\n"
        "test_t5x.FakeT5x.decode_fn = @gr_jax.t5x.constrained_beam_search\n"
        f"gr_jax.t5x.constrained_beam_search.docids = {directory!r}\n"
        "gr_jax.t5x.constrained_beam_search.score = 'level'\n"
    )
    loads = []
    load = DocidMap.load
    monkeypatch.setattr(DocidMap, "load", lambda path: loads.append(path) or load(path))
    try:
        gin_config.parse([str(config)])
        model = gin_config.call(FakeT5x)
        found = [jax.jit(model.predict, static_argnums=1)(sources(), 3) for _ in range(2)]
    finally:
        gin.clear_config()
    assert len(loads) == 1
    expected = predict(directory, sources(), 3, score="level")
    for result in found:
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_allclose(result[1], expected[1], rtol=1e-5)


def test_one_program_and_no_more_steps_than_docids_need(tmp_path):
    directory = saved(tmp_path, [(0, 1), (2, 3), (2, 4)])  # no end token: two steps
    decode_fn = functools.partial(constrained_beam_search, docids=directory)
    model = FakeT5x(decode_fn)
    run: Any = jax.jit(model.predict, static_argnums=1)
    first, _ = run(sources(), 2)
    traced = model.calls
    second, _ = run(sources()[::-1], 2)
    assert run._cache_size() == 1 and model.calls == traced
    np.testing.assert_array_equal(first, second[::-1])
    shapes = jax.eval_shape(lambda: model.predict(sources(), 2))
    assert [x.shape for x in shapes] == [(3, 2, LENGTH), (3, 2)]


def test_a_directory_that_is_written_anew_is_read_anew(tmp_path):
    for docids in ([(1, 1), (0, 2)], [(1, 2), (0, 1)]):
        sequences, _ = predict(saved(tmp_path, docids), sources(), 2)
        expected = sorted([a + 2, b + 4, 1] for a, b in docids)
        assert all(sorted(query[:, :3].tolist()) == expected for query in sequences)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"docids": "nowhere"}, "nowhere.*not found"),
        ({"eos_id": 2}, "eos_id is 2"),
        ({"alpha": 0.6}, "alpha is 0.6"),
        ({"score": "best"}, "unknown score 'best'"),
        ({"max_decode_len": 4}, "up to 5 tokens, and there is room for 4"),
        ({"first_tokens": (0, 0, 0, 0)}, "padding and end"),
        ({"first_tokens": (30, 30, 30, 39)}, "the model has 40 target tokens, the docids 41"),
        ({"eos": False}, "needs an end token"),
        ({"first_tokens": (3,)}, "1 first tokens for 4 levels"),
    ],
)
def test_mistakes_are_named(tmp_path, settings, message):
    settings = {"docids": saved(tmp_path, PREFIXES), **settings}
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: FakeT5x(constrained_beam_search).predict(sources(), 2, **settings))


def test_gin_names_the_directory_that_is_not_there(tmp_path):
    config = tmp_path / "decode.gin"
    config.write_text(
        "from __gin__ import dynamic_registration\n"
        "import gr_jax.t5x\n"
        "from tests import test_t5x\n"
        "test_t5x.FakeT5x.decode_fn = @gr_jax.t5x.constrained_beam_search\n"
        f"gr_jax.t5x.constrained_beam_search.docids = '{tmp_path}/nowhere'\n"
    )
    try:
        gin_config.parse([str(config)])
        model = gin_config.call(FakeT5x)
        with pytest.raises(UserError, match=r"nowhere.*not found"):
            jax.eval_shape(lambda: model.predict(sources(), 2))
    finally:
        gin.clear_config()


def test_it_needs_neither_t5x_nor_tensorflow():
    code = (
        "import sys, gr_jax.t5x\n"
        "heavy = {'t5x', 'tensorflow', 'seqio', 'gin'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
