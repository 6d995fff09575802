"""The Colab notebook, executed from beginning to end by a kernel of this interpreter."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from tests.launch.conftest import CHECKOUT, LAUNCH

NOTEBOOK = LAUNCH / "colab.ipynb"

# In a process of its own: Jupyter's warnings are no affair of ours.
EXECUTE = """
import os, sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
try:
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
finally:
    nbformat.write(notebook, sys.argv[2])
"""


def executed(tmp_path: Path, **settings: str) -> str:
    """All that the notebook showed, as text."""
    output = tmp_path / "executed.ipynb"
    # nothing of a user's Jupyter: neither read nor written to
    folders = ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(NOTEBOOK), str(output)],
        capture_output=True,
        text=True,
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "PYTHONPATH": str(CHECKOUT),
            "JAX_PLATFORMS": "cpu",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            **{name: str(tmp_path / name) for name in folders},
            **settings,
        },
        cwd=tmp_path,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    cells = json.loads(output.read_text("utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    shown = [o.get("text") or o.get("data", {}).get("text/plain", ()) for o in outputs]
    return "".join("".join(lines) for lines in shown)


def test_it_is_valid_and_holds_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            compile(cell.source, NOTEBOOK.name, "exec")


@pytest.mark.slow
def test_a_short_run(tmp_path):
    text = executed(
        tmp_path,
        GR_JAX_STEPS="24",
        GR_JAX_MODULES="math statistics",
        # quick programs are not worth their compilation here
        XLA_FLAGS="--xla_backend_optimization_level=0",
    )
    assert "stopped at step" in text
    assert "bit for bit the same" in text
    assert "greatest common divisor of two integers\n  1." in text


@pytest.mark.slow
def test_the_whole_run_takes_under_three_minutes_of_one_core_and_finds_things(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = executed(tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # of processor time: what else the machine does is not the notebook's doing
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 180
    assert "bit for bit the same" in text
    for answer in ("math.gcd", "math.isclose", "shutil.move"):
        assert re.search(rf"^  1\. .* {answer} ", text, re.M), text[-3000:]
