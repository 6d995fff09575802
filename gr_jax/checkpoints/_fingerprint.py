"""One digest of a model, whatever format and layout it lies in."""

from __future__ import annotations

import hashlib
import json

from gr_jax.checkpoints._source import ParameterSource


def fingerprint(source: ParameterSource) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the parameters, sorted by name.

    The same for the same model (of the same dtype) in every format. Optimizer state, step and
    settings that are no parameters are not part of it. Every parameter is read, in blocks.
    """
    digest = hashlib.sha256()
    for name, leaf in sorted(source.leaves.items()):
        digest.update(json.dumps([name, leaf.dtype.name, list(leaf.shape)]).encode())
        for block in leaf.blocks():
            digest.update(block.reshape(-1).view("uint8").data)
    return digest.hexdigest()
