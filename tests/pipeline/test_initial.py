"""Training that starts from a checkpoint of text, as published T5s are."""

import contextlib
import dataclasses
import functools
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gr_jax import pipeline, training
from gr_jax.checkpoints import (
    LazyArray,
    from_parameters,
    open_checkpoint,
    parameter_shapes,
    write_hugging_face,
    write_t5x_legacy,
)
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import VARIANTS, T5Config, init_parameters
from gr_jax.pipeline._checks import check_shape, with_vocabulary
from gr_jax.pipeline._initial import InitialCheckpoint
from gr_jax.pipeline._run import _sized
from gr_jax.serving import IndexSpec
from gr_jax.training import (
    Checkpoints,
    Optimizer,
    Partitioner,
    make_mesh,
)
from tests.conftest import write_beir
from tests.pipeline.tiny import settings

ADAFACTOR = Optimizer("adafactor", clip_norm=None)
TABLES = ("target_embedder/embedding", "decoder/logits_dense/kernel")


def by_name(tree: Any) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))


def tiny_model() -> T5Config:
    """The shape that the tiny run trains, as a T5 of text with spare rows in its table."""
    model = settings()["model"]
    assert isinstance(model, functools.partial)
    return model(vocab_size=200)


@pytest.fixture(scope="module")
def prepared(beir: Path, tmp_path_factory):
    """A model directory with everything but training."""
    parts = settings()
    return pipeline.prepare(
        pipeline.Workspace(tmp_path_factory.mktemp("prepared") / "model"),
        pipeline.load_collection(str(beir), strict=False),
        docids=parts["docids"],
        queries=parts["queries"],
        data=parts["data"],
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict]:
    """A checkpoint in Hugging Face's format, and its parameters."""
    config = tiny_model()
    params = init_parameters(config, jax.random.key(7))
    path = tmp_path_factory.mktemp("published") / "t5"
    write_hugging_face(from_parameters(params, config), path)
    return path, by_name(params)


def start(
    prepared, run_optimizer=ADAFACTOR, *, as_trained=False, **fields: Any
) -> tuple[dict[str, Any], Any]:
    """Where training would start: parameters by name, and the optimizer's state."""
    config = settings()["model"](
        vocab_size=prepared.tokenizer.vocab_size,
        target_vocab_size=prepared.docid_map.vocabulary.size,
    )
    if as_trained:  # by `pipeline.train`, whose tables are rounded up
        config = _sized(settings()["model"], prepared)
    shardings = Partitioner(make_mesh(devices=jax.devices()[:1])).parameters(config)
    found = InitialCheckpoint(**fields).start(
        config,
        prepared.cache,
        shardings,
        run_optimizer,
        seed=0,
        docid_fingerprint=prepared.docid_map.fingerprint,
    )
    assert found is not None
    return by_name(found.params), found.opt_state


def test_a_published_t5_keeps_everything_but_the_new_tables(prepared, published):
    path, theirs = published
    ours, moments = start(prepared, path=str(path))
    assert moments is None
    assert ours.keys() == theirs.keys() | {"target_embedder/embedding"}
    for name, value in ours.items():
        if name in TABLES:
            assert prepared.docid_map.vocabulary.size in value.shape
            assert np.std(value) > 0
        else:  # the published table may have more rows than the tokenizer has pieces
            np.testing.assert_array_equal(value, theirs[name][: len(value)], err_msg=name)


def test_document_tables_are_the_mean_of_the_text_of_their_documents(prepared, published):
    path, _ = published
    random, ours = (
        start(prepared, path=str(path), docid_tables=how)[0] for how in ("random", "documents")
    )
    (index,) = (task for task in prepared.cache.tasks if task.name == "index")
    size = prepared.docid_map.vocabulary.size
    embedding, sums, counts = ours["token_embedder/embedding"], {}, {}
    for i in range(len(index)):
        mean = np.mean([embedding[t] for t in index.example("inputs", i)], axis=0)
        for token in index.example("targets", i).tolist():
            sums[token] = sums.get(token, 0) + mean
            counts[token] = counts.get(token, 0) + 1
    known = sorted(sums)
    means = np.stack([sums[t] / counts[t] for t in known])
    assert 2 < len(known) < size
    centred = means - means.mean(axis=0)
    for name in TABLES:
        rows, before = (x[name] if name == TABLES[0] else x[name].T for x in (ours, random))
        expected = centred / centred.std() * np.std(before)
        np.testing.assert_allclose(rows[np.array(known)], expected, rtol=1e-3, atol=1e-5)
        unknown = np.setdiff1d(np.arange(size), known)
        np.testing.assert_array_equal(rows[unknown], before[unknown])


def test_random_parameters_are_the_default(prepared):
    assert InitialCheckpoint().origin() is None
    tables, _ = start(prepared, docid_tables="documents")
    assert np.std(tables[TABLES[0]]) > 0


