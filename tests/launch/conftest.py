"""A machine on which every command that costs money is a fake that records what it was given."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LAUNCH = CHECKOUT / "launch"

# none of these may ever be the real one
PYTHONS = "pip python python3 python3.12 python3.13"
CLOUD = f"docker gcloud kubectl {PYTHONS} sbatch scontrol srun sudo xpk"

# `pop FILE` answers with the next of the lines that a test has put there, the last one for ever.
PREAMBLE = """#!/bin/bash
exec 8>>"$FAKES/lock"
flock 8
printf '%s\\0' "${0##*/}" "$@" $'\\036' >>"$FAKES/calls"
flock -u 8
pop() {
  flock 8
  head -n 1 "$FAKES/$1"
  if [[ $(wc -l <"$FAKES/$1") -gt 1 ]]; then sed -i 1d "$FAKES/$1"; fi
  flock -u 8
}
"""

# One worker's worth of cloud: what is copied to it lands in its home, what is run on it runs there.
# Tests say with what status these verbs end.
CLOUD_WORKER = """
for verb in create delete scp wait-until; do
  if [[ $* == *" $verb "* && -f $FAKES/$verb ]]; then
    status=$(pop "$verb")
    ((status == 0)) || exit "$status"
  fi
done
case "$*" in
  *" scp "*)
    for word in "$@"; do
      if [[ $word == *:gr_jax.tar.gz ]]; then cp "$previous" "$FAKES/home/gr_jax.tar.gz"; fi
      previous=$word
    done
    ;;
  *" ssh "*)
    if [[ -f $FAKES/ssh ]]; then exit "$(pop ssh)"; fi
    for word in "$@"; do
      if [[ $word == --command=* ]]; then
        cd "$FAKES/home" && HOME=$FAKES/home exec bash -c "${word#--command=}"
      fi
    done
    ;;
esac
"""

# Makes an environment whose Python is the fake one as well.
PYTHON = """
case "$*" in
  "-m venv "*) mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
  *gr_jax.train*) exit "$(pop python)" ;;
esac
"""

# What users have trouble with: inner quotes, spaces, $, line breaks, nothing at all.
AWKWARD = [
    "python",
    "-m",
    "gr_jax.train",
    '--gin.MODEL_DIR="/mnt/a run/it\'s"',
    "--gin_bindings=training.TrainConfig.steps = 10",
    "--gin.X=$HOME $(id) `id` \\ \\n \\\\",
    '--gin.CORPUS={"a": [1, 2]}',
    "~/*",
    "",
    "a & b; c | d > e # f ! g % h",
]


class Fakes:
    """The directory of the fakes, and what they were called with."""

    def __init__(self, root: Path):
        self.root = root
        self.bin = root / "bin"
        self.home = root / "home"
        self.bin.mkdir(parents=True)
        self.home.mkdir()
        for name in CLOUD.split():
            self.fake(name, f"echo 'nobody expected {name} '\"$*\" >&2; exit 99")
        self.fake("sleep")

    def fake(self, name: str, script: str = "") -> None:
        """Makes a command that records its arguments and then runs a bit of bash."""
        path = self.bin / name
        path.write_text(PREAMBLE + script + "\n", "utf-8")
        path.chmod(0o755)

    def answers(self, name: str, *lines: str | int) -> None:
        """What `pop NAME` answers, one line a time."""
        (self.root / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "HOME": str(self.home),
            "TMPDIR": str(self.root),
            "FAKES": str(self.root),
            "LC_ALL": "C",
        }

    def command(self, script: str, *args: str) -> list[str]:
        return ["bash", str(LAUNCH / script), *args]

    def run(
        self, script: str, *args: str, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs one of the launch scripts."""
        return subprocess.run(
            self.command(script, *args),
            capture_output=True,
            text=True,
            env=self.environment | environment,
            cwd=cwd or self.root,
            timeout=60,
            check=False,
        )

    def calls(self, *names: str) -> list[list[str]]:
        """The argument vectors so far, in order: of these commands, or of all but `sleep`."""
        path = self.root / "calls"
        if not path.exists():
            return []
        calls: list[list[str]] = [[]]
        for word in path.read_text("utf-8").split("\0")[:-1]:
            if word == "\036":
                calls.append([])
            else:
                calls[-1].append(word)
        return [c for c in calls[:-1] if (c[0] in names if names else c[0] != "sleep")]

    def forget(self) -> None:
        (self.root / "calls").unlink(missing_ok=True)

    def trained(self) -> list[list[str]]:
        """The training commands that arrived at a Python."""
        return [call for call in self.calls("python") if "gr_jax.train" in call]


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    if sys.platform != "linux" or not shutil.which("flock"):
        pytest.skip("the scripts' worker side needs Linux")
    made = Fakes(tmp_path / "fakes")
    assert os.environ["PATH"] not in made.environment["PATH"]
    return made


def parsed(dry_run: str) -> list[list[str]]:
    """The commands that a dry run printed, as a shell would take them apart."""
    return [shlex.split(line) for line in dry_run.splitlines()]


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a mistake gives."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")
