"""Where training starts: from a published T5, or any other checkpoint, or from nothing."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float
from scipy import sparse

from gr_jax.checkpoints import (
    EMBEDDING,
    HEAD,
    TARGET_EMBEDDING,
    ParameterSource,
    initialise_from,
    load_optimizer_state,
    open_checkpoint,
)
from gr_jax.data import MixtureCache
from gr_jax.errors import UserError
from gr_jax.models import T5Config, init_parameters
from gr_jax.pipeline._checks import check_shape, with_vocabulary, with_vocabulary_of
from gr_jax.pipeline._prepare import DataConfig
from gr_jax.pipeline._workspace import Workspace
from gr_jax.training import Optimizer, Start, moment_shardings

DOCID_TABLES = ("random", "documents", "checkpoint")
OPTIMIZERS = ("fresh", "checkpoint")
_BLOCK = 1024  # docid tokens whose text is averaged at a time


@dataclasses.dataclass(frozen=True)
class InitialCheckpoint:
    """The checkpoint that training starts from.

    Attributes:
      path: in any format of `gr_jax.checkpoints`, local or in a bucket; None for random parameters.
      docid_tables: what the tables of docid tokens start as, which no published checkpoint has:
        `random`; `documents`, the mean embedding of the text of the documents that a token stands
        for, as large as random rows are; or `checkpoint`, those of a checkpoint that was trained on
        the same docids.
      optimizer: what the optimizer's state starts as: `fresh`; or that of a `checkpoint`, saved
        for the same parameters: Adafactor's of t5x, or any of gr_jax, of which the parameters are
        then those that were trained, not their average.
    """

    path: str | None = None
    docid_tables: str = "random"
    optimizer: str = "fresh"

    def __post_init__(self):
        if self.docid_tables not in DOCID_TABLES:
            raise UserError(
                f"InitialCheckpoint.docid_tables is {self.docid_tables!r}: choose one of "
                f"{', '.join(DOCID_TABLES)}"
            )
        if self.optimizer not in OPTIMIZERS:
            raise UserError(
                f"InitialCheckpoint.optimizer is {self.optimizer!r}: choose one of "
                f"{', '.join(OPTIMIZERS)}"
            )
        for name in ("docid_tables", "optimizer"):
            if self.path is None and getattr(self, name) == "checkpoint":
                raise UserError(
                    f"InitialCheckpoint.{name} is 'checkpoint', without a checkpoint: give its "
                    "path (INITIAL_CHECKPOINT_PATH)"
                )

    def check(self, model: T5Config, data: DataConfig, workspace: Workspace) -> DataConfig:
        """Refuses a checkpoint that a run cannot start from, before anything is made for it.

        Args:
          model: the run's, with vocabularies of any size.
          data: the run's.
          workspace: of the run. One that goes on has its parameters, and needs no checkpoint.

        Returns:
          `data`, with the vocabulary that the checkpoint brings along.

        Raises:
          UserError: there is no checkpoint, or it is of another model or another vocabulary.
        """
        if self.path is None:
            return data
        if workspace.trained:
            return with_vocabulary_of(workspace.path, data)
        source = self._open(self.path)
        check_shape(source, model, docid_tables=self.docid_tables == "checkpoint")
        return with_vocabulary(source, data)

    def _open(self, path: str) -> ParameterSource:
        # the moments belong to the parameters, not to their average
        return open_checkpoint(path, "eval" if self.optimizer == "fresh" else "params")

    def origin(self) -> Start | None:
        """The record of where a run began, for one that goes on; None for random parameters."""
        given = dataclasses.asdict(self)
        return None if given == dataclasses.asdict(RANDOM_PARAMETERS) else Start(given)

    def start(
        self,
        config: T5Config,
        cache: MixtureCache,
        shardings: Any,
        optimizer: Optimizer,
        *,
        seed: int,
        docid_fingerprint: str,
    ) -> Start | None:
        """Where a run begins; None for random parameters.

        Args:
          config: the model.
          cache: the examples: what text each docid token stands for.
          shardings: of every parameter.
          optimizer: of the run.
          seed: of what is drawn at random.
          docid_fingerprint: of the docids that will be trained on.

        Raises:
          UserError: the checkpoint is of another model, has no such optimizer state, or is damaged.
        """
        start = self.origin()
        if start is None:
            return None
        key = jax.random.key(seed)
        if self.path is None:
            make = functools.partial(init_parameters, config)
            params = jax.jit(make, out_shardings=shardings)(key)
            return start._replace(params=with_document_tables(params, cache))
        source = self._open(self.path)
        if self.docid_tables == "checkpoint":
            if source.docid_fingerprint not in (None, docid_fingerprint):
                raise UserError(
                    f"{self.path}: trained on other docids; start with docid_tables='random', or "
                    "with the docid map that belongs to it"
                )
        elif TARGET_EMBEDDING in source.leaves:  # other docids' tables say nothing of these
            leaves = {n: x for n, x in source.leaves.items() if n not in (TARGET_EMBEDDING, HEAD)}
            source = dataclasses.replace(source, leaves=leaves)
        params = initialise_from(source, config, key, shardings, resized=(EMBEDDING,))
        if self.optimizer == "checkpoint":
            start = start._replace(opt_state=self._moments(source, config, shardings, optimizer))
        if self.docid_tables == "documents":
            params = with_document_tables(params, cache)
        return start._replace(params=params)

    def _moments(
        self, source: ParameterSource, config: T5Config, shardings: Any, optimizer: Optimizer
    ) -> Any:
        if source.format == "gr-jax" and self.docid_tables != "checkpoint":
            raise UserError(
                "InitialCheckpoint.optimizer is 'checkpoint': gr_jax's is of the docid tables too; "
                "give InitialCheckpoint.docid_tables='checkpoint' (DOCID_TABLES)"
            )
        if source.format != "gr-jax" and optimizer.name != "adafactor":
            raise UserError(
                "InitialCheckpoint.optimizer is 'checkpoint': t5x's state is Adafactor's, the run "
                f"has {optimizer.name}; give Optimizer.name='adafactor', or start 'fresh'"
            )
        make = functools.partial(init_parameters, config)
        params = jax.eval_shape(make, jax.random.key(0))
        state = jax.eval_shape(optimizer.make().init, params)
        placed = moment_shardings(state, params, shardings)
        return load_optimizer_state(source, config, state, placed, resized=(EMBEDDING,))


RANDOM_PARAMETERS = InitialCheckpoint()


def with_document_tables(params: Any, cache: MixtureCache) -> Any:
    """Parameters whose docid tokens start as the mean of their documents' token embeddings.

    Row t of `target_embedder` becomes the mean source embedding over the indexing examples (all
    examples, where there are none) whose docid has token t, each example counting as one, less the
    mean of all those rows, scaled to the standard deviation of the random rows; columns of the
    output layer likewise. Tokens of no document keep their random values.
    """
    flat: dict[str, Any] = dict(flatten_dict(params, sep="/"))
    weights = _text_of_tokens(cache, flat[TARGET_EMBEDDING].shape[0], flat[EMBEDDING].shape[0])
    known = np.asarray(weights.sum(axis=1)).ravel() > 0
    blocks: Any = [
        _product(weights[i : i + _BLOCK].toarray(), flat[EMBEDDING])
        for i in range(0, len(known), _BLOCK)
    ]
    means = jnp.concatenate(blocks)
    for name, axis in ((TARGET_EMBEDDING, 0), (HEAD, 1)):
        if name in flat:
            flat[name] = _filled(flat[name], means, known, axis=axis)
    return unflatten_dict(flat, sep="/")


def _text_of_tokens(cache: MixtureCache, tokens: int, pieces: int) -> sparse.csr_matrix:
    """[docid tokens, pieces of text]: how often a piece is in a token's examples; rows sum to 1."""
    tasks = [task for task in cache.tasks if task.name == "index"] or list(cache.tasks)
    total = sparse.csr_matrix((tokens, pieces), dtype=np.float32)
    for task in tasks:
        text, docids = (
            sparse.csr_matrix(
                (np.ones(len(task.tokens[f]), np.float32), task.tokens[f], task.offsets[f]),
                shape=(len(task), width),
            )
            for f, width in (("inputs", pieces), ("targets", tokens))
        )
        lengths = np.maximum(np.diff(task.offsets["inputs"]), 1)
        total += docids.T @ sparse.diags(1 / lengths) @ text
    sums = np.asarray(total.sum(axis=1)).ravel()
    return sparse.csr_matrix(sparse.diags(1 / np.maximum(sums, 1e-30)) @ total, dtype=np.float32)


@jax.jit
def _product(weights: Float[Array, "t v"], table: Float[Array, "v d"]) -> Float[Array, "t d"]:
    return jnp.einsum("tv,vd->td", weights, table, precision="highest")


@functools.partial(jax.jit, static_argnames="axis")
def _filled(
    table: Float[Array, "_ _"], means: Float[Array, "t d"], known: Bool[Array, " t"], *, axis: int
) -> Float[Array, "_ _"]:
    """`table` with scaled `means` where they are known; tokens are its axis `axis`."""
    rows = table if axis == 0 else table.T
    mask = known[:, None]
    centred = means - means.mean(axis=0, where=mask)
    scale = rows.std() / jnp.maximum(centred.std(where=mask), 1e-30)
    filled = jnp.where(mask, centred * scale, rows)
    return filled if axis == 0 else filled.T
