"""The script that tests of several processes start: the tiny run, one process of it.

    python -m tests.training.multiprocess_run DIRECTORY COORDINATOR PROCESSES INDEX [behind]

`behind`: process 1 does not see the newest checkpoint, as on a network's file system.
Status 130: asked to stop, and saved.
"""

import sys
import time
from pathlib import Path

from gr_jax import distributed
from gr_jax.console import quiet_libraries

quiet_libraries()
directory, coordinator, processes, index, *behind = sys.argv[1:]
distributed.initialize(coordinator, int(processes), int(index))

import jax  # noqa: E402

from gr_jax.training import Checkpoints, Interrupted, Partitioner, Partitioning  # noqa: E402
from tests.training.tiny_run import train_tiny  # noqa: E402

if behind and index == "1":
    Checkpoints.latest_step = property(lambda self: [None, *self.steps][-2])  # pyright: ignore
assert len(jax.devices()) == 4 * jax.process_count() == 4 * int(processes)
on = Partitioner.make(Partitioning(model_parallel=2, parameter_partitions=2))
try:
    train_tiny(Path(directory), on=on, log_period=1, progress=lambda *_: time.sleep(0.05))
except Interrupted as stop:
    print(stop)
    sys.exit(130)
print("finished")
