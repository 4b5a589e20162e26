"""Exact resume: a run killed anywhere and gone on with is, bit for bit, the run that was never killed."""

import json
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small

from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.metrics import METRICS, TIMING_KEYS

pytestmark = pytest.mark.slow
STEPS = 8
KILLS = 3  # of one run


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """(arguments of the command, environment, directory of an uninterrupted run)."""
    data = tmp_path_factory.mktemp("data")
    small.write_examples(data)
    arguments, env = [f"--config=tests/small.py:{data}"], small.environment(data / "compilations")
    directory = tmp_path_factory.mktemp("runs") / "reference"
    Run(arguments, env, directory).finish()
    return arguments, env, directory


class Run:
    """A training process; its directory is all that it shares with the next one."""

    def __init__(self, arguments, env, directory, *more):
        self.directory = directory
        command = small.command(*arguments, f"--workdir={directory}", *more)
        self.process = subprocess.Popen(command, cwd=small.ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True)

    def finish(self):
        output, errors = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, errors
        return output

    def wait_for(self, condition):
        """Returns once `condition(directory)` holds, or the process has ended."""
        while self.process.poll() is None and not condition(self.directory):
            time.sleep(0.001)

    def kill(self, number):
        self.process.send_signal(number)
        return self.process.communicate(timeout=300)


def finished_steps(directory):
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_saving(step):
    """Whether a checkpoint of at least this step is begun and not vouched for."""
    def condition(directory):
        for path in (directory / "checkpoints").glob("step_*"):
            number = int(re.match(r"step_(\d+)", path.name)[1])
            if number >= step and not (path / "manifest.json").exists():
                return True
        return False
    return condition


def contents(directory):
    """Everything that must be equal, by name."""
    found = {f"{folder}/{path.name}": path.read_bytes() for folder in ("rollouts", "evaluations")
             for path in (directory / folder).iterdir()}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        found |= {f"metrics/{row['step']}/{name}": value for name, value in row.items() if name not in TIMING_KEYS}
    reader = Checkpoints.open(directory)
    found["checkpoints"] = reader.steps()
    for step in reader.steps():
        path = reader.directory / f"step_{step:06d}"
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        saved = ocp.StandardCheckpointer().metadata(path / "arrays").item_metadata.tree
        abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here) for name, x in saved.items()}
        arrays, host = reader.restore(step, abstract)
        found |= {f"arrays/{step}/{name}": np.asarray(x).tobytes() for name, x in arrays.items()}
        found[f"host/{step}"] = host
    return found


def assert_equal(directory, reference):
    ours, expected = contents(directory), contents(reference)
    assert ours.keys() == expected.keys()
    assert [name for name in expected if ours[name] != expected[name]] == []


def test_the_reference_has_something_to_lose(reference):
    """Every step changes the parameters, so that a step lost, doubled or drawn otherwise would show."""
    _, _, directory = reference
    found = contents(directory)
    assert found["checkpoints"] == [6, 8]
    assert all(found[f"metrics/{step}/grad_norm"] > 0 for step in range(1, STEPS + 1))
    assert sum(name.startswith("arrays/8/opt") for name in found) > 10
    assert found["arrays/6/params/embed"] != found["arrays/8/params/embed"]
    files = {name for name in found if name.startswith(("rollouts", "evaluations"))}
    assert files == {f"rollouts/step_{n:06d}.jsonl" for n in range(4, 9)} | {
        f"evaluations/step_{n:06d}.jsonl" for n in (3, 6, 8)}


def test_every_documented_metric_is_written(reference):
    """All but that of a penalty against a reference policy, which has a run of its own below."""
    _, _, directory = reference
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert set().union(*rows) - {"step"} == METRICS.keys() - {"kl_ref"}
    assert max(row["seconds/checkpoint"] for row in rows) > 0


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_again_and_again(reference, tmp_path, seed):
    arguments, env, expected = reference
    rng, directory, resume, places = random.Random(seed), tmp_path / "run", [], []
    for kill in range(KILLS):
        run = Run(arguments, env, directory, *resume)
        done = finished_steps(directory)
        if (kill + seed) % 2:
            run.wait_for(is_saving(rng.randint(done, STEPS)))
        else:
            step = min(rng.randint(done, done + 2), STEPS - 1)
            run.wait_for(lambda d: finished_steps(d) >= step and (d / "config.json").exists())
            time.sleep(rng.uniform(0, 0.3))
        run.kill(signal.SIGKILL)
        places.append((run.process.returncode, finished_steps(directory)))
        resume = ["--resume"] if (directory / "config.json").exists() else []
    output = Run(arguments, env, directory, *resume).finish()
    assert sum(code == -signal.SIGKILL for code, _ in places) >= 2, f"(exit code, steps logged) of each kill: {places}"
    assert "after rl" in output
    assert_equal(directory, expected)


