"""From a checkpoint to parameters on devices: each process reads what its devices hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array

from gr_jax.checkpoints._canonical import per_layer_biases, stacked
from gr_jax.checkpoints._lazy import LazyArray, cast, groups, read_together
from gr_jax.checkpoints._shapes import EMBEDDING, HEAD, TARGET_EMBEDDING, parameter_shapes
from gr_jax.checkpoints._source import ParameterSource
from gr_jax.errors import UserError
from gr_jax.models import T5Config, init_parameters
from gr_jax.models._layout import LAYER_AXIS, stack_leaves

_Bounds = tuple[tuple[int, int], ...]  # the first index along each axis and that after the last

# the axis along which a table has a row per token
VOCABULARY_AXIS = {EMBEDDING: 0, TARGET_EMBEDDING: 0, HEAD: 1}


def new_parameters(
    source: ParameterSource, config: T5Config, *, resized: Collection[str] = ()
) -> frozenset[str]:
    """The parameters of `config` that the checkpoint cannot give, or not all of.

    These are the docid tables, where the checkpoint has none, and the `resized` tables that have
    more rows in the model.
    """
    new = {TARGET_EMBEDDING, HEAD} if _gains_docids(source, config) else set()
    for name in resized:
        axis = VOCABULARY_AXIS[name]
        if (
            name in source.leaves
            and source.leaves[name].shape[axis] < layout_shapes(config)[name][axis]
        ):
            new.add(name)
    return frozenset(new & layout_shapes(config).keys())


def load_parameters(
    source: ParameterSource,
    config: T5Config,
    shardings: Any = None,
    *,
    dtype: Any = "float32",
    fresh: Mapping[str, Array] | None = None,
    resized: Collection[str] = (),
) -> Any:
    """The parameter tree of `config`, read from a checkpoint.

    Args:
      source: the checkpoint. Position biases that a stack shares are given to every layer of a
        model that has them per layer.
      config: the model, in either layout.
      shardings: tree of `Sharding`s like the parameters'; None puts all on the default device. Only
        the slices of this process's devices are read.
      dtype: of the parameters; others are rounded.
      fresh: values of the parameters that `new_parameters` names; they must be in their shardings.
      resized: tables (`token_embedder/embedding`, `target_embedder/embedding`,
        `decoder/logits_dense/kernel`) that may have more rows in the checkpoint, which are left
        away, or fewer, in which case `fresh` has the others.

    Raises:
      UserError: the checkpoint is of another model, and how; or it is damaged.
    """
    new = new_parameters(source, config, resized=resized)
    fresh = fresh or {}
    _check(source, config, new - fresh.keys(), resized)
    leaves = dict(source.leaves)
    if config.relpos_per_layer:
        leaves = per_layer_biases(leaves)
    if config.scan_layers:
        leaves = stacked(leaves)
    shapes = layout_shapes(config)
    default = SingleDeviceSharding(jax.local_devices()[0])
    placed = _flat(shardings) or dict.fromkeys(shapes, default)
    out = {name: fresh[name] for name in new - set(resized)}
    given = {name: cast(leaves[name], np.dtype(dtype)) for name in shapes.keys() - out.keys()}
    out |= place(given, shapes, placed)
    for name in new & set(resized):
        axis = VOCABULARY_AXIS[name]
        count = given[name].shape[axis]
        out[name] = _join(out[name], fresh[name], count, axis, placed[name])
    return unflatten_dict({name: out[name] for name in shapes}, sep="/")


def initialise_from(
    source: ParameterSource,
    config: T5Config,
    key: Array,
    shardings: Any = None,
    *,
    resized: Collection[str] = (),
) -> Any:
    """`load_parameters`, in float32, with freshly initialised values for what is new.

    Only the new parameters are initialised, in their shardings.

    Raises:
      UserError: the checkpoint is of another model, and how; or it is damaged.
    """
    new = new_parameters(source, config, resized=resized)
    _check(source, config, frozenset(), resized)
    placed = _flat(shardings)
    fresh: Mapping[str, Array] = {}
    if new:
        out = None if placed is None else {name: placed[name] for name in new}
        fresh = jax.jit(fresh_parameters(config, new), out_shardings=out)(key)
    return load_parameters(source, config, shardings, fresh=fresh, resized=resized)


def fresh_parameters(
    config: T5Config, names: Collection[str]
) -> Callable[[Array], dict[str, Array]]:
    """Initialises some parameters as `init_parameters` does; jitted, it computes no others."""

    def init(key: Array) -> dict[str, Array]:
        tree = _flat(init_parameters(config, key)) or {}
        return {name: tree[name] for name in names}

    return init


def _flat(tree: Any) -> dict[str, Any] | None:
    return None if tree is None else dict(flatten_dict(tree, sep="/"))


def _gains_docids(source: ParameterSource, config: T5Config) -> bool:
    """Whether the model has docid tokens and the checkpoint is of a model of text."""
    return config.target_vocab_size is not None and TARGET_EMBEDDING not in source.leaves


def layout_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
    """`parameter_shapes` in the layout of `config`."""
    shapes = parameter_shapes(config)
    if not config.scan_layers:
        return shapes
    return stack_leaves(shapes, lambda of: (*of[0][:LAYER_AXIS], len(of), *of[0][LAYER_AXIS:]))


def _check(
    source: ParameterSource, config: T5Config, missing: Collection[str], resized: Collection[str]
) -> None:
    """Refuses a checkpoint of another model, by the first parameter in which they differ."""
    if missing:
        raise UserError(
            f"{source.path}: has no {min(missing)} for this model; initialise it afresh"
        )
    docids = _gains_docids(source, config)
    wanted = parameter_shapes(config)
    have = source.leaves
    if config.relpos_per_layer:
        have = per_layer_biases(have)
    unused = have.keys() - wanted.keys() - ({HEAD} if docids else set())
    if unused:
        name = min(unused)
        raise UserError(f"{source.path}: has {name}, which the model has not; {_advice(name)}")
    for name, shape in wanted.items():
        if docids and name in (TARGET_EMBEDDING, HEAD):
            continue
        if name not in have:
            raise UserError(f"{source.path}: has no {name}, which the model has; {_advice(name)}")
        given = list(have[name].shape)
        if name in resized:
            given[VOCABULARY_AXIS[name]] = shape[VOCABULARY_AXIS[name]]
        if tuple(given) != shape:
            raise UserError(
                f"{source.path}: {name} is {have[name].shape}, the model's is {shape}; "
                + ("declare the table resized, or " if name in VOCABULARY_AXIS else "")
                + "give the model the checkpoint's shape"
            )


def _advice(name: str) -> str:
    if name == HEAD:
        return "T5Config.logits_via_embedding says whether the output layer is the token table"
    if name == TARGET_EMBEDDING:
        return "T5Config.target_vocab_size says whether docids have a vocabulary of their own"
    if name.endswith("rel_embedding"):
        return "T5Config.relpos_per_layer says whether each layer has its position biases"
    return "their depths or activation functions differ"


def place(
    leaves: Mapping[str, LazyArray],
    shapes: Mapping[str, tuple[int, ...]],
    shardings: Mapping[str, Sharding],
) -> dict[str, Array]:
    """Arrays on their devices; of each, a process reads what its devices hold, once.

    One array is in its memory at a time; or the layers of a stack that lie in the same chunks.

    Args:
      leaves: what is read, by name.
      shapes: of what is made: larger where the rest is to be zeros.
      shardings: of what is made.
    """
    out = {}
    for names in groups({name: leaves[name] for name in shapes if name in leaves}):
        wanted = [_held(shapes[name], shardings[name]) for name in names]
        regions: dict[_Bounds, list[np.ndarray]] = {}
        for region in _regions({bounds for of in wanted for bounds in of}):
            index = [slice(a, b) for a, b in region]
            regions[region] = read_together([leaves[name] for name in names], index)
        for i, name in enumerate(names):
            parts = {region: arrays[i] for region, arrays in regions.items()}
            out[name] = _make(parts, shapes[name], shardings[name])
    return out


def _bounds(index: tuple[slice, ...] | None, shape: tuple[int, ...]) -> _Bounds:
    return tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True))


def _held(shape: tuple[int, ...], sharding: Sharding) -> set[_Bounds]:
    """The slices that this process's devices hold."""
    held = sharding.addressable_devices_indices_map(shape).values()
    return {_bounds(index, shape) for index in held}


