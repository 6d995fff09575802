"""The tasks of a prepared model directory, for t5x or any other SeqIO program.

    GR_JAX_MODEL_DIR=model python my_program.py    # which does `import gr_jax.tasks.model_dir`

registers `gr_jax_index`, `gr_jax_synthetic`, `gr_jax_queries` (those that the corpus has) and the
mixture `gr_jax` of them, with the rates that the directory was prepared with. The functions are for
`gin/t5x/gr_jax.gin`, which binds all of it in t5x.
"""

import os
from pathlib import Path

import seqio

from gr_jax.data import MixtureCache, register_prepared
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError

if "GR_JAX_MODEL_DIR" not in os.environ:
    raise UserError("set GR_JAX_MODEL_DIR to a model directory prepared by gr-jax")

MIXTURE = register_prepared(os.environ["GR_JAX_MODEL_DIR"])


def input_vocabulary() -> seqio.Vocabulary:
    """Of the text."""
    return seqio.get_mixture_or_task(MIXTURE).output_features["inputs"].vocabulary


def output_vocabulary() -> seqio.Vocabulary:
    """Of the docid tokens."""
    return seqio.get_mixture_or_task(MIXTURE).output_features["targets"].vocabulary


def docids() -> str:
    """The directory of the `DocidMap`."""
    return str(Path(os.environ["GR_JAX_MODEL_DIR"]) / "docids")


def feature_lengths() -> dict[str, int]:
    """The longest example, and room for the longest docid and an end token."""
    path = Path(os.environ["GR_JAX_MODEL_DIR"])
    tasks = MixtureCache.load(path / "cache").tasks
    longest = max(task.longest("inputs") for task in tasks)
    tokens = DocidMap.load(path / "docids").vocabulary.max_tokens
    return {"inputs": longest, "targets": tokens + 1}
