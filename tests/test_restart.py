"""What the launch scripts make of a trainer's end, with a fake trainer, a fake gcloud and a clock that does not wait."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import psutil
import pytest
from launching import LAUNCH, PATIENCE_S, bare_path, launch, write_tool

# Takes a line of "plan" in its directory at each start: an exit code, and files that it leaves in the run's directory.
TRAINER = """
import json, os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
workdir = pathlib.Path([a for a in sys.argv if a.startswith("--workdir=")][0].removeprefix("--workdir="))
with open(here / "starts", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + "\\n")
plan = (here / "plan").read_text().splitlines()
number = len((here / "starts").read_text().splitlines()) - 1
code, *files = plan[min(number, len(plan) - 1)].split()
workdir.mkdir(exist_ok=True)
for name in files:
    (workdir / name).write_text(str(number))
if code == "wait":  # as the trainer: SIGTERM saves, and the exit code is 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    (here / "ready").touch()
    time.sleep(600)
if int(code) > 128:
    signal.signal(int(code) - 128, signal.SIG_DFL) if int(code) != 137 else None
    os.kill(os.getpid(), int(code) - 128)
sys.exit(int(code))
"""
NO_WAIT = '#!/bin/sh\necho "$1" >> "$(dirname "$0")/sleeps"\n'  # sleep, which notes how long it should have taken
BEGUN, TABLE = "config.json", "table.md"


class Place:
    """A folder with tools, a fake trainer and a run's directory."""

    def __init__(self, folder):
        self.path, self.workdir = bare_path(folder / "bin"), folder / "run"
        write_tool(self.path, "sleep", NO_WAIT)
        self.trainer = write_tool(self.path, "trainer", TRAINER)

    def plan(self, *lines):
        (self.path / "plan").write_text("\n".join(lines))

    def command(self, *options):
        return f"--workdir={self.workdir}", *options, "--", str(self.trainer), f"--workdir={self.workdir}"

    def restart(self, *options, **environment):
        return launch("restart.sh", *self.command(*options), path=self.path, **environment)

    def starts(self):
        """For each start, whether the run was to be gone on with."""
        return ["--resume" in json.loads(line) for line in (self.path / "starts").read_text().splitlines()]

    def sleeps(self):
        log = self.path / "sleeps"
        return [int(line) for line in log.read_text().split()] if log.exists() else []


@pytest.fixture(name="place")
def fixture_place(tmp_path):
    return Place(tmp_path)


def wait_for(what, timeout_s=PATIENCE_S):
    """Until `what()` is true."""
    until = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


# -- one host ----------------------------------------------------------------------------------------------------------


def test_a_run_whose_peers_die_is_gone_on_with_to_its_end(place):
    place.plan(f"134 {BEGUN}", "137", "1", f"0 {TABLE}")
    result = place.restart("--first_wait_s=10")
    assert result.returncode == 0, result.stderr
    assert place.starts() == [False, True, True, True]
    assert place.sleeps() == [10, 20, 40]
    told = re.findall(r"launch: (ended .*|going .*|finished.*)", re.sub(r"after \d+ s", "after N s", result.stderr))
    assert told == [
        "ended with code 134 after N s: a peer died or did not answer, and jax's runtime aborted this process",
        "going on with the run in 10 s (restart 1 of 10)",
        "ended with code 137 after N s: it was killed: out of memory, or its machine is going away",
        "going on with the run in 20 s (restart 2 of 10)",
        "ended with code 1 after N s: an error, which its last lines tell",
        "going on with the run in 40 s (restart 3 of 10)",
        "finished"]


def test_waits_have_a_largest_one_and_restarts_are_bounded(place):
    place.plan(f"134 {BEGUN}")
    result = place.restart("--restarts=5", "--first_wait_s=7", "--max_wait_s=30")
    assert result.returncode == 134
    assert place.sleeps() == [7, 14, 28, 30, 30]
    assert place.starts() == [False] + [True] * 5
    assert "given up after 5 restarts" in result.stderr


@pytest.mark.parametrize("plan, code, text", [
    ("2", 2, "a setting is wrong"), (f"2 {BEGUN}", 2, "a setting is wrong"), ("127", 2, "cannot be started"),
])
def test_a_wrong_setting_is_not_tried_again(place, plan, code, text):
    place.plan(plan)
    result = place.restart()
    assert result.returncode == code and text in result.stderr
    assert len(place.starts()) == 1 and place.sleeps() == []


def test_what_died_before_the_run_began_begins_again(place):
    place.plan("134", f"134 {BEGUN}", f"0 {TABLE}")
    assert place.restart().returncode == 0
    assert place.starts() == [False, False, True]


