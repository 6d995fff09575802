"""The script that the kill -9 tests start: the tiny run, in the directory given."""

import sys
import time
from pathlib import Path

from gr_jax.console import quiet_libraries

quiet_libraries()

from tests.training.tiny_run import STEPS, train_tiny  # noqa: E402

directory, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else STEPS
train_tiny(directory, total_steps=steps, ema_decay=0.9, progress=lambda *_: time.sleep(0.05))