@pytest.mark.parametrize("step", [0, 3, 5])
def test_asked_to_stop(reference, tmp_path, step):
    """SIGTERM: the last finished step is saved, the exit code is 0, and the printed command goes on exactly."""
    arguments, env, expected = reference
    run = Run(arguments, env, tmp_path / "run", "--workdir", str(tmp_path / "run"))
    run.wait_for(lambda d: finished_steps(d) >= step and (d / "checkpoints").exists())
    output, errors = run.kill(signal.SIGTERM)
    assert run.process.returncode == 0, errors
    assert "SIGTERM: saving the last finished step, at most 25 s" in errors
    saved = Checkpoints.open(tmp_path / "run").newest
    assert saved >= finished_steps(tmp_path / "run") >= step
    printed = output.split("To go on:\n")[1].strip()
    done = subprocess.run(shlex.split(printed), cwd=small.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {saved}" in done.stdout
    ours, whole = contents(tmp_path / "run"), contents(expected)
    both = [name for name in whole if name in ours]  # the stop itself saved one more step, so others may be kept
    assert {name for name in set(ours) ^ set(whole) if not name.startswith(("arrays", "host"))} == set()
    assert [name for name in both if name != "checkpoints" and ours[name] != whole[name]] == []


def test_asked_to_stop_while_tasks_are_made(tmp_path):
    """There is nothing to save yet: the run ends at once, and its directory is free."""
    directory = tmp_path / "run"
    run = Run(["--config=configs/tiny.py", "--config.tasks.train_count=1000000"], small.environment(tmp_path), directory)
    run.wait_for(lambda d: (d / "tasks").exists())
    _, errors = run.kill(signal.SIGTERM)
    assert run.process.returncode == 0 and "before anything was learnt; the same command begins again" in errors
    assert not (directory / "config.json").exists()


def test_reinforcement_alone_with_a_reference_policy(reference, tmp_path):
    """From another run's parameters: stopped in the evaluation before the first step, then killed, then finished."""
    arguments, env, start = reference
    arguments = [*arguments, "--config.phases=('rl',)", f"--config.init={start}", "--config.rl.kl_coefficient=0.1",
                 "--config.rl.steps=4", "--config.rl.epochs=2", "--config.rl.drop_constant_groups=true"]
    Run(arguments, env, tmp_path / "whole").finish()
    directory = tmp_path / "run"
    run = Run(arguments, env, directory)
    run.wait_for(lambda d: (d / "reference/step_000000/manifest.json").exists())
    _, errors = run.kill(signal.SIGTERM)
    assert (run.process.returncode, finished_steps(directory), Checkpoints.open(directory).newest) == (0, 0, 0), errors
    run = Run(arguments, env, directory, "--resume")
    run.wait_for(lambda d: finished_steps(d) >= 4)  # step 0 has a line, too
    run.kill(signal.SIGKILL)
    Run(arguments, env, directory, "--resume").finish()
    assert_equal(directory, tmp_path / "whole")
    found = contents(directory)
    assert found["metrics/1/update/count"] == 4 and found["metrics/4/kl_ref"] > 0 and "metrics/0/eval/reward" in found


def test_a_damaged_checkpoint_is_passed_over(reference, tmp_path):
    arguments, env, expected = reference
    directory = tmp_path / "run"
    shutil.copytree(expected, directory)
    files = [path for path in (directory / "checkpoints/step_000008").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    largest.write_bytes(damaged)
    output = Run(arguments, env, directory, "--resume").finish()
    assert "resuming after step 6" in output
    assert_equal(directory, expected)


def test_another_setting_is_refused(reference, tmp_path):
    arguments, _, expected = reference
    before = (expected / "config.json").read_bytes()
    done = small.run(*arguments, f"--workdir={expected}", "--resume", "--config.rl.learning_rate=1", "--config.seed=4")
    assert done.returncode == 2
    assert "rl.learning_rate: was 0.001, is 1.0" in done.stderr and "seed: was 0, is 4" in done.stderr
    assert f"--config.init={expected}" in done.stderr
    assert (expected / "config.json").read_bytes() == before


def test_no_good_checkpoint_is_said(reference, tmp_path):
    arguments, env, expected = reference
    directory = tmp_path / "run"
    shutil.copytree(expected, directory)
    for manifest in pathlib.Path(directory / "checkpoints").glob("*/manifest.json"):
        manifest.unlink()
    logged = (directory / "metrics.jsonl").read_bytes()
    run = Run(arguments, env, directory, "--resume")
    _, errors = run.process.communicate(timeout=300)
    assert run.process.returncode == 2
    assert "swerl_jax: no good checkpoint in" in errors and "nothing to resume" in errors
    assert (directory / "metrics.jsonl").read_bytes() == logged