STILL = training.Schedule(base=1e-9, warmup_steps=1, decay="constant")


def with_vocabulary_of(prepared) -> pipeline.DataConfig:
    """The tiny run's, with a vocabulary that is there."""
    path = str(prepared.tokenizer.path)
    return dataclasses.replace(prepared.config, sentencepiece=path, words_only=True)


def test_a_run_starts_from_it_and_goes_on_without_it(beir, prepared, published, tmp_path):
    path, theirs = published
    model_dir = tmp_path / "model"
    arguments: dict[str, Any] = settings(steps=2, schedule=STILL, ema_decay=0.0)
    arguments["data"] = with_vocabulary_of(prepared)
    train = functools.partial(
        pipeline.train, model_dir=str(model_dir), corpus=str(beir), **arguments
    )
    moved = tmp_path / "t5"
    moved.symlink_to(path)
    initial = InitialCheckpoint(str(moved))
    train(initial=initial)
    docid_map = DocidMap.load(model_dir / "docids")
    params, step = training.load_eval_parameters(model_dir, docid_map.fingerprint)
    assert step == 2
    name = "encoder/layers_0/attention/query/kernel"
    np.testing.assert_allclose(by_name(params)[name], theirs[name], atol=1e-6)
    moved.unlink()
    train(initial=initial)  # finished: the checkpoint is not asked for
    with pytest.raises(UserError, match=r"initial.*use another model directory"):
        train()
    identity = Checkpoints(model_dir, read_only=True).identity(2)
    assert json.loads(identity.training)["initial"]["path"] == str(moved)


@pytest.fixture(scope="module")
def trained(beir, prepared, tmp_path_factory) -> Path:
    """A model directory of ours after one step."""
    model_dir = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(prepared.tokenizer.path.parents[1], model_dir)
    arguments: dict[str, Any] = settings(steps=1, optimizer=Optimizer("adamw"))
    pipeline.train(model_dir=str(model_dir), corpus=str(beir), **arguments)
    return model_dir


def test_a_checkpoint_of_ours_brings_its_vocabulary_along(trained, tmp_path):
    """To another corpus, of which another vocabulary would be learnt."""
    theirs, model_dir = tmp_path / "theirs", tmp_path / "model"
    shutil.copytree(trained, theirs)
    arguments: dict[str, Any] = settings(steps=1, schedule=STILL, ema_decay=0.0)
    initial = InitialCheckpoint(str(theirs))
    corpus = str(write_beir(tmp_path / "other", per_topic=3, seed=1))
    train = functools.partial(
        pipeline.train, model_dir=str(model_dir), corpus=corpus, initial=initial
    )
    train(**arguments)
    pieces = "vocabulary/sentencepiece.model"
    assert (model_dir / pieces).read_bytes() == (trained / pieces).read_bytes()
    assert IndexSpec.load(model_dir / "index.json").words_only
    before, after = open_checkpoint(trained), open_checkpoint(model_dir, "params")
    name = "token_embedder/embedding"
    assert after.leaves[name].shape == before.leaves[name].shape
    np.testing.assert_allclose(after.read(name), before.read(name), atol=1e-6)
    shutil.rmtree(theirs)
    train(**arguments)  # goes on without them


TIED = {"mlp_activations": ("relu",), "logits_via_embedding": True}


