"""Orbax checkpoints in t5x's layout: MODEL_DIR/checkpoint_<step>/."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from gr_jax import distributed
from gr_jax.checkpoints import saved_parameters
from gr_jax.errors import UserError, damage
from gr_jax.files import disk_errors
from gr_jax.models import T5Config
from gr_jax.training._optimizer import Optimizer
from gr_jax.training._schedule import Schedule

# What checkpoints were made with that are older than a setting; of a setting's own settings, the
# defaults, which are always what there was before.
_TRAINING_BEFORE = {
    "softmax": "full",
    "initial": None,
    "loss_normalizing_factor": None,
    "schedule": dataclasses.asdict(Schedule()),
    "optimizer": dataclasses.asdict(Optimizer()),
}
_MODEL_BEFORE = {
    field.name: field.default
    for field in dataclasses.fields(T5Config)
    if field.default is not dataclasses.MISSING
}
# nothing says what these were before they were recorded
_RECORDED_LATER = ("row_length", "max_per_row", "examples")
_EXECUTION = ("remat",)  # settings of a model that change no number but by rounding


@dataclasses.dataclass(frozen=True)
class RunIdentity:
    """What a checkpoint belongs to; a run only continues its own.

    Attributes:
      docid_fingerprint: of the `DocidMap` trained on.
      model: the `T5Config`, as JSON.
      seed: of initialisation, order and dropout.
      total_steps: the schedule's length.
      training: whatever else the parameters depend on (optimizer, schedule, batch size), as JSON.
    """

    docid_fingerprint: str
    model: str
    seed: int
    total_steps: int
    training: str = "{}"


class Checkpoints:
    """Saves in the background, atomically, and restores the newest."""

    def __init__(self, model_dir: Path, *, keep: int | None = 2, read_only: bool = False):
        """Opens `model_dir`, made if needed; `read_only` leaves it as it is.

        All processes of a run open it together to write; to read, each does so alone.
        """
        self._directory = Path(model_dir).absolute()
        if not read_only:
            with disk_errors(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                step_prefix="checkpoint",
                max_to_keep=None if read_only else keep,
                save_interval_steps=0 if read_only else 1,
                create=False,
                enable_async_checkpointing=not read_only,
                # a reader must not: they may be a save in flight
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
                multiprocessing_options=_alone() if read_only else _together(),
            ),
            item_names=("state", "identity"),
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in their order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, identity: RunIdentity) -> None:
        """Starts to save; returns as soon as the arrays are copied."""
        with disk_errors(self._directory):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    identity=ocp.args.JsonSave(dataclasses.asdict(identity)),
                ),
                force=True,
            )

    def wait(self) -> None:
        """Blocks until what was started is on disk."""
        with disk_errors(self._directory):
            self._manager.wait_until_finished()

    def wait_for(self, step: int) -> None:
        """Blocks until this host sees the checkpoint, which another does.

        Raises:
          UserError: it does not come.
        """
        path = self._directory / f"checkpoint_{step}"
        distributed.wait_until(path.exists, f"{path}: process 0 sees it and this host does not")

    def identity(self, step: int) -> RunIdentity:
        """Whose checkpoint it is.

        Raises:
          UserError: the record is missing or damaged.
        """
        path = self._directory / f"checkpoint_{step}"
        with damage(path, "not a checkpoint of gr-jax, or damaged"):
            saved = self._manager.restore(
                step, args=ocp.args.Composite(identity=ocp.args.JsonRestore())
            )
            return RunIdentity(**saved["identity"])

    def restore(self, step: int, abstract_state: Any, identity: RunIdentity) -> Any:
        """The state saved at `step`, in the shardings of `abstract_state`.

        Raises:
          UserError: another run's checkpoint, or a damaged one.
        """
        path = self._directory / f"checkpoint_{step}"
        saved = self.identity(step)
        for field in dataclasses.fields(RunIdentity):
            ours, theirs = getattr(identity, field.name), getattr(saved, field.name)
            if field.name == "training":
                ours, theirs = _training_settings(ours), _training_settings(theirs)
                for name in _RECORDED_LATER:
                    if name not in theirs:
                        ours.pop(name, None)
            elif field.name == "model":
                ours, theirs = model_settings(ours), model_settings(theirs)
            if ours != theirs:
                raise UserError(
                    f"{path}: made with {_difference(field.name, theirs, ours)}; "
                    "use another model directory"
                )
        before = [other for other in self.steps if other < step]
        mend = f"to go on from checkpoint_{before[-1]}" if before else "to begin again"
        what = f"damaged, or made with another optimizer or without ema_decay; delete it {mend}"
        with damage(path, what):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
            )
            return restored["state"]

    def close(self) -> None:
        """Waits for pending saves and releases the directory."""
        self.wait()
        self._manager.close()


def _together() -> ocp.options.MultiprocessingOptions:
    return ocp.options.MultiprocessingOptions()


def _alone() -> ocp.options.MultiprocessingOptions:
    """For what one process does while others may be waiting for it."""
    if jax.process_count() == 1:
        return _together()
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"only_{process}"
    )


def model_settings(text: str) -> dict[str, Any]:
    """What a model's parameters depend on, of `T5Config.to_json`'s text.

    The text may be older than some settings; those are filled in.
    """
    settings = _filled(_MODEL_BEFORE, json.loads(text))
    return {name: value for name, value in settings.items() if name not in _EXECUTION}


def _training_settings(text: str) -> dict[str, Any]:
    return _filled(_TRAINING_BEFORE, json.loads(text))


def _filled(before: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with what they lack, at every depth, as JSON has it."""
    filled = json.loads(json.dumps(before)) | settings
    for name, value in before.items():
        if isinstance(value, dict):
            filled[name] = _filled(value, filled[name])
    return filled


