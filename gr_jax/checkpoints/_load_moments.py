"""An optimizer's state from a checkpoint onto devices, as the parameters go there."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from gr_jax.checkpoints._lazy import LazyArray, cast
from gr_jax.checkpoints._load import VOCABULARY_AXIS, new_parameters, place
from gr_jax.checkpoints._moments import FIELDS, OWN, own_state, split_state_name
from gr_jax.checkpoints._source import ParameterSource
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.models._layout import layer_name, split_name


def load_optimizer_state(
    source: ParameterSource,
    config: T5Config,
    state: Any,
    shardings: Any,
    *,
    resized: Collection[str] = (),
) -> Any:
    """The state of an optimizer, read from a checkpoint of t5x's Adafactor or of gr_jax.

    Moments of parameters that `new_parameters` names are zeros: also those of a `resized` table
    that has more rows than in the checkpoint. Of one that has fewer, the first rows are kept.

    Args:
      source: the checkpoint, in either layout.
      config: the model, in either layout.
      state: tree of what has the shape and dtype of the optimizer's state.
      shardings: tree of `Sharding`s like it. Only the slices of this process's devices are read.
      resized: see `load_parameters`.

    Raises:
      UserError: the checkpoint has another optimizer's state, or none, or it is damaged.
    """
    if not source.optimizer:
        raise UserError(
            f"{source.path}: has no optimizer state; give InitialCheckpoint.optimizer='fresh'"
        )
    new = new_parameters(source, config, resized=resized)
    given = own_state(source, config)
    paths, structure = jax.tree_util.tree_flatten_with_path(state)
    names = [OWN + jax.tree_util.keystr(k, simple=True, separator="/") for k, _ in paths]
    leaves, shapes = {}, {}
    for name, (_, wanted) in zip(names, paths, strict=True):
        dtype = np.dtype(wanted.dtype)
        shapes[name] = wanted.shape
        _, parameter = split_state_name(name)
        found = given.get(name)
        if found is not None and parameter in resized:
            found = _cut(found, source, parameter, wanted.shape)
        if parameter in new or (found is None and wanted.shape == (1,)):
            # of a moment that the optimizer does not use there is one zero, as in t5x
            leaves[name] = LazyArray.of(np.broadcast_to(np.zeros((), dtype), wanted.shape))
        elif found is not None and found.shape == wanted.shape:
            leaves[name] = cast(found, dtype)
        else:
            raise UserError(_refusal(source, config, name, found, wanted.shape))
    placed = place(leaves, shapes, dict(zip(names, jax.tree.leaves(shardings), strict=True)))
    return jax.tree.unflatten(structure, [placed[name] for name in names])


def _cut(
    moment: LazyArray, source: ParameterSource, table: str, shape: tuple[int, ...]
) -> LazyArray:
    """The moments of a table's first rows: `shape` has fewer than the checkpoint's table."""
    rows = source.leaves[table].shape[VOCABULARY_AXIS[table]]
    axes = [i for i, n in enumerate(moment.shape) if n == rows and i < len(shape)]
    if len(moment.shape) != len(shape) or len(axes) != 1 or shape[axes[0]] > rows:
        return moment
    at = axes[0]
    kept = (*moment.shape[:at], shape[at], *moment.shape[at + 1 :])
    return dataclasses.replace(moment, shape=kept)


def _refusal(
    source: ParameterSource,
    config: T5Config,
    name: str,
    found: LazyArray | None,
    wanted: tuple[int, ...],
) -> str:
    field, parameter = split_state_name(name)
    has = "nothing" if found is None else f"shape {found.shape}"
    what = f"{source.path}: has another optimizer's state: of {name.removeprefix(OWN)} it has {has}"
    what += f", this run's Optimizer needs {wanted}; "
    fresh = "InitialCheckpoint.optimizer='fresh' (INITIAL_OPTIMIZER)"
    if field not in FIELDS:
        return f"{what}give the Optimizer that it was trained with, or {fresh}"
    if field == "m":
        return f"{what}set Adafactor.beta1 as it was (None for no momentum), or give {fresh}"
    in_layer = split_name(parameter) or layer_name(parameter, 0)
    scan = source.layout in ("scanned", "stacked")
    if in_layer and (source.layout == "heads" or scan != config.scan_layers):
        return (
            f"{what}in the layout {source.layout!r} Adafactor factors other parameters than in "
            f"this run's: give {fresh}"
        )
    how = "Adafactor.factored and min_dim_size_to_factor"
    return f"{what}set {how} as they were, or give {fresh}"
