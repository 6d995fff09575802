"""What a run has seen of each document."""

from __future__ import annotations

import json

from gr_jax.data import Exposure, MixtureCache, measure_exposure
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.pipeline._workspace import Workspace
from gr_jax.training import Checkpoints


def exposure(*, model_dir: str, step: int | None = None) -> Exposure:
    """How often the run in `model_dir` has seen each document.

    Args:
      model_dir: a trained one.
      step: up to which; any, past or to come. None for the newest checkpoint's.

    Raises:
      UserError: nothing trained there, or not on the docids and examples that are there now.
    """
    workspace = Workspace(model_dir)
    checkpoints = Checkpoints(workspace.path, read_only=True)
    try:
        newest = checkpoints.latest_step
        if newest is None:
            raise UserError(f"{workspace.path}: no checkpoint yet; train first")
        identity = checkpoints.identity(newest)
    finally:
        checkpoints.close()
    checkpoint = workspace.path / f"checkpoint_{newest}"
    docid_map = DocidMap.load(workspace.docids)
    if docid_map.fingerprint != identity.docid_fingerprint:
        raise UserError(
            f"{checkpoint}: trained on docids {identity.docid_fingerprint[:12]}, the directory has "
            f"{docid_map.fingerprint[:12]}; restore the docid map that belongs to it"
        )
    try:
        batch_size = json.loads(identity.training)["batch_size"]
    except KeyError as error:
        raise UserError(f"{checkpoint}: older than the record of batch sizes") from error
    try:
        return measure_exposure(
            MixtureCache.load(workspace.cache),
            docid_map,
            batch_size=batch_size,
            seed=identity.seed,
            steps=newest if step is None else step,
        )
    except ValueError as error:
        raise UserError(
            f"{workspace.cache}: not of the docids in {workspace.docids} ({error}); delete the "
            "directory and run the training command again"
        ) from error
