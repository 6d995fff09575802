"""The script that the kill -9 test starts: the tiny run, in the directory given."""

import sys
import time
from pathlib import Path

from gr_jax.console import quiet_libraries

quiet_libraries()

from tests.training.tiny_run import train_tiny  # noqa: E402

train_tiny(Path(sys.argv[1]), ema_decay=0.9, progress=lambda *_: time.sleep(0.05))
