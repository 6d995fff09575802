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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from gr_jax.errors import UserError

_PATIENCE = 7 * 24 * 3600 * 1000  # milliseconds: preparing a large corpus takes its time
_FILE_PATIENCE = 60.0  # seconds; NFS keeps what it knows of a directory so long
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
    client, key = _turn()
    if not is_first():
        answer = json.loads(client.blocking_key_value_get(key, _PATIENCE))
        if answer["error"]:
            raise UserError(f"{name} failed in process 0: {answer['error']}")
        yield answer["told"]
        return
    told: dict[str, Any] = {}
    with _error_told(lambda error: client.key_value_set(key, _json(told=told, error=error))):
        yield told


@contextlib.contextmanager
def together(name: str) -> Iterator[None]:
    """All processes run the block; if it fails in one of them, it fails in all.

    Raises:
      UserError: it failed in another process.
    """
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        yield
        return
    client, key = _turn()
    with _error_told(lambda error: client.key_value_set(f"{key}/{index}", _json(error=error))):
        yield
    for other in range(count):
        answer = json.loads(client.blocking_key_value_get(f"{key}/{other}", _PATIENCE))
        if answer["error"]:
            raise UserError(f"{name} failed in process {other}: {answer['error']}")


def _turn() -> tuple[Any, str]:
    """JAX's own key-value store, for which it has no public name (Orbax takes it so too); a key."""
    from jax._src.distributed import global_state

    return global_state.client, f"gr_jax/{next(_turns)}"


@contextlib.contextmanager
def _error_told(tell: Callable[[str | None], None]) -> Iterator[None]:
    """Tells what goes wrong in the block, None if nothing does."""
    error = "interrupted"
    try:
        yield
        error = None
    except Exception as raised:
        error = " ".join(str(raised).split()) or type(raised).__name__
        raise
    finally:
        tell(error)


def _json(**fields: Any) -> str:
    return json.dumps(fields)


def wait_until(there: Callable[[], bool], otherwise: str) -> None:
    """Waits until this host sees what another has written.

    Raises:
      UserError: `otherwise`; it does not come to see it.
    """
    deadline = time.monotonic() + _FILE_PATIENCE
    while not there():
        if time.monotonic() > deadline:
            raise UserError(
                f"{otherwise}; MODEL_DIR has to lie on a file system that all hosts share"
            )
        time.sleep(_FILE_PATIENCE / 60)


def from_first[T](name: str, find: Callable[[], T]) -> T:
    """What `find` gives in process 0 (JSON), which alone calls it, in every process.

    Raises:
      UserError: it failed in process 0.
    """
    with first_process_first(name) as told:
        if is_first():
            told["value"] = find()
    return told["value"]


def only_first[T](name: str, work: Callable[[], T]) -> T | None:
    """Runs `work` in process 0 while the others wait; None there.

    Raises:
      UserError: it failed in process 0.
    """
    with first_process_first(name):
        return work() if is_first() else None
