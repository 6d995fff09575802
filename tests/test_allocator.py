"""Freed memory is kept, in processes of their own: it is for a process' whole life."""

import json
import os
import platform
import subprocess
import sys

import pytest

from gr_jax import allocator

# Page faults of a program that has 128 MiB of temporaries. Some runs do not find them a place yet.
SCRIPT = """
import json, resource
from gr_jax.allocator import keep_freed_memory
kept = keep_freed_memory()
import jax, jax.numpy as jnp
def program(x):
    return jax.lax.optimization_barrier(x * 2)[::-1].sum()
x = jnp.ones((4096, 4096))
compiled = jax.jit(program).lower(x).compile()
assert compiled.memory_analysis().temp_size_in_bytes >= 2**27
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    compiled(x).block_until_ready()
print(json.dumps([kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")


@glibc
def test_runs_of_a_program_get_the_same_memory_again():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=clean | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, faults = json.loads(done.stdout)
    assert kept is True
    pages = 60 * 2**26 // os.sysconf("SC_PAGESIZE")
    assert faults < pages  # without it twice as many: there are 128 MiB


@glibc
@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_ARENA_MAX", "4"), ("JAX_PLATFORMS", "cuda,cpu")]
)
def test_the_users_own_malloc_and_hosts_of_accelerators_are_left_alone(name, value, monkeypatch):
    for other in [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(other)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: pytest.fail("malloc was configured"))
    assert allocator.keep_freed_memory() is False


@pytest.mark.parametrize(
    "command",
    [
        "runpy.run_module('gr_jax.train', run_name='__main__')",
        "runpy.run_module('gr_jax.eval', run_name='__main__')",
        "runpy.run_module('gr_jax.infer', run_name='__main__')",
        "cli.main(['quickstart', '--steps', '1'])",
        "cli.main(['search', 'a query'])",
    ],
)
def test_commands_begin_with_it(command):
    """Before NumPy is there, or it would do nothing."""
    script = (
        "import runpy, sys\n"
        "from gr_jax import allocator\n"
        "def called():\n"
        "    sys.exit('too late' if 'numpy' in sys.modules else 'in time')\n"
        "allocator.keep_freed_memory = called\n"
        "from gr_jax import cli\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script + command], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "in time"
