"""The main job in two processes, and how they find each other."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict

from gr_jax import distributed
from gr_jax.checkpoints import (
    HEAD,
    from_parameters,
    parameter_shapes,
    write_hugging_face,
    write_t5x_legacy,
)
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.training import Checkpoints, load_eval_parameters
from gr_jax.training._checkpoints import RunIdentity
from tests.pipeline.tiny import BINDINGS
from tests.processes import ended, start

TOGETHER = (
    "--coordinator_address=localhost:{port}",
    "--process_count=2",
    "--process_index={index}",
)


def command(beir: Path, model_dir: Path) -> tuple[str, ...]:
    return (
        "gr_jax.train",
        "--gin_file=gin/runs/beir.gin",
        f'--gin.CORPUS="{beir}"',
        f'--gin.MODEL_DIR="{model_dir}"',
        "--gin.TRAIN_STEPS=20",
        "--gin.EvalConfig.beam=8",
        *(f"--gin_bindings={binding}" for binding in BINDINGS),
    )


@pytest.mark.slow
def test_two_processes_make_the_index_that_one_makes(beir, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    split = ("Partitioning.model_parallel=2", "Partitioning.parameter_partitions=2")
    split = tuple(f"--gin_bindings={binding}" for binding in split)
    pair = start(*command(beir, two), *split, *TOGETHER, devices=2)
    first, second = ended(pair)
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert "evaluating" in first[2] and "evaluating" not in second[2]
    assert "BM25" in first[1] and "BM25" not in second[1]
    alone = ended(start(*command(beir, one), devices=1, processes=1))
    assert alone[0][0] == 0, alone
    reports = [json.loads((folder / "report.json").read_text("utf-8")) for folder in (one, two)]
    assert reports[0]["splits"]["test"]["bm25"]["hits@1"] == 1.0
    for folder in ("docids", "examples", "cache"):
        for path in (one / folder).rglob("*"):
            if path.is_file():
                assert path.read_bytes() == (two / path.relative_to(one)).read_bytes(), path
    fingerprint = reports[0]["docid_fingerprint"]
    trees = [load_eval_parameters(folder, fingerprint)[0] for folder in (one, two)]
    for x, y in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


def test_a_failure_of_the_first_process_ends_the_others(tmp_path):
    finished = ended(
        start(
            "gr_jax.train",
            "--gin_file=gin/runs/beir.gin",
            f'--gin.MODEL_DIR="{tmp_path / "model"}"',
            f'--gin.CORPUS="{tmp_path / "nowhere"}"',
            "--coordinator_address=localhost:{port}",
            "--process_count=2",
            "--process_index={index}",
        )
    )
    assert [status for status, *_ in finished] == [2, 2], finished
    for _, output, errors in finished:
        assert not output and errors.count("\n") == 1 and "no such corpus folder" in errors, errors
    assert "preparation failed in process 0: " in finished[1][2]


def test_hosts_that_do_not_share_the_directory_are_told(beir, tmp_path):
    own = tmp_path / "of_host_{index}"
    finished = ended(start("tests.pipeline.impatient", *command(beir, own)[1:], *TOGETHER))
    assert [status for status, *_ in finished] == [2, 2], finished
    for _, _, errors in finished:
        line = errors.strip().splitlines()[-1]
        assert "of_host_1: not the directory that process 0 has under this name" in line, errors
        assert "Traceback" not in errors, errors
    assert "failed in process 1: " in finished[0][2]
    assert not (tmp_path / "of_host_1").exists()


def test_two_processes_start_from_each_format(tmp_path):
    """Process 0 opens the checkpoint while the other waits for it."""
    text = T5Config(384, None, 16, 2, 8, 32, 1, 1)
    ours = dataclasses.replace(text, target_vocab_size=128)
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(ours) | parameter_shapes(text)
    arrays = {name: rng.random(shape, np.float32) for name, shape in shapes.items()}
    tree = unflatten_dict({n: arrays[n] for n in parameter_shapes(text)}, sep="/")
    source = from_parameters(tree, text)
    write_t5x_legacy(source, tmp_path / "t5x")
    write_hugging_face(source, tmp_path / "hugging_face")
    arrays |= {HEAD: rng.random((16, 128), np.float32)}
    checkpoints = Checkpoints(tmp_path / "gr_jax")
    checkpoints.save(
        1, {"params": unflatten_dict(arrays, sep="/")}, RunIdentity("f", ours.to_json(), 0, 1)
    )
    checkpoints.close()
    paths = [str(tmp_path / name) for name in ("gr_jax", "t5x", "hugging_face")]
    given = ("{port}", "{index}", ours.to_json().replace("{", "{{").replace("}", "}}"), *paths)
    finished = ended(start("tests.pipeline.starts", *given, devices=1))
    assert [status for status, *_ in finished] == [0, 0], finished
    total = sum(x.sum() for name, x in arrays.items() if name.startswith("encoder/"))
    for _, sums, _ in finished:
        assert json.loads(sums) == pytest.approx(dict.fromkeys(paths, total), rel=1e-4)


SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "2"}, True),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1"}, False),
        # inside an allocation, but not started by srun
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, False),
    ],
)
def test_slurms_processes_join(environment, joins, monkeypatch):
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: joined.append((a, k)))
    for name in (*SLURM, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == ([((None, None, None), {"initialization_timeout": 300})] if joins else [])


def test_processes_that_do_not_answer_are_a_line():
    with pytest.raises(UserError, match=r"cannot be joined .*process_index=3.*--process_count=N"):
        distributed.initialize("localhost:1", 2, 3)
    with pytest.raises(UserError, match=r"found by itself.*--coordinator_address=HOST:PORT"):
        distributed.initialize(wanted=True)
