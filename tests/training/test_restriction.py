"""Restricted softmaxes against sets of tokens, the oracle of the decoder, and whole runs."""

import dataclasses
import functools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.decoding import score_all
from gr_jax.docids import DocidMap, docid_map_from_tokens
from gr_jax.errors import UserError
from gr_jax.models import (
    cross_entropy_loss,
    decode_train,
    init_parameters,
    prepare_inference,
)
from gr_jax.training import SOFTMAXES, Checkpoints, TrainConfig, measure_steps
from gr_jax.training._restriction import ChildrenRestriction, Restriction, make_restriction
from tests.training.tiny_run import (
    MODEL,
    STEPS,
    TRAINER,
    cache_of,
    make_batches,
    partitioner,
    train_tiny,
)

RESTRICTED = ("level", "children")
ROWS, LENGTH, VOCAB = 3, 12, 32  # of packed targets; the widest vocabulary below needs 2 + 4 * 6


def make_map(docids) -> DocidMap:
    return docid_map_from_tokens([f"d{i}" for i in range(len(docids))], docids)


@st.composite
def docid_maps(draw) -> DocidMap:
    """1 to 20 docids of 1 to 4 codes, some twice, with and without prefixes of each other."""
    levels = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 6), min_size=levels, max_size=levels))
    shortest = draw(st.sampled_from([1, levels]))
    docid = st.integers(shortest, levels).flatmap(
        lambda n: st.tuples(*(st.integers(0, size - 1) for size in sizes[:n]))
    )
    docids = draw(st.lists(docid, min_size=1, max_size=20))
    if draw(st.booleans()):
        docids = [d for d in docids if not any(d != e and e[: len(d)] == d for e in docids)]
    return make_map(docids)


def pack(docid_map: DocidMap, rng: np.random.Generator):
    """Random docids in rows: targets, segments, and (row, start, tokens) of each docid."""
    targets, segments = np.zeros((2, ROWS, LENGTH), np.int32)
    placed = []
    for row in range(ROWS - 1):  # the last row is all padding
        start = 0
        for segment in range(1, int(rng.integers(2, 8))):
            tokens = docid_map.tokens[rng.integers(len(docid_map))]
            tokens = tokens[tokens > 0]
            stop = start + len(tokens)
            if stop > LENGTH:
                break
            targets[row, start:stop], segments[row, start:stop] = tokens, segment
            placed.append((row, start, tokens))
            start = stop
    return targets, segments, placed


def tokens_after(docid_map: DocidMap, softmax: str, prefix: tuple[int, ...]) -> set[int]:
    """What may follow a prefix of tokens."""
    vocabulary, place = docid_map.vocabulary, len(prefix)
    if softmax == "full":
        return set(range(VOCAB))
    if softmax == "level":
        after = set()
        if place < len(vocabulary.level_sizes):
            first = int(vocabulary.offsets[place])
            after |= set(range(first, first + vocabulary.level_sizes[place]))
        return after | ({1} if vocabulary.eos and place else set())
    rows = [tuple(row[row > 0].tolist()) for row in docid_map.tokens]
    return {row[place] for row in rows if row[:place] == prefix and len(row) > place}


def allowed_of(restriction: Restriction | None, targets, segments):
    if restriction is None:
        return None
    return restriction.allowed(jnp.asarray(targets), jnp.asarray(segments), VOCAB)


def plain_sums(docid_map, softmax, logits, placed, smoothing, z_weight):
    """The loss a token at a time, in float64."""
    loss = z_loss = correct = weight = 0.0
    for row, start, tokens in placed:
        for place, target in enumerate(tokens.tolist()):
            after = sorted(tokens_after(docid_map, softmax, tuple(tokens[:place].tolist())))
            scores = {t: float(logits[row, start + place, t]) for t in after}
            log_z = math.log(sum(map(math.exp, scores.values())))
            high = 1 - smoothing if len(after) > 1 else 1.0
            for token, score in scores.items():
                wanted = high if token == target else (1 - high) / (len(after) - 1)
                if wanted:
                    loss += wanted * (math.log(wanted) - (score - log_z))
            z_loss += z_weight * log_z**2
            correct += max(scores, key=lambda t: scores[t]) == target
            weight += 1
    return loss + z_loss, z_loss, correct, weight


