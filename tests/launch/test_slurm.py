"""slurm.sh and slurm.sbatch: the job, the command as its tasks get it, and what is requeued."""

import pytest

from tests.launch.conftest import AWKWARD, CHECKOUT, Fakes, parsed, refused

FLAGS = ("--name=dsi", "--nodes=2", "--gpus_per_node=8", "--log_dir=logs", "--max_crashes=2")
TRAIN = ("--", "python", "-m", "gr_jax.train")

# Slurm runs a copy of the job script, elsewhere.
SBATCH = """
while [[ $1 == --* ]]; do shift; done
script=$1
shift
cp "$script" "$FAKES/slurm_script"
SLURM_JOB_ID=7 bash "$FAKES/slurm_script" "$@"
"""
SRUN = """
while [[ $1 == --* ]]; do shift; done
"$@"
exit "$(pop statuses)"
"""


@pytest.fixture
def cluster(fakes: Fakes) -> Fakes:
    fakes.fake("sbatch", SBATCH)
    fakes.fake("srun", SRUN)
    fakes.fake("scontrol")
    fakes.fake("python")
    fakes.answers("statuses", 0)
    (fakes.root / "venv/bin").mkdir(parents=True)
    (fakes.root / "venv/bin/python").symlink_to(fakes.bin / "python")
    return fakes


def test_the_command_arrives_word_for_word(cluster):
    command = [*AWKWARD, "two\nlines"]
    done = cluster.run("slurm.sh", *FLAGS, f"--venv={cluster.root}/venv", "--", *command)
    assert done.returncode == 0, done.stderr
    assert cluster.trained() == [command]
    (srun,) = cluster.calls("srun")
    assert srun[1:4] == ["--kill-on-bad-exit=0", "--wait=300", "--cpus-per-task=8"]
    assert cluster.calls("scontrol") == []


def test_the_job(cluster):
    flags = ("--partition=gpu", "--account=a", "--time=1-00:00:00", "--sbatch=--qos=high")
    done = cluster.run("slurm.sh", "--dry_run", *FLAGS, *flags, "--cpus_per_gpu=12", *TRAIN)
    assert cluster.calls() == []
    (job,) = parsed(done.stdout)
    at = job.index(f"{CHECKOUT}/launch/slurm.sbatch")
    assert job[:at] == [
        "sbatch",
        *"--job-name=dsi --nodes=2 --ntasks-per-node=8 --gpus-per-node=8".split(),
        *"--cpus-per-task=12 --requeue --open-mode=append --signal=TERM@120".split(),
        *"--output=logs/%x-%j.out --partition=gpu --account=a --time=1-00:00:00".split(),
        "--qos=high",
    ]
    assert job[at + 1] == str(CHECKOUT)
    # a task that sees its own GPU alone would look for it under the number of its rank
    assert not any(word.startswith(("--gpus-per-task", "--gpu-bind")) for word in job)


def test_dry_run_prints_what_the_run_then_calls(cluster):
    args = (*FLAGS, "--setup=module load it", "--env=A=x y", "--", *AWKWARD)
    dry = cluster.run("slurm.sh", "--dry_run", *args)
    assert cluster.calls() == [] and not (cluster.root / "logs").exists()
    cluster.fake("module")
    assert cluster.run("slurm.sh", *args).returncode == 0
    assert parsed(dry.stdout) == cluster.calls("sbatch")
    assert cluster.calls("module") == [["module", "load", "it"]]


@pytest.mark.parametrize(
    ("statuses", "requeued"),
    [
        ((0,), [False]),
        ((2,), [False]),  # a user's mistake
        ((130, 130, 130, 130, 0), [True, True, True, True, False]),
        ((1, 139, 1), [True, True, False]),  # --max_crashes=2 in a row
        ((1, 1, 130, 1, 1, 0), [True] * 5 + [False]),
    ],
)
def test_what_is_requeued(cluster, statuses, requeued):
    cluster.answers("statuses", *statuses)
    for status, again in zip(statuses, requeued, strict=True):
        cluster.forget()
        assert cluster.run("slurm.sh", *FLAGS, *TRAIN).returncode == status
        assert len(cluster.calls("srun")) == 1
        assert cluster.calls("scontrol") == [["scontrol", "requeue", "7"]] * again


def test_a_requeue_that_slurm_refuses_is_said(cluster):
    cluster.fake("scontrol", "exit 1")
    cluster.answers("statuses", 130)
    done = cluster.run("slurm.sh", *FLAGS, *TRAIN)
    assert done.returncode == 130 and "did not requeue it, or had already" in done.stderr


def test_the_environment_of_the_tasks(cluster):
    venv = cluster.root / "venv"
    (venv / "bin/python").unlink()
    (venv / "bin/python").write_text('#!/bin/sh\nprintf "%s|" "$A" "$B" >"$FAKES/seen"\n')
    (venv / "bin/python").chmod(0o755)
    flags = ("--setup=export B=set", "--env=A=x $y", f"--venv={venv}")
    assert cluster.run("slurm.sh", *FLAGS, *flags, *TRAIN).returncode == 0
    assert (cluster.root / "seen").read_text() == "x $y|set|"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--name=dsi", *TRAIN), "--gpus_per_node=VALUE is required"),
        (FLAGS, "give the command to run after --"),
        ((*FLAGS, "--venv=/nowhere", *TRAIN), "--venv=/nowhere: there is no bin/python in it"),
        ((*FLAGS, "--nodes=two", *TRAIN), "--nodes=two: a whole number is needed"),
    ],
)
def test_mistakes_are_one_line(cluster, args, says):
    assert says in refused(cluster.run("slurm.sh", *args))
    assert cluster.calls() == []
