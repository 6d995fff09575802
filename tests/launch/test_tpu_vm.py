"""tpu_vm.sh: what it asks of Cloud TPU, what arrives on a worker, and what follows a preemption."""

import itertools
import os
import signal
import subprocess

import pytest

from tests.launch.conftest import AWKWARD, CHECKOUT, CLOUD_WORKER, PYTHON, Fakes, parsed, refused

PLACE = ("--name=dsi", "--zone=us-west4-a")
FLAGS = (*PLACE, "--type=v5litepod-16", "--max_restarts=2")
TRAIN = ("--", "python", "-m", "gr_jax.train")
RESOURCES = ["gcloud", "compute", "tpus", "queued-resources"]
ALL = ["--node=all", "--worker=all", "--batch-size=4096"]

DESCRIBE = """
if [[ $* == *" describe "* ]]; then
  state=$(pop state)
  if [[ $state == missing ]]; then echo 'ERROR: NOT_FOUND: no such thing' >&2; exit 1; fi
  if [[ $state == broken ]]; then echo 'ERROR: no network' >&2; exit 1; fi
  echo 'WARNING: something is old' >&2
  echo "$state"
fi
"""


@pytest.fixture
def cloud(fakes: Fakes) -> Fakes:
    fakes.fake("gcloud", DESCRIBE + CLOUD_WORKER)
    fakes.fake("python3.12", PYTHON)
    fakes.fake("python", PYTHON)
    fakes.answers("python", 0)
    fakes.answers("state", "missing", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    return fakes


def verbs(cloud: Fakes) -> list[str]:
    """What was asked of the queued resource, polls taken together."""
    asked = [call[4] for call in cloud.calls("gcloud")]
    return [verb for verb, _ in itertools.groupby(asked)]


def test_the_command_arrives_on_the_worker_word_for_word(cloud):
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, "--env=A=it's $HOME", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    assert cloud.trained() == [AWKWARD]
    assert verbs(cloud) == ["describe", "create", "describe", "scp", "ssh"]
    for state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"):
        assert f"dsi: {state}" in done.stderr


def test_the_worker_has_what_it_needs_of_the_checkout(cloud):
    assert cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN).returncode == 0
    unpacked = cloud.home / "gr_jax_run" / "checkout"
    for name in ("pyproject.toml", "constraints.txt", "gr_jax/train.py", "tasks/model_dir.py"):
        assert (unpacked / name).read_bytes() == (CHECKOUT / name).read_bytes()
    assert not list(unpacked.rglob("__pycache__"))


def test_dry_run_prints_what_the_run_then_calls(cloud):
    args = (*FLAGS, "--spot", "--setup=mount_run 'it'", "--delete_after", "--", *AWKWARD)
    dry = cloud.run("tpu_vm.sh", "run", "--dry_run", *args)
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    cloud.fake("mount_run")
    assert cloud.run("tpu_vm.sh", "run", *args).returncode == 0
    called = [call for call, _ in itertools.groupby(cloud.calls("gcloud"))]
    del called[2]  # the polls
    commands = parsed(dry.stdout)
    assert [command for command in commands if command[0] == "gcloud"] == called
    assert [command[0] for command in commands if command[0] != "gcloud"] == ["tar"]
    assert cloud.calls("mount_run") == [["mount_run", "it"]]


@pytest.mark.parametrize(
    ("flags", "create"),
    [
        (
            ("--type=v5litepod-16", "--spot", "--project=p"),
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite "
            "--zone=us-west4-a --project=p --node-id=dsi --spot --quiet",
        ),
        (
            ("--type=v6e-64", "--reserved", "--slices=4", "--internal_ips", "--iap"),
            "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e --zone=us-west4-a "
            "--node-count=4 --node-prefix=dsi --reserved --internal-ips --quiet",
        ),
        (
            ("--type=v5p-128", "--service_account=a@b", "--network=n", "--subnetwork=s"),
            "--accelerator-type=v5p-128 --runtime-version=v2-alpha-tpuv5 --zone=us-west4-a "
            "--node-id=dsi --service-account=a@b --scopes=cloud-platform --network=n "
            "--subnetwork=s --quiet",
        ),
        (
            ("--type=new-8", "--runtime_version=new-image"),
            "--accelerator-type=new-8 --runtime-version=new-image --zone=us-west4-a "
            "--node-id=dsi --quiet",
        ),
    ],
)
def test_requests(cloud, flags, create):
    done = cloud.run("tpu_vm.sh", "run", *PLACE, *flags, "--dry_run", *TRAIN)
    commands = parsed(done.stdout)
    assert commands[1] == [*RESOURCES, "create", "dsi", *create.split()]
    assert commands[-1][:9] == [*RESOURCES, "ssh", "dsi", *ALL]
    assert ("--tunnel-through-iap" in commands[-1]) == ("--iap" in flags)


