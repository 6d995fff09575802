"""gr_jax trains a T5 to be a search index: generative retrieval on JAX."""

from pathlib import Path as _Path

__version__ = "0.1.0"

# A wheel carries gin/ and tasks/ inside the package; in a checkout they stand beside it.
_here = _Path(__file__).resolve().parent
RESOURCES = _here if (_here / "gin").is_dir() else _here.parent
if _here != RESOURCES:
    __path__.append(str(RESOURCES))  # `gr_jax.tasks` is the checkout's tasks/