def test_exit_code_0_in_mid_run_is_gone_on_with(place):
    """A peer was told to stop: this process saved and ended with 0, and nobody told its launcher."""
    place.plan(f"0 {BEGUN}", f"0 {TABLE}")
    result = place.restart()
    assert result.returncode == 0 and place.starts() == [False, True]
    assert "but not told to here: a peer was" in result.stderr


def test_the_table_of_an_earlier_end_does_not_end_a_longer_run(place):
    place.workdir.mkdir()
    for name in (BEGUN, TABLE):
        (place.workdir / name).write_text("old")
    os.utime(place.workdir / TABLE, (1, 1))
    place.plan("0", f"0 {TABLE}")
    assert place.restart("--resume").returncode == 0
    assert place.starts() == [True, True]


def test_what_is_no_training_run_ends_with_its_command(place):
    place.plan("0")
    assert place.restart().returncode == 0
    assert len(place.starts()) == 1


# Python, of which the trainer is a module; it also tells the version of what a bucket holds, unless that does not answer.
PYTHON = """
import os, pathlib, sys
here = pathlib.Path(__file__).parent
kind, _, *rest = sys.argv[1:]
if kind == "-m":
    os.execv(here / "trainer", ["trainer", *(word.replace("gs://bucket", str(here / "bucket")) for word in rest)])
asked = rest[0].replace("gs://bucket", str(here / "bucket"))
(here / "asked").write_text(os.environ.get("KEY", "") + rest[0])
silent = here / "silent"  # holds how often, or nothing: always
if silent.exists():
    left = silent.read_text()
    silent.unlink() if left == "1" else silent.write_text(left and str(int(left) - 1))
    sys.exit(1)
print(open(asked).read() if os.path.exists(asked) else "")
"""


def test_a_run_in_a_bucket_is_told_by_what_the_bucket_says(place):
    """Begun or not, finished or stopped; where the bucket does not answer, the run is gone on with."""
    write_tool(place.path, "python", PYTHON)
    (place.path / "bucket").mkdir()
    run = "--workdir=gs://bucket/run"
    command = (run, "--", "env", "KEY=k", str(place.path / "python"), "-m", "swerl_jax.main", run)
    place.plan("1", f"134 {BEGUN}", "0", f"0 {TABLE}")
    result = launch("restart.sh", *command, path=place.path)
    assert (result.returncode, place.starts()) == (0, [False, False, True, True]), result.stderr
    assert (place.path / "asked").read_text() == f"kgs://bucket/run/{TABLE}"
    write_tool(place.path, "trainer", TRAINER.replace("sys.exit(int(code))", "(here / 'silent').touch(); sys.exit(int(code))"))
    result = launch("restart.sh", *command[:1], "--restarts=1", *command[1:], path=place.path, JOBSET_RESTART_ATTEMPT=1)
    assert place.starts()[4:] == [True] and result.returncode == 75 and "given up" in result.stderr, result.stderr


def test_a_bucket_that_did_not_answer_at_first_is_asked_again(place):
    """Neither is a stopped run taken for a finished one, nor is one begun or gone on with blindly."""
    write_tool(place.path, "python", PYTHON)
    (place.path / "bucket").mkdir()
    run = "--workdir=gs://bucket/run"
    command = (run, "--", str(place.path / "python"), "-m", "swerl_jax.main", run)
    (place.path / "silent").write_text("1")  # the table before the first attempt
    place.plan(f"0 {BEGUN}", f"0 {TABLE}")
    result = launch("restart.sh", *command, path=place.path)
    assert (result.returncode, place.starts()) == (0, [False, True]), result.stderr
    (place.path / "silent").write_text("3")  # the table twice, and whether the run has begun
    result = launch("restart.sh", *command, path=place.path, JOBSET_RESTART_ATTEMPT=1)
    assert "does not answer whether the run has begun" in result.stderr and place.starts()[2:] == [True], result.stderr


@pytest.mark.parametrize("variable", ["JOBSET_RESTART_ATTEMPT", "SLURM_RESTART_COUNT"])
def test_a_job_that_was_started_before_waits_and_goes_on(place, variable):
    place.workdir.mkdir()
    (place.workdir / BEGUN).touch()
    place.plan("134")
    result = place.restart("--restarts=0", **{variable: 3})
    assert (result.returncode, place.starts(), place.sleeps()) == (134, [True], [40])
    assert "started 3 times before" in result.stderr and "not started again here" in result.stderr


