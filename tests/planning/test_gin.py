"""What gin configures, as jobs."""

import json
from pathlib import Path

import pytest

from gr_jax.errors import UserError
from gr_jax.planning import Training, parse_topology
from gr_jax.planning import _request as request_module
from gr_jax.planning._programs import parameter_count
from gr_jax.planning._request import Request, _Gin, answer

ROOT = Path(__file__).parent.parent.parent
TINY = ("gin/runs/beir.gin", "gin/models/t5_1_1_tiny.gin")


def test_a_runs_configuration_needs_no_corpus():
    request = Request(
        topology="v5e-8",
        gin_files=TINY,
        gin_bindings=("training.Partitioning.model_parallel = 2", "BATCH_SIZE = 96"),
        levels=2,
        codes=32,
        docids=1000,
    )
    source = _Gin(request)
    job = source.training(parse_topology("v5e-8"))
    assert job.settings["rows"] == 96
    assert job.settings["model_parallel"] == 2
    assert job.model.target_vocab_size == 128  # 2 * 32 + 2, rounded up
    assert job.model.vocab_size % 128 == 0
    assert source.search(parse_topology("v5e-8")).settings["queries"] == 8


@pytest.mark.parametrize(
    ("asked", "one_host", "one_chip"),
    [("v5e-8", "v5e-8", "v5e-1"), ("v5e-256", "v5e-4", "v5e-1"), ("v5p-16", "v5p-8", "v5p:1x1x1")],
)
def test_a_search_is_planned_where_evaluation_searches(asked, one_host, one_chip):
    """As `EvalConfig` says it, whatever training does: on one device, or over those of a host."""
    bindings = ("training.Partitioning.model_parallel = 4", "EvalConfig.precision = 'int8'")
    spread = "EvalConfig.partitioning = @training.Partitioning()"
    topology = parse_topology(asked)
    for more, used, model_parallel in (((), one_chip, 1), ((spread,), one_host, 4)):
        source = _Gin(Request(topology=asked, gin_files=TINY, gin_bindings=(*bindings, *more)))
        assert source.trainer.partitioning.model_parallel == 4
        assert source.searched(topology).name == used
        job = source.search(source.searched(topology))
        assert job.settings["model_parallel"] == model_parallel
        assert job.settings["precision"] == "int8"


def test_what_is_planned_and_for_what_is_said(monkeypatch):
    planned, lines = [], []
    monkeypatch.setattr(
        request_module, "make_plan", lambda job, topology, **_: planned.append((job, topology))
    )
    request = Request(topology="v5e-256", gin_files=TINY, programs=("search", "train"))
    answer(request, log=lines.append)
    assert [(job.name, topology.name) for job, topology in planned] == [
        ("search", "v5e-1"),
        ("train", "v5e-256"),
    ]
    assert lines == ["evaluation uses v5e-1 of v5e-256 (EvalConfig.partitioning)"]


def test_the_softmax_and_the_tasks_are_the_runs():
    request = Request(
        topology="v5e-8",
        gin_files=TINY,
        gin_bindings=("SOFTMAX = 'children'", "pipeline.DataConfig.queries_rate = 0.0"),
        levels=2,
        codes=32,
        docids=1000,
    )
    job = _Gin(request).training(parse_topology("v5e-8"))
    assert isinstance(job, Training)
    assert (job.settings["softmax"], job.tasks) == ("children", 2)
    assert job.docids is not None and job.docids.vocabulary.level_sizes == (32, 32)


def test_the_pods_run_is_the_tabled_one():
    files = ("gin/runs/pod.gin", "gin/models/t5_1_1_xxl.gin")
    job = _Gin(Request(topology="v5e-8", gin_files=files)).training(parse_topology("v5e-8"))
    lines = (ROOT / "docs" / "pods.jsonl").read_text("utf-8").splitlines()
    row = {"program": "train", "model": "t5_1_1_xxl", "topology": "v5e-8"}
    record = [r for r in map(json.loads, lines) if r["row"] == row][-1]
    assert job.settings | record["settings"] == job.settings
    assert parameter_count(job.model) == record["parameters"]


def test_flags_win_over_gin():
    request = Request(
        topology="v5e-8", gin_files=TINY, batch=32, input_length=256, target_length=12, beam=7
    )
    source = _Gin(request)
    sizes = source.training(parse_topology("v5e-8")).settings
    assert [sizes[n] for n in ("rows", "input_length", "target_length")] == [32, 256, 12]
    search = source.search(parse_topology("v5e-8")).settings
    assert (search["beam"], search["input_length"], search["docids"]) == (7, 256, 9_437_184)


@pytest.mark.parametrize(
    ("bindings", "flag", "rows"),
    [
        (("BATCH_SIZE = 100",), None, 104),  # 8 shards
        (("BATCH_SIZE = 100", "training.Partitioning.model_parallel = 8"), None, 104),  # 1, of 8
        (("training.TrainConfig.microbatches = 3",), 500, 504),
        (("training.Partitioning.model_parallel = 16",), 100, 104),  # refused later
    ],
)
def test_rows_are_rounded_up_as_the_trainer_does(bindings, flag, rows):
    request = Request(topology="v5e-8", gin_files=TINY, gin_bindings=bindings, batch=flag)
    assert _Gin(request).training(parse_topology("v5e-8")).settings["rows"] == rows


def test_a_mistake_in_gin_stays_one():
    with pytest.raises(UserError, match="NOT_THERE"):
        _Gin(Request(topology="v5e-8", gin_files=TINY, gin_bindings=("NOT_THERE = 1",)))
