"""Two processes that are one run."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start_two(module: str, *arguments: str, devices: int = 4) -> list[subprocess.Popen]:
    """Two processes of some CPU devices; `{port}` and `{index}` in the arguments are filled in."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *(a.format(port=port, index=i) for a in arguments)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, last line of output and errors of each; none of them outlives the test.

    XLA's collectives on CPUs announce themselves in the lines before.
    """
    try:
        for process in processes:
            process.wait(timeout=240)
    except subprocess.TimeoutExpired:
        print("killed: it did not end")
    for process in processes:
        process.kill()
    outputs = [process.communicate() for process in processes]
    return [
        (process.returncode, (output.splitlines() or [""])[-1], errors)
        for process, (output, errors) in zip(processes, outputs, strict=True)
    ]
