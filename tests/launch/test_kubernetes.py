"""gke/jobset.sh, its image, and xpk.sh: what reaches the cluster and what a container runs."""

import fnmatch
import re
import shlex
import tomllib

import pytest
import yaml

from tests.launch.conftest import AWKWARD, CHECKOUT, LAUNCH, Fakes, parsed, refused

FLAGS = (
    "--name=dsi", "--image=registry/image:1", "--accelerator=tpu-v6e-slice", "--topology=4x4",
    "--claim=filestore", "--mount=/mnt/run",
)  # fmt: skip
XPK = ("--name=dsi", "--cluster=tpus", "--zone=us-west4-a", "--type=v5litepod-16", "--image=i:1")
TRAIN = ("--", "python", "-m", "gr_jax.train")


def jobset(fakes: Fakes, *args: str) -> dict:
    """What kubectl is given, parsed."""
    fakes.fake("kubectl", 'cat >"$FAKES/manifest"')
    done = fakes.run("gke/jobset.sh", *args)
    assert done.returncode == 0, done.stderr
    assert fakes.calls() == [["kubectl", "apply", "--filename=-"]]
    return yaml.safe_load((fakes.root / "manifest").read_text())


def expanded(word: str, environment: dict[str, str]) -> str:
    """What Kubernetes makes of a word of a container's command, by its documentation."""

    def known(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return environment.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)", known, word)


def parts(made: dict) -> tuple[dict, dict, dict]:
    """The job, the pod and its container."""
    (job,) = made["spec"]["replicatedJobs"]
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return job, pod, container


def test_the_command_reaches_the_container_word_for_word(fakes):
    command = [*AWKWARD, "two\nlines", "$(HOME) $$(HOME) $$ $(A)", "tab\there", "ünïcode"]
    made = jobset(fakes, *FLAGS, '--env=A=it\'s "$(HOME)"', "--", *command)
    _, _, container = parts(made)
    environment = {"HOME": "/root", "A": "a"}
    assert [expanded(word, environment) for word in container["command"]] == command
    assert expanded(container["env"][1]["value"], environment) == 'it\'s "$(HOME)"'
    assert container["env"][0] == {"name": "PYTHONUNBUFFERED", "value": "1"}


def test_failures(fakes):
    made = jobset(fakes, *FLAGS, "--max_restarts=7", "--grace_seconds=90", *TRAIN)
    job, pod, container = parts(made)
    policy = made["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7
    (rule,) = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    # Kubernetes takes a failure policy for pods that are never restarted in place, and no other
    assert pod["restartPolicy"] == "Never"
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]},
    }
    assert pod["terminationGracePeriodSeconds"] == 90


@pytest.mark.parametrize(
    ("flags", "slices", "hosts", "chips"),
    [
        ((), 1, 4, 4),
        (("--topology=2x4", "--chips_per_host=8"), 1, 1, 8),
        (("--accelerator=tpu-v5p-slice", "--topology=4x4x8", "--slices=3"), 3, 32, 4),
    ],
)
def test_shapes(fakes, flags, slices, hosts, chips):
    made = jobset(fakes, *FLAGS, *flags, *TRAIN)
    job, pod, container = parts(made)
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (slices, hosts, hosts)
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    topology = next(f for f in reversed(FLAGS + flags) if f.startswith("--topology="))
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.split("=")[1]
    exclusive = made["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"]
    assert exclusive == "cloud.google.com/gke-nodepool"


def test_the_file_system_that_all_see(fakes):
    _, pod, container = parts(jobset(fakes, *FLAGS, *TRAIN))
    assert container["volumeMounts"] == [{"name": "run", "mountPath": "/mnt/run"}]
    assert pod["volumes"] == [{"name": "run", "persistentVolumeClaim": {"claimName": "filestore"}}]
    fakes.forget()
    bucket = ("--claim=", "--bucket=runs", "--service_account=writer")
    made = jobset(fakes, *FLAGS, *bucket, *TRAIN)
    job, pod, _ = parts(made)
    annotations = job["template"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"gke-gcsfuse/volumes": "true"}
    (volume,) = pod["volumes"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "runs"
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    # hosts must see what process 0 has just written
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0"} < set(options)
    assert pod["serviceAccountName"] == "writer"


def test_where_it_runs(fakes):
    flags = ("--namespace=team", "--queue=tpus", "--spot")
    made = jobset(fakes, *FLAGS, *flags, *TRAIN)
    assert made["metadata"]["namespace"] == "team"
    assert made["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "tpus"}
    assert parts(made)[1]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    fakes.forget()
    made = jobset(fakes, *FLAGS, "--reservation=mine", *TRAIN)
    assert parts(made)[1]["nodeSelector"]["cloud.google.com/reservation-name"] == "mine"
    assert "labels" not in made["metadata"]


def test_dry_run_is_a_command_that_a_shell_takes(fakes):
    args = (*FLAGS, "--env=A=$B", "--", *AWKWARD)
    dry = fakes.run("gke/jobset.sh", "--dry_run", *args)
    assert dry.returncode == 0 and fakes.calls() == []
    made = jobset(fakes, *args)
    fakes.forget()
    (fakes.root / "manifest").unlink()
    (fakes.root / "dry.sh").write_text(dry.stdout)
    assert fakes.run(str(fakes.root / "dry.sh")).returncode == 0
    assert yaml.safe_load((fakes.root / "manifest").read_text()) == made


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (TRAIN, "--name=VALUE is required"),
        (FLAGS, "give the command to run after --"),
        ((*FLAGS, "--name=a/b", *TRAIN), "--name=a/b: a lowercase letter, then"),
        ((*FLAGS, "--claim=", *TRAIN), "--claim=CLAIM or --bucket=BUCKET, one of them"),
        ((*FLAGS, "--bucket=b", *TRAIN), "--claim=CLAIM or --bucket=BUCKET, one of them"),
        ((*FLAGS, "--mount=run", *TRAIN), "--mount=run: an absolute path is needed"),
        ((*FLAGS, "--topology=2x3", *TRAIN), "hosts of --chips_per_host=4 do not make it"),
        ((*FLAGS, "--chips_per_host=0", *TRAIN), "hosts of --chips_per_host=0 do not make it"),
        ((*FLAGS, "--spot", "--reservation=r", *TRAIN), "--spot and --reservation: one of them"),
    ],
)
def test_mistakes_are_one_line(fakes, args, says):
    assert says in refused(fakes.run("gke/jobset.sh", *args))
    assert fakes.calls() == []


