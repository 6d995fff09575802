"""What a command's end looks like to its caller."""

import subprocess
import sys

SCRIPT = """
import os, signal, sys, time
from gr_jax.console import guarded

def command():
    os.kill(os.getpid(), signal.{number})
    time.sleep(60)

status = guarded(command, stopped="stopped here")
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(status)
"""


def test_a_schedulers_signal_is_an_interruption_and_no_crash():
    """Launchers start an interrupted run again, and count crashes."""
    for number in ("SIGTERM", "SIGINT"):
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(number=number)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (130, "stopped here\n"), ended
