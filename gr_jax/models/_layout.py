"""The two layouts of a parameter tree: a subtree per layer, or all layers of a stack in one.

Unscanned, as in t5x's `examples/t5` and in every public checkpoint but umT5's: `encoder/layers_3/`.
Scanned, as in t5x's `examples/scalable_t5`: `encoder/encoder/`, with the layers as axis 1 of every
leaf. What does not belong to a layer (tables, final norms, position biases that a stack shares) has
the same name in both.
"""

from __future__ import annotations

import re
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

LAYER_AXIS = 1

_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_SCANNED = re.compile(r"(encoder|decoder)/\1/(.+)")


def scanned_name(name: str) -> tuple[str, int] | None:
    """`encoder/layers_3/mlp/wo/kernel` -> (`encoder/encoder/mlp/wo/kernel`, 3), or None."""
    if (match := _LAYER.fullmatch(name)) is None:
        return None
    stack, layer, rest = match.groups()
    return f"{stack}/{stack}/{rest}", int(layer)


def layer_name(name: str, layer: int) -> str | None:
    """(`encoder/encoder/mlp/wo/kernel`, 3) -> `encoder/layers_3/mlp/wo/kernel`, or None."""
    if (match := _SCANNED.fullmatch(name)) is None:
        return None
    stack, rest = match.groups()
    return f"{stack}/layers_{layer}/{rest}"


def stack_layers(params: Any) -> Any:
    """The scanned layout of an unscanned tree; a scanned one stays as it is."""
    scanned: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for name, leaf in flatten_dict(params, sep="/").items():
        if (place := scanned_name(name)) is None:
            scanned[name] = leaf
        else:
            layers.setdefault(place[0], {})[place[1]] = leaf
    for name, leaves in layers.items():
        scanned[name] = jnp.stack([leaves[i] for i in range(len(leaves))], axis=LAYER_AXIS)
    return unflatten_dict(scanned, sep="/")


def unstack_layers(params: Any) -> Any:
    """The unscanned layout of a scanned tree; an unscanned one stays as it is."""
    unscanned: dict[str, Any] = {}
    leaves: dict[str, Any] = flatten_dict(params, sep="/")
    for name, leaf in leaves.items():
        if layer_name(name, 0) is None:
            unscanned[name] = leaf
        else:
            for i in range(leaf.shape[LAYER_AXIS]):
                unscanned[str(layer_name(name, i))] = jnp.take(leaf, i, axis=LAYER_AXIS)
    return unflatten_dict(unscanned, sep="/")
