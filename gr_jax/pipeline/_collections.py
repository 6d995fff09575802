"""Which collection a name means."""

from __future__ import annotations

from gr_jax.corpus import Collection, python_docs, read_collection
from gr_jax.errors import UserError
from gr_jax.files import local_path

PYTHON_DOCS = "python"


def load_collection(corpus: str, *, strict: bool = False) -> Collection:
    """The collection called `corpus`.

    Args:
      corpus: `python`, the embedded documentation of Python and its numerical packages, or a folder
        in BEIR's layout.
      strict: refuse documents without text instead of skipping them.

    Raises:
      UserError: no such folder, or something wrong in it.
    """
    if corpus == PYTHON_DOCS:  # a folder of that name is ./python
        return python_docs()
    folder = local_path(corpus)
    if not folder.exists():
        raise UserError(
            f"{corpus}: no such corpus folder; give one that holds corpus.jsonl, queries.jsonl and "
            f"qrels/, or {PYTHON_DOCS!r} for the embedded default"
        )
    return read_collection(folder, strict=strict)
