"""Adafactor (Shazeer and Stern 2018) as t5x has it.

`optax.adafactor` gives the same steps for matrices in float32 and nothing else: it takes a stack of
scanned layers for one array (one clipping, one scale and one pair of factored axes for all layers),
keeps statistics in the parameters' dtype, and its momentum has no learning rate in it. So this is
ours. Two things follow t5x to the letter because checkpoints depend on them:

- A matrix of its own is factored where both sides have `min_dim_size_to_factor` elements, and the
  shorter side is the row. A stack of matrices is always factored, and the row is what t5x's
  `standard_logical_factor_rules` says: the embedding axis.
- Root mean squares are those of a layer. With `factored=False` they are those of the whole stack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from gr_jax.errors import UserError
from gr_jax.models._layout import LAYER_AXIS, layer_name

_SQUARE_FLOOR = 1e-30  # t5x's epsilon1
_SCALE_FLOOR = 1e-3  # t5x's epsilon2
_MOMENTS = ("m", "v", "v_row", "v_col")


@dataclasses.dataclass(frozen=True)
class Adafactor:
    """t5x's `adafactor.Adafactor`, with its names and defaults.

    t5x's `global_norm_clip_threshold` is `Optimizer.clip_norm`, which is 1 there by default and
    None in t5x.

    Attributes:
      decay_rate: the second moment's decay at step t (from 1) is 1 - t^-decay_rate.
      step_offset: steps after which t counts from 1 again: where the pretraining ended whose state
        the run continues. t stays 1 until then.
      beta1: decay of a momentum over whole steps, learning rate included; None for none.
      factored: keep the second moments of a matrix's rows and columns only.
      min_dim_size_to_factor: sides that a matrix needs for it; stacks of layers need none.
      multiply_by_parameter_scale: steps are in units of the parameter's root mean square.
      clipping_threshold: root mean square of a step at most, before the learning rate; or None.
      weight_decay_rate: fraction of a parameter that each step takes away, whatever the learning
        rate; None for nothing.
      weight_decay_rate_lr_exponent: multiplies that (or 1) by the learning rate to this power.
    """

    decay_rate: float = 0.8
    step_offset: int = 0
    beta1: float | None = None
    factored: bool = True
    min_dim_size_to_factor: int = 128
    multiply_by_parameter_scale: bool = True
    clipping_threshold: float | None = 1.0
    weight_decay_rate: float | None = None
    weight_decay_rate_lr_exponent: float | None = None

    def __post_init__(self):
        if self.beta1 is not None and not 0 <= self.beta1 < 1:
            raise UserError(f"Adafactor.beta1 is {self.beta1}: from 0 to less than 1, or None")
        if self.clipping_threshold is not None and self.clipping_threshold <= 0:
            raise UserError(
                f"Adafactor.clipping_threshold is {self.clipping_threshold}: more than 0, or None"
            )


class AdafactorState(NamedTuple):
    """t5x's `state/step` and, for each of its four moments, a tree like that of the parameters.

    Attributes:
      count: int32, steps done.
      m: momentum.
      v: second moments that are not factored.
      v_row: factored ones, averaged over the columns.
      v_col: averaged over the rows.

    A moment that a parameter lacks is one zero, as in t5x; all are float32.
    """

    count: Int[Array, ""]
    m: Any
    v: Any
    v_row: Any
    v_col: Any


class _Axes(NamedTuple):
    """Over which axes of a parameter something is averaged.

    Attributes:
      one: those of one layer: root mean squares are over these.
      row: the row axis of what is factored, or None.
      column: the column axis.
    """

    one: tuple[int, ...]
    row: int | None = None
    column: int | None = None

    def shapes(self, shape: tuple[int, ...], *, momentum: bool) -> dict[str, tuple[int, ...]]:
        """Of the four moments."""
        shapes = dict.fromkeys(_MOMENTS, (1,)) | ({"m": shape} if momentum else {})
        if self.row is None or self.column is None:
            return shapes | {"v": shape}
        without = lambda axis: shape[:axis] + shape[axis + 1 :]  # noqa: E731
        return shapes | {"v_row": without(self.column), "v_col": without(self.row)}


def _axes(settings: Adafactor, name: str, shape: tuple[int, ...]) -> _Axes:
    every = tuple(range(len(shape)))
    if not settings.factored:
        return _Axes(every)
    if layer_name(name, 0) is not None:
        one = tuple(axis for axis in every if axis != LAYER_AXIS)
        *_, parent, leaf = name.split("/")
        if leaf != "kernel":
            return _Axes(one)
        # [out, layers, embed] where a sub-layer ends, [embed, layers, in] where it begins
        ends = parent in ("out", "wo")
        return _Axes(one, *(reversed(one) if ends else one))
    if len(shape) < 2:
        return _Axes(every)
    *_, shorter, longer = np.argsort(shape, kind="stable").tolist()
    if shape[shorter] < settings.min_dim_size_to_factor:
        return _Axes(every)
    return _Axes(every, shorter, longer)


def adafactor(
    settings: Adafactor, rate_of: Callable[[str], float] = lambda _: 1.0
) -> optax.GradientTransformationExtraArgs:
    """The transformation of gradients into updates; its state is an `AdafactorState`.

    Its `update` takes one more argument, `learning_rate`: momentum and weight decay depend on it.

    Args:
      settings: see `Adafactor`.
      rate_of: multiple of the learning rate for a parameter, by its name.
    """

    def init(params: Any) -> AdafactorState:
        return _fresh(settings, params)

    def update(grads, state, params=None, *, learning_rate=1.0, **_):
        past = jnp.maximum(state.count - settings.step_offset, 0)
        decay = 1.0 - (past.astype(jnp.float32) + 1.0) ** -settings.decay_rate
        flat = {field: _flat(getattr(state, field)) for field in _MOMENTS}
        grads, params = _flat(grads), _flat(params)
        updates, moments = {}, {field: {} for field in _MOMENTS}
        for name, gradient in grads.items():
            updates[name], after = _update(
                settings,
                _axes(settings, name, gradient.shape),
                gradient.astype(jnp.float32),
                params[name].astype(jnp.float32),
                {field: flat[field][name] for field in _MOMENTS},
                decay,
                learning_rate * rate_of(name),
            )
            for field in _MOMENTS:
                moments[field][name] = after[field]
        return unflatten_dict(updates, sep="/"), _state(state.count + 1, moments)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _flat(tree: Any) -> dict[str, Any]:
    """Leaves by t5x's names."""
    return dict(flatten_dict(tree, sep="/"))


