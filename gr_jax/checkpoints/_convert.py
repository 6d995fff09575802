"""What `gr-jax convert` and `gr-jax inspect` do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from gr_jax.checkpoints._fingerprint import fingerprint
from gr_jax.checkpoints._hugging_face_write import write_hugging_face
from gr_jax.checkpoints._lazy import LazyArray
from gr_jax.checkpoints._open import open_checkpoint
from gr_jax.checkpoints._source import Parameters, ParameterSource
from gr_jax.checkpoints._t5x_write import write_t5x_legacy, write_t5x_orbax
from gr_jax.errors import UserError
from gr_jax.files import local_path

Target = Literal["hf", "t5x", "t5x-orbax"]


def convert(
    path: str | Path,
    directory: str | Path,
    *,
    to: Target = "hf",
    scanned: bool = False,
    dtype: str | None = None,
    optimizer: bool = False,
    parameters: Parameters = "eval",
) -> ParameterSource:
    """Writes a checkpoint in another format; see `open_checkpoint` and the writers.

    At no time is more in memory than a block of one array (Orbax: one array).

    Returns:
      What was written.

    Raises:
      UserError: no checkpoint, an existing directory, or something that the format cannot hold.
    """
    source, directory = open_checkpoint(path, parameters), local_path(directory)
    if optimizer and source.averaged and parameters == "eval":
        raise UserError(
            f"{source.path}: its optimizer state is not of the average of the parameters; "
            "write those that were trained (--parameters params), or drop it"
        )
    rounded = None if dtype is None else np.dtype(jnp.dtype(dtype))
    if to == "hf":
        if scanned or optimizer:
            what = "scanned layout" if scanned else "optimizer state"
            raise UserError(f"Hugging Face's format has no {what}; write t5x or t5x-orbax")
        write_hugging_face(source, directory, dtype=rounded)
    else:
        write = write_t5x_legacy if to == "t5x" else write_t5x_orbax
        write(source, directory, scanned=scanned, dtype=rounded, optimizer=optimizer)
    return open_checkpoint(directory)


def describe(source: ParameterSource, *, digest: bool = True) -> dict[str, Any]:
    """All that is known of a checkpoint, as JSON; `digest` reads every parameter."""
    known = {
        "path": source.path,
        "format": source.format,
        "layout": source.layout,
        "step": source.step,
        "parameters": sum(leaf.size for leaf in source.leaves.values()),
        "bytes": source.nbytes,
        "averaged": source.averaged,
        "optimizer_bytes": sum(leaf.nbytes for leaf in source.optimizer.values()),
        "docid_fingerprint": source.docid_fingerprint,
        "config": dataclasses.asdict(source.config),
        "tree": {name: _leaf(leaf) for name, leaf in sorted(source.leaves.items())},
    }
    return known | ({"fingerprint": fingerprint(source)} if digest else {})


def _leaf(leaf: LazyArray) -> dict[str, Any]:
    return {"shape": list(leaf.shape), "dtype": leaf.dtype.name, "bytes": leaf.nbytes}


def describe_text(source: ParameterSource, *, digest: bool = True) -> str:
    """`describe` for people."""
    known = describe(source, digest=digest)
    width = max(map(len, known["tree"]))
    lines = [
        f"{name:{width}}  {leaf['dtype']:9}  {leaf['bytes']:>14,}  {tuple(leaf['shape'])}"
        for name, leaf in known["tree"].items()
    ]
    lines += [
        "",
        f"format       {known['format']}, layout {known['layout']}",
        f"step         {'not recorded' if known['step'] is None else known['step']}",
        f"parameters   {known['parameters']:,} in {known['bytes']:,} bytes",
    ]
    if known["averaged"]:
        lines.append("ema          yes: shown is the average of the parameters, as eval takes it")
    if known["optimizer_bytes"]:
        lines.append(f"optimizer    {known['optimizer_bytes']:,} bytes")
    lines.append(f"model        {source.config.to_json()}")
    if known["docid_fingerprint"]:
        lines.append(f"docids       {known['docid_fingerprint']}")
    if digest:
        lines.append(f"fingerprint  {known['fingerprint']}")
    return "\n".join(lines)
