"""Several processes that train one model: the same losses and log-probabilities as one, and one checkpoint of all."""

import dataclasses
import json

import joined
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax import config as config_lib, engines
from swerl_jax.data.loader import Drawn
from swerl_jax.data.records import SCORED, STOP, Example, Group, Outcome, Rollout
from swerl_jax.env import episode
from swerl_jax.env.collector import Collector
from swerl_jax.learn import deal
from swerl_jax.learn.batch import Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.learner import Learner, OptimizerSettings, from_arrays, to_arrays
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.processes import ALONE
from swerl_jax.learn.rl import RlPhase, RlSettings
from swerl_jax.policy.engine import Team
from swerl_jax.policy.mesh import make_mesh, run_devices

DEVICES, STEPS, SAVED = 2, 5, 3  # devices of each process
PROMPTS, SAMPLES, LONGEST = 2, 4, 12
OBSERVED = np.array([3, 4], np.int32)
ARCH = dataclasses.replace(reference.SMALL, V=64)  # so that eight devices share it
PACKING = PackSettings((8,), (2 * LONGEST,), block=4, max_branch_tokens=LONGEST, rows=4)


class Stream:
    """Examples in order; what is asked and answered follows from their number."""

    def __init__(self):
        self.position = 0

    def take(self, count, encode):
        numbers = range(self.position + 1, self.position + count + 1)
        self.position += count
        return [Drawn(number, example(number), encode(example(number))) for number in numbers]

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


def example(number):
    return Example(str(number), "", "", "", {}, {})


def rollout(group, sample):
    draw = np.random.default_rng([group, sample])
    n = int(draw.integers(1, LONGEST + 1))
    ids, logp = draw.integers(0, ARCH.V, n).astype(np.int32), -4 + 0.3 * draw.standard_normal(n).astype(np.float32)
    return Rollout(str(group), sample, ids, np.ones(n, bool), logp, np.zeros(n, np.int32), STOP, "",
                   Outcome(SCORED, float(draw.random())))


def prompt_ids(example):
    return np.random.default_rng(int(example.id)).integers(0, ARCH.V, 7).astype(np.int32)


def losses(learner, state, processes, first, last, each=lambda step, state: None):
    """(state, losses of the steps from `first` to `last`)."""
    settings = RlSettings(STEPS, PROMPTS, SAMPLES, 1, 1, "grpo", "token_mean", 0, True, False, 1, float("inf"), 0.0, 0.0)
    stream = Stream()
    stream.position = first * PROMPTS
    phase = RlPhase(settings, stream, prompt_ids, SilentEngine(processes), Recorded(), learner, PACKING, processes=processes)
    found = []
    for step in range(first, last):
        state, metrics, rows = phase.step(state, step)
        assert len([row for row in rows if row["kind"] == "rollout"]) == PROMPTS * SAMPLES
        found.append(metrics["loss"])
        each(step + 1, state)
    return state, found


async def two_turns(policy, task, sample):
    """The second one after ids that were not drawn."""
    turns = [await policy.draw(task.index, sample, LONGEST // 2)]
    turns += [await policy.draw(task.index, sample, 2, ids=OBSERVED)]
    return episode.rollout(task, sample, turns, [OBSERVED], "", Outcome(SCORED, 0.0))


def sampled(learner, params, together, processes):
    """Every drawn id, its log-probability as the engine of so many devices drew it, and the learner's, teacher-forced."""
    config = config_lib.update(config_lib.default(), {
        "engine.devices": together, "engine.prefix_buckets": (8,), "answer.max_tokens": LONGEST, "engine.ticks": LONGEST,
        "model.dtype": "float32", "engine.unroll_layers": "false"})
    engine = engines.engine(config, ARCH, learner.mesh, (), prompts=PROMPTS, samples=SAMPLES, groups=PROMPTS, temperature=1.0,
                            purpose="answers", processes=processes)
    engine.load(params, 0)
    tasks = [episode.Task(i, example(i), prompt_ids(example(i)), SAMPLES) for i in range(PROMPTS)]
    with Collector(two_turns, LONGEST) as collector:
        groups = deal.answer(f"answers of {together}", tasks, engine, collector, processes)
    engine.unload()
    batches = pack([Prefixed(group.prompt, [Branch(r.ids, r.is_sampled, r.logp, 1.0, 1.0) for r in group.rollouts])
                    for group in groups], PACKING)
    return {"ids": [batch.target[batch.is_sampled].tolist() for batch in batches],
            "engine": [batch.logp[batch.is_sampled].tolist() for batch in batches],
            "learner": [learner.logp(params, batch)[batch.is_sampled].tolist() for batch in batches]}


def learns(directory, processes):
    """Five steps, a checkpoint after the third, the last two steps from others' checkpoints, and answers of the first parameters.

    Each process has two devices, so the learner's mesh is another one for every number of processes; all in float32. After
    updates their parameters differ by rounding, so answers come from those before. Each process leaves what it saw.
    """
    learner = Learner(ARCH, make_mesh({"fsdp": processes.count, "tensor": DEVICES}, run_devices()[:processes.count * DEVICES]),
                      OptimizerSettings(0.01, "constant", 0, 100), LossSettings("clip"))
    others = sorted(directory.glob("of*"))
    processes.exchange("others' checkpoints are listed", lambda: None)
    checkpoints = Checkpoints(directory / f"of{processes.count}", keep=1, processes=processes)
    state, found = losses(learner, learner.init(0), processes, 0, STEPS, lambda step, state: step == SAVED and checkpoints.save(
        step, to_arrays(state), {"step": step}))
    checkpoints.close()
    start = learner.init(0).params
    sizes = (DEVICES, 2 * DEVICES) if processes.count == 4 else (DEVICES,)  # an engine for each process; for each two
    seen = {"losses": found, "resumed": [], "answers": {size: sampled(learner, start, size, processes) for size in sizes}}
    for other in others:
        saved = Checkpoints.open(other, processes=processes)
        arrays, host = saved.restore(saved.newest, to_arrays(learner.abstract))
        assert (saved.newest, host) == (SAVED, {"step": SAVED})
        seen["resumed"].append(losses(learner, from_arrays(learner.abstract, arrays), processes, SAVED, STEPS)[1])
    (directory / f"{processes.count}.{processes.index}.json").write_text(json.dumps(seen))


@pytest.mark.slow
def test_one_two_and_four_processes_learn_and_answer_alike(tmp_path):
    for count in (2, 4):
        joined.run(__file__, "learns", tmp_path, count, DEVICES)
    learns(tmp_path, ALONE)
    seen = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(seen) == ["1.0", "2.0", "2.1", "4.0", "4.1", "4.2", "4.3"]
    expected = seen["1.0"]
    wanted = expected["answers"][str(DEVICES)]
    assert len(set(expected["losses"])) == STEPS
    assert sum(map(len, wanted["ids"])) == PROMPTS * SAMPLES * (LONGEST // 2 + 2)
    assert [len(one["resumed"]) for _, one in sorted(seen.items())] == [2, 0, 0, 1, 1, 1, 1]
    for name, one in seen.items():
        np.testing.assert_allclose(one["losses"], expected["losses"], rtol=0, atol=1e-5)
        for resumed in one["resumed"]:
            np.testing.assert_allclose(resumed, expected["losses"][SAVED:], rtol=0, atol=1e-5)
        for answers in one["answers"].values():
            assert answers["ids"] == wanted["ids"]
            for side in ("learner", "engine"):
                np.testing.assert_allclose(answers[side], wanted["learner"], rtol=0, atol=1e-5)


if __name__ == "__main__":
    joined.main(globals())
