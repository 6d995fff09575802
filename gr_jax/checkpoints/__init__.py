"""T5 checkpoints of every format, read lazily and slice by slice, and written one array at a time.

Hugging Face safetensors (T5, T5 1.1, Flan, mT5, ByT5, umT5), t5x's own format, t5x's Orbax format
in both layouts, and gr_jax's own Orbax checkpoints; see docs/checkpoints.md.
"""

from gr_jax.checkpoints._convert import convert, describe, describe_text
from gr_jax.checkpoints._fingerprint import fingerprint
from gr_jax.checkpoints._hugging_face_write import export_notes, write_hugging_face
from gr_jax.checkpoints._lazy import LazyArray
from gr_jax.checkpoints._load import initialise_from, load_parameters, new_parameters
from gr_jax.checkpoints._load_moments import load_optimizer_state
from gr_jax.checkpoints._open import open_checkpoint
from gr_jax.checkpoints._orbax import saved_parameters
from gr_jax.checkpoints._shapes import EMBEDDING, HEAD, TARGET_EMBEDDING, parameter_shapes
from gr_jax.checkpoints._source import ParameterSource, from_parameters
from gr_jax.checkpoints._t5x_write import write_t5x_legacy, write_t5x_orbax

__all__ = [
    "EMBEDDING",
    "HEAD",
    "TARGET_EMBEDDING",
    "LazyArray",
    "ParameterSource",
    "convert",
    "describe",
    "describe_text",
    "export_notes",
    "fingerprint",
    "from_parameters",
    "initialise_from",
    "load_optimizer_state",
    "load_parameters",
    "new_parameters",
    "open_checkpoint",
    "parameter_shapes",
    "saved_parameters",
    "write_hugging_face",
    "write_t5x_legacy",
    "write_t5x_orbax",
]