def start_and_stop(place, *options, **environment):
    """(exit code, what it said) of a launcher that gets SIGTERM while the trainer runs."""
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "restart.sh"), *place.command(*options)], stderr=subprocess.PIPE, text=True,
        env={"PATH": str(place.path)} | environment)
    wait_for((place.path / "ready").exists)
    process.send_signal(signal.SIGTERM)
    return process.wait(timeout=PATIENCE_S), process.stderr.read()


def test_sigterm_is_passed_on_and_ends_the_launcher(place):
    place.plan(f"wait {BEGUN}")
    status = place.workdir.parent / "status"
    code, said = start_and_stop(place, f"--status_file={status}")
    assert code == 75 and "stopped before the end of the run, its state is saved" in said
    assert status.read_text() == "ended 75\n" and len(place.starts()) == 1


def test_a_slurm_job_that_was_stopped_queues_itself_again(place):
    place.plan(f"wait {BEGUN}")
    write_tool(place.path, "scontrol", '#!/bin/sh\necho "$@" > "$(dirname "$0")/requeued"\n')
    code, _ = start_and_stop(place, SLURM_JOB_ID="17", REQUEUE_WHEN_STOPPED="1", SLURM_RESTART_COUNT="1")
    assert code == 75 and (place.path / "requeued").read_text() == "requeue 17\n"
    (place.path / "requeued").unlink()
    (place.path / "ready").unlink()
    code, _ = start_and_stop(place, "--restarts=2", SLURM_JOB_ID="17", REQUEUE_WHEN_STOPPED="1", SLURM_RESTART_COUNT="2")
    assert code == 75 and not (place.path / "requeued").exists()  # as often as was asked for


# -- a TPU VM's worker -------------------------------------------------------------------------------------------------


@pytest.fixture(name="checkout")
def fixture_checkout(tmp_path):
    """A copy of launch/ beside a .venv whose Python is the fake trainer."""
    shutil.copytree(LAUNCH, tmp_path / "launch")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    write_tool(tmp_path / ".venv/bin", "python", TRAINER)
    yield tmp_path
    status = tmp_path / ".run/status"
    word, _, number = status.read_text().partition(" ") if status.exists() else ("", "", "")
    if word == "running" and psutil.pid_exists(int(number)):
        os.killpg(int(number), signal.SIGKILL)


