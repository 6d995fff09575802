"""What a device says when its memory is full, as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from gr_jax.errors import UserError


@contextlib.contextmanager
def device_memory(devices: int) -> Iterator[None]:
    """Turns JAX's error for a full memory into a line with the mend.

    Args:
      devices: that the model is spread over.

    Raises:
      UserError: weights, docids or what a search computes with do not fit.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = " ".join(str(error).split())[:150]
        here = jax.local_device_count()
        where, mend = "on one device", ""
        if devices > 1:
            where = f"over {devices} devices"
            mend = "Partitioning.model_parallel says how many of them share a layer; "
        elif here > 1:
            mend = (
                "EvalConfig.partitioning=@training.Partitioning() (to answer queries, "
                "pipeline.infer.partitioning) spreads them over this host's, with as many to a "
                f"layer as Partitioning.model_parallel says, up to {here}; "
            )
        raise UserError(
            f"the model and its search do not fit {where} ({said}): {mend}a narrower beam and "
            "precision='bfloat16' or 'int8' need less"
        ) from error