def _regions(slices: set[_Bounds]) -> list[_Bounds]:
    """What to read for several slices: all from the first to the last, where they fill that."""
    ends = [zip(*axis, strict=True) for axis in zip(*slices, strict=True)]
    hull = tuple((min(first), max(last)) for first, last in ends)
    if _size(hull) <= sum(map(_size, slices)):
        return [hull]
    return sorted(slices)


def _size(bounds: _Bounds) -> int:
    return math.prod(b - a for a, b in bounds)


def _make(parts: Mapping[_Bounds, np.ndarray], shape: tuple[int, ...], sharding: Sharding) -> Array:
    """An array of what was read of it; what the checkpoint has not of it is zeros."""

    def callback(index: tuple[slice, ...] | None) -> np.ndarray:
        bounds = _bounds(index, shape)
        region = next(r for r in parts if _within(bounds, r))
        inside = zip(bounds, region, strict=True)
        part = parts[region][tuple(slice(a - low, b - low) for (a, b), (low, _) in inside)]
        lacking = [(0, b - a - n) for (a, b), n in zip(bounds, part.shape, strict=True)]
        return np.pad(part, lacking) if any(n for _, n in lacking) else part

    return jax.make_array_from_callback(shape, sharding, callback)


def _within(inner: _Bounds, outer: _Bounds) -> bool:
    return all(o[0] <= i[0] and i[1] <= o[1] for i, o in zip(inner, outer, strict=True))


def _join(read: Array, fresh: Array, count: int, axis: int, sharding: Sharding) -> Array:
    """The first `count` tokens' rows of `read`, the other rows of `fresh`."""

    def join(read: Array, fresh: Array) -> Array:
        return jnp.where(jax.lax.broadcasted_iota(jnp.int32, read.shape, axis) < count, read, fresh)

    return jax.jit(join, out_shardings=sharding)(read, fresh)
