"""Freed memory is kept, in processes of their own: it is for a process' whole life."""

import json
import os
import platform
import subprocess
import sys

import pytest

from gr_jax import allocator

# Page faults of later runs of a program that has 64 MiB of temporaries: the first runs find them
# a place.
SCRIPT = """
import json, resource, sys
from gr_jax.allocator import keep_freed_memory
kept = keep_freed_memory() if "keep" in sys.argv else None
import jax, jax.numpy as jnp
def program(x):
    return jax.lax.optimization_barrier(x * 2)[::-1].sum()
x = jnp.ones((4096, 4096))
compiled = jax.jit(program).lower(x).compile()
assert compiled.memory_analysis().temp_size_in_bytes >= 2**26
def faults(runs):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(runs):
        compiled(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(40)
print(json.dumps([kept, faults(20)]))
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another malloc")


def run(*arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=clean | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@glibc
def test_later_runs_of_a_program_get_the_same_memory_again():
    kept, faults = run("keep")
    assert kept is True
    assert faults < 20 * 2**26 // os.sysconf("SC_PAGESIZE") // 4  # a quarter of what they touch


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


def test_training_begins_with_it():
    """Before NumPy is there, or it would do nothing."""
    script = "import runpy, sys\n" + (
        "from gr_jax import allocator\n"
        "def called():\n"
        "    sys.exit('too late' if 'numpy' in sys.modules else 'in time')\n"
        "allocator.keep_freed_memory = called\n"
    )
    for rest in (
        "runpy.run_module('gr_jax.train', run_name='__main__')",
        "from gr_jax import cli; cli.main(['quickstart', '--steps', '1'])",
    ):
        done = subprocess.run(
            [sys.executable, "-c", script + rest], capture_output=True, text=True, check=False
        )
        assert done.stderr.strip() == "in time"
