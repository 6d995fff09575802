"""Between the layouts of a T5's parameters, as views: nothing is read until it is asked for.

`layers`: t5x's `examples/t5`: a subtree per layer, kernels [embed, heads * kv].
`heads`: `examples/scalable_t5` without scan: a subtree per layer, kernels [embed, heads, kv].
`scanned`: `examples/scalable_t5`: `encoder/encoder`, layers on axis 1, [embed, layers, heads, kv].
`stacked`: gr_jax's scanned layout: the same with [embed, layers, heads * kv].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gr_jax.checkpoints._lazy import LastRead, LazyArray, merge_axes, split_axis, stack, unstack
from gr_jax.checkpoints._shapes import RELPOS, same_bytes
from gr_jax.errors import UserError
from gr_jax.models._layout import LAYER_AXIS, layer_name, split_name, stack_leaves

ATTENTION = re.compile(r".*attention/(query|key|value|out)/kernel")


def canonical(
    path: str, raw: Mapping[str, LazyArray]
) -> tuple[dict[str, LazyArray], str, int | None]:
    """The `layers` layout of parameters in any layout.

    Returns:
      The parameters, the layout they lie in, and the number of heads where the layout tells.

    Raises:
      UserError: a parameter has as many axes as it has in no layout.
    """
    layout, num_heads = "layers", None
    leaves: dict[str, LazyArray] = {}
    last = LastRead()
    for name, leaf in raw.items():
        stacked = layer_name(name, 0) is not None
        if stacked and len(leaf.shape) <= LAYER_AXIS:
            raise UserError(f"{path}: {name} is {leaf.shape}: scanned, it has no axis of layers")
        if stacked:
            layout = "stacked" if layout == "layers" else layout
        if (match := ATTENTION.fullmatch(name)) and len(leaf.shape) == 3 + stacked:
            layout = "scanned" if stacked else "heads"
            num_heads = leaf.shape[0 if match[1] == "out" else 1 + stacked]
        leaves.update(layers_of(name, leaf, last))
    return _share_position_biases(leaves), layout, num_heads


def layers_of(name: str, leaf: LazyArray, last: LastRead) -> list[tuple[str, LazyArray]]:
    """The `layers` layout of one parameter in any layout, or of what has its shape.

    Args:
      name: of the parameter, as it lies.
      leaf: it.
      last: see `unstack`.
    """
    layers = [(name, leaf)]
    if layer_name(name, 0) is not None:
        stack = enumerate(unstack(leaf, LAYER_AXIS, last))
        layers = [(layer_name(name, i) or "", layer) for i, layer in stack]
    match = ATTENTION.fullmatch(name)
    if match is None:
        return layers
    at = 0 if match[1] == "out" else 1
    return [(n, merge_axes(x, at) if len(x.shape) == 3 else x) for n, x in layers]


def _share_position_biases(leaves: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """Biases per layer that are equal in each stack, as one per stack: it is the same function."""
    biases: dict[str, list[str]] = {"encoder": [], "decoder": []}
    for name in leaves:
        if (place := split_name(name)) and place[2] == RELPOS:
            biases[place[0]].append(name)
    if not all(biases.values()):
        return leaves
    for names in biases.values():
        first = leaves[names[0]]
        if not all(same_bytes(first, leaves[name]) for name in names[1:]):
            return leaves
    shared = {f"{stack}/{RELPOS}": leaves[names[0]] for stack, names in biases.items()}
    layered = {name for names in biases.values() for name in names}
    return {n: leaf for n, leaf in leaves.items() if n not in layered} | shared


def per_layer_biases(leaves: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The same with a bias per layer: a shared one stands in every layer of its stack."""
    shared = {stack: leaves.get(f"{stack}/{RELPOS}") for stack in ("encoder", "decoder")}
    out = {n: leaf for n, leaf in leaves.items() if n not in (f"{s}/{RELPOS}" for s in shared)}
    for name in leaves:
        if (place := split_name(name)) and (bias := shared[place[0]]) is not None:
            out[f"{place[0]}/layers_{place[1]}/{RELPOS}"] = bias
    return out


def stacked(leaves: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """The `stacked` layout of the `layers` layout; position biases stay as they are."""
    return stack_leaves(leaves, lambda layers: stack(layers, LAYER_AXIS))


def scanned(
    leaves: Mapping[str, LazyArray], head_dim: int
) -> dict[str, list[LazyArray] | LazyArray]:
    """The `scanned` layout of the `layers` layout; what lies along the axis of layers is a list."""
    heads: dict[str, Any] = {}
    for name, leaf in per_layer_biases(leaves).items():
        match = ATTENTION.fullmatch(name)
        at = 0 if match and match[1] == "out" else 1
        heads[name] = split_axis(leaf, at, head_dim) if match else leaf
    return stack_leaves(heads, list)
