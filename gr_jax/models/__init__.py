"""T5 in Flax Linen with t5x's names, and the pure functions that the rest of gr_jax calls."""

from gr_jax.models._config import T5Config
from gr_jax.models._flops import decoding_flops, recomputation_flops, training_flops
from gr_jax.models._functions import (
    count_parameters,
    decode_train,
    encode,
    init_parameters,
    logical_axes,
)
from gr_jax.models._inference import (
    PRECISIONS,
    CrossCache,
    InferenceWeights,
    Past,
    Precision,
    decode_block,
    encode_cross,
    output_log_norm,
    output_logits,
)
from gr_jax.models._losses import LossSums, cross_entropy_loss
from gr_jax.models._prepare import ReadParameter, prepare_inference
from gr_jax.models._variants import VARIANTS

__all__ = [
    "PRECISIONS",
    "VARIANTS",
    "CrossCache",
    "InferenceWeights",
    "LossSums",
    "Past",
    "Precision",
    "ReadParameter",
    "T5Config",
    "count_parameters",
    "cross_entropy_loss",
    "decode_block",
    "decode_train",
    "decoding_flops",
    "encode",
    "encode_cross",
    "init_parameters",
    "logical_axes",
    "output_log_norm",
    "output_logits",
    "prepare_inference",
    "recomputation_flops",
    "training_flops",
]
