"""From text to batches: SeqIO tasks, their token cache, and the resumable order of training.

Importing this package does not import TensorFlow; building a cache does.
"""

from gr_jax.data._batches import Batches, PackedBatch
from gr_jax.data._cache import MixtureCache, TaskCache, build_cache, register_prepared
from gr_jax.data._chunks import document_chunks
from gr_jax.data._examples import ExampleSource, write_examples
from gr_jax.data._exposure import Exposure, measure_exposure
from gr_jax.data._order import mixture_positions, permute
from gr_jax.data._tokenizer import (
    BYTES,
    Tokenizer,
    load_tokenizer,
    train_tokenizer,
    write_bytes_vocabulary,
)

__all__ = [
    "BYTES",
    "Batches",
    "ExampleSource",
    "Exposure",
    "MixtureCache",
    "PackedBatch",
    "TaskCache",
    "Tokenizer",
    "build_cache",
    "document_chunks",
    "load_tokenizer",
    "measure_exposure",
    "mixture_positions",
    "permute",
    "register_prepared",
    "train_tokenizer",
    "write_bytes_vocabulary",
    "write_examples",
]
