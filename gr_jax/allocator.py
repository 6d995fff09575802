"""The memory allocator of this process, where it decides how fast programs are on CPUs."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory for a program's next run, where JAX computes on CPUs.

    XLA's CPU backend allocates the temporaries of a program in every run, as one block that may
    have gigabytes. glibc gets such a block from the kernel and returns it afterwards, so that each
    page is cleared again when it is first touched: about a fifth of a training step, and as much of
    a search with many prefixes.

    To be called before NumPy is imported: how many heaps there are is fixed when the first thread
    allocates. Nothing is done where an accelerator may be, without glibc, or where the environment
    configures malloc already.

    Returns:
      Whether memory is kept.
    """
    configured = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if configured or platform.libc_ver()[0] != "glibc" or not _on_cpus():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # one heap, of any size, that never shrinks: blocks in the heaps of threads end at 64 MiB
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all([mallopt(*setting) == 1 for setting in settings])


def _on_cpus() -> bool:
    """Whether JAX will find nothing else, asked without importing it."""
    if chosen := os.environ.get("JAX_PLATFORMS"):
        return chosen == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    packages = ("libtpu", "jax_plugins")
    return not plugins and not any(importlib.util.find_spec(name) for name in packages)
