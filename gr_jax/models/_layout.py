"""The two layouts of a parameter tree: a subtree per layer, or all layers of a stack in one.

Unscanned, as in t5x's `examples/t5` and in every public checkpoint but umT5's: `encoder/layers_3/`.
Scanned, as in t5x's `examples/scalable_t5`: `encoder/encoder/`, with the layers as axis 1 of every
leaf. What does not belong to a layer (tables, final norms, position biases that a stack shares) has
the same name in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

LAYER_AXIS = 1

_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")
_SCANNED = re.compile(r"(encoder|decoder)/\1/(.+)")


def split_name(name: str) -> tuple[str, int, str] | None:
    """`encoder/layers_3/mlp/wo/kernel` -> (`encoder`, 3, `mlp/wo/kernel`), or None."""
    if (match := _LAYER.fullmatch(name)) is None:
        return None
    stack, layer, rest = match.groups()
    return stack, int(layer), rest


def layer_name(name: str, layer: int) -> str | None:
    """(`encoder/encoder/mlp/wo/kernel`, 3) -> `encoder/layers_3/mlp/wo/kernel`, or None."""
    if (match := _SCANNED.fullmatch(name)) is None:
        return None
    stack, rest = match.groups()
    return f"{stack}/layers_{layer}/{rest}"


def scanned_name(name: str) -> tuple[str, int]:
    """`encoder/layers_3/mlp/wo/kernel` -> (`encoder/encoder/mlp/wo/kernel`, 3).

    Raises:
      KeyError: no layer has it.
    """
    if (place := split_name(name)) is None:
        raise KeyError(name)
    stack, layer, rest = place
    return f"{stack}/{stack}/{rest}", layer


def stack_leaves[T](leaves: Mapping[str, T], stack: Callable[[list[T]], T]) -> dict[str, T]:
    """The scanned layout of whatever has the names of the unscanned one.

    Args:
      leaves: by name.
      stack: makes one leaf of those of all layers, in their order.
    """
    scanned: dict[str, T] = {}
    layers: dict[str, dict[int, T]] = {}
    for name, leaf in leaves.items():
        if split_name(name) is None:
            scanned[name] = leaf
        else:
            stacked, layer = scanned_name(name)
            layers.setdefault(stacked, {})[layer] = leaf
    for name, found in layers.items():
        scanned[name] = stack([found[i] for i in range(len(found))])
    return scanned


def stack_layers(params: Any) -> Any:
    """The scanned layout of an unscanned tree; a scanned one stays as it is."""
    leaves: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    return unflatten_dict(stack_leaves(leaves, lambda x: jnp.stack(x, axis=LAYER_AXIS)), sep="/")


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
