"""The main job on a tiny corpus, in one process."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from gr_jax import pipeline, training
from gr_jax.errors import UserError
from gr_jax.evaluation import Report, evaluate_run, read_run
from gr_jax.pipeline import _evaluate
from gr_jax.serving import DEFAULT_SCORE, Index, Latency, SearchConfig
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
    assert report is not None
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
    # a beam as wide as the corpus leaves nothing out
    assert report["search"] == {"test": {"certified": 1.0, "beam_recall": 1.0}}
    assert (report["beam"], report["score"], report["precision"]) == (48, DEFAULT_SCORE, "float32")
    assert (report["exact"], report["certify"]) == (False, False)
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


def test_answers_of_a_model_spread_over_devices_are_those_of_one(trained):
    model_dir, _ = trained
    split = training.Partitioning(model_parallel=2, parameter_partitions=2)
    spread = Index.load(model_dir, partitioner=training.Partitioner.make(split))
    table = spread.weights().decoder.embedding
    assert {s.data.nbytes for s in table.addressable_shards} == {table.nbytes // 8}
    one, config = Index.load(model_dir), SearchConfig(beam=8, score="full")
    texts = [f"what is musicmark{i}" for i in range(5)]
    for found, expected in (
        (spread.find(texts, k=5, config=config), one.find(texts, k=5, config=config)),
        (
            spread.find_exactly(texts, k=5, config=config),
            one.find_exactly(texts, k=5, config=config),
        ),
    ):
        np.testing.assert_array_equal(found.rows, expected.rows)
        # atol: a score is a difference of logits that are larger than it
        np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-5)


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
    assert (
        again is not None and again.to_json() == report.to_json()
    )  # milliseconds included: nothing was measured again


def test_a_run_leaves_what_searches_read(trained, monkeypatch):
    """A search reads neither the docid map nor the corpus."""
    from gr_jax.decoding import Trie
    from gr_jax.docids import DocidMap
    from gr_jax.serving import _corpus

    def refuse(*_, **__):
        raise AssertionError("read")

    monkeypatch.setattr(DocidMap, "load", refuse)
    monkeypatch.setattr(Trie, "from_docid_map", refuse)
    monkeypatch.setattr(_corpus, "read_titles", refuse)
    (found,) = Index.load(trained[0]).search("which musicmark3 chord", k=1)
    assert found.doc_id and found.title


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
    searched = index.rank(queries, k=48, config=SearchConfig(beam=48))
    exact = index.rank_exactly(queries, k=48, config=SearchConfig())
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
        ("trainer", {"softmax": "level"}, r"training\.softmax=full, this run has level"),
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


@pytest.fixture
def evaluated(trained, beir, tmp_path, monkeypatch):
    """Evaluates a copy of the trained directory with a few of its documents per query."""
    monkeypatch.setattr(_evaluate, "_DEPTH", 12)
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)

    def evaluate(again: bool = True, **settings):
        report = pipeline.evaluate(
            model_dir=str(copy),
            corpus=str(beir),
            config=pipeline.EvalConfig(**settings),
            again=again,
        )
        return report, (copy / "runs" / "test.gr_jax.run").read_text()

    return evaluate


def test_a_report_tells_how_exact_its_search_was(evaluated, monkeypatch):
    monkeypatch.setattr(_evaluate, "_DEPTH", 2)  # so narrow a beam is not sure of everything
    narrow, _ = evaluated(beam=2, score="full")
    certified, best = evaluated(beam=2, score="full", certify=True)
    oracle, exact = evaluated(exact=True, score="full")
    quality = [report.splits["test"].search for report in (narrow, certified, oracle)]
    assert quality[0].certified < 1
    assert quality[1].certified == 1
    assert quality[1].beam_recall == pytest.approx(0.2)  # two of the ten best are asked for
    assert (quality[2].certified, quality[2].beam_recall) == (1, 1)
    documents = [[line.split()[2] for line in text.splitlines()] for text in (best, exact)]
    assert documents[0] == documents[1]
    told = [(r.beam, r.exact, r.certify) for r in (narrow, certified, oracle)]
    assert told == [(2, False, False), (2, False, True), (100, True, False)]


def test_a_search_that_misses_documents_is_told(evaluated, monkeypatch):
    find = Index.find

    def miss_the_best(index, *args, **settings):
        found = find(index, *args, **settings)
        rows = np.roll(found.rows, 1, axis=1)  # the twelfth comes first, the tenth eleventh
        return found._replace(rows=rows, exact=np.arange(len(rows)) % 4 > 0)

    monkeypatch.setattr(Index, "find", miss_the_best)
    report, _ = evaluated(beam=48)
    search = report.splits["test"].search
    assert search.certified == 0.75
    assert search.beam_recall == pytest.approx(0.9)


def test_queries_of_the_whole_split_are_checked_as_long_as_that_is_quick(evaluated, monkeypatch):
    asked = []
    score_documents = Index.score_documents
    monkeypatch.setattr(
        Index,
        "score_documents",
        lambda index, queries, config: (
            asked.append((list(queries), config)) or score_documents(index, queries, config)
        ),
    )
    monkeypatch.setattr(_evaluate, "_MOST_CHECKED", 3)
    own = {"beam": 48, "score": "level", "precision": "bfloat16"}
    report, _ = evaluated(**own)
    assert report.splits["test"].search.beam_recall is not None
    ((queries, config),) = asked
    assert len(queries) == 3
    topics = [next(t for t in ("cooking", "astronomy", "music") if t in q) for q in queries]
    assert topics[0] == "cooking" and topics[-1] == "music"
    assert config == SearchConfig(**own)
    monkeypatch.setattr(_evaluate, "_MOST_PAIRS", 3 * 48 - 1)
    report, _ = evaluated(**own)
    assert report.splits["test"].search.beam_recall is None
    assert len(asked) == 1
    assert (report.score, report.precision) == ("level", "bfloat16")


def test_the_search_that_is_measured_is_the_one_that_is_timed(evaluated, monkeypatch):
    timed = []
    monkeypatch.setattr(
        Index, "latency", lambda *_, **settings: timed.append(settings) or Latency(1.0, 1.0, 1.0)
    )
    evaluated(beam=9, score="level", precision="bfloat16", certify=True)
    evaluated(exact=True)
    config = SearchConfig(9, "level", "bfloat16", exact=True)
    assert timed == [
        {"k": 12, "config": config, "exactly": False},
        {"k": 12, "config": SearchConfig(100), "exactly": True},
    ]


def test_other_settings_are_measured_again(evaluated, monkeypatch):
    """The same ones are not; nor is a directory evaluated before there were such settings."""
    evaluated(beam=48)

    class Measured(Exception):
        pass

    def find(*_):
        raise Measured

    monkeypatch.setattr(_evaluate, "_find", find)
    first, _ = evaluated(again=False, beam=48)
    assert first.splits["test"].search is not None
    others = [{"score": "level"}, {"precision": "bfloat16"}, {"certify": True}, {"exact": True}]
    for other in others:
        with pytest.raises(Measured):
            evaluated(again=False, beam=48, **other)


def test_a_report_of_before_is_measured_again(trained, beir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained[0], copy)
    report = json.loads((copy / "report.json").read_text())
    for key in ("search", "score", "precision", "exact", "certify"):
        del report[key]
    (copy / "report.json").write_text(json.dumps(report))
    stages = json.loads((copy / "stages.json").read_text())
    stages["evaluation"]["config"] = {"beam": 48, "exact": False}
    (copy / "stages.json").write_text(json.dumps(stages))
    again = pipeline.evaluate(
        model_dir=str(copy), corpus=str(beir), config=pipeline.EvalConfig(beam=48), again=False
    )
    assert again is not None
    assert again.splits["test"].search == trained[1].splits["test"].search


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"score": "best"}, "score is 'best': choose one of full"),
        ({"precision": "half"}, "precision is 'half': choose one of float32"),
        ({"exact": True, "certify": True}, "leave out certify, or exact"),
    ],
)
def test_wrong_settings_of_an_evaluation_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        pipeline.EvalConfig(**settings)


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
    assert "72 queries" in lines[0] and "% of the rankings proven exact" in lines[0]
    proofs = (tmp_path / "all.run.certificates.jsonl").read_text().splitlines()
    proofs = [json.loads(line) for line in proofs]
    assert len(proofs) == 72 and all(p["beam"] == 20 for p in proofs)
    assert {p["query_id"] for p in proofs} >= set(read_run(tmp_path / "all.run"))
    share = np.mean([p["exact"] for p in proofs])
    assert f"{share:.1%}" in lines[0]
    (tmp_path / "only.txt").write_text("music3\nsoup\n")
    few = {"queries": str(beir / "queries.jsonl"), "run": str(tmp_path / "few.run"), "k": 3}
    with pytest.raises(UserError, match="'soup' is not in the index"):
        pipeline.infer(model_dir=str(trained[0]), only_file=str(tmp_path / "only.txt"), **few)
    (tmp_path / "only.txt").write_text("music3\n")
    pipeline.infer(model_dir=str(trained[0]), only_file=str(tmp_path / "only.txt"), **few)
    assert {d for r in read_run(tmp_path / "few.run").values() for d, _ in r} == {"music3"}
    own = {"score": "level", "precision": "bfloat16", "certify": True}
    pipeline.infer(
        model_dir=str(trained[0]),
        queries=str(beir / "queries.jsonl"),
        run=str(tmp_path / "own.run"),
        k=3,
        beam=5,
        most_beam=40,
        **own,
    )
    index, config = Index.load(trained[0]), SearchConfig(5, "level", "bfloat16", True, 40)
    asked = [json.loads(line) for line in (beir / "queries.jsonl").read_text().splitlines()]
    ranked = index.rank([record["text"] for record in asked], k=3, config=config)
    found = read_run(tmp_path / "own.run")
    assert found == {
        record["_id"]: [(doc_id, pytest.approx(score, abs=1e-5)) for doc_id, score in ranking]
        for record, ranking in zip(asked, ranked, strict=True)
    }
    with pytest.raises(UserError, match="beam is 0"):
        pipeline.infer(model_dir=str(trained[0]), queries="x.jsonl", beam=0)
    with pytest.raises(UserError, match=r"--gin\.QUERIES"):
        pipeline.infer(model_dir=str(trained[0]))


@pytest.mark.slow
def test_minutes_become_steps_that_a_restart_keeps(beir, tmp_path):
    # rows come in multiples of 24 for 3 microbatches
    trainer = {"steps": None, "minutes": 0.01, "save_period": 5, "microbatches": 3}
    lines: list[str] = []
    stages = tmp_path / "m" / "stages.json"
    for _ in range(2):
        pipeline.train(
            model_dir=str(tmp_path / "m"), corpus=str(beir), log=lines.append, **settings(**trainer)
        )
        # as it was written before the model had these settings
        written = json.loads(stages.read_text())
        plan = json.loads(written["plan"]["settings"]["model"])
        for name in ("relpos_per_layer", "scan_layers", "remat"):
            plan.pop(name, None)
        written["plan"]["settings"]["model"] = json.dumps(plan)
        stages.write_text(json.dumps(written))
    plans = [line for line in lines if "minutes" in line]
    assert len(plans) == 1
    steps = written["plan"]["steps"]
    assert (tmp_path / "m" / f"checkpoint_{steps}").is_dir()
    with pytest.raises(UserError, match=r"started with minutes=0\.01 and other"):
        pipeline.train(
            model_dir=str(tmp_path / "m"), corpus=str(beir), **settings(steps=None, minutes=5)
        )
