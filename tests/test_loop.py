"""The loop with phases that take no time: after a stop at any place and a resume, what an unbroken run leaves."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.data.records import SCORED, STOP, Example, Group, Outcome, Rollout
from swerl_jax.learn.checkpoint import Checkpoints
from swerl_jax.learn.learner import State
from swerl_jax.learn.loop import Loop, LoopSettings, StopRequested, read_evaluation
from swerl_jax.learn.metrics import TIMING_KEYS, read_metrics
from swerl_jax.learn.rl import StepError
from swerl_jax.policy import mesh as mesh_lib


def fresh(value=0.0):
    return State(jnp.int32(0), {"w": jnp.float32(value)}, {"m": jnp.float32(0)})


class Stop:
    """Raises StopRequested at the `at`-th look."""

    def __init__(self, at):
        self._left, self.is_saved = at, False

    def poll(self):
        self._left -= 1
        if self._left == 0:
            raise StopRequested

    def follow(self):
        pass

    def saved(self):
        self.is_saved = True


class Stream:
    def __init__(self):
        self.position = 0

    def state(self):
        return {"position": self.position}

    def restore(self, state):
        self.position = state["position"]


class Phase:
    """Adds the next examples' numbers to the parameters; `skips`: step → which of its updates are not finite."""

    compilations = 0

    def __init__(self, name, steps, stop, skips):
        self.name, self.steps, self.loader, self._stop, self._skips = name, steps, Stream(), stop, skips
        sharding = mesh_lib.sharding(reference.one_device(), "", mesh_lib.LEARNER_RULES)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), fresh())
        self.learner = types.SimpleNamespace(abstract=abstract, begin=lambda params: State(
            jnp.int32(0), params, {"m": jnp.float32(0)}))

    def step(self, state, step):
        drawn = 0
        for _ in range(2):  # a signal may come between two draws
            self.loader.position += 1
            drawn += self.loader.position
            self._stop.poll()
        opt = {"m": state.opt["m"] + drawn}
        new = State(state.step + 1, {"w": 2 * state.params["w"] + opt["m"]}, opt)
        return new, {"loss": float(new.params["w"]), "skips": self._skips.get(step + 1, [False])}, [
            {"kind": "rollout", "step": step, "w": float(new.params["w"])}] if self.name == "rl" else []


class Evaluator:
    def __init__(self, stop):
        self.engine, self._stop = types.SimpleNamespace(compilations=0), stop

    def run(self, params, version):
        self._stop.poll()
        w = float(params["w"])
        answer = Rollout("e", 0, np.zeros(1, np.int32), np.ones(1, bool), np.zeros(1, np.float32), np.zeros(1, np.int32),
                         STOP, "", Outcome(SCORED, w))
        return [Group(0, Example("e", "", "", "", {}, {}), np.zeros(2, np.int32), (answer,))]


STEPS = (3, 4)  # supervised, RL


def make(directory, *, stop_at=0, is_first_evaluated=True, skips={}, max_skipped=3, checkpoint_every=2):
    stop = Stop(stop_at)
    phases = [Phase("sft", STEPS[0], stop, {}), Phase("rl", STEPS[1], stop, skips)]
    checkpoints = Checkpoints(directory / "checkpoints", keep=2)
    settings = LoopSettings(2, checkpoint_every, max_skipped, is_first_evaluated)
    loop = Loop(directory, phases, Evaluator(stop), checkpoints, settings, stop, tensorboard=False, log_rollouts=True,
                say=lambda line: None)
    return loop, checkpoints, stop


def contents(directory):
    rows = [{k: v for k, v in row.items() if k not in TIMING_KEYS} for row in read_metrics(directory / "metrics.jsonl")]
    files = {path.relative_to(directory): path.read_bytes() for folder in ("rollouts", "evaluations")
             for path in (directory / folder).iterdir()}
    return rows, files


def run(loop, checkpoints, resume):
    restored = loop.restore() if resume else None
    try:
        return loop.run(*(restored or (fresh(1.0), 0)))
    finally:
        checkpoints.close()