@pytest.mark.parametrize(
    ("checkpoint", "model", "message"),
    [
        ({}, {"mlp_dim": 128}, r"T5Config\.mlp_dim is 64 \(the model's: 128\); give the model its"),
        ({"num_decoder_layers": 2}, {}, r"num_decoder_layers is 2 \(the model's: 1\)"),
        (TIED, {}, r"mlp_activations is \('relu',\) \(the model's: \('gelu', 'linear'\)\)"),
        ({"mlp_activations": ("silu", "linear")}, {}, r"mlp_activations is \('silu', 'linear'\)"),
        ({"relpos_max_distance": 64}, {}, r"relpos_max_distance is 64 \(the model's: 128\)"),
        ({"relpos_per_layer": True}, {}, r"relpos_per_layer is True \(the model's: False\)"),
        (
            VARIANTS["t5_1_1_tiny"],
            {},
            r"emb_dim is 64 .*num_heads is 4 .*--gin_file=gin/models/t5_1_1_tiny\.gin or ",
        ),
        (VARIANTS["t5_tiny"], {}, r"give --gin_file=gin/models/t5_tiny\.gin, after the run's own"),
        (VARIANTS["umt5_tiny"], {}, r"give --gin_file=gin/models/umt5_tiny\.gin, after"),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(checkpoint, model, message):
    theirs = dataclasses.replace(tiny_model(), **checkpoint)
    ours = dataclasses.replace(tiny_model(), vocab_size=1, target_vocab_size=1, **model)
    source: Any = SimpleNamespace(
        path="ckpt",
        config=theirs,
        leaves=parameter_shapes(theirs),
        recorded={"mlp_activations", "relpos_max_distance"},
    )
    with pytest.raises(UserError, match=message) as refused:
        check_shape(source, ours, docid_tables=False)
    assert "\n" not in str(refused.value)
    # and the shape that is asked for is taken, in any layout
    for name in ("scan_layers", "relpos_per_layer"):
        fits = dataclasses.replace(theirs, target_vocab_size=1, **{name: True})
        if fits.relpos_per_layer or not theirs.relpos_per_layer:
            check_shape(source, fits, docid_tables=False)


@pytest.mark.parametrize("name", ["t5_small", "mt5_base", "byt5_large", "umt5_xl", "flan_t5_xxl"])
def test_the_gin_file_of_a_published_model_is_named(name):
    config = T5Config.from_name(name)
    source: Any = SimpleNamespace(
        path="ckpt", config=config, leaves=parameter_shapes(config), recorded=()
    )
    with pytest.raises(UserError, match=rf"[= ]gin/models/{name}\.gin[ ,]") as refused:
        check_shape(source, T5Config(1), docid_tables=False)
    named = re.findall(r"gin/models/(\w+)\.gin", str(refused.value))
    assert {T5Config.from_name(other) for other in named} == {config}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    ("initial", "vocabulary", "message"),
    [
        ({"path": "nowhere"}, None, "nowhere: no such file"),
        ({"path": "published"}, None, r'200 rows.*--gin\.SENTENCEPIECE=\\"spiece.model\\"'),
        ({"path": "wide"}, "bytes", r"mlp_dim is 96"),
        (
            {"path": "published", "docid_tables": "checkpoint"},
            "bytes",
            "no tables of docid tokens.*DOCID_TABLES='random' or 'documents'",
        ),
        ({"path": "trained"}, "bytes", "bytes: not the vocabulary of .*leave SENTENCEPIECE out"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    beir, published, trained, tmp_path, initial, vocabulary, message, dry_run
):
    wide = dataclasses.replace(tiny_model(), mlp_dim=96)
    source = from_parameters(init_parameters(wide, jax.random.key(0)), wide)
    write_hugging_face(source, tmp_path / "wide")
    (tmp_path / "published").symlink_to(published[0])
    (tmp_path / "trained").symlink_to(trained)
    arguments: dict[str, Any] = settings(steps=2)
    arguments["data"] = dataclasses.replace(arguments["data"], sentencepiece=vocabulary)
    fields = initial | {"path": str(tmp_path / initial["path"])}
    with pytest.raises(UserError, match=message) as refused:
        pipeline.train(
            model_dir=str(tmp_path / "model"),
            corpus=str(beir),
            initial=InitialCheckpoint(**fields),
            dry_run=dry_run,
            **arguments,
        )
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("rows", "given", "fits"),
    [(384, "bytes", True), (259, "bytes", True), (256, "bytes", False), (32128, "bytes", False)],
)
def test_a_vocabulary_has_as_many_pieces_as_the_table_has_rows(rows, given, fits):
    config = T5Config(rows)
    source: Any = SimpleNamespace(path="ckpt", format="t5x", config=config)
    data = pipeline.DataConfig(sentencepiece=given)
    with contextlib.nullcontext() if fits else pytest.raises(UserError, match="has 259 pieces"):
        assert with_vocabulary(source, data) is data
    if rows == 384:
        with pytest.raises(UserError, match=r'SENTENCEPIECE=\\"bytes\\"'):
            with_vocabulary(source, pipeline.DataConfig())


@dataclasses.dataclass(frozen=True)
class Poisoned(training.Schedule):
    """A rate that overflows the parameters at step 4 (from 0)."""

    def __call__(self, step, total_steps):
        return 1e38 if step == 4 else super().__call__(step, total_steps)


def test_the_advice_after_a_failed_step_is_followed(beir, prepared, tmp_path):
    """Parameters and optimizer go on, beside an average that the parameters are not."""
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(prepared.tokenizer.path.parents[1], one)
    fixed: dict[str, Any] = {
        "steps": 6, "save_period": 3, "log_period": 1, "ema_decay": 0.9
    }  # fmt: skip
    train = functools.partial(pipeline.train, corpus=str(beir))
    with pytest.raises(UserError, match=r"at step \d; ") as failed:
        poisoned = Poisoned(base=1e-2, warmup_steps=1)
        train(model_dir=str(one), **settings(schedule=poisoned, **fixed))
    message = str(failed.value)
    lower = training.Schedule(base=1e-9, warmup_steps=1)
    calmer: dict[str, Any] = settings(schedule=lower, **fixed)
    with pytest.raises(UserError, match="use another model directory"):
        train(model_dir=str(one), **calmer)
    assert "a smaller Schedule.base, another MODEL_DIR, INITIAL_CHECKPOINT_PATH" in message
    advice = dict(re.findall(r"([A-Z_]+) = '([^']+)'", message))
    assert advice.keys() == {"INITIAL_CHECKPOINT_PATH", "DOCID_TABLES", "INITIAL_OPTIMIZER"}
    path = advice["INITIAL_CHECKPOINT_PATH"]
    assert path == str(one / "checkpoint_3")
    initial = InitialCheckpoint(path, advice["DOCID_TABLES"], advice["INITIAL_OPTIMIZER"])
    train(model_dir=str(other), initial=initial, **calmer)
    before, after = open_checkpoint(path, "params"), open_checkpoint(other, "params")
    average = open_checkpoint(path)
    assert before.averaged and after.step == 6
    for name in before.leaves:
        np.testing.assert_allclose(after.read(name), before.read(name), atol=1e-6, err_msg=name)
    moved = [n for n in before.leaves if np.abs(average.read(n) - before.read(n)).max() > 1e-4]
    assert len(moved) > 10, "the average cannot be told from the parameters"
    counts = [n for n in after.optimizer if n.endswith("/count")]
    assert [after.optimizer[n].read().item() for n in counts] == [9] * len(counts) != []


def test_optimizer_states_that_do_not_fit_are_refused(prepared, trained):
    checkpoint: dict[str, Any] = {
        "path": str(trained / "checkpoint_1"), "optimizer": "checkpoint",
        "as_trained": True,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"docid_tables='checkpoint'"):
        start(prepared, Optimizer("adamw"), **checkpoint)
    checkpoint["docid_tables"] = "checkpoint"
    assert start(prepared, Optimizer("adamw"), **checkpoint)[1] is not None
    with pytest.raises(UserError, match=r"checkpoint_1: has another optimizer's state: .*'fresh'"):
        start(prepared, Optimizer("muon"), **checkpoint)


def test_settings_are_checked():
    with pytest.raises(UserError, match="documents"):
        InitialCheckpoint(docid_tables="mean")
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT_PATH"):
        InitialCheckpoint(docid_tables="checkpoint")


def test_tables_of_a_checkpoint_of_other_docids_are_refused(prepared, tmp_path):
    config = settings()["model"](
        vocab_size=prepared.tokenizer.vocab_size,
        target_vocab_size=prepared.docid_map.vocabulary.size,
    )
    params = init_parameters(config, jax.random.key(5))
    source = from_parameters(params, config)
    write_hugging_face(dataclasses.replace(source, docid_fingerprint="f" * 64), tmp_path / "other")
    with pytest.raises(UserError, match="other docids"):
        start(prepared, path=str(tmp_path / "other"), docid_tables="checkpoint")
    fresh, _ = start(prepared, path=str(tmp_path / "other"))
    assert not np.array_equal(fresh[TABLES[0]], params["target_embedder"]["embedding"])


def test_moments_of_a_t5x_checkpoint_are_carried_over(prepared, tmp_path):
    config = dataclasses.replace(tiny_model(), vocab_size=prepared.tokenizer.vocab_size)
    params = init_parameters(config, jax.random.key(3))
    rule = ADAFACTOR.make()
    state: Any = rule.update(params, rule.init(params), params, learning_rate=1e-3)[1]
    leaves = {
        f"state/param_states/{n}/{field}": LazyArray.of(np.asarray(x))
        for field in ("m", "v", "v_row", "v_col")
        for n, x in by_name(getattr(state, field)).items()
    }
    source = dataclasses.replace(from_parameters(params, config), optimizer=leaves, step=1)
    write_t5x_legacy(source, tmp_path / "t5x", optimizer=True)
    path = str(tmp_path / "t5x" / "checkpoint_1")
    assert start(prepared, path=path)[1] is None
    _, moments = start(prepared, path=path, optimizer="checkpoint")
    assert moments.count == 1
    for field in ("v", "v_row", "v_col"):
        given = by_name(getattr(state, field))
        for name, moment in by_name(getattr(moments, field)).items():
            if name in TABLES:  # new: nothing is known of their gradients
                assert not np.any(moment)
            else:
                np.testing.assert_array_equal(moment, given[name], err_msg=f"{field} {name}")
    with pytest.raises(UserError, match=r"Adafactor's.*muon"):
        start(prepared, Optimizer("muon"), path=path, optimizer="checkpoint")
    write_t5x_legacy(source, tmp_path / "bare")
    with pytest.raises(UserError, match="no optimizer state"):
        start(prepared, path=str(tmp_path / "bare" / "checkpoint_1"), optimizer="checkpoint")
