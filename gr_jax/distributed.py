"""Several processes, one per host, that run the same program: start, turns, and who writes files.

Arrays are global over all processes and JAX keeps those in step; what is here is for the rest:
stages that one process does for all, values that all must agree on. Every process has to see the
same files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from gr_jax.errors import UserError

_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds: preparing a large corpus takes its time
_turns = itertools.count()


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    index: int | None = None,
    *,
    wanted: bool = False,
    timeout: int = 300,
) -> None:
    """Joins the other processes of this run, if it has others; before JAX is used.

    Under Slurm's `srun` and on Cloud TPUs JAX finds them by itself; elsewhere all three arguments
    are needed.

    Args:
      coordinator: `host:port` of process 0; the port is free there.
      processes: how many there are.
      index: of this one, from 0.
      wanted: there are others: fail if they cannot be found.
      timeout: seconds to wait for the others.

    Raises:
      UserError: there should be others, and they do not answer.
    """
    given = (coordinator, processes, index)
    if given == (None, None, None) and not wanted and not _in_a_cluster():
        return
    try:
        jax.distributed.initialize(coordinator, processes, index, initialization_timeout=timeout)
    except (ValueError, TypeError, RuntimeError) as error:
        named = ", ".join(
            f"--{name}={value}"
            for name, value in zip(
                ("coordinator_address", "process_count", "process_index"), given, strict=True
            )
            if value is not None
        )
        line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"the other processes cannot be joined ({named or 'found by itself'}): {line}; give "
            "every process --coordinator_address=HOST:PORT, --process_count=N and "
            "--process_index=I"
        ) from error


def _in_a_cluster() -> bool:
    """Whether JAX can find this run's other processes by itself."""
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS") or 1) > 1:
        return all(name in os.environ for name in slurm)
    if (jax.config.jax_platforms or "tpu").partition(",")[0] != "tpu":  # pyright: ignore[reportAttributeAccessIssue]
        return False
    return any(Path(device).exists() for device in ("/dev/accel0", "/dev/vfio/0"))


def is_first() -> bool:
    """Whether this is the process that writes files and speaks to the user."""
    return jax.process_index() == 0


@contextlib.contextmanager
def first_process_first(name: str) -> Iterator[dict[str, Any]]:
    """Process 0 runs the block while the others wait; then they do, and find the work done.

    Args:
      name: what is done, for people. All processes come to all turns, in the same order.

    Yields:
      What process 0 tells the others: what it puts in (JSON) is what they find there.

    Raises:
      UserError: the block failed in process 0.
    """
    if jax.process_count() == 1:
        yield {}
        return
    # JAX has no public name for its own key-value store; Orbax uses it the same way
    from jax._src.distributed import global_state

    client: Any = global_state.client
    key = f"gr_jax/{next(_turns)}"
    if not is_first():
        answer = json.loads(client.blocking_key_value_get(key, _PATIENCE))
        if answer["error"]:
            raise UserError(f"{name} failed in process 0: {answer['error']}")
        yield answer["told"]
        return
    told: dict[str, Any] = {}
    error = "interrupted"
    try:
        yield told
        error = None
    except Exception as raised:
        error = " ".join(str(raised).split()) or type(raised).__name__
        raise
    finally:
        client.key_value_set(key, json.dumps({"told": told, "error": error}))


def from_first[T](name: str, value: T) -> T:
    """Process 0's `value` (JSON) in every process."""
    with first_process_first(name) as told:
        if is_first():
            told["value"] = value
    return told.get("value", value)


def only_first[T](name: str, work: Callable[[], T]) -> T | None:
    """Runs `work` in process 0 while the others wait; None there.

    Raises:
      UserError: it failed in process 0.
    """
    with first_process_first(name):
        return work() if is_first() else None
