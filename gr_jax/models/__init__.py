"""T5 in Flax Linen with t5x's names, and the pure functions that the rest of gr_jax calls."""

from gr_jax.models._config import SIZES, T5Config
from gr_jax.models._functions import (
    CrossCache,
    SelfCache,
    count_parameters,
    decode_step,
    decode_train,
    encode,
    encode_cross,
    init_parameters,
    logical_axes,
)
from gr_jax.models._losses import LossSums, cross_entropy_loss

__all__ = [
    "SIZES",
    "CrossCache",
    "LossSums",
    "SelfCache",
    "T5Config",
    "count_parameters",
    "cross_entropy_loss",
    "decode_step",
    "decode_train",
    "encode",
    "encode_cross",
    "init_parameters",
    "logical_axes",
]