def test_an_unbroken_run(tmp_path):
    loop, checkpoints, stop = make(tmp_path)
    state = run(loop, checkpoints, False)
    # w doubles and gains m, which sums the draws: 1+2, 3+4, 5+6 and, from 0 again with a stream of its own, 1+2 to 7+8
    w, m, expected = 1, 0, []
    for step in range(7):
        m = 0 if step in (0, 3) else m
        first = 2 * (step if step < 3 else step - 3) + 1
        m += 2 * first + 1
        w = 2 * w + m
        expected.append(w)
    assert float(state.params["w"]) == expected[-1] and stop.is_saved
    rows, files = contents(tmp_path)
    assert [row["step"] for row in rows] == list(range(8)) and rows[0]["task"] == "eval" and rows[0]["eval/reward"] == 1
    assert [row["loss"] for row in rows[1:]] == expected
    assert {row["step"]: row["eval/reward"] for row in rows if "eval/reward" in row} == {
        0: 1, 2: expected[1], 3: expected[2], 4: expected[3], 6: expected[5], 7: expected[6]}
    assert [row["data/position"] for row in rows[1:]] == [2, 4, 6, 2, 4, 6, 8]
    names = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert names == [f"step_{n:06d}.jsonl" for n in (4, 5, 6, 7)]
    assert [row["group"]["example_id"] for row in read_evaluation(tmp_path / "evaluations/step_000007.jsonl")] == ["e"]
    assert Checkpoints.open(tmp_path).steps() == [6, 7]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of an unbroken run."""
    directory = tmp_path_factory.mktemp("whole")
    run(*make(directory)[:2], False)
    return directory


# Looks 1, 8, 12, 16, 23 and 27 are in evaluations, the others before a step and twice in it.
PLACES = [at if at in (1, 3, 12, 13, 16, 27) else pytest.param(at, marks=pytest.mark.slow) for at in range(1, 28)]


@pytest.mark.parametrize("stop_at", PLACES)
def test_stopped_at_every_place(whole, tmp_path, stop_at):
    """Every look at the signal in turn: between steps, within one, before and in an evaluation."""
    directory = tmp_path / "run"
    loop, checkpoints, stop = make(directory, stop_at=stop_at)
    with pytest.raises(StopRequested):
        run(loop, checkpoints, False)
    assert stop.is_saved
    done = max((row["step"] for row in read_metrics(directory / "metrics.jsonl")), default=0) \
        if (directory / "metrics.jsonl").exists() else 0
    assert Checkpoints.open(directory).newest >= done, "no finished step is lost"
    state = run(*make(directory)[:2], True)
    assert contents(directory) == contents(whole)
    assert float(state.params["w"]) == read_metrics(whole / "metrics.jsonl")[-1]["loss"]


def test_a_first_checkpoint_that_was_not_finished_is_made_again(whole, tmp_path):
    """Killed between the commit of step 0 and its manifest: nothing is lost, for nothing was learnt."""
    directory = tmp_path / "run"
    with pytest.raises(StopRequested):
        run(*make(directory, stop_at=2)[:2], False)
    assert Checkpoints.open(directory).steps() == [0]
    (directory / "checkpoints/step_000000/manifest.json").unlink()
    run(*make(directory)[:2], True)
    assert contents(directory) == contents(whole)


def test_looks_are_counted_right(tmp_path):
    """27 looks at the signal in all: so the range above leaves none out."""
    loop, checkpoints, stop = make(tmp_path)
    run(loop, checkpoints, False)
    assert -stop._left == 7 * 3 + 6  # before a step and twice in it; evaluations


def test_updates_that_are_not_finite_end_the_run(tmp_path):
    """Counted over steps, in the updates' order: not two steps of which each lost one, but three updates side by side."""
    loop, checkpoints, _ = make(tmp_path, skips={4: [False, True], 5: [], 6: [True, True, False]})
    with pytest.raises(ValueError, match="grad_norm was not finite in 3 updates in a row, the last in step 6"):
        run(loop, checkpoints, False)
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == 6, "its line is there to be read"
    loop, checkpoints, _ = make(tmp_path / "other", skips={4: [True, False], 5: [True, True], 6: [False, True], 7: [True]})
    run(loop, checkpoints, False)


@pytest.mark.parametrize("is_logged", [True, False])
def test_a_step_that_ends_the_run_is_named_and_leaves_its_answers(tmp_path, is_logged):
    loop, checkpoints, _ = make(tmp_path)

    def fail(state, step):
        raise StepError("nothing to learn from", [{"kind": "group", "index": 7}] if is_logged else [])

    loop.phases[1].step = fail
    where = "; its answers are in .*step_000004.jsonl" if is_logged else ""
    with pytest.raises(ValueError, match=f"^step 4: nothing to learn from{where}$"):
        run(loop, checkpoints, False)
    path = tmp_path / "rollouts" / "step_000004.jsonl"
    assert path.read_text() == '{"kind": "group", "index": 7}\n' if is_logged else not path.exists()
    run(*make(tmp_path)[:2], True)
    assert '"w":' in path.read_text(), "a resumed run writes its own"


@pytest.mark.parametrize("stop_at", [14, 16, 18])
def test_a_resumed_run_remembers_how_many_were_skipped(tmp_path, stop_at):
    options = {"skips": {step: [True] for step in (4, 5, 6)}}
    loop, checkpoints, _ = make(tmp_path, stop_at=stop_at, **options)
    with pytest.raises(StopRequested):
        run(loop, checkpoints, False)
    loop, checkpoints, _ = make(tmp_path, **options)
    with pytest.raises(ValueError, match="in 3 updates in a row, the last in step 6"):
        run(loop, checkpoints, True)
