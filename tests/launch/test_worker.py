"""run_worker.sh: the environment, the command as it arrives, restarts, and lost connections."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.launch.conftest import AWKWARD, PYTHON, Fakes, parsed, refused

QUICK = ("--install=", "--restart_seconds=0", "--poll_seconds=0.05")
TRAIN = ("--", "python", "-m", "gr_jax.train")


@pytest.fixture
def worker(fakes: Fakes) -> Iterator[Fakes]:
    fakes.fake("python", PYTHON)
    fakes.answers("python", 0)
    yield fakes
    (fakes.root / "end").touch()  # a test that failed leaves nothing running


def test_the_command_arrives_word_for_word(worker):
    done = worker.run("run_worker.sh", *QUICK, "--", *AWKWARD, "two\nlines")
    assert done.returncode == 0, done.stderr
    assert worker.trained() == [[*AWKWARD, "two\nlines"]]


def test_the_environment_is_made_once_and_holds_what_is_asked(worker):
    worker.fake("python3.12", PYTHON)
    for _ in range(2):
        done = worker.run("run_worker.sh", "--install=.[tpu]", "--env=A=x y", *TRAIN)
        assert done.returncode == 0, done.stderr
    made = [call for call in worker.calls("python3.12") if "venv" in call]
    assert made == [["python3.12", "-m", "venv", "--clear", f"{worker.home}/gr_jax_run/venv"]]
    install = ["-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", ".[tpu]"]
    assert ["python", *install] in worker.calls("python")
    # the environment's own Python ran it, not the one of the PATH
    assert (worker.home / "gr_jax_run/venv/bin/python").exists()


def test_an_environment_that_was_cut_short_is_made_anew(worker):
    broken = worker.home / "gr_jax_run/venv/bin/python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    worker.fake("python3.12", PYTHON)
    done = worker.run("run_worker.sh", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert len([call for call in worker.calls("python3.12") if "venv" in call]) == 1


def test_a_stop_while_it_is_set_up_says_so(worker):
    setup = "until [[ -f $FAKES/end ]]; do /bin/sleep 0.02; done"
    with subprocess.Popen(
        worker.command("run_worker.sh", *QUICK, f"--setup={setup}", *TRAIN),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=worker.environment,
    ) as run:
        while not (worker.home / "gr_jax_run/command").exists():
            time.sleep(0.02)
        stopped = worker.run("run_worker.sh", "--stop")
        (worker.root / "end").touch()
    assert stopped.returncode == 1 and "the run is being set up" in stopped.stderr
    assert run.returncode == 0


def test_an_old_python_is_replaced_by_uv(worker):
    for name in ("python3.12", "python3.13"):
        worker.fake(name, "exit 1")
    worker.fake(
        "python3",
        """
        case "$*" in
          -c*) exit 1 ;;
          *"uv venv"*) mkdir -p "${!#}/bin" && cp "$FAKES/bin/python" "${!#}/bin/python" ;;
        esac
        """,
    )
    done = worker.run("run_worker.sh", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert [call[1:4] for call in worker.calls("python3") if call[1] == "-m"] == [
        ["-m", "pip", "install"],
        ["-m", "uv", "venv"],
    ]


def test_setup_and_variables_come_before_the_command(worker):
    worker.fake("python", 'cd "$FAKES"; { printf "%s|" "$A" "$B"; ls mounted; } >seen')
    setup = 'mkdir -p "$FAKES/mounted" && touch "$FAKES/mounted/a file"'
    done = worker.run(
        "run_worker.sh", *QUICK, f"--setup={setup}", "--env=A=x y", "--env=B=$Z=1", *TRAIN
    )
    assert done.returncode == 0, done.stderr
    assert (worker.root / "seen").read_text() == "x y|$Z=1|a file\n"


@pytest.mark.parametrize("where", ["setup", "python3.12", "pip"])
def test_a_worker_that_cannot_be_set_up_trains_nothing_and_may_be_tried_again(worker, where):
    flags = ["--install=.[tpu]"]
    worker.fake("python3.12", PYTHON)
    if where == "setup":
        flags.append("--setup=exit 2")
    elif where == "python3.12":
        worker.fake("python3.12", "if [[ $* == *venv* ]]; then exit 2; fi")
    else:
        worker.fake("python3.12", PYTHON + "if [[ $* == *pip* ]]; then exit 2; fi")
    done = worker.run("run_worker.sh", *flags, *TRAIN)
    # not 2, which nothing restarts
    assert done.returncode == 1 and "the worker could not be set up" in done.stderr
    assert worker.trained() == []
    # and nothing is left that says a run is under way
    worker.fake("python3.12", PYTHON)
    assert worker.run("run_worker.sh", *QUICK, *TRAIN).returncode == 0


@pytest.mark.parametrize(
    ("statuses", "runs", "status"),
    [
        ((0,), 1, 0),
        ((130, 130, 130, 130, 130, 0), 6, 0),  # preempted as often as it happens
        ((2,), 1, 2),  # a user's mistake never
        ((130, 2), 2, 2),
        ((134, 0), 2, 0),
        ((1, 1, 1), 3, 1),  # --max_crashes=2
    ],
)
def test_restarts(worker, statuses, runs, status):
    worker.answers("python", *statuses)
    done = worker.run("run_worker.sh", *QUICK, "--max_crashes=2", *TRAIN)
    assert done.returncode == status, done.stdout
    assert worker.trained() == [["python", "-m", "gr_jax.train"]] * runs
    assert (worker.home / "gr_jax_run/status").read_text() == f"{status}\n"


SLOW_TRAINING = """
echo started
trap 'echo saved; exit 130' TERM
until [[ -f $FAKES/end ]]; do /bin/sleep 0.02; done
exit 0
"""


def started(worker: Fakes) -> subprocess.Popen[str]:
    """A follower whose run is under way."""
    follower = subprocess.Popen(
        worker.command("run_worker.sh", *QUICK, *TRAIN),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=worker.environment,
        start_new_session=True,
        # under nohup the tests ignore it, and so would all that they start
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert follower.stdout and follower.stdout.readline() == "started\n"
    return follower


def test_a_lost_connection_ends_nothing_and_the_same_call_follows_on(worker):
    worker.fake("python", SLOW_TRAINING)
    follower = started(worker)
    os.killpg(follower.pid, signal.SIGHUP)  # what sshd does, and worse
    follower.communicate(timeout=20)
    assert follower.returncode != 0
    other = worker.run("run_worker.sh", *QUICK, "--", "python", "-m", "gr_jax.eval")
    assert "another command runs here" in refused(other)
    with subprocess.Popen(["/bin/sh", "-c", f"sleep 0.3; touch {worker.root}/end"]):
        done = worker.run("run_worker.sh", *QUICK, *TRAIN)
    assert done.returncode == 0 and "it runs already" in done.stderr
    assert done.stdout == "started\n"
    assert len(worker.trained()) == 1


def test_stop_lets_it_save_and_starts_nothing_again(worker):
    worker.fake("python", SLOW_TRAINING)
    follower = started(worker)
    assert worker.run("run_worker.sh", "--stop").returncode == 0
    out, _ = follower.communicate(timeout=20)
    assert follower.returncode == 130 and "saved" in out
    assert len(worker.trained()) == 1
    assert "nothing runs" in worker.run("run_worker.sh", "--stop").stderr


def test_a_machine_that_goes_down_signals_the_run_once(worker):
    worker.fake(
        "python",
        """
        trap 'echo TERM >>"$FAKES/signals"; stop=true' TERM
        echo started
        until [[ $stop || -f $FAKES/end ]]; do /bin/sleep 0.02; done
        for _ in {1..15}; do /bin/sleep 0.02; done  # saving
        exit 130
        """,
    )
    follower = started(worker)
    supervisor = int((worker.home / "gr_jax_run/pid").read_text())
    children = subprocess.check_output(["pgrep", "-P", str(supervisor)], text=True).split()
    for pid in (supervisor, *map(int, children)):
        os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)  # two at once are one
    follower.communicate(timeout=20)
    # 143, not 130: nobody asked for the end
    assert follower.returncode == 143
    assert (worker.root / "signals").read_text() == "TERM\n"
    assert len(worker.trained()) == 1


def test_dry_run_prints_what_would_run_and_runs_nothing(worker):
    worker.fake("python3.12", PYTHON)
    done = worker.run("run_worker.sh", "--setup=mount_run it", "--dry_run", "--", *AWKWARD)
    assert done.returncode == 0, done.stderr
    python = f"{worker.home}/gr_jax_run/venv/bin/python"
    assert parsed(done.stdout) == [
        ["bash", "-c", "mount_run it"],
        ["python3.12", "-m", "venv", "--clear", f"{worker.home}/gr_jax_run/venv"],
        [python, "-m", "pip", "install", "--quiet", "--constraint", "constraints.txt", ".[tpu]"],
        AWKWARD,
    ]
    assert [call for call in worker.calls() if call[1] != "-c"] == []  # asks for a version


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "give the command to run after --"),
        (("--max_crashes=-1", *TRAIN), "--max_crashes=-1: a whole number is needed"),
        (("--env=1A=2", *TRAIN), "--env=1A=2: NAME=VALUE is needed"),
        (("--stop=1",), "--stop takes no value"),
        (("--setup", *TRAIN), "--setup needs a value"),
        (("--instal=x", *TRAIN), "unknown flag --instal: there are --install"),
        (("python",), "unexpected argument python"),
    ],
)
def test_mistakes_are_one_line(worker, args, says):
    assert says in refused(worker.run("run_worker.sh", *args))


def test_what_is_left_of_a_run_that_was_killed_outright_is_not_followed(worker):
    state = worker.home / "gr_jax_run"
    state.mkdir()
    (state / "status").write_text("0\n")
    (state / "pid").write_text("1\n")
    (state / "command").write_text("python -m something else\n")
    worker.answers("python", 7)
    began = time.monotonic()
    done = worker.run("run_worker.sh", *QUICK, "--max_crashes=0", *TRAIN)
    assert done.returncode == 7 and time.monotonic() - began < 30
