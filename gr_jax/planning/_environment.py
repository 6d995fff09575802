"""The environment in which the TPU compiler runs on a machine without a TPU."""

from __future__ import annotations

import importlib.util
import os

import jax

from gr_jax.errors import UserError


def require_compiler() -> None:
    """To be called before anything that takes long.

    Raises:
      UserError: there is no TPU compiler.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed: pip install 'gr-jax[aot]' (libtpu)")


def without_accelerators() -> None:
    """To be called before JAX looks for devices: the compiler needs none, nor a metadata server."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    # two planners at a time
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "")
