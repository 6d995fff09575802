"""The TPU's own compiler, on this machine without a TPU."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_jax import compile as compiling
from gr_jax import planning
from gr_jax.models import T5Config
from gr_jax.planning import make_plan, parse_topology, suggest_training
from gr_jax.planning._programs import parameter_count

ROOT = Path(__file__).parent.parent.parent
TINY = T5Config.from_name(
    "t5_1_1_tiny",
    vocab_size=256,
    target_vocab_size=128,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
)

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="no TPU compiler: pip install -e '.[aot]'"
)


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    """`python -m gr_jax.compile`: a process of its own, as JAX reads its environment once."""
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    return subprocess.run(
        [sys.executable, "-m", "gr_jax.compile", *flags],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.aot
@needs_compiler
@pytest.mark.parametrize(
    "name",
    [
        "v5e-4",
        "tpu7x-8",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("v4-8", "v5p-8", "v6e-4")),
    ],
)
def test_a_step_is_compiled_for_each_generation(name, monkeypatch):
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    topology = parse_topology(name)
    plan = make_plan(suggest_training(TINY, topology, rows=32), topology)
    assert plan.fits
    assert 0 < plan.peak < 0.1
    record = plan.record()
    assert record["parameters"] == parameter_count(TINY)
    assert record["settings"]["parameter_partitions"] == 2
    assert record["collectives"]
    assert 0 < record["utilisation"] < 1
    assert record["utilisation_serial"] <= record["utilisation"]
    assert record["step_seconds_roofline"] == max(record["seconds"].values())


@pytest.mark.aot
@needs_compiler
@pytest.mark.slow
def test_a_search_is_compiled_with_weights_over_the_model_axis():
    done = run(
        "--gin_file=gin/runs/beir.gin", "--gin_file=gin/models/t5_1_1_tiny.gin",
        "--gin_bindings=training.Partitioning.model_parallel = 4", "--topology=v5e-16",
        "--gin_bindings=EvalConfig.partitioning = @training.Partitioning()",
        "--program=search", "--docids=1000", "--levels=2", "--codes=64", "--beam=4",
        "--queries=2", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["settings"]["model_parallel"] == 4
    assert (record["topology"], record["hosts"]) == ("v5e-4", 1)  # one of four
    assert record["collectives"]["all-reduce"]["count"] > 0


@pytest.mark.aot
@needs_compiler
@pytest.mark.slow
def test_too_large_is_an_answer_in_json_and_the_last_line_has_the_figures(tmp_path):
    done = run(
        "--gin_file=gin/runs/beir.gin", "--gin_file=gin/models/t5_1_1_tiny.gin",
        "--topology=v5e-1", "--batch=262144", "--tries=0", "--json",
        f"--output={tmp_path / 'figures.jsonl'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = done.stdout.splitlines()[-1]
    assert (tmp_path / "figures.jsonl").read_text() == f"{line}\n"
    record = json.loads(line)
    for name in ("parameters", "peak_gib_per_chip", "chip_gib", "model_flops", "bound"):
        assert record[name]
    assert record["fits"] is False
    assert record["peak_gib_per_chip"] > record["chip_gib"] == 15.75
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model=t5_1_1_small"], "give one of --topology=v5e-256 and --smallest=v5e"),
        (["--topology=v5e-8"], "give one of --gin_file=FILE and --model"),
        (["--model=t5_1_1_smal", "--topology=v5e-8"], "did you mean t5_1_1_small"),
        (["--model=t5_1_1_small", "--topology=v5e-9"], "no TPU slice is called 'v5e-9'"),
        (["--model=t5_1_1_small", "--smallest=v9"], "no TPU generation is called 'v9'"),
        (["--model=t5_1_1_small", "--topology=v5e-8", "--beam=0"], "--beam=0: at least 1"),
        (["--gin_file=no.gin", "--topology=v5e-8"], "no.gin"),
    ],
)
def test_a_mistake_is_one_line(flags, said, capsys, monkeypatch):
    monkeypatch.setattr(planning, "require_compiler", lambda: None)
    monkeypatch.setattr(planning, "without_accelerators", lambda: None)
    assert compiling.main(flags) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err


def test_without_the_compiler_a_line_says_how_to_install_it(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compiling.main(["--model=t5_1_1_small", "--topology=v5e-8"]) == 2
    assert "pip install 'gr-jax[aot]'" in capsys.readouterr().err