def test_a_preempted_resource_is_made_again_and_the_command_runs_again(cloud):
    cloud.answers("ssh", 255, 255, 0)
    cloud.answers(
        "state", "missing", "ACTIVE", "SUSPENDING", "SUSPENDING", "missing", "ACTIVE", "SUSPENDED",
        "missing", "ACTIVE",
    )  # fmt: skip
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dsi was preempted") == 2
    ssh = [call for call in cloud.calls("gcloud") if call[4] == "ssh"]
    assert len(ssh) == 3 and ssh[0] == ssh[1] == ssh[2]
    assert [verb for verb in verbs(cloud) if verb != "describe"] == [
        "create", "scp", "ssh", "delete", "create", "scp", "ssh", "delete", "create", "scp", "ssh",
    ]  # fmt: skip


def test_a_resource_that_is_there_is_used(cloud):
    cloud.answers("state", "ACTIVE")
    assert cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN).returncode == 0
    assert verbs(cloud) == ["describe", "scp", "ssh"]


def test_a_suspended_one_is_not(cloud):
    cloud.answers("state", "SUSPENDED", "missing", "ACTIVE")
    assert cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN).returncode == 0
    assert verbs(cloud) == ["describe", "delete", "describe", "create", "describe", "scp", "ssh"]


@pytest.mark.parametrize(
    ("ssh", "runs", "status", "says"),
    [
        ((2,), 1, 2, ""),  # a user's mistake
        ((255, 255, 0), 3, 0, "status 255: again (2 of 2)"),  # the connection
        ((255, 255, 255), 3, 255, "giving up; what there is of dsi costs money"),
        ((1, 143, 1), 3, 1, "giving up"),  # crashes, after the workers' own restarts
        ((130,), 1, 130, "stopped; the same command goes on from there"),
    ],
)
def test_what_is_not_preempted(cloud, ssh, runs, status, says):
    cloud.answers("state", "ACTIVE")
    cloud.answers("ssh", *ssh)
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, "--delete_after", *TRAIN)
    assert done.returncode == status
    assert says in done.stderr
    assert len([call for call in cloud.calls("gcloud") if call[4] == "ssh"]) == runs
    assert ("delete" in verbs(cloud)) == (status in (0, 2))


def test_a_request_that_fails_is_not_repeated(cloud):
    cloud.answers("state", "missing", "FAILED")
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 1 and "quota, zone or type" in done.stderr
    assert verbs(cloud).count("create") == 1 and "ssh" not in verbs(cloud)


def test_an_answer_that_fails_ends_the_first_question_only(cloud):
    cloud.answers("state", "broken")
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 1 and "no network" in done.stderr
    assert verbs(cloud) == ["describe"]
    cloud.answers("state", "ACTIVE", "broken", "broken", "ACTIVE")
    cloud.answers("ssh", 255, 0)
    assert cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN).returncode == 0


def test_a_worker_that_vanishes_before_the_cloud_says_so_is_preempted(cloud):
    cloud.answers("ssh", 255, 0)
    cloud.answers("scp", 0, 1, 0)
    cloud.answers(
        "state", "missing", "ACTIVE",
        "ACTIVE", "ACTIVE", "SUSPENDED",  # ssh was lost, and then nothing can be copied
        "missing", "ACTIVE",
    )  # fmt: skip
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "status 255: again (1 of 2)" in done.stderr
    assert done.stderr.count("dsi was preempted") == 1
    assert [verb for verb in verbs(cloud) if verb != "describe"] == [
        "create", "scp", "ssh", "scp", "delete", "create", "scp", "ssh",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "states"),
    [
        ("create", ["missing", "missing", "missing", "ACTIVE"]),
        ("delete", ["SUSPENDED", "SUSPENDED", "SUSPENDED", "missing", "ACTIVE"]),
        ("scp", ["ACTIVE"]),
    ],
)
def test_a_verb_that_fails_is_a_lost_connection(cloud, verb, states):
    args = (*FLAGS, "--poll_seconds=7", "--delete_after", *TRAIN)
    cloud.answers("state", *states)
    cloud.answers(verb, 1, 2, 0)  # gcloud's 2 is not the run's
    done = cloud.run("tpu_vm.sh", "run", *args)
    assert done.returncode == 0, done.stderr
    assert "status 255: again (2 of 2)" in done.stderr
    assert len(cloud.trained()) == 1
    assert cloud.calls("sleep")[:2] == [["sleep", "7"]] * 2

    cloud.forget()
    cloud.answers("state", states[0])
    cloud.answers(verb, 1)
    done = cloud.run("tpu_vm.sh", "run", *args)
    assert done.returncode == 255
    assert "status 255 after 2 restarts: giving up; what there is of dsi costs" in done.stderr
    assert [call[4] for call in cloud.calls("gcloud")].count(verb) == 3
    assert not cloud.trained()