@settings(max_examples=60, deadline=None)
@given(docid_maps(), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.1]))
def test_packed_losses_are_those_of_sets_of_tokens(docid_map, seed, smoothing):
    rng = np.random.default_rng(seed)
    targets, segments, placed = pack(docid_map, rng)
    logits = (3 * rng.standard_normal((ROWS, LENGTH, VOCAB))).astype(np.float32)
    for softmax in SOFTMAXES:
        allowed = allowed_of(make_restriction(softmax, docid_map), targets, segments)
        if allowed is not None:
            assert np.asarray(allowed).any(axis=-1).all()  # else the loss is not a number
            for row, start, tokens in placed:
                for place in range(len(tokens)):
                    assert set(np.flatnonzero(allowed[row, start + place]).tolist()) == (
                        tokens_after(docid_map, softmax, tuple(tokens[:place].tolist()))
                    )
        found = cross_entropy_loss(
            jnp.asarray(logits),
            jnp.asarray(targets),
            allowed=allowed,
            label_smoothing=smoothing,
            z_loss=1e-2,
        )
        expected = plain_sums(docid_map, softmax, logits, placed, smoothing, 1e-2)
        np.testing.assert_allclose(np.array(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("softmax", RESTRICTED)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_reach_what_is_allowed_and_nothing_else(softmax, smoothing):
    docid_map = make_map([(0, 1), (0, 2), (1,), (1, 0), (3, 1)])
    targets, segments, placed = pack(docid_map, np.random.default_rng(1))
    allowed = allowed_of(make_restriction(softmax, docid_map), targets, segments)
    assert allowed is not None

    def loss(logits):
        return cross_entropy_loss(
            logits, jnp.asarray(targets), allowed=allowed, label_smoothing=smoothing, z_loss=0.1
        ).loss

    logits = np.random.default_rng(2).standard_normal((ROWS, LENGTH, VOCAB)).astype(np.float32)
    gradient = np.asarray(jax.grad(loss)(jnp.asarray(logits)))
    assert placed and np.isfinite(gradient).all()
    assert (gradient[targets == 0] == 0).all()
    np.testing.assert_array_equal((gradient != 0)[targets > 0], np.asarray(allowed)[targets > 0])


@pytest.fixture(scope="module", params=["one length", "prefix-free", "prefixes"])
def docid_map(request) -> DocidMap:
    """Docids of `MODEL`'s 16 target tokens."""
    rng = np.random.default_rng(3)
    docids = {tuple(rng.integers(0, (4, 5, 5)).tolist()) for _ in range(30)} | {(3, 4, 4)}
    if request.param != "one length":
        docids = {d for d in docids if d[0]} | {(0, c) for c in range(3)}
    if request.param == "prefixes":
        docids |= {(1,), (2, 3), (0, 1, 2)}
    docid_map = make_map(sorted(docids))
    assert docid_map.vocabulary.eos == (request.param == "prefixes")
    assert docid_map.vocabulary.size == MODEL.output_vocab_size
    return docid_map


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, batch, restriction):
    """Logits, and the tokens that the softmax is over."""
    logits = decode_train(config, params, batch)
    targets, segments = batch["decoder_target_tokens"], batch["decoder_segment_ids"]
    if restriction is None:
        return logits, None
    return logits, restriction.allowed(targets, segments, logits.shape[-1])


@jax.jit
def _loss(logits, targets, allowed):
    return cross_entropy_loss(logits, targets, allowed=allowed).loss


@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_losses_are_the_scores_of_the_oracle(docid_map, softmax):
    """Packed, against the decoder's normalisers; under `children` all docids sum to 1."""
    config = dataclasses.replace(MODEL, vocab_size=8)
    params = init_parameters(config, jax.random.key(0))
    params = jax.tree.map(lambda x: 3 * x, params)  # far from uniform
    query = np.array([[3, 5, 7]], np.int32)
    tokens, width = docid_map.tokens, docid_map.vocabulary.max_tokens
    restriction = make_restriction(softmax, docid_map)

    def losses(each: int) -> np.ndarray:
        """One docid's loss after the other, from rows of `each` docids."""
        out = []
        for first in range(0, len(tokens), each):
            batch = {name: np.zeros((1, each * 3), np.int32) for name in
                     ("encoder_input_tokens", "encoder_segment_ids")}  # fmt: skip
            batch |= {
                f"decoder_{name}": np.zeros((1, each * width), np.int32)
                for name in ("input_tokens", "target_tokens", "segment_ids")
            }
            spans, start = [], 0
            for segment, row in enumerate(tokens[first : first + each], start=1):
                row = row[row > 0]
                stop = start + len(row)
                at = slice(3 * segment - 3, 3 * segment)
                batch["encoder_input_tokens"][0, at] = query[0]
                batch["encoder_segment_ids"][0, at] = segment
                batch["decoder_input_tokens"][0, start + 1 : stop] = row[:-1]
                batch["decoder_target_tokens"][0, start:stop] = row
                batch["decoder_segment_ids"][0, start:stop] = segment
                spans.append((start, stop))
                start = stop
            targets = batch["decoder_target_tokens"]
            logits, allowed = _forward(config, params, batch, restriction)
            for start, stop in spans:
                mine = np.zeros_like(targets)
                mine[:, start:stop] = targets[:, start:stop]
                out.append(float(_loss(logits, mine, allowed)))
        return np.array(out)

    packed = losses(8)
    np.testing.assert_allclose(packed, losses(1), rtol=1e-4, atol=1e-5)
    weights = prepare_inference(config, params)
    oracle = score_all(weights, docid_map, query, score=softmax)[0]
    np.testing.assert_allclose(-packed, oracle, rtol=1e-4, atol=1e-5)
    total = np.exp(-packed).sum()
    if softmax == "children":
        assert total == pytest.approx(1, abs=1e-4)
    else:
        assert total < 0.95


def test_atomic_docids_gather_nothing():
    docid_map = make_map([(i,) for i in range(20)])
    children = make_restriction("children", docid_map)
    assert isinstance(children, ChildrenRestriction) and children.fan_out == 0
    targets, segments, _ = pack(docid_map, np.random.default_rng(0))
    level = make_restriction("level", docid_map)
    np.testing.assert_array_equal(
        allowed_of(children, targets, segments), allowed_of(level, targets, segments)
    )


def test_what_a_restriction_costs_in_memory_is_a_mask():
    rows, length, documents = 8, 16, 5000
    docid_map = make_map([(i,) for i in range(documents)])
    vocab = docid_map.vocabulary.size

    def temporary_bytes(softmax):
        restriction = make_restriction(softmax, docid_map)

        def loss(logits, targets, segments, restriction):
            allowed = None
            if restriction is not None:
                allowed = restriction.allowed(targets, segments, vocab)
            return cross_entropy_loss(logits, targets, allowed=allowed).loss

        shape = (rows, length)
        tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
        logits = jax.ShapeDtypeStruct((*shape, vocab), jnp.float32)
        lowered = jax.jit(jax.grad(loss)).lower(logits, tokens, tokens, restriction)
        analysis = lowered.compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    mask = rows * length * vocab
    for softmax in RESTRICTED:
        assert temporary_bytes(softmax) < temporary_bytes("full") + 1.1 * mask


@pytest.mark.slow
@pytest.mark.parametrize("docid_map", ["prefixes"], indirect=True)
def test_each_softmax_trains_another_model_the_same_on_every_mesh(docid_map, tmp_path):
    batches = make_batches(cache=cache_of(docid_map), target_length=docid_map.vocabulary.max_tokens)
    logged = {}
    for softmax, shape in [(s, (1, 1)) for s in SOFTMAXES] + [("children", (8, 2))]:
        losses = []
        train_tiny(
            tmp_path / f"{softmax}{shape[0]}",
            on=partitioner(*shape),
            batches=batches,
            docid_map=docid_map,
            softmax=softmax,
            progress=lambda step, total, scalars, to=losses: to.append(scalars["loss"]),
        )
        assert losses[-1] < 0.8 * losses[0]
        np.testing.assert_allclose(losses, logged.setdefault(softmax, losses), rtol=1e-3)
    # over fewer tokens, less is left to be wrong about
    assert logged["full"][0] > logged["level"][0] > logged["children"][0]
    config = dataclasses.replace(TRAINER, softmax="children")
    assert measure_steps(config, MODEL, batches, partitioner(), docid_map, timed=3) > 0


@pytest.mark.parametrize("docid_map", ["prefixes"], indirect=True)
def test_a_run_goes_on_with_its_own_softmax_only(docid_map, tmp_path):
    batches = make_batches(cache=cache_of(docid_map), target_length=docid_map.vocabulary.max_tokens)
    changes = {"batches": batches, "docid_map": docid_map}
    state = train_tiny(tmp_path / "new", **changes, softmax="children")
    again = train_tiny(tmp_path / "new", **changes, softmax="children")
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)
    for softmax in ("full", "level"):
        with pytest.raises(UserError, match=f"softmax=children, this run has {softmax}; use ano"):
            train_tiny(tmp_path / "new", **changes, softmax=softmax)

    # a checkpoint from before there was a choice
    train_tiny(tmp_path / "old", **changes)
    path = tmp_path / "old" / f"checkpoint_{STEPS}" / "identity" / "metadata"
    identity = json.loads(path.read_text())
    recorded = json.loads(identity["training"])
    assert recorded.pop("softmax") == "full"
    path.write_text(json.dumps(identity | {"training": json.dumps(recorded, sort_keys=True)}))
    checkpoints = Checkpoints(tmp_path / "old", read_only=True)
    assert "softmax" not in checkpoints.identity(STEPS).training
    checkpoints.close()
    shutil.copytree(tmp_path / "old", tmp_path / "other")
    assert int(train_tiny(tmp_path / "old", **changes).step) == STEPS
    with pytest.raises(UserError, match="softmax=full, this run has level"):
        train_tiny(tmp_path / "other", **changes, softmax="level")


def test_unknown_softmaxes_and_a_missing_map_are_refused(tmp_path):
    with pytest.raises(UserError, match="softmax is 'codes': choose one of full, level, children"):
        TrainConfig(softmax="codes")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="softmax='level' needs the docid map"):
        train_tiny(tmp_path, softmax="level")
    assert not any(tmp_path.iterdir())
