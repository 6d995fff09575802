"""compute_engine.sh: the managed instance group it makes, and the command on every instance."""

import itertools

import pytest

from tests.launch.conftest import AWKWARD, CLOUD_WORKER, PYTHON, Fakes, parsed, refused

PLACE = ("--name=dsi", "--project=p", "--zone=us-east5-a")
FLAGS = (
    *PLACE, "--machine_type=ct6e-standard-4t", "--topology=2x4", "--image_family=ubuntu",
    "--max_restarts=1",
)  # fmt: skip
TRAIN = ("--", "python", "-m", "gr_jax.train")

GROUPS = """
case "$*" in
  *" list-instances "*)
    instances=$(pop instances)
    if [[ $instances == broken ]]; then echo 'ERROR: no network' >&2; exit 1; fi
    tr ',' '\\n' <<<"$instances"
    ;;
  *" list "*)
    there=$(pop there)
    if [[ $there == broken ]]; then echo 'ERROR: no network' >&2; exit 1; fi
    echo "$there"
    ;;
esac
"""
BOTH = "dsi-a RUNNING,dsi-b RUNNING"


@pytest.fixture
def cloud(fakes: Fakes) -> Fakes:
    fakes.fake("gcloud", GROUPS + CLOUD_WORKER)
    fakes.fake("python3.12", PYTHON)
    fakes.fake("python", PYTHON)
    fakes.answers("python", 0)
    fakes.answers("there", "")
    fakes.answers("instances", BOTH)
    return fakes


def done_to(cloud: Fakes) -> list[str]:
    """The words between `compute` and the first flag or name, questions left out."""
    words = [
        " ".join(itertools.takewhile(lambda word: not word.startswith("-"), call[2:]))
        for call in cloud.calls("gcloud")
    ]
    return [text for text in words if " list" not in text]


def test_dry_run_prints_what_the_run_then_calls(cloud):
    args = (*FLAGS, "--spot", "--delete_after", "--", *AWKWARD)
    dry = cloud.run("compute_engine.sh", "run", "--dry_run", *args)
    assert dry.returncode == 0, dry.stderr
    assert cloud.calls() == []
    cloud.answers("ssh", 0)
    done = cloud.run("compute_engine.sh", "run", *args)
    assert done.returncode == 0, done.stderr
    called = cloud.calls("gcloud")
    # once for every instance, in whatever order
    expected = []
    for command in parsed(dry.stdout):
        if any("INSTANCE" in word for word in command):
            expected += [
                [word.replace("INSTANCE", name) for word in command] for name in ("dsi-a", "dsi-b")
            ]
        elif command[0] == "gcloud":
            expected.append(command)
    assert sorted(called) == sorted(expected)


def test_what_is_made(cloud):
    flags = ("--service_account=a@b", "--network=n", "--subnetwork=s", "--reservation=r")
    done = cloud.run("compute_engine.sh", "run", "--dry_run", *FLAGS, *flags, *TRAIN)
    made = [" ".join(c[2:]) for c in parsed(done.stdout) if "create" in c]
    assert made == [
        "resource-policies create workload-policy dsi --type=HIGH_THROUGHPUT "
        "--accelerator-topology=2x4 --region=us-east5 --project=p --quiet",
        "instance-templates create dsi --machine-type=ct6e-standard-4t --image-family=ubuntu "
        "--image-project=ubuntu-os-accelerator-images --maintenance-policy=TERMINATE "
        "--boot-disk-size=200GB --scopes=cloud-platform --project=p "
        "--provisioning-model=reservation-bound --reservation-affinity=specific --reservation=r "
        "--service-account=a@b --network=n --subnet=s --region=us-east5 --quiet",
        "instance-groups managed create dsi --template=dsi --size=2 --zone=us-east5-a --project=p "
        "--workload-policy=projects/p/regions/us-east5/resourcePolicies/dsi --quiet",
    ]


def test_one_machine_needs_no_policy(cloud):
    cloud.answers("instances", "dsi-a RUNNING")
    done = cloud.run(
        "compute_engine.sh", "run", *FLAGS, "--machine_type=ct6e-standard-8t", "--", *AWKWARD
    )
    assert done.returncode == 0, done.stderr
    assert not any("policy" in text for text in done_to(cloud))
    assert cloud.trained() == [AWKWARD]


def test_a_preempted_slice_is_made_again_and_the_command_runs_again(cloud):
    cloud.answers("ssh", 255, 255, 0)
    cloud.answers("instances", BOTH, "dsi-a RUNNING,dsi-b STOPPING", BOTH)
    # policy, template and group; the group has lost an instance; it alone has to be made again
    cloud.answers("there", "", "", "", "dsi", "dsi", "dsi", "")
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("dsi was preempted") == 1
    kinds = [text for text in done_to(cloud) if not text.startswith(("ssh", "scp"))]
    assert kinds == [
        "resource-policies create workload-policy dsi",
        "instance-templates create dsi",
        "instance-groups managed create dsi",
        "instance-groups managed wait-until dsi",
        "instance-groups managed delete dsi",
        "instance-groups managed create dsi",
        "instance-groups managed wait-until dsi",
    ]
    assert len([text for text in done_to(cloud) if text.startswith("ssh")]) == 4


def test_a_slice_preempted_while_it_was_made_runs_nothing(cloud):
    cloud.answers("instances", "dsi-a RUNNING", "dsi-a RUNNING", BOTH)
    cloud.answers("there", "", "", "", "dsi", "dsi", "dsi", "")
    cloud.answers("ssh", 0)
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    ssh = [text for text in done_to(cloud) if text.startswith("ssh")]
    assert sorted(ssh) == ["ssh dsi-a", "ssh dsi-b"]


