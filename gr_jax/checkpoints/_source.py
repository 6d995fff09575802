"""`ParameterSource`: a checkpoint of any format as named arrays that are read when asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gr_jax.checkpoints._canonical import canonical
from gr_jax.checkpoints._lazy import LazyArray
from gr_jax.checkpoints._shapes import infer_config
from gr_jax.errors import UserError
from gr_jax.models import T5Config

Format = Literal["hugging face", "t5x", "t5x orbax", "gr-jax", "memory"]
Parameters = Literal["eval", "params"]

_NOT_IN_SHAPES = (
    "mlp_activations",
    "embedding_init",
    "dropout_rate",
    "relpos_max_distance",
    "remat",
    "dtype",
)


@dataclasses.dataclass(frozen=True)
class ParameterSource:
    """A T5 that lies somewhere: what it has, and how to read any part of it.

    Whatever the format, parameters have t5x's names in the unscanned layout and 2-D kernels:
    `encoder/layers_0/attention/query/kernel` [embed, heads * kv]. Position biases that are equal in
    all layers of both stacks are shown as `encoder/relpos_bias/rel_embedding`, wherever they lie.

    Attributes:
      path: where it lies.
      format: what it is written in.
      leaves: name -> parameter.
      config: the model; activation functions, distances and dropout are those of the record beside
        the parameters (`config.json`, a run's identity), else the published ones.
      step: of training, where the format has one.
      optimizer: the optimizer's state as it lies, by its own names: t5x's `state/param_states/...`,
        our own `opt_state/...`.
      layout: of the file: `layers` (t5x's `examples/t5`), `heads` (`examples/scalable_t5`, not
        scanned), `scanned` (the same, scanned), `stacked` (gr-jax's own scanned layout).
      docid_fingerprint: of the `DocidMap` that its target tokens belong to, where it is recorded.
      averaged: whether there is an average of the parameters (our own `ema`) beside them.
      recorded: which fields of `config` that parameters do not show are the record's.
      record: what else the format says about the model (`config.json` of Hugging Face).
    """

    path: str
    format: Format
    leaves: Mapping[str, LazyArray]
    config: T5Config
    step: int | None = None
    optimizer: Mapping[str, LazyArray] = MappingProxyType({})
    layout: str = "layers"
    docid_fingerprint: str | None = None
    averaged: bool = False
    recorded: frozenset[str] = frozenset()
    record: Mapping[str, Any] = MappingProxyType({})

    def read(self, name: str, index: Sequence[slice] | None = None) -> np.ndarray:
        """A slice per axis of one parameter, or all of it; reads no more than that (or its chunks).

        Raises:
          UserError: the file is damaged, or has gone.
        """
        return self.leaves[name].read(index)

    @property
    def nbytes(self) -> int:
        """Size of the parameters in bytes."""
        return sum(leaf.nbytes for leaf in self.leaves.values())


def make_source(
    path: str,
    format: Format,
    raw: Mapping[str, LazyArray],
    *,
    config: T5Config | None = None,
    known: Mapping[str, Any] | None = None,
    **others: Any,
) -> ParameterSource:
    """A source from parameters in any layout.

    Args:
      path: where they lie.
      format: what they are written in.
      raw: name -> parameter, as they lie.
      config: the model, where the format records it.
      known: see `infer_config`.
      **others: the remaining fields of `ParameterSource`.

    Raises:
      UserError: they are not those of a T5.
    """
    leaves, layout, num_heads = canonical(path, raw)
    if config is not None:
        num_heads = config.num_heads
        known = {name: getattr(config, name) for name in _NOT_IN_SHAPES}
    inferred = infer_config(path, leaves, num_heads=num_heads, known=known)
    if config is not None and inferred != dataclasses.replace(
        config, relpos_per_layer=inferred.relpos_per_layer, scan_layers=False
    ):
        raise UserError(f"{path}: its parameters are not those of the model it records")
    recorded = frozenset(known or ())
    return ParameterSource(
        path, format, leaves, inferred, layout=layout, recorded=recorded, **others
    )


def make_t5x_source(path: str, format: Format, leaves: Mapping[str, LazyArray]) -> ParameterSource:
    """A source from all that t5x saves: `target/...`, `state/step`, `state/param_states/...`.

    Raises:
      UserError: the parameters are not those of a T5.
    """
    step = leaves.get("state/step")
    return make_source(
        path,
        format,
        leaves_under("target/", leaves),
        step=None if step is None else int(step.read().item()),
        optimizer={n: x for n, x in leaves.items() if n.startswith("state/param_states/")},
    )


def leaves_under(prefix: str, leaves: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    """Those of a branch, by their names within it."""
    return {n.removeprefix(prefix): x for n, x in leaves.items() if n.startswith(prefix)}


def from_parameters(
    parameters: Any, config: T5Config | None = None, *, step: int | None = None
) -> ParameterSource:
    """A parameter tree (numpy or `jax.Array`, either layout) as a source, for the writers."""
    leaves: dict[str, Any] = dict(flatten_dict(parameters, sep="/"))
    raw = {
        name: LazyArray(leaf.shape, np.dtype(leaf.dtype), _slice_of(leaf))
        for name, leaf in leaves.items()
    }
    return make_source("the parameters", "memory", raw, config=config, step=step)


def _slice_of(leaf: np.ndarray | jax.Array):
    return lambda index: np.asarray(leaf[index])