def _difference(name: str, theirs: Any, ours: Any) -> str:
    """The first thing in which two settings differ, with both values."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        key = next(k for k in sorted(theirs | ours) if theirs.get(k) != ours.get(k))
        return _difference(f"{name}.{key}", theirs.get(key), ours.get(key))
    return f"{name}={theirs}, this run has {ours}"


def load_eval_parameters(
    model_dir: Path, docid_fingerprint: str, step: int | None = None
) -> tuple[Any, int]:
    """The parameters to decode with, whole and on the default device; `Index` reads parts of them.

    Returns:
      The parameter tree and its step.

    Raises:
      UserError: as `find_eval_checkpoint`.
    """
    path, step = find_eval_checkpoint(model_dir, docid_fingerprint, step)
    arrays = {name: array.read() for name, array in saved_parameters(path).items()}
    return jax.device_put(unflatten_dict(arrays, sep="/"), jax.local_devices()[0]), step


def find_eval_checkpoint(
    model_dir: Path, docid_fingerprint: str, step: int | None = None
) -> tuple[Path, int]:
    """The checkpoint of `model_dir` to decode with, and its step.

    Args:
      model_dir: the model directory.
      docid_fingerprint: of the `DocidMap` that will be decoded.
      step: of the checkpoint; None for the newest.

    Raises:
      UserError: no checkpoint, a damaged one, or one trained on other docids.
    """
    checkpoints = Checkpoints(model_dir, read_only=True)
    try:
        steps = checkpoints.steps
        if not steps:
            raise UserError(f"{model_dir}: no checkpoint yet; train first")
        if step is None:
            step = steps[-1]
        elif step not in steps:
            known = ", ".join(map(str, steps))
            raise UserError(
                f"{model_dir}: no checkpoint of step {step}; there are {known} "
                "(TrainConfig.keep says how many are kept)"
            )
        path = Path(model_dir) / f"checkpoint_{step}"
        identity = checkpoints.identity(step)
        if identity.docid_fingerprint != docid_fingerprint:
            raise UserError(
                f"{path}: trained on docids {identity.docid_fingerprint[:12]}, the directory has "
                f"{docid_fingerprint[:12]}; restore the docid map that belongs to it"
            )
        return path, step
    finally:
        checkpoints.close()