def test_an_instance_that_vanishes_before_the_cloud_says_so_is_preempted(cloud):
    cloud.answers("ssh", 255, 255, 0)
    cloud.answers("scp", 0, 0, 1, 0)
    # asked before the copy and after the run: ssh was lost, and then nothing can be copied
    cloud.answers("instances", BOTH, BOTH, BOTH, "dsi-a RUNNING,dsi-b STOPPING", BOTH)
    cloud.answers("there", *["dsi"] * 10, "")
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "status 255: again (1 of 1)" in done.stderr
    assert done.stderr.count("dsi was preempted") == 1
    assert [text for text in done_to(cloud) if text.startswith("instance-groups")] == [
        "instance-groups managed wait-until dsi",
        "instance-groups managed wait-until dsi",
        "instance-groups managed delete dsi",
        "instance-groups managed create dsi",
        "instance-groups managed wait-until dsi",
    ]


@pytest.mark.parametrize("verb", ["create", "wait-until", "scp"])
def test_a_verb_that_fails_is_a_lost_connection(cloud, verb):
    cloud.answers("there", "" if verb == "create" else "dsi")
    cloud.answers(verb, 1, 0)
    cloud.answers("ssh", 0)
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert "status 255: again (1 of 1)" in done.stderr

    cloud.forget()
    cloud.answers(verb, 1)
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 255
    assert "status 255 after 1 restarts: giving up" in done.stderr
    assert len([call for call in cloud.calls("gcloud") if verb in call]) == 2
    assert not [text for text in done_to(cloud) if text.startswith("ssh")]


def test_a_question_without_an_answer_is_no_preemption(cloud):
    cloud.answers("ssh", 255, 255, 0)
    cloud.answers("there", "dsi", "dsi", "dsi", "broken", "dsi")
    cloud.answers("instances", BOTH, "broken", BOTH)
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no network") == 2
    assert "preempted" not in done.stderr


@pytest.mark.parametrize("answered", [0, 1, 2])
def test_what_is_refused_at_first_is_a_mistake(cloud, answered):
    cloud.answers("there", *["dsi"] * answered, "broken")
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 1 and "no network" in done.stderr
    assert done_to(cloud) == []


def test_one_that_somebody_deleted_is_not_made_again(cloud):
    cloud.answers("ssh", 255)
    cloud.answers("there", "dsi", "dsi", "dsi", "")
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == 255 and "dsi was deleted: the run ends with it" in done.stderr
    assert not [text for text in done_to(cloud) if "create" in text]


@pytest.mark.parametrize(
    ("ssh", "runs", "status"),
    [
        ((134, 2), 1, 2),  # one instance knows of the user's mistake, the other one of its absence
        ((2, 134), 1, 2),
        ((130, 130), 1, 130),
        ((255, 255, 0, 0), 2, 0),
        ((1, 1, 1, 1), 2, 1),
    ],
)
def test_what_is_not_preempted(cloud, ssh, runs, status):
    cloud.answers("there", "dsi")
    cloud.answers("ssh", *ssh)  # whichever instance is first
    done = cloud.run("compute_engine.sh", "run", *FLAGS, *TRAIN)
    assert done.returncode == status, done.stderr
    assert len([text for text in done_to(cloud) if text.startswith("ssh")]) == 2 * runs


def test_lines_say_which_instance_they_come_from(cloud):
    cloud.fake("python", "if [[ $* == *train* ]]; then echo 'loss 1.0'; fi")
    cloud.fake("python3.12", PYTHON)
    cloud.answers("instances", "dsi-a RUNNING")
    done = cloud.run(
        "compute_engine.sh", "run", *FLAGS, "--machine_type=ct6e-standard-8t", "--install=", *TRAIN
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[dsi-a] loss 1.0\n"


def test_stop_and_delete(cloud):
    cloud.answers("ssh", 0)
    cloud.answers("there", "dsi")
    assert cloud.run("compute_engine.sh", "stop", *PLACE).returncode == 0
    stops = [call for call in cloud.calls("gcloud") if call[2] == "ssh"]
    assert [call[-1] for call in stops] == [
        "--command=bash gr_jax_run/launch/run_worker.sh --stop"
    ] * 2
    cloud.forget()
    assert cloud.run("compute_engine.sh", "delete", *PLACE).returncode == 0
    assert done_to(cloud) == [
        "instance-groups managed delete dsi",
        "instance-templates delete dsi",
        "resource-policies delete dsi",
    ]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("run", "--name=dsi", *TRAIN), "--project=VALUE is required"),
        (("run", *PLACE, *TRAIN), "--machine_type=VALUE is required"),
        (("run", *FLAGS, "--machine_type=n2-standard-8", *TRAIN), "a machine with TPUs, as in"),
        (("run", *FLAGS, "--topology=4", *TRAIN), "--topology=4: sides of the slice in chips"),
        (("run", *FLAGS, "--topology=1x3", *TRAIN), "has 3 chips: machines of ct6e-standard-4t"),
        (("run", *FLAGS, "--spot", "--reservation=r", *TRAIN), "one of them"),
    ],
)
def test_mistakes_are_one_line(cloud, args, says):
    assert says in refused(cloud.run("compute_engine.sh", *args))
    assert cloud.calls() == []