def test_restarts_are_counted_from_the_last_preemption(cloud):
    cloud.answers("ssh", 255, 255, 255, 255, 255, 0)
    cloud.answers("state", *["ACTIVE"] * 5, "SUSPENDED", "missing", "ACTIVE")
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("again (2 of 2)") == 2


@pytest.mark.parametrize("state", ["missing", "DELETING"])
def test_one_that_somebody_deleted_is_not_made_again(cloud, state):
    cloud.answers("ssh", 255)
    cloud.answers("state", "ACTIVE", state)
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 255 and "dsi was deleted: the run ends with it" in done.stderr
    assert verbs(cloud) == ["describe", "scp", "ssh", "describe"]


def test_what_is_done_is_deleted_though_the_cloud_cannot_be_reached_at_once(cloud):
    cloud.answers("state", "ACTIVE")
    cloud.answers("delete", 1, 1, 0)
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, "--delete_after", *TRAIN)
    assert done.returncode == 0, done.stderr
    cloud.answers("delete", 1)
    done = cloud.run("tpu_vm.sh", "run", *FLAGS, "--delete_after", *TRAIN)
    assert done.returncode == 1 and "it is still there and costs money" in done.stderr
    cloud.answers("state", "ACTIVE", "missing")  # the first call did, and its answer was lost
    assert cloud.run("tpu_vm.sh", "run", *FLAGS, "--delete_after", *TRAIN).returncode == 0


def test_ctrl_c_is_not_a_lost_connection(cloud):
    # a program that answers it with a status of its own keeps it from the shell that waits
    slow = "trap 'exit 1' INT; echo begun; until [[ -f $FAKES/end ]]; do /bin/sleep 0.02; done"
    cloud.fake("gcloud", f'{DESCRIBE} if [[ $* == *" scp "* ]]; then {slow}; fi')
    cloud.answers("state", "ACTIVE")
    with subprocess.Popen(
        cloud.command("tpu_vm.sh", "run", *FLAGS, *TRAIN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=cloud.environment,
        start_new_session=True,
        # in the background the tests ignore it, and so would all that they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as script:
        assert script.stdout and script.stdout.readline() == "begun\n"
        os.killpg(script.pid, signal.SIGINT)
        try:
            script.communicate(timeout=20)
        finally:
            (cloud.root / "end").touch()
    assert script.returncode == 130
    assert verbs(cloud) == ["describe", "scp"]


def test_stop_and_delete(cloud):
    assert cloud.run("tpu_vm.sh", "stop", *PLACE, "--dry_run").stdout == (
        "gcloud compute tpus queued-resources ssh dsi --node=all --worker=all --batch-size=4096 "
        "--zone=us-west4-a --quiet '--command=bash gr_jax_run/launch/run_worker.sh --stop'\n"
    )
    assert cloud.run("tpu_vm.sh", "delete", *PLACE).returncode == 0
    assert cloud.calls() == [
        [*RESOURCES, "delete", "dsi", "--zone=us-west4-a", "--force", "--quiet"]
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "give a verb first: run, stop or delete"),
        (("start", *FLAGS), "give a verb first"),
        (("run", *TRAIN), "--name=VALUE is required"),
        (("run", "--name=DSI", "--zone=z", *TRAIN), "--name=DSI: a lowercase letter, then"),
        (("run", "--name=", "--zone=z", *TRAIN), "--name=VALUE is required"),
        (("run", *PLACE, *TRAIN), "--type=VALUE is required"),
        (("run", *PLACE, "--type=tpu7x-8", *TRAIN), "TPU7x is compute_engine.sh's and GKE's"),
        (("run", *FLAGS), "give the command to run after --"),
        (("run", *FLAGS, "--spot", "--reserved", *TRAIN), "--spot and --reserved: one of them"),
        (("run", *FLAGS, "--slices=0", *TRAIN), "--slices=0: 1 at least"),
        (("run", *FLAGS, "--slices=two", *TRAIN), "--slices=two: a whole number is needed"),
    ],
)
def test_mistakes_are_one_line(cloud, args, says):
    assert says in refused(cloud.run("tpu_vm.sh", *args))
    assert cloud.calls() == []