def _state(count: Array, moments: dict[str, dict[str, Any]]) -> AdafactorState:
    return AdafactorState(
        count, **{field: unflatten_dict(of, sep="/") for field, of in moments.items()}
    )


def _fresh(settings: Adafactor, params: Any) -> AdafactorState:
    moments = {field: {} for field in _MOMENTS}
    for name, leaf in _flat(params).items():
        shapes = _axes(settings, name, leaf.shape).shapes(
            leaf.shape, momentum=settings.beta1 is not None
        )
        for field, shape in shapes.items():
            moments[field][name] = jnp.zeros(shape, jnp.float32)
    return _state(jnp.zeros((), jnp.int32), moments)


def _update(
    settings: Adafactor,
    axes: _Axes,
    gradient: Float[Array, "*shape"],
    param: Float[Array, "*shape"],
    moments: dict[str, Float[Array, "..."]],
    decay: Float[Array, ""],
    rate: Any,
) -> tuple[Float[Array, "*shape"], dict[str, Float[Array, "..."]]]:
    """What is added to one parameter, and its moments after that."""
    after = dict(moments)
    square = gradient * gradient + _SQUARE_FLOOR
    if axes.row is None or axes.column is None:
        v = after["v"] = decay * moments["v"] + (1.0 - decay) * square
        step = gradient * v**-0.5
    else:
        row, column = axes.row, axes.column
        v_row = decay * moments["v_row"] + (1.0 - decay) * square.mean(column)
        v_col = decay * moments["v_col"] + (1.0 - decay) * square.mean(row)
        after |= {"v_row": v_row, "v_col": v_col}
        relative = v_row / v_row.mean(row - (column < row), keepdims=True)
        step = gradient * jnp.expand_dims(relative**-0.5, column)
        step *= jnp.expand_dims(v_col**-0.5, row)
    if settings.clipping_threshold is not None:
        step /= jnp.maximum(1.0, _rms(step, axes.one) / settings.clipping_threshold)
    step *= rate
    if settings.multiply_by_parameter_scale:
        step *= jnp.maximum(_rms(param, axes.one), _SCALE_FLOOR)
    if settings.beta1 is not None:
        step = after["m"] = settings.beta1 * moments["m"] + (1.0 - settings.beta1) * step
    pull = settings.weight_decay_rate
    if settings.weight_decay_rate_lr_exponent:
        pull = (pull or 1.0) * rate**settings.weight_decay_rate_lr_exponent
    if pull is not None:
        step += pull * param
    return -step, after


def _rms(x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    return jnp.sqrt((x * x).mean(axes, keepdims=True))
