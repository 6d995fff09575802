"""Shared by all tests: eight host devices, one tiny corpus, where the real data lies."""

import os
from pathlib import Path

# before jax is imported anywhere: meshes of several devices on a CPU
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest
from absl import flags

from gr_jax.console import quiet_libraries

quiet_libraries()
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # libraries look at absl's flags, which pytest never parses


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that want it skip where it is absent."""
    root = Path(__file__).resolve().parent.parent
    folder = Path(os.environ.get("GR_JAX_SHARED", root.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}")
    return folder
