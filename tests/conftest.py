"""Shared by all tests: eight host devices, one tiny corpus, where the real data lies."""

import gc
import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

# Before jax is imported anywhere: meshes of several devices on a CPU, and quick compilation
# rather than quick programs.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest
from absl import flags

from gr_jax.console import quiet_libraries

quiet_libraries()
# JAX traces into millions of small objects; to look for cycles among them as often as Python does
# takes a tenth of the tests' time.
gc.set_threshold(50_000, 20, 20)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # libraries look at absl's flags, which pytest never parses


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Compiled programs are memory maps; at Linux's 65,530th of them XLA aborts the process."""
    yield
    jax.clear_caches()


ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def run_torch() -> Callable[..., str]:
    """Runs `-m MODULE ARGUMENTS` in a Python that has torch, without jax; returns its output.

    Tests that want it have the marker `torch`, and skip where no such Python is named.
    """
    python = os.environ.get("GR_JAX_TORCH_PYTHON")
    if not python or not Path(python).exists():
        pytest.skip("GR_JAX_TORCH_PYTHON names no Python that has torch")

    def run(module: str, *arguments: str | Path) -> str:
        command = [python, "-m", module, *map(str, arguments)]
        environment = os.environ | {"PYTHONPATH": ""}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that want it skip where it is absent."""
    folder = Path(os.environ.get("GR_JAX_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder


TOPICS = {
    "cooking": "soup onion garlic butter simmer oven bake flour knead roast pepper basil stew",
    "sailing": "mast rudder anchor harbour tide keel jib spinnaker knot lighthouse buoy deck",
    "astronomy": "comet orbit telescope nebula quasar eclipse asteroid galaxy pulsar redshift",
    "music": "violin sonata chord cello rhythm octave conductor tempo fugue trumpet melody",
}


def write_beir(folder: Path, *, per_topic: int = 12, seed: int = 0) -> Path:
    """A small BEIR collection: documents of four topics, training queries for every second one."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "qrels").mkdir(exist_ok=True)
    documents, queries, train, test = [], [], [], []
    for topic, text in TOPICS.items():
        vocabulary = text.split()
        for i in range(per_topic):
            doc_id = f"{topic}{i}"
            own = f"{topic}mark{i}"  # a word of its own
            chosen = rng.sample(vocabulary, 6)
            body = f"The {own} has {' and '.join(chosen[:3])}. It needs {' or '.join(chosen[3:])}."
            documents.append({"_id": doc_id, "title": f"{topic} {i}", "text": body})
            if i % 2 == 0:
                queries.append({"_id": f"train-{doc_id}", "text": f"which {own} {chosen[0]}"})
                train.append((f"train-{doc_id}", doc_id))
            queries.append({"_id": f"test-{doc_id}", "text": f"what is {own} {chosen[1]} for"})
            test.append((f"test-{doc_id}", doc_id))
    for name, records in (("corpus", documents), ("queries", queries)):
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    for name, pairs in (("train", train), ("test", test)):
        lines = ["query-id\tcorpus-id\tscore\n", *(f"{q}\t{d}\t1\n" for q, d in pairs)]
        (folder / "qrels" / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def beir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`write_beir`'s collection, not to be written to."""
    return write_beir(tmp_path_factory.mktemp("beir") / "tiny")