def test_a_worker_starts_reports_stops_and_goes_on(checkout):
    def worker(*words):
        result = subprocess.run(["bash", checkout / "launch/worker.sh", *words], capture_output=True, text=True,
                                timeout=PATIENCE_S, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    trainer, bin_folder = ("--config=c", f"--workdir={checkout / 'run it'}"), checkout / ".venv/bin"
    (bin_folder / "plan").write_text(f"wait {BEGUN}\nwait")
    assert worker("status") == "worker-status absent\n"
    assert "started" in worker("start", "--env=A=b", "--", *trainer)
    wait_for((bin_folder / "ready").exists)
    assert worker("status") == "worker-status running\n"
    assert "already running" in worker("start", "--", *trainer)
    assert worker("stop") == "worker-status ended 75\n" == worker("status")

    (bin_folder / "ready").unlink()
    worker("start", "--resume", "--", *trainer)
    wait_for((bin_folder / "ready").exists)
    os.killpg(int((checkout / ".run/status").read_text().split()[1]), signal.SIGKILL)  # as a reboot does
    wait_for(lambda: worker("status") == "worker-status lost\n")
    starts = [json.loads(line) for line in (bin_folder / "starts").read_text().splitlines()]
    assert starts == [["-m", "swerl_jax.main", *trainer], ["-m", "swerl_jax.main", *trainer, "--resume"]]
    assert "told to stop" in (checkout / ".run/log").read_text()


# -- watching a slice --------------------------------------------------------------------------------------------------

# Answers from the files "states" (of the slice) and "statuses" (of its workers; | between hosts), a line a question, the last
# one for ever; other commands it only notes.
GCLOUD = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
def answer(name):
    lines = (here / name).read_text().splitlines()
    (here / name).write_text("\\n".join(lines[1:] or lines))
    return lines[0]
if "describe" in words:
    state = answer("states")
    if state == "NONE":
        sys.exit("ERROR: NOT_FOUND: it was not found")
    print("a warning of gcloud's", state, sep="\\n")
elif words[-1].endswith("worker.sh status"):
    for line in answer("statuses").split("|"):
        print("worker-status", line)
elif not words[-1].endswith("follow") and not words[-1].endswith("--new"):
    with open(here / "calls", "a") as log:
        log.write(json.dumps(words) + "\\n")
"""


def watch(place, command, states, statuses, *options):
    """(result, what gcloud was asked to do, in words) of a run on v6e:4x4, which has four hosts."""
    write_tool(place.path, "gcloud", GCLOUD)
    write_tool(place.path, "tar", "#!/bin/sh\n")
    (place.path / "states").write_text("\n".join(states))
    (place.path / "statuses").write_text("\n".join("|".join([s] * 4) if "|" not in s else s for s in statuses))
    result = launch("tpu_vm.sh", command, "--name=n", "--project=p", "--zone=z", "--topology=v6e:4x4", *options, "--",
                    "--config=c", "--workdir=/b/r", path=place.path)
    calls = [json.loads(line) for line in (place.path / "calls").read_text().splitlines()]
    names = [re.search(r"worker\.sh (\w+)( .*--resume)?", words[-1]) for words in calls]
    return result, [" ".join(filter(None, name.groups())).replace("  --restarts=10", "") if name else words[3]
                    for name, words in zip(names, calls)]


BEGIN = ["create", "scp", "install", "start"]
AGAIN = ["delete", "create", "scp", "install", "start --resume"]


def test_a_run_is_watched_to_its_end(place):
    result, calls = watch(place, "run", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"], ["running", "ended 0"])
    assert (result.returncode, calls) == (0, BEGIN), result.stderr
    assert "n is still yours and costs" in result.stderr


def test_a_slice_is_given_back_when_asked(place):
    result, calls = watch(place, "run", ["ACTIVE"], ["running|running|ended 0|ended 0", "ended 0"], "--delete_after")
    assert (result.returncode, calls) == (0, [*BEGIN, "delete"])


def test_after_a_preemption_the_slice_is_asked_for_again_and_the_run_goes_on(place):
    states = ["ACTIVE", "ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE"]
    result, calls = watch(place, "run", states, ["running", "ended 0"])
    assert (result.returncode, calls) == (0, BEGIN + AGAIN), result.stderr
    assert "n is SUSPENDED: preempted or taken back" in result.stderr


def test_a_slice_that_cannot_be_had_again_is_given_up(place):
    result, calls = watch(place, "run", ["ACTIVE", "SUSPENDED", "SUSPENDED", "FAILED"], ["running"], "--recreations=3")
    assert (result.returncode, calls) == (1, BEGIN + ["delete", "create"] * 3)
    assert place.sleeps()[-3:] == [120, 240, 480]
    assert "could not be had again" in result.stderr


def test_a_lost_worker_is_started_again(place):
    statuses = ["running|lost|running|running", "running|running|running|ended 75", "running", "ended 0"]
    result, calls = watch(place, "run", ["ACTIVE"], statuses)
    assert (result.returncode, calls) == (0, [*BEGIN, "start --resume", "start --resume"]), result.stderr


def test_lost_workers_are_not_started_for_ever(place):
    result, calls = watch(place, "run", ["ACTIVE"], ["absent"], "--restarts=2")
    assert result.returncode == 1 and [call.split()[0] for call in calls] == [*BEGIN, "start", "start"]


@pytest.mark.parametrize("statuses, code, text", [
    ("running|ended 134|running|running", 134, "gave up with code 134"),
    ("ended 134|ended 2|ended 134|running", 2, "a setting is wrong"),
])
def test_a_run_that_is_given_up_stops_everywhere(place, statuses, code, text):
    result, calls = watch(place, "run", ["ACTIVE"], ["running", statuses])
    assert (result.returncode, calls) == (code, [*BEGIN, "stop"])
    assert text in result.stderr


def test_a_run_that_a_person_stopped_ends_the_watch(place):
    result, calls = watch(place, "run", ["ACTIVE"], ["running", "ended 75"])
    assert (result.returncode, calls) == (75, BEGIN)
    assert "its state is saved" in result.stderr


def test_all_workers_stopped_before_the_slice_is_seen_to_be_preempted(place):
    states = ["ACTIVE", "ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE"]
    result, calls = watch(place, "run", states, ["ended 75", "ended 0"])
    assert (result.returncode, calls) == (0, BEGIN + AGAIN)


@pytest.mark.parametrize("states, wanted", [
    (["ACTIVE"], ["start --resume"]), (["SUSPENDED", "SUSPENDED", "ACTIVE"], AGAIN), (["NONE", "NONE", "ACTIVE"], AGAIN[1:]),
])
def test_resume_asks_for_a_slice_only_where_there_is_none(place, states, wanted):
    result, calls = watch(place, "resume", states, ["running", "ended 0"])
    assert (result.returncode, calls) == (0, wanted), result.stderr


def test_a_request_that_fails_is_said(place):
    result, calls = watch(place, "run", ["WAITING_FOR_RESOURCES", "FAILED"], ["running"])
    assert (result.returncode, calls) == (1, ["create"]) and "n will not become active" in result.stderr
