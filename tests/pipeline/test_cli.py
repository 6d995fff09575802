"""The commands as a user runs them: what they print, and their exit status."""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from gr_jax.cli import main
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.pipeline import Workspace
from gr_jax.serving._parameters import SavedParameters
from tests.conftest import write_beir
from tests.pipeline.tiny import BINDINGS

# one device, as users have; what one process has compiled the next ones load
PROGRAMS = tempfile.TemporaryDirectory()
ENVIRONMENT = {
    **os.environ,
    "PYTHONWARNINGS": "default",
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "JAX_COMPILATION_CACHE_DIR": PROGRAMS.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def quickstart(corpus: Path, model_dir: Path, *extra: str, steps: int = 30) -> list[str]:
    bindings = [f"--gin_bindings={binding}" for binding in BINDINGS]
    return [
        "quickstart",
        f"--corpus={corpus}",
        f"--model_dir={model_dir}",
        f"--steps={steps}",
        *bindings,
        *extra,
    ]


def run(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "gr_jax.cli", *args],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=cwd,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def model_dir(beir: Path, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "model"
    done = run(*quickstart(beir, directory))
    assert done.returncode == 0, done.stderr
    assert "BM25" in done.stdout and "gr_jax" in done.stdout and "hits@10" in done.stdout
    assert "examples/s" in done.stderr and "min left" in done.stderr
    assert re.search(r"loss [\d.]+ \(index [\d.]+, queries [\d.]+, synth", done.stderr)
    assert re.search(r"^goodput \d+% of [\d.]+ s: step [\d.]+, compile ", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    # nothing of what the libraries beneath have to say
    assert not re.search(r"INFO|WARNING|oneDNN|cuda|absl", done.stderr), done.stderr
    return directory


def error_of(capsys, *args: str) -> str:
    """The one line that a mistake gives."""
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "configurable 'run'" not in lines[-1]
    return lines[-1]


def test_search_json(model_dir, capsys):
    assert main(["search", "--json", f"--model_dir={model_dir}", "--k=3", "which", "music"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"exact", "beam", "results"}
    assert isinstance(answer["exact"], bool) and answer["beam"] == 20
    results = answer["results"]
    assert [r["rank"] for r in results] == [1, 2, 3]
    assert all(set(r) == {"rank", "doc_id", "title", "score", "docid"} for r in results)
    assert all(re.fullmatch(r"\d+(-\d+)*", r["docid"]) for r in results)


def test_a_model_that_does_not_fit_is_one_line(model_dir, beir, capsys, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 21 GiB")

    monkeypatch.setattr(SavedParameters, "weights", full)
    queries = [f"--queries={beir / 'queries.jsonl'}", f"--qrels={beir / 'qrels' / 'test.tsv'}"]
    for verb, *rest in (("search", "soup"), ("eval", *queries, "--run=none.run")):
        line = error_of(capsys, verb, f"--model_dir={model_dir}", *rest)
        assert "EvalConfig.partitioning=@training.Partitioning()" in line


def test_exposure(model_dir, capsys, tmp_path):
    tsv = tmp_path / "exposure.tsv"
    assert main(["exposure", f"--model_dir={model_dir}", f"--tsv={tsv}"]) == 0
    title, heading, *rows = capsys.readouterr().out.splitlines()
    assert title == "30 steps of 64 examples, 48 documents: how often a document was seen"
    assert heading.split() == ["min", "median", "mean", "max", "never", "expected"]
    assert [row.split()[0] for row in rows] == ["total", "index", "queries", "synthetic"]
    total = rows[0].split()
    assert total[3] == total[6] == "40.0"  # 30 x 64 / 48: docids are unique
    lines = [line.split("\t") for line in tsv.read_text().splitlines()]
    assert lines[0] == ["doc_id", "total", "index", "queries", "synthetic"]
    assert len(lines) == 49 and sum(int(line[1]) for line in lines[1:]) == 30 * 64
    # every second document has a training query
    assert sum(line[3] == "0" for line in lines[1:]) == int(rows[2].split()[5]) == 24
    assert main(["exposure", f"--model_dir={model_dir}", "--json", "--step=1000000"]) == 0
    later = json.loads(capsys.readouterr().out)
    assert later["steps"] == 10**6
    assert later["total"]["mean"] == later["total"]["expected"] == 64e6 / 48
    report = json.loads((model_dir / "report.json").read_text())["exposure"]
    assert report["total"] == {
        name: float(figure) for name, figure in zip(heading.split(), total[1:], strict=True)
    }
    assert "a document was seen" in (model_dir / "report.html").read_text()


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("checkpoint_30", "no checkpoint yet; train first"),
        ("cache", "the token cache is missing or damaged"),
        ("docids", "not found; it is part of a docid map"),
    ],
)
def test_exposure_of_a_part_of_a_run(model_dir, capsys, tmp_path, remove, message):
    copy = tmp_path / "m"
    shutil.copytree(model_dir, copy, ignore=shutil.ignore_patterns(remove, "checkpoint_20"))
    assert message in error_of(capsys, "exposure", f"--model_dir={copy}")


def test_exposure_with_docids_of_another_run(model_dir, capsys, tmp_path):
    copy = tmp_path / "m"
    shutil.copytree(model_dir, copy)
    docids = DocidMap.load(copy / "docids")
    DocidMap(docids.doc_ids, docids.codes[::-1].copy(), docids.level_sizes).save(copy / "docids")
    assert "restore the docid map" in error_of(capsys, "exposure", f"--model_dir={copy}")


def test_search_for_people(model_dir, capsys):
    assert main(["search", f"--model_dir={model_dir}", "--k=2", "music"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[0].lstrip().startswith("1.")
    assert lines[2].startswith("proven exact, with a beam of ")


def test_eval_writes_a_run(model_dir, beir, tmp_path, capsys):
    args = [
        "eval",
        f"--model_dir={model_dir}",
        f"--queries={beir / 'queries.jsonl'}",
        f"--qrels={beir / 'qrels' / 'test.tsv'}",
        f"--run={tmp_path / 'out.run'}",
        "--json",
    ]
    assert main(args) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["queries"] == 48 and 0 <= figures["hits@1"] <= figures["hits@10"] <= 1
    searched = (tmp_path / "out.run").read_text()
    assert main([*args, "--exact"]) == 0
    exact = (tmp_path / "out.run").read_text()
    order = [[line.split()[2] for line in text.splitlines()] for text in (searched, exact)]
    assert order[0] == order[1]
    assert figures["certified"] == 1.0  # the beam of 100 is wider than the corpus
    settings = ["--beam=48", "--certify", "--score=children", "--precision=int8"]
    assert main([*args[:-1], *settings]) == 0
    assert re.search(r"certified +1\.0000", capsys.readouterr().out)
    other = [float(line.split()[4]) for line in (tmp_path / "out.run").read_text().splitlines()]
    assert other != [float(line.split()[4]) for line in exact.splitlines()]


def test_one_trainer_at_a_time_and_any_readers(model_dir, beir, capsys):
    with Workspace(model_dir).alone():
        before = {p: p.stat().st_mtime_ns for p in model_dir.rglob("*")}
        line = error_of(capsys, *quickstart(beir, model_dir))
        assert f"process {os.getpid()} of" in line and "is training here; wait for it" in line
        assert {p: p.stat().st_mtime_ns for p in model_dir.rglob("*")} == before
        assert main(["search", "--json", f"--model_dir={model_dir}", "--k=3", "soup"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 3


def test_search_among_some_documents(model_dir, capsys, tmp_path):
    only = ["--only=sailing3", "--only=music5"]
    assert main(["search", "--json", f"--model_dir={model_dir}", *only, "which", "soup"]) == 0
    found = {r["doc_id"] for r in json.loads(capsys.readouterr().out)["results"]}
    assert found == {"sailing3", "music5"}
    (tmp_path / "only.txt").write_text("sailing3\n\n music5 \n")
    only_file = f"--only_file={tmp_path / 'only.txt'}"
    assert main(["search", "--json", f"--model_dir={model_dir}", only_file, "which"]) == 0
    again = {r["doc_id"] for r in json.loads(capsys.readouterr().out)["results"]}
    assert again == found
    missing = f"--only_file={tmp_path / 'none.txt'}"
    line = error_of(capsys, "search", f"--model_dir={model_dir}", missing, "soup")
    assert line.endswith("none.txt: no such file")
    line = error_of(capsys, "search", f"--model_dir={model_dir}", "--only=nowhere", "soup")
    assert line == "error: the document 'nowhere' is not in the index"


def test_search_settings_reach_the_search(model_dir, capsys):
    def scores(*flags: str) -> list[float]:
        assert main(["search", "--json", f"--model_dir={model_dir}", *flags, "soup"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return [r["score"] for r in json.loads(captured.out)["results"]]

    found = [scores("--beam=48", f"--score={score}") for score in ("full", "level")]
    found += [scores("--beam=48", "--score=full", "--precision=int8")]
    assert found[0] != found[1] != found[2] != found[0]
    assert scores("--beam=10", "--score=full", "--certify") == pytest.approx(found[0], abs=1e-4)


@pytest.mark.parametrize("sure", [True, False])
def test_whether_an_answer_is_certified_is_told(model_dir, capsys, monkeypatch, sure):
    from gr_jax.decoding import BeamSearch

    search = BeamSearch.search

    def certified(*args, **settings):
        found = search(*args, **settings)
        return found._replace(exact=np.full_like(found.exact, sure))

    monkeypatch.setattr(BeamSearch, "search", certified)
    told = {True: r"proven exact, with a beam of \d+", False: "not proven exact: a beam of "}[sure]
    for flags in ((), ("--certify", "--most_beam=30")):
        asked = ["search", f"--model_dir={model_dir}", "--k=2", *flags, "soup"]
        assert main(asked) == 0
        captured = capsys.readouterr()
        *found, last = captured.out.splitlines()
        assert len(found) == 2 and re.match(told, last) and captured.err == ""
        assert sure or ("--most_beam" if flags else "--certify") in last
        assert main([*asked, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["exact"] is sure


def test_the_widest_beam_is_a_setting(model_dir, capsys, monkeypatch):
    from gr_jax.serving import Index

    seen = []

    def find(self, queries, *, k, config, only):
        seen.append((config.exact, config.most_beam))
        raise UserError("enough")

    monkeypatch.setattr(Index, "find", find)
    for flags in ((), ("--certify", "--most_beam=300")):
        error_of(capsys, "search", f"--model_dir={model_dir}", *flags, "soup")
    assert seen == [(False, 1024), (True, 300)]


def test_wrong_search_settings_are_one_line(model_dir, beir, tmp_path, capsys):
    search = ["search", f"--model_dir={model_dir}", "soup"]
    evaluate = [
        "eval",
        f"--model_dir={model_dir}",
        f"--queries={beir / 'queries.jsonl'}",
        f"--qrels={beir / 'qrels' / 'test.tsv'}",
        f"--run={tmp_path / 'out.run'}",
    ]
    for verb in (search, evaluate):
        line = error_of(capsys, *verb, "--score=best")
        assert line == "error: score is 'best': choose one of full, level, children"
        line = error_of(capsys, *verb, "--precision=half")
        assert line.startswith("error: precision is 'half': choose one of float32, bfloat16")
    assert "leave out certify" in error_of(capsys, *evaluate, "--exact", "--certify")
    assert not (tmp_path / "out.run").exists()


def test_help_names_every_score_and_precision(capsys):
    from typing import get_args

    from gr_jax.decoding import Score
    from gr_jax.models import PRECISIONS

    for verb in ("search", "eval"):
        with pytest.raises(SystemExit) as stop:
            main([verb, "--help"])
        assert stop.value.code == 0
        words = re.findall(r"\w+", capsys.readouterr().out)
        assert {*get_args(Score), *PRECISIONS} <= set(words)


def test_search_imports_no_tensorflow(model_dir):
    code = (
        "import sys; from gr_jax.cli import main; "
        f"main(['search', '--model_dir={model_dir}', 'music']); "
        "assert not {'tensorflow', 'seqio', 'tensorflow_text'} & set(sys.modules); "
        "import gr_jax, gr_jax.pipeline, gr_jax.training, gr_jax.serving; "
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr


def test_config_gin_is_kept_and_reproduces(model_dir):
    text = (model_dir / "config.gin").read_text()
    assert "SyntheticQueries.per_document = 20" in text
    assert "T5Config.emb_dim = 32" in text


def test_t5x_entry_points(model_dir, beir, tmp_path):
    common = [
        "--gin_file=gin/runs/beir.gin",
        f'--gin.MODEL_DIR="{model_dir}"',
        f'--gin.CORPUS="{beir}"',
        "--gin.TRAIN_STEPS=30",
    ]
    common += [f"--gin_bindings={b}" for b in BINDINGS]

    def entry(module: str, *extra: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", f"gr_jax.{module}", *common, *extra],
            capture_output=True,
            text=True,
            env=ENVIRONMENT,
            cwd=tmp_path,  # the gin file is found from anywhere
            timeout=300,
            check=False,
        )

    evaluated = entry("eval")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "hits@10" in evaluated.stdout
    queries = f'--gin.QUERIES="{beir / "queries.jsonl"}"'
    inferred = entry("infer", queries, f'--gin.RUN="{tmp_path / "x.run"}"')
    assert inferred.returncode == 0, inferred.stderr
    assert len((tmp_path / "x.run").read_text().splitlines()) == 10 * 72
    failed = entry("train", "--gin.NO_SUCH_THING.x=3")
    assert failed.returncode == 2 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and "NO_SUCH_THING" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1, failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin.TRAIN_STEPZ=3"], "did you mean TRAIN_STEPS?"),
        (["--gin.DataConfig.no_such_parameter=3"], "no_such_parameter"),
        (["--gin_file=no/such.gin"], "no/such.gin"),
        (["--gin.CORPUS"], "give a value"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_of_entry_points_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    from gr_jax import gin_config, train

    monkeypatch.chdir(tmp_path)
    given = ["--gin_file=gin/runs/beir.gin", '--gin.MODEL_DIR="m"', '--gin.CORPUS="c"']
    monkeypatch.setattr(sys, "argv", ["train", *given, *arguments])
    gin_config.define_flags()
    with flagsaver.flagsaver(), pytest.raises(SystemExit, match="2"):
        gin_config.run_main(train.main)
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ") and message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_interrupted_run_goes_on_to_the_same_result(beir, tmp_path, model_dir):
    """SIGINT while training saves and exits with 130; SIGKILL loses nothing that was saved."""
    args = quickstart(beir, tmp_path / "m")
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = subprocess.Popen(
            [sys.executable, "-m", "gr_jax.cli", *args],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=ENVIRONMENT,
            text=True,
        )
        metrics = tmp_path / "m" / "train" / "metrics.jsonl"
        wanted = 1 if number == signal.SIGINT else 2
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if metrics.exists() and len(metrics.read_text().splitlines()) >= wanted:
                break
            time.sleep(0.01)
        if process.poll() is not None:
            process.communicate()
            continue  # it was faster than the signal
        process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
        if process.returncode != 0:
            assert process.returncode == status, stderr
            assert "Traceback" not in stderr
        if process.returncode == 130:
            assert "the same command goes on" in stderr and "In call to" not in stderr
    done = run(*args)
    assert done.returncode == 0, done.stderr
    ours = (tmp_path / "m" / "runs" / "test.gr_jax.run").read_bytes()
    assert ours == (model_dir / "runs" / "test.gr_jax.run").read_bytes()
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 30


def _damage(folder: Path, kind: str) -> None:
    corpus, queries = folder / "corpus.jsonl", folder / "queries.jsonl"
    lines = corpus.read_text().splitlines(keepends=True)
    if kind == "no corpus.jsonl":
        corpus.unlink()
    elif kind == "empty corpus":
        corpus.write_text("")
    elif kind == "malformed JSON":
        corpus.write_text("".join([*lines[:2], '{"_id": "x", \n', *lines[2:]]))
    elif kind == "duplicate ids":
        corpus.write_text("".join([*lines, lines[0]]))
    elif kind == "no text":
        corpus.write_text("".join(['{"_id": "void", "title": "", "text": " "}\n', *lines]))
    elif kind == "not UTF-8":
        corpus.write_bytes(corpus.read_bytes() + b'{"_id": "x", "text": "caf\xe9"}\n')
    elif kind == "unknown document in qrels":
        with (folder / "qrels" / "test.tsv").open("a") as stream:
            stream.write("test-music0\tnowhere\t1\n")
    elif kind == "no query in qrels":
        queries.write_text('{"_id": "other", "text": "hello"}\n')
    elif kind == "truncated gz":
        packed = gzip.compress(corpus.read_bytes())
        (folder / "corpus.jsonl.gz").write_bytes(packed[: len(packed) // 2])
        corpus.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no corpus.jsonl", r"corpus\.jsonl"),
        ("empty corpus", r"corpus\.jsonl"),
        ("malformed JSON", r"corpus\.jsonl:3"),
        ("duplicate ids", r"corpus\.jsonl:49.*cooking0"),
        ("not UTF-8", r"corpus\.jsonl:49.*UTF-8"),
        ("unknown document in qrels", r"test\.tsv:50.*nowhere"),
        ("no query in qrels", r"queries\.jsonl|test\.tsv|train\.tsv"),
        ("truncated gz", r"corpus\.jsonl\.gz"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, kind, message):
    folder = write_beir(tmp_path / "corpus")
    _damage(folder, kind)
    line = error_of(capsys, *quickstart(folder, tmp_path / "m"))
    assert re.search(message, line), line
    assert not (tmp_path / "m").exists()


def test_documents_without_text(tmp_path, capsys):
    folder = write_beir(tmp_path / "corpus")
    _damage(folder, "no text")
    line = error_of(capsys, *quickstart(folder, tmp_path / "m", "--strict"))
    assert "void" in line
    assert not (tmp_path / "m").exists()
    from gr_jax import pipeline

    collection = pipeline.load_collection(str(folder))
    assert collection.corpus.skipped == ("void",)
    assert len(collection.corpus) == 48


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["search", "--model_dir=/no/such/dir", "x"], "holds no trained index"),
        (["quickstart", "--corpus=/no/such/dir"], "no such corpus folder"),
        (["quickstart", "--gin_bindings=Nothing.x = 1"], "Nothing"),
        (["quickstart", "--gin_bindings=CORPUS = "], "gin"),
        (["quickstart", "--gin_bindings=TrainConfig.step = 1"], "step"),
        (["quickstart", "--gin_file=/no/such.gin"], "/no/such.gin"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_bad_settings_are_refused_before_training(beir, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a URL that is taken for a path would make a folder
    for extra, message in [
        ("--embeddings=/no/such.npy", "no such embeddings file"),
        ("--sentencepiece=/no/such.model", "no such SentencePiece model"),
        ("--gin_bindings=HierarchicalKMeans.branching = (2, 3)", "room for 6 documents"),
        ("--gin_bindings=T5Config.dropout_rate = 1.5", "dropout_rate"),
        ("--gin_bindings=DataConfig.row_length = 8", "row_length"),
        ("--gin_bindings=SyntheticQueries.mix = [('nonsense', 1.0)]", "nonsense"),
        ("--gin_bindings=Partitioning.model_parallel = 30", "model_parallel=30"),
        (
            "--gin_bindings=EvalConfig.partitioning = @eval/training.Partitioning()\n"
            "eval/training.Partitioning.model_parallel = 30",
            "model_parallel=30",
        ),
        ("--gin_bindings=DataConfig.batch_size = 0", "batch_size"),
        ("--gin_bindings=TrainConfig.save_period = 0", "save_period"),
        ("--gin_bindings=SyntheticQueries.per_document = -1", "per_document"),
        ("--seed=-1", "seed"),
        (f"--model_dir={beir / 'corpus.jsonl'}", "is a file"),
        (f"--model_dir={beir / 'corpus.jsonl' / 'x'}", "is a file"),
        ("--model_dir=gs://bucket/model", "gs://bucket/model: not a path; mount the bucket"),
        ("--corpus=gs://bucket/corpus", "gs://bucket/corpus: not a path; mount the bucket"),
    ]:
        line = error_of(capsys, *quickstart(beir, tmp_path / "m", extra))
        assert message in line, line
    assert list(tmp_path.iterdir()) == []


def test_foreign_files_are_left_alone(tmp_path, capsys):
    """The corpus's own folder as model directory would overwrite the corpus."""
    folder = write_beir(tmp_path / "corpus")
    before = (folder / "corpus.jsonl").read_bytes()
    line = error_of(capsys, *quickstart(folder, tmp_path))
    assert "would be overwritten" in line and "corpus.jsonl" in line
    assert (folder / "corpus.jsonl").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["corpus"]


def test_a_run_file_that_is_a_directory(model_dir, beir, tmp_path, capsys):
    line = error_of(
        capsys,
        "eval",
        f"--model_dir={model_dir}",
        f"--queries={beir / 'queries.jsonl'}",
        f"--qrels={beir / 'qrels' / 'test.tsv'}",
        f"--run={tmp_path}",
    )
    assert "is a directory" in line
    assert "no trained index" in error_of(
        capsys, "search", f"--model_dir={beir}/queries.jsonl", "x"
    )


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    beir, tmp_path, capsys, monkeypatch
):
    import errno

    import numpy as np

    from gr_jax.docids import DocidMap

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "save", full)
    line = error_of(capsys, *quickstart(beir, tmp_path / "m"))
    assert "the disk is full" in line and "docids" in line
    assert not (tmp_path / "m" / "docids").exists()
    monkeypatch.undo()
    assert not list((tmp_path / "m").rglob("*.tmp-*"))
    assert DocidMap  # the module is importable after the failure


def test_wheel_works_from_any_directory(tmp_path, beir):
    """gin files and tasks travel inside the wheel."""
    root = Path(__file__).resolve().parents[2]
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=root,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"),
            *("--target", str(tmp_path / "site"), str(wheel)),
        ],
        check=True,
        capture_output=True,
    )
    code = (
        "import gr_jax, importlib.util, pathlib; "
        f"assert pathlib.Path(gr_jax.__file__).is_relative_to({str(tmp_path)!r}); "
        "from gr_jax import gin_config; "
        "gin_config.parse(['gin/runs/quickstart.gin'], ['MODEL_DIR = \"x\"']); "
        "gin_config.parse(['gin/experiments/squad2k.gin'], ['MODEL_DIR = \"x\"']); "
        "assert importlib.util.find_spec('gr_jax.tasks.model_dir')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "site")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
