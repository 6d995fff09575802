"""What the compiler is told when a search is compiled."""

from __future__ import annotations

import functools

import jax

# On CPUs, oneDNN's matrix products are up to 1.5 times as fast as XLA's own
# (benchmarks/README.md, "matmul"). The option is experimental: an XLA that lacks it is left alone.
_CPU = {
    "xla_cpu_experimental_onednn_custom_call": True,
    "xla_cpu_experimental_ynn_fusion_type": "",
}


@functools.cache
def compiler_options(platform: str) -> dict[str, bool | str] | None:
    """Options for `jax.jit` that make a search fast on a platform."""
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU).lower(0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return dict(_CPU)
