"""One digest of a model, whatever format and layout it lies in."""

from __future__ import annotations

import hashlib
import json

from gr_jax.checkpoints._lazy import blocks_of
from gr_jax.checkpoints._source import ParameterSource


def fingerprint(source: ParameterSource) -> str:
    """sha256 over name, dtype, shape and the bytes' own sha256 of each parameter, sorted by name.

    The same for the same model (of the same dtype) in every format. Optimizer state, step and
    settings that are no parameters are not part of it. Every parameter is read, once, in blocks.
    """
    # a digest for each: the layers of a stack, which lie in the same chunks, are read together
    digests = {name: hashlib.sha256() for name in source.leaves}
    for name, _, block in blocks_of(source.leaves):
        digests[name].update(block.reshape(-1).view("uint8").data)
    whole = hashlib.sha256()
    for name, leaf in sorted(source.leaves.items()):
        known = [name, leaf.dtype.name, list(leaf.shape), digests[name].hexdigest()]
        whole.update(json.dumps(known).encode())
    return whole.hexdigest()
