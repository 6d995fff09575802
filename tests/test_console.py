"""What a command's end looks like to its caller."""

import signal
import subprocess
import sys

import numpy as np

from gr_jax.console import guarded

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
            # shells start what is in their background with this signal ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        assert (ended.returncode, ended.stderr) == (130, "stopped here\n"), ended


def test_memory_that_does_not_suffice_is_one_line(capsys):
    def command():
        np.empty(1 << 60, np.uint8)

    assert guarded(command) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: this machine's memory does not suffice (Unable to allocate")
    assert error.count("\n") == 1

    def says_nothing():
        raise MemoryError

    assert guarded(says_nothing) == 1
    assert capsys.readouterr().err == "error: this machine's memory does not suffice\n"
