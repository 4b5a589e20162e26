"""Several processes that train one model: the same losses as one, one checkpoint of all, and whole runs that are stopped."""

import dataclasses
import json
import signal
import subprocess
import time

import joined
import numpy as np
import pytest
import reference_llama as reference
import small

from swerl_jax import config as config_lib, engines
from swerl_jax.data.loader import Drawn
from swerl_jax.data.records import SCORED, STOP, Example, Group, Outcome, Rollout
from swerl_jax.learn.batch import PackSettings
from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.learner import Learner, OptimizerSettings, from_arrays, to_arrays
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.metrics import read_metrics
from swerl_jax.learn.processes import ALONE
from swerl_jax.learn.rl import RlPhase, RlSettings
from swerl_jax.policy.engine import Team
from swerl_jax.policy.mesh import make_mesh, run_devices

DEVICES, STEPS, SAVED = 4, 5, 3
PROMPTS, SAMPLES, LONGEST = 2, 4, 12
ARCH = dataclasses.replace(reference.SMALL, V=64)  # so that four devices share it


class Stream:
    """Examples in order; what is asked and answered follows from their number."""

    def __init__(self):
        self.position = 0

    def take(self, count, encode):
        numbers = range(self.position + 1, self.position + count + 1)
        self.position += count
        examples = [Example(str(number), "", "", "", {}, {}) for number in numbers]
        return [Drawn(number, example, encode(example)) for number, example in zip(numbers, examples)]

    def state(self):
        return {"position": self.position}


class Recorded:
    """In place of sampling: the answers of each (group, sample) as they were once."""

    seconds_waiting = 0.0

    def run(self, engine, tasks):
        return [Group(task.index, task.example, task.prompt, tuple(rollout(task.index, i) for i in task.numbers))
                for task in tasks]


class SilentEngine:
    compilations = weight_bytes = 0

    def __init__(self, processes):
        self.team = Team(processes.index, processes.count)

    def load(self, params, version):
        pass

    def unload(self):
        pass

    def serve(self, work):
        return work()


def rollout(group, sample):
    draw = np.random.default_rng([group, sample])
    n = int(draw.integers(1, LONGEST + 1))
    ids, logp = draw.integers(0, ARCH.V, n).astype(np.int32), -4 + 0.3 * draw.standard_normal(n).astype(np.float32)
    return Rollout(str(group), sample, ids, np.ones(n, bool), logp, np.zeros(n, np.int32), STOP, "",
                   Outcome(SCORED, float(draw.random())))


def prompt_ids(example):
    return np.random.default_rng(int(example.id)).integers(0, ARCH.V, 7).astype(np.int32)


def make_learner(sizes, devices):
    return Learner(ARCH, make_mesh(sizes, devices), OptimizerSettings(0.01, "constant", 0, 100), LossSettings("clip"))


def losses(learner, state, processes, first, last, each=lambda step, state: None):
    """(state, losses of the steps from `first` to `last`)."""
    settings = RlSettings(STEPS, PROMPTS, SAMPLES, 1, 1, "grpo", "token_mean", 0, True, False, 1, float("inf"), 0.0, 0.0)
    stream = Stream()
    stream.position = first * PROMPTS
    phase = RlPhase(settings, stream, prompt_ids, SilentEngine(processes), Recorded(), learner, PackSettings(
        (8,), (2 * LONGEST,), block=4, max_branch_tokens=LONGEST, rows=DEVICES), processes=processes)
    found = []
    for step in range(first, last):
        state, metrics, rows = phase.step(state, step)
        assert len([row for row in rows if row["kind"] == "rollout"]) == PROMPTS * SAMPLES
        found.append(metrics["loss"])
        each(step + 1, state)
    return state, found


