"""Which format a path holds."""

from __future__ import annotations

import re
from pathlib import Path

from gr_jax.checkpoints._hugging_face import INDEX, WEIGHTS, open_hugging_face
from gr_jax.checkpoints._orbax import METADATA, STATE, open_orbax
from gr_jax.checkpoints._source import Parameters, ParameterSource
from gr_jax.checkpoints._t5x_legacy import CHECKPOINT, open_legacy
from gr_jax.errors import UserError, damage

_STEP = re.compile(r"checkpoint_(\d+)")


def open_checkpoint(path: str | Path, parameters: Parameters = "eval") -> ParameterSource:
    """Opens a T5 checkpoint of any format; nothing but names and shapes is read.

    Args:
      path: Hugging Face's folder or a safetensors file; a t5x checkpoint of either format, here or
        (its own format) at `gs://` or `s3://`; a `checkpoint_N` of gr_jax; or a directory of
        `checkpoint_N`, of which the newest is opened.
      parameters: of a `checkpoint_N` of gr_jax, what is decoded with (`eval`: the average where
        there is one) or what is trained (`params`); other formats have one set of parameters.

    Raises:
      UserError: nothing that is known, or a damaged checkpoint.
    """
    if "://" in str(path):
        scheme, _, rest = str(path).partition("://")
        return open_legacy(f"{scheme}://{rest.rstrip('/')}")
    with damage(path, "cannot be opened"):
        path = Path(path).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    if is_file:
        return open_hugging_face(path) if path.suffix == ".safetensors" else open_legacy(str(path))
    if not is_folder:
        raise UserError(f"{path}: no such file or directory")
    if (path / WEIGHTS).exists() or (path / INDEX).exists():
        return open_hugging_face(path)
    if (path / STATE).is_dir() or (path / METADATA).exists():
        return open_orbax(path, parameters)
    if (path / CHECKPOINT).is_file():
        return open_legacy(str(path))
    steps = {int(m[1]): p for p in path.iterdir() if (m := _STEP.fullmatch(p.name))}
    if steps:
        return open_checkpoint(steps[max(steps)], parameters)
    if any(path.glob("pytorch_model*.bin")):
        raise UserError(
            f"{path}: holds pickled weights, which gr-jax does not load; save them with "
            "transformers' save_pretrained, which writes safetensors"
        )
    raise UserError(
        f"{path}: no T5 checkpoint: it has neither {WEIGHTS} (Hugging Face) nor {CHECKPOINT} "
        f"(t5x) nor {STATE}/{METADATA} (Orbax) nor a checkpoint_<step>"
    )
