"""The tasks of a prepared model directory, for t5x or any other SeqIO program.

    GR_JAX_MODEL_DIR=model python my_program.py    # which does `import gr_jax.tasks.model_dir`

registers `gr_jax_index`, `gr_jax_synthetic`, `gr_jax_queries` (those that the corpus has) and the
mixture `gr_jax` of them, with the rates that the directory was prepared with.
"""

import os

from gr_jax.data import register_prepared
from gr_jax.errors import UserError

if "GR_JAX_MODEL_DIR" not in os.environ:
    raise UserError("set GR_JAX_MODEL_DIR to a model directory prepared by gr-jax")

MIXTURE = register_prepared(os.environ["GR_JAX_MODEL_DIR"])