def sampled(params, mesh, processes, together):
    """Ids and log-probabilities of one group's answers, from an engine of so many devices; None where it only follows."""
    config = config_lib.update(config_lib.default(), {
        "engine.devices": together, "engine.prefix_buckets": (8,), "answer.max_tokens": LONGEST, "engine.ticks": LONGEST,
        "model.dtype": "float32", "engine.unroll_layers": "false", "mesh.tensor": 2})
    engine = engines.engine(config, ARCH, mesh, (), prompts=4, samples=2, groups=4, temperature=1.0, purpose=f"of {together}",
                            processes=processes)
    engine.load(params, 0)

    def ask():
        engine.open(0, prompt_ids(Example("1", "", "", "", {}, {})), 2, max_branch_tokens=LONGEST)
        for sample in range(2):
            engine.draw(0, sample, LONGEST // 2)
        turns = {}
        for asked in range(2):  # a second turn, after ids that were not drawn
            while len(turns) < 2 * (asked + 1):
                turns |= {(asked, sample): turn for _, sample, turn in engine.tick()}
            for sample in range(2 - 2 * asked):
                engine.draw(0, sample, 2, ids=np.array([3, 4], np.int32))
        for sample in range(2):
            engine.close(0, sample)
        return [[turn.ids.tolist(), turn.logp.tolist()] for _, turn in sorted(turns.items())]

    answers = engine.serve(ask)
    engine.unload()
    return answers


def learns(directory, processes):
    """Five steps, a checkpoint after the third, and answers of what came of it; each process leaves what it saw."""
    devices = run_devices()[:DEVICES]
    learner = make_learner({"fsdp": 2, "tensor": 2}, devices)
    checkpoints = Checkpoints(directory / f"of{processes.count}", keep=1, processes=processes)
    state, found = losses(learner, learner.init(0), processes, 0, STEPS, lambda step, state: step == SAVED and checkpoints.save(
        step, to_arrays(state), {"step": step}))
    checkpoints.close()
    seen = {"losses": found, "answers": {together: sampled(state.params, learner.mesh, processes, together)
                                         for together in (0, 2, 4)}}
    if (directory / "of2").exists() and processes.count == 4:  # go on with what two processes saved, on another mesh
        learner = make_learner({"fsdp": 4}, devices)
        saved = Checkpoints.open(directory / "of2", processes=processes)
        arrays, host = saved.restore(saved.newest, to_arrays(learner.abstract))
        assert (saved.newest, host) == (SAVED, {"step": SAVED})
        seen["resumed"] = losses(learner, from_arrays(learner.abstract, arrays), processes, SAVED, STEPS)[1]
    (directory / f"{processes.count}.{processes.index}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_one_two_and_four_processes_learn_and_answer_alike(tmp_path):
    learns(tmp_path, ALONE)
    for count in (2, 4):
        joined.run(__file__, "learns", tmp_path, count, DEVICES // count)
    seen = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(seen) == ["1.0", "2.0", "2.1", "4.0", "4.1", "4.2", "4.3"]
    expected = seen["1.0"]
    assert len(set(expected["losses"])) == STEPS
    leading = {"0": "all", "2": {"1.0", "2.0", "2.1", "4.0", "4.2"}, "4": {"1.0", "2.0", "4.0"}}
    for name, one in seen.items():
        np.testing.assert_allclose(one["losses"], expected["losses"], atol=1e-5)
        for together, answers in one["answers"].items():
            if leading[together] != "all" and name not in leading[together]:
                assert answers is None, "it follows another"
                continue
            for (ids, logp), (wanted_ids, wanted_logp) in zip(answers, expected["answers"][together], strict=True):
                assert ids == wanted_ids
                np.testing.assert_allclose(logp, wanted_logp, atol=1e-5)
    for rank in range(4):
        np.testing.assert_allclose(seen[f"4.{rank}"]["resumed"], expected["losses"][SAVED:], atol=1e-5)


def start_run(data, directory, address, rank, count, *arguments):
    return subprocess.Popen(
        small.command(f"--config=tests/small.py:{data}", f"--workdir={directory}", "--config.phases=('rl',)",
                      "--config.eval.every_steps=0", "--config.rl.minibatches=1", "--config.checkpoints.every_steps=1000",
                      "--config.answer.max_tokens=32", "--config.engine.ticks=32", "--config.rl.row_tokens=(128,)",
                      "--config.log.tensorboard=False", "--config.optimizer.max_skipped=1000",
                      f"--config.engine.devices={count}",  # where they are two, the second only follows the first
                      f"--config.distributed.coordinator={address if count > 1 else 'none'}",
                      f"--config.distributed.processes={count}", f"--config.distributed.process={rank}",
                      f"--config.distributed.heartbeat_s={joined.HEARTBEAT_S}", *arguments),
        cwd=small.ROOT, env=joined.environment(1, JAX_COMPILATION_CACHE_DIR=str(data / "compilations")),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(path, step, processes):
    """Until metrics.jsonl has the line of `step`."""
    while not path.exists() or not any(f'"step": {step},' in line for line in path.read_text().splitlines()):
        ended = [process for process in processes if process.poll() is not None]
        assert not ended, ended[0].communicate()[0]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_one_goes_on(tmp_path):
    """The second process is told; both save the same step and exit with 0. One process alone then goes on to the end."""
    data, directory = tmp_path / "data", tmp_path / "run"
    small.write_examples(data)
    address = joined.free_address()
    processes = [start_run(data, directory, address, rank, 2, "--config.rl.steps=100000") for rank in range(2)]
    wait_for_step(directory / "metrics.jsonl", 2, processes)
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "another process was told to stop" in outputs[0] and "SIGTERM" in outputs[1]
    lines = read_metrics(directory / "metrics.jsonl")
    step = lines[-1]["step"]
    saved = Checkpoints.open(directory)
    assert saved.newest == step
    assert max(line["logp_diff/max"] for line in lines if "logp_diff/max" in line) < 1e-4
    alone = start_run(data, directory, "", 0, 1, f"--config.rl.steps={step + 2}", "--resume")
    output = alone.communicate(timeout=600)[0]
    assert alone.returncode == 0, output
    assert f"resuming after step {step}" in output
    steps = [line["step"] for line in read_metrics(directory / "metrics.jsonl")]
    assert steps[-step - 2:] == list(range(1, step + 3))
    assert (directory / "table.md").exists()


@pytest.mark.slow
def test_a_wrong_setting_of_one_process_is_told_by_all(tmp_path):
    small.write_examples(tmp_path / "data")
    address = joined.free_address()
    processes = [start_run(tmp_path / "data", tmp_path / "run", address, rank, 2, f"--config.rl.samples={2 + rank}")
                 for rank in range(2)]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], "\n".join(outputs)
    assert all("the processes have different settings: rl.samples; give all of them the same" in text for text in outputs)
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    joined.main(globals())