def test_the_image_has_what_its_dockerfile_copies():
    """No Docker here: this is the structure, and not a build."""
    text = (LAUNCH / "gke/Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(maxsplit=1) for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert [name for name, _ in steps][:2] == ["ARG", "FROM"]
    ignore = (LAUNCH / "gke/Dockerfile.dockerignore").read_text().split("\n")
    sources = [word for name, rest in steps if name == "COPY" for word in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (CHECKOUT / source).exists(), source
        assert f"!{source}" in ignore, source
    assert "*" in ignore and "**/__pycache__" in ignore
    entry = dict(steps)["ENTRYPOINT"]
    assert yaml.safe_load(entry) == ["python", "-m", "gr_jax.train"]
    # what it installs: the extra that pyproject.toml has, with the versions that were tested
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    default = next(rest for name, rest in steps if name == "ARG" and rest.startswith("EXTRA="))
    assert default.removeprefix("EXTRA=") in project["optional-dependencies"]
    python = next(rest for name, rest in steps if name == "ARG" and rest.startswith("PYTHON="))
    assert fnmatch.fnmatch(project["requires-python"], f">={python.removeprefix('PYTHON=')},*")
    assert "--constraint constraints.txt" in text


def in_container(fakes: Fakes, call: list[str]) -> None:
    """Runs what xpk makes of --command: a line of a bash script, after Kubernetes has seen it."""
    (text,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    (fakes.root / "container.sh").write_text(f"({expanded(text, {'HOME': '/x'})}) & wait $!\n")
    assert fakes.run(str(fakes.root / "container.sh")).returncode == 0


def test_xpk_the_command_reaches_the_container_word_for_word(fakes):
    fakes.fake("xpk")
    fakes.fake("python")
    done = fakes.run("xpk.sh", *XPK, "--", *AWKWARD, "$(HOME)")
    assert done.returncode == 0, done.stderr
    in_container(fakes, fakes.calls("xpk")[0])
    assert fakes.trained() == [[*AWKWARD, "$(HOME)"]]


def test_xpk_dry_run_prints_what_the_run_then_calls(fakes):
    fakes.fake("xpk")
    args = (*XPK, "--project=p", "--slices=2", "--storage=a", "--storage=b", "--env=A=x y", *TRAIN)
    dry = fakes.run("xpk.sh", "--dry_run", *args)
    assert dry.returncode == 0 and fakes.calls() == []
    assert fakes.run("xpk.sh", *args).returncode == 0
    (call,) = fakes.calls()
    assert parsed(dry.stdout) == [call]
    assert shlex.join(call) == (
        "xpk workload create --workload=dsi --cluster=tpus --zone=us-west4-a "
        "--tpu-type=v5litepod-16 --num-slices=2 --docker-image=i:1 "
        "'--command=exec python -m gr_jax.train' --max-restarts=50 "
        "--restart-on-exit-codes=1,3-126 --termination-grace-period-seconds=300 "
        "--priority=medium --project=p --storage=a --storage=b '--env=A=x y'"
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (TRAIN, "--name=VALUE is required"),
        (XPK, "give the command to run after --"),
        ((*XPK, "--", "python", "two\nlines"), "the command has a line break"),
        ((*XPK, "--max_restarts=many", *TRAIN), "--max_restarts=many: a whole number"),
    ],
)
def test_xpk_mistakes_are_one_line(fakes, args, says):
    assert says in refused(fakes.run("xpk.sh", *args))
    assert fakes.calls() == []
