"""Between the layouts of an optimizer's state, as views: a moment is laid out as its parameter is.

A moment of a parameter's shape is stacked, taken apart and split into heads as the parameter is. Of
Adafactor's factored ones, `v_row` and `v_col` are named by t5x after sizes in one layout and after
axes in another: in a stack, and where heads have an axis, the row is the embedding axis, else the
shorter side. So between layouts they are the means `along_0` and `along_1` of one layer's matrix.
What is shared by layers in one layout and not in the other (position biases) has no counterpart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from gr_jax.checkpoints._canonical import ATTENTION, layers_of
from gr_jax.checkpoints._lazy import LastRead, LazyArray, merge_axes, split_axis, stack, take
from gr_jax.checkpoints._shapes import RELPOS, parameter_shapes
from gr_jax.checkpoints._source import ParameterSource
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.models._layout import LAYER_AXIS, layer_name, scanned_name, split_name

T5X = "state/param_states/"
OWN = "opt_state/"
FIELDS = ("m", "v", "v_row", "v_col")  # t5x's
_ALWAYS_FACTORED = 128  # t5x's min_dim_size_to_factor, of what is no stack

_FACTORED = ("v_row", "v_col")
_ALONG = ("along_0", "along_1")
_NAME = re.compile(r"(.*?)/?((?:encoder|decoder|token_embedder|target_embedder)/.+)")

# the moment's names in the optimizer's tree, and its parameter's; counts have no parameter
Key = tuple[str, str]


def moments_of(source: ParameterSource) -> dict[Key, LazyArray]:
    """The optimizer's state in the `layers` layout, without t5x's placeholders (one zero each)."""
    out: dict[Key, LazyArray] = {}
    last = LastRead()
    for name, leaf in source.optimizer.items():
        prefix, parameter = split_state_name(name)
        if not parameter:
            out[prefix, ""] = leaf
            continue
        if leaf.shape == (1,):
            continue
        head, field = _ends(prefix)
        if field not in _FACTORED:
            for part, layer in layers_of(parameter, leaf, last):
                out[prefix, part] = layer
            continue
        stacked = layer_name(parameter, 0) is not None
        by_rule = stacked or (source.layout == "heads" and ATTENTION.fullmatch(parameter))
        matrix = source.leaves.get(parameter, leaf).shape
        row = _embedding_axis(parameter) if by_rule else _shorter(matrix)
        axis = row if field == "v_row" else 1 - row
        layers = [(parameter, leaf)]
        if stacked:  # the layers stand where they do in the kernel, less the other axis
            at = LAYER_AXIS - axis
            count = leaf.shape[at]
            layers = [(layer_name(parameter, i) or "", take(leaf, i, at)) for i in range(count)]
        for part, mean in layers:
            mean = merge_axes(mean, 0) if len(mean.shape) == 2 else mean
            out[f"{head}{_ALONG[axis]}", part] = mean
    return out


def laid_out(
    moments: Mapping[Key, LazyArray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    scan: bool,
    head_dim: int | None = None,
) -> dict[Key, list[LazyArray] | LazyArray]:
    """A layout of what `moments_of` gives: the inverse.

    Args:
      moments: in the `layers` layout.
      shapes: of the parameters in that layout.
      scan: stack the layers; what lies along `LAYER_AXIS` is a list.
      head_dim: of t5x's `scanned` layout, where heads have an axis; None to keep them joined.
    """
    out: dict[Key, list[LazyArray] | LazyArray] = {}
    stacks: dict[Key, tuple[int, dict[int, LazyArray]]] = {}
    for (prefix, parameter), leaf in moments.items():
        head, field = _ends(prefix)
        in_layer = split_name(parameter) is not None
        attention = ATTENTION.fullmatch(parameter)
        heads_at = 0 if attention and attention[1] == "out" else 1
        at = LAYER_AXIS
        if field in _ALONG:
            axis = _ALONG.index(field)
            by_rule = scan and in_layer
            row = _embedding_axis(parameter) if by_rule else _shorter(shapes.get(parameter, ()))
            prefix = head + _FACTORED[axis != row]
            at = LAYER_AXIS - axis
            if attention and head_dim is not None and axis == heads_at:
                leaf = split_axis(leaf, 0, head_dim)
        elif attention and head_dim is not None:
            leaf = split_axis(leaf, heads_at, head_dim)
        if scan and in_layer:
            name, layer = scanned_name(parameter)
            stacks.setdefault((prefix, name), (at, {}))[1][layer] = leaf
        else:
            out[prefix, parameter] = leaf
    for (prefix, name), (at, found) in stacks.items():
        layers = [found[i] for i in sorted(found)]
        factored = _ends(prefix)[1] in _FACTORED
        out[prefix, name] = stack(layers, at) if factored else layers
    return out


def own_state(source: ParameterSource, config: T5Config) -> dict[str, LazyArray]:
    """The optimizer's state by gr_jax's names, in the layout of `config`; t5x's is Adafactor's."""
    laid = laid_out(moments_of(source), parameter_shapes(config), scan=config.scan_layers)
    state = {
        OWN + "/".join(filter(None, key)): stack(x, LAYER_AXIS) if isinstance(x, list) else x
        for key, x in laid.items()
    }
    if source.format != "gr-jax":
        state[f"{OWN}count"] = LazyArray.of(np.asarray(source.step or 0, np.int32))
    return state


def t5x_state(source: ParameterSource, *, scanned: bool) -> dict[str, list[LazyArray] | LazyArray]:
    """The optimizer's state by t5x's names, in its layout `layers` or `scanned`.

    Raises:
      UserError: it is not Adafactor's, or what it has of a parameter is not what that layout has.
    """
    moments = {key: leaf for key, leaf in moments_of(source).items() if key[1]}
    if not moments or not {field for field, _ in moments} <= {*FIELDS, *_ALONG}:
        raise UserError(
            f"{source.path}: holds no t5x optimizer state, nor gr-jax's Adafactor's; drop it"
        )
    _check_exact(source, moments, scanned)
    shapes = parameter_shapes(source.config)
    head_dim = source.config.head_dim if scanned else None
    laid = laid_out(moments, shapes, scan=scanned, head_dim=head_dim)
    nothing = LazyArray.of(np.zeros(1, np.float32))
    out = {}
    for parameter in dict.fromkeys(parameter for _, parameter in laid):
        for field in FIELDS:
            name = f"{T5X}{parameter}/{field}"
            # t5x reads no placeholder, and a copy has the one that was there
            placeholder = source.optimizer.get(name, nothing)
            placeholder = placeholder if placeholder.shape == (1,) else nothing
            out[name] = laid.get((field, parameter), placeholder)
    return out


def _check_exact(source: ParameterSource, moments: Mapping[Key, LazyArray], scanned: bool) -> None:
    """Refuses what t5x keeps otherwise in the layout that is asked for."""
    refusal = f"{source.path}: its optimizer state cannot be in the layout "
    refusal += f"{'scanned' if scanned else 'layers'!r}: "
    per_layer = any(name.endswith(RELPOS) and split_name(name) for _, name in moments)
    if per_layer != (scanned or source.config.relpos_per_layer):
        raise UserError(
            f"{refusal}position biases are shared by the layers there or here only, and so are "
            "their moments; drop it, or keep the layout"
        )
    if source.layout == "layers" and not scanned:
        return
    if source.layout in ("scanned", "stacked") and scanned:
        return
    factored = any(_ends(prefix)[1] in _ALONG for prefix, _ in moments)
    for field, parameter in moments:
        if not (split_name(parameter) and parameter.endswith("/kernel")):
            continue
        shape = source.leaves[parameter].shape
        if min(shape) < _ALWAYS_FACTORED or (factored and field == "v"):
            raise UserError(
                f"{refusal}t5x factors the moments of {parameter} {shape} in stacks of layers "
                "and where heads have an axis, not elsewhere; drop it, or keep the layout"
            )


def split_state_name(name: str) -> Key:
    """`state/param_states/P/v` or `opt_state/v/P` -> (`v`, P); what has no parameter: (.., '')."""
    if name.startswith(T5X):
        parameter, _, field = name.removeprefix(T5X).rpartition("/")
        return field, parameter
    name = name.removeprefix(OWN)
    match = _NAME.fullmatch(name)
    return (match[1], match[2]) if match else (name, "")


def _ends(prefix: str) -> Key:
    head, slash, field = prefix.rpartition("/")
    return head + slash, field


def _embedding_axis(name: str) -> int:
    """Of a layer's matrix: what ends a sub-layer is [.., embed], what begins one [embed, ..]."""
    return int(name.split("/")[-2] in ("out", "wo"))


def _shorter(shape: tuple[int, ...]) -> int:
    return int(len(shape) == 2 and shape[0] > shape[1])
