"""From text to batches: SeqIO tasks, their token cache, and the resumable order of training.

Importing this package does not import TensorFlow; building a cache does.
"""

from gr_jax.data._batches import Batches, PackedBatch
from gr_jax.data._build import build_cache
from gr_jax.data._cache import MixtureCache, TaskCache
from gr_jax.data._checks import check_tokens
from gr_jax.data._chunks import document_chunks
from gr_jax.data._examples import EXAMPLES_PER_FILE, ExampleSource, example_files, write_examples
from gr_jax.data._exposure import Exposure, measure_exposure
from gr_jax.data._local import local_copy
from gr_jax.data._mixture import ExampleMixture, MixtureSource, RegisteredMixture, register_prepared
from gr_jax.data._order import mixture_positions, permute
from gr_jax.data._tokenizer import (
    BYTES,
    ByteTokenizer,
    Tokenizer,
    is_bytes,
    load_tokenizer,
    train_tokenizer,
    write_bytes_vocabulary,
)

__all__ = [
    "BYTES",
    "EXAMPLES_PER_FILE",
    "Batches",
    "ByteTokenizer",
    "ExampleMixture",
    "ExampleSource",
    "Exposure",
    "MixtureCache",
    "MixtureSource",
    "PackedBatch",
    "RegisteredMixture",
    "TaskCache",
    "Tokenizer",
    "build_cache",
    "check_tokens",
    "document_chunks",
    "example_files",
    "is_bytes",
    "load_tokenizer",
    "local_copy",
    "measure_exposure",
    "mixture_positions",
    "permute",
    "register_prepared",
    "train_tokenizer",
    "write_bytes_vocabulary",
    "write_examples",
]
