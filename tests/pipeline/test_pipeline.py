"""The main job on a tiny corpus, in one process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gr_jax import pipeline
from gr_jax.errors import UserError
from gr_jax.evaluation import Report, evaluate_run, read_run
from gr_jax.serving import Index
from tests.conftest import write_beir
from tests.pipeline.tiny import STEPS, settings


@pytest.fixture(scope="module")
def trained(beir: Path, tmp_path_factory) -> tuple[Path, Report]:
    model_dir = tmp_path_factory.mktemp("run") / "model"
    report = pipeline.run(
        model_dir=str(model_dir),
        corpus=str(beir),
        evaluation=pipeline.EvalConfig(beam=48),
        **settings(),
    )
    return model_dir, report


def test_learns_to_find_documents(trained):
    _, report = trained
    split = report.splits["test"]
    assert split.queries == 48
    # chance is 1/48 and 10/48; each query holds a word that only its document has
    assert split.gr_jax["hits@1"] > 0.5
    assert split.gr_jax["hits@10"] > 0.8
    assert split.bm25["hits@1"] > 0.9


def test_report_has_the_promised_keys(trained):
    model_dir, _ = trained
    report = json.loads((model_dir / "report.json").read_text())
    assert report["documents"] == 48
    assert report["steps"] == STEPS
    assert report["parameters"] == Index.load(model_dir).parameter_count
    assert set(report["wall_seconds"]) == {"docids", "train", "eval"}
    assert all(seconds > 0 for seconds in report["wall_seconds"].values())
    figures = {"hits@1", "hits@10", "mrr@10", "ndcg@10", "recall@100", "ms_per_query"}
    for split in report["splits"].values():
        assert set(split) == {"queries", "gr_jax", "bm25"}
        assert set(split["gr_jax"]) == set(split["bm25"]) == figures
    assert (model_dir / "report.html").stat().st_size > 1000


def test_runs_are_what_the_report_was_measured_on(trained, beir):
    from gr_jax.corpus import read_collection

    model_dir, report = trained
    qrels = read_collection(beir).splits["test"].qrels
    for system in ("gr_jax", "bm25"):
        run = read_run(model_dir / "runs" / f"test.{system}.run")
        figures = report.splits["test"].figures(system)
        for metric, value in evaluate_run(run, qrels).items():
            assert figures[metric] == pytest.approx(value, abs=1e-9)


def test_t5x_files(trained):
    model_dir, _ = trained
    assert (model_dir / f"checkpoint_{STEPS}").is_dir()
    info = (model_dir / "model-info.txt").read_text()
    assert "decoder/layers_0/encoder_decoder_attention/query/kernel" in info
    assert "Total number of parameters" in info
    assert list((model_dir / "train").glob("events.out.tfevents*"))


def test_a_finished_run_is_not_done_again(trained, beir):
    model_dir, report = trained
    parts = ("docids", "vocabulary", "examples", "cache", f"checkpoint_{STEPS}")
    before = {p: (model_dir / p).stat().st_mtime_ns for p in parts}
    runs = {p.name: p.read_bytes() for p in (model_dir / "runs").iterdir()}
    again = pipeline.run(
        model_dir=str(model_dir),
        corpus=str(beir),
        evaluation=pipeline.EvalConfig(beam=48),
        **settings(),
    )
    assert {p: (model_dir / p).stat().st_mtime_ns for p in parts} == before
    assert {p.name: p.read_bytes() for p in (model_dir / "runs").iterdir()} == runs
    assert again.to_json() == report.to_json()  # milliseconds included: nothing was measured again


def test_the_same_seed_gives_the_same_run_file(trained, beir, tmp_path):
    model_dir, _ = trained
    pipeline.run(
        model_dir=str(tmp_path / "again"),
        corpus=str(beir),
        evaluation=pipeline.EvalConfig(beam=48),
        **settings(),
    )
    ours = (tmp_path / "again" / "runs" / "test.gr_jax.run").read_bytes()
    assert ours == (model_dir / "runs" / "test.gr_jax.run").read_bytes()


def test_search_only_returns_documents(trained):
    index = Index.load(trained[0])
    for query in ("which musicmark3 chord", "", "zzz qqq", "ünïcode 漢字", "a " * 500):
        results = index.search(query, k=5)
        assert [r.rank for r in results] == [1, 2, 3, 4, 5]
        assert len({r.doc_id for r in results}) == 5
        assert all(r.doc_id in index.docid_map.index_of for r in results)
        assert all(np.diff([r.score for r in results]) <= 0)
    everything = index.search("which musicmark3 chord", k=1000)
    assert sorted(r.doc_id for r in everything) == sorted(index.docid_map.doc_ids)


def test_wide_search_equals_exact_scoring(trained):
    index = Index.load(trained[0])
    queries = ["which musicmark3 chord", "sailing tide"]
    searched = index.rank(queries, k=48, beam=48)
    exact = index.rank_exactly(queries, k=48)
    for ours, theirs in zip(searched, exact, strict=True):
        assert [d for d, _ in ours] == [d for d, _ in theirs]
        assert [s for _, s in ours] == pytest.approx([s for _, s in theirs], abs=1e-4)


def test_another_corpus_is_refused(trained, tmp_path):
    model_dir, _ = trained
    other = write_beir(tmp_path / "other", seed=1)
    before = sorted(p.name for p in model_dir.iterdir())
    with pytest.raises(UserError, match=r"holds the index of another corpus.*48 documents"):
        pipeline.train(model_dir=str(model_dir), corpus=str(other), **settings())
    with pytest.raises(UserError, match="holds the index of another corpus"):
        pipeline.evaluate(model_dir=str(model_dir), corpus=str(other), config=pipeline.EvalConfig())
    assert sorted(p.name for p in model_dir.iterdir()) == before


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("queries", {"per_document": 21}, "examples"),
        ("docids", {"levels": 3}, "docids"),
        ("trainer", {"seed": 5}, "seed"),
        ("trainer", {"steps": STEPS + 1}, "total_steps"),
        ("trainer", {"label_smoothing": 0.1}, r"training\.label_smoothing=0\.0, this run has 0\.1"),
    ],
)
def test_other_settings_are_refused_once_trained(trained, beir, part, change, named):
    import dataclasses

    changed = settings()
    changed[part] = dataclasses.replace(changed[part], **change)
    with pytest.raises(UserError, match=named):
        pipeline.train(model_dir=str(trained[0]), corpus=str(beir), **changed)


def test_settings_may_change_before_training(beir, tmp_path):
    import dataclasses

    from gr_jax.corpus import read_collection

    collection = read_collection(beir)
    parts = {k: v for k, v in settings().items() if k in ("docids", "queries", "data")}
    workspace = pipeline.Workspace(tmp_path / "m")
    first = pipeline.prepare(workspace, collection, **parts)
    parts["queries"] = dataclasses.replace(parts["queries"], per_document=5)
    second = pipeline.prepare(pipeline.Workspace(tmp_path / "m"), collection, **parts)
    sizes = [
        {task.name: len(task) for task in prepared.cache.tasks} for prepared in (first, second)
    ]
    assert sizes[0] == sizes[1] | {"synthetic": sizes[0]["synthetic"]}
    assert sizes[0]["synthetic"] == pytest.approx(48 * 20, rel=0.05)
    assert sizes[1]["synthetic"] == pytest.approx(48 * 5, rel=0.05)


def test_a_deleted_stage_is_made_again(beir, tmp_path):
    from gr_jax.corpus import read_collection

    collection = read_collection(beir)
    parts = {k: v for k, v in settings().items() if k in ("docids", "queries", "data")}
    prepared = pipeline.prepare(pipeline.Workspace(tmp_path / "m"), collection, **parts)
    for folder in ("cache", "docids"):
        shutil.rmtree(tmp_path / "m" / folder)
    again = pipeline.prepare(pipeline.Workspace(tmp_path / "m"), collection, **parts)
    assert again.docid_map.fingerprint == prepared.docid_map.fingerprint
    assert again.cache.sizes == prepared.cache.sizes


def test_docids_of_another_index_are_refused(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    docid_map = Index.load(copy).docid_map
    codes = docid_map.codes[::-1].copy()
    type(docid_map)(docid_map.doc_ids, codes, docid_map.level_sizes).save(copy / "docids")
    with pytest.raises(UserError, match="not those that the model"):
        Index.load(copy)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("index.json", "holds no trained index"),
        ("docids/codes.npy", "not found"),
        ("vocabulary/sentencepiece.model", "no such SentencePiece model"),
    ],
)
def test_missing_parts_are_named(trained, tmp_path, file, message):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    (copy / file).unlink()
    with pytest.raises(UserError, match=message):
        Index.load(copy)


def test_nothing_trained(tmp_path):
    with pytest.raises(UserError, match="holds no trained index"):
        Index.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        pipeline.Workspace(tmp_path / "file")


def test_own_queries(trained, beir, tmp_path):
    model_dir, report = trained
    figures = pipeline.evaluate_queries(
        model_dir=str(model_dir),
        queries=str(beir / "queries.jsonl"),
        qrels=str(beir / "qrels" / "test.tsv"),
        run=str(tmp_path / "own.run"),
        config=pipeline.EvalConfig(beam=48),
    )
    assert figures["queries"] == 48
    assert figures["mrr@10"] == pytest.approx(report.splits["test"].gr_jax["mrr@10"], abs=1e-6)
    assert len((tmp_path / "own.run").read_text().splitlines()) == 48 * 48


def test_infer(trained, beir, tmp_path):
    lines = []
    pipeline.infer(
        model_dir=str(trained[0]),
        queries=str(beir / "queries.jsonl"),
        run=str(tmp_path / "all.run"),
        k=3,
        log=lines.append,
    )
    assert len((tmp_path / "all.run").read_text().splitlines()) == 3 * (24 + 48)
    assert "72 queries" in lines[0]
    with pytest.raises(UserError, match=r"--gin\.QUERIES"):
        pipeline.infer(model_dir=str(trained[0]))


def test_minutes_become_steps_that_a_restart_keeps(beir, tmp_path):
    trainer = {"steps": None, "minutes": 0.01, "save_period": 5}
    lines: list[str] = []
    for _ in range(2):
        pipeline.train(
            model_dir=str(tmp_path / "m"), corpus=str(beir), log=lines.append, **settings(**trainer)
        )
    plans = [line for line in lines if "minutes" in line]
    assert len(plans) == 1
    steps = json.loads((tmp_path / "m" / "stages.json").read_text())["plan"]["steps"]
    assert (tmp_path / "m" / f"checkpoint_{steps}").is_dir()
    with pytest.raises(UserError, match=r"started with minutes=0\.01 and other"):
        pipeline.train(
            model_dir=str(tmp_path / "m"), corpus=str(beir), **settings(steps=None, minutes=5)
        )
