"""Episodes in their thread against an engine in the main one: order, faults, abandoned work, several turns."""

import asyncio
import gc
import threading
import time
import warnings
from concurrent.futures import Future

import numpy as np
import pytest

from swerl_jax.data.records import INFRA_FAULT, LENGTH, POLICY_FAULT, SCORED, STOP, TRUNCATED, Example, Outcome, Turn
from swerl_jax.env.collector import Collector
from swerl_jax.env.episode import SingleTurn, Task, rollout
from swerl_jax.env.tokenizer import load_tokenizer

EXAMPLE = Example("e", "", "", "broken", {"m.py": "a\n"}, {"m.py": "b\n"})
TOKENIZER = load_tokenizer("byte")
STOP_ID = TOKENIZER.vocab_size - 1


class ScriptedEngine:
    """Answers `script(group, sample, turn)` → (text ids, stop reason), one branch a tick, last asked first.

    `calls` is everything that it was told, in order."""

    def __init__(self, script):
        self.calls, self.open_branches = [], set()
        self._script, self._turns, self._drawing = script, {}, []

    def open(self, group, prompt, samples, *, max_branch_tokens):
        self.calls.append(("open", group, samples, max_branch_tokens))
        self.open_branches |= {(group, sample) for sample in range(samples)}

    def draw(self, group, sample, max_tokens, *, ids=None):
        assert (group, sample) in self.open_branches
        self.calls.append(("draw", group, sample, max_tokens, None if ids is None else list(ids)))
        self._drawing.append((group, sample))

    def close(self, group, sample):
        if (group, sample) not in self.open_branches:
            raise ValueError("not open")
        self.calls.append(("close", group, sample))
        self.open_branches.remove((group, sample))
        self._drawing = [branch for branch in self._drawing if branch != (group, sample)]

    def tick(self):
        self.calls.append(("tick",))
        branch = self._drawing.pop()
        turn = self._turns[branch] = self._turns.get(branch, -1) + 1
        ids, reason = self._script(*branch, turn)
        logp = -np.arange(1, len(ids) + 1, dtype=np.float32)
        return [(*branch, Turn(np.array(ids, np.int32), logp, reason, version=7))]


def text_script(group, sample, turn):
    return [*TOKENIZER.encode(f"{group}.{sample}"), STOP_ID], STOP


def tasks(*indices, samples=2):
    return [Task(index, EXAMPLE, np.array([1, 2], np.int32), samples) for index in indices]


def done(outcome):
    future = Future()
    future.set_result(outcome)
    return future


def score_number(text, example):
    assert example is EXAMPLE
    return done(Outcome(SCORED, float(text)))


def single_turn(score=score_number, **options):
    return SingleTurn(TOKENIZER, (STOP_ID,), 20, score, **options)


def test_groups_come_back_in_the_tasks_order():
    engine = ScriptedEngine(text_script)
    with Collector(single_turn(), 20) as collector:
        groups = collector.run(engine, tasks(5, 3, 4))
        again = collector.run(engine, tasks(9))
    assert [g.index for g in groups] == [5, 3, 4] and [g.index for g in again] == [9]
    assert [[r.sample for r in g.rollouts] for g in groups] == [[0, 1]] * 3
    assert [[r.outcome.reward for r in g.rollouts] for g in groups] == [[5.0, 5.1], [3.0, 3.1], [4.0, 4.1]]
    first = groups[0].rollouts[1]
    assert (first.text, first.stop_reason, first.example_id) == ("5.1", STOP, "e")
    assert first.ids.tolist() == [*TOKENIZER.encode("5.1"), STOP_ID] and first.is_sampled.all()
    assert first.logp.tolist() == [-1, -2, -3, -4] and set(first.version) == {7}
    assert not engine.open_branches, "weights can be loaded only into an engine that holds no group"


def test_lockstep_does_not_see_the_clock():
    """The engine is told the same in the same order, however long verdicts take and in whatever order they come."""
    def calls(seed):
        delays = np.random.default_rng(seed).uniform(0, 0.02, size=64).tolist()

        def score(text, example):
            future = Future()
            threading.Timer(delays.pop(), future.set_result, [Outcome(SCORED, float(text))]).start()
            return future

        async def two_turns(policy, task, sample):
            turn = await policy.draw(task.index, sample, 20)
            observation = await asyncio.wrap_future(score("0.5", task.example))
            second = await policy.draw(task.index, sample, 9, ids=np.array([int(2 * observation.reward)], np.int32))
            policy.close(task.index, sample)
            outcome = await asyncio.wrap_future(score("1", task.example))
            return rollout(task, sample, [turn, second], [np.array([1], np.int32)], "", outcome)

        engine = ScriptedEngine(text_script)
        with Collector(two_turns, 30) as collector:
            collector.run(engine, tasks(0, 1, 2))
        return engine.calls

    expected = calls(0)
    assert [call for call in expected if call[0] == "draw"][:6] == [
        ("draw", group, sample, 20, None) for group in range(3) for sample in range(2)]
    assert calls(1) == expected and calls(2) == expected


@pytest.mark.parametrize("stop_reason, reward, truncated_reward, expected", [
    (LENGTH, -1.0, None, (TRUNCATED, -1.0, "tag_count", False)),  # scored as it stands
    (LENGTH, 0.75, None, (TRUNCATED, 0.75, "", True)),
    (LENGTH, -1.0, -0.5, (TRUNCATED, -0.5, "tag_count", False)),
    (LENGTH, 0.75, -0.5, (TRUNCATED, -0.5, "", True)),
    (STOP, 0.75, -0.5, (SCORED, 0.75, "", True)),
    (STOP, -1.0, -0.5, (POLICY_FAULT, -1.0, "tag_count", False)),
])
def test_truncated_answers(stop_reason, reward, truncated_reward, expected):
    verdict = Outcome(POLICY_FAULT, -1.0, "tag_count") if reward < 0 else Outcome(SCORED, reward)
    engine = ScriptedEngine(lambda group, sample, turn: (TOKENIZER.encode("x"), stop_reason))
    with Collector(single_turn(lambda text, example: done(verdict), truncated_reward=truncated_reward), 20) as collector:
        [group] = collector.run(engine, tasks(0, samples=1))
    outcome = group.rollouts[0].outcome
    assert (outcome.status, outcome.reward, outcome.reason, outcome.is_well_formed) == expected


def test_a_truncated_answer_without_a_verdict_stays_without():
    fault = Outcome(INFRA_FAULT, None, "the scorer died")
    engine = ScriptedEngine(lambda group, sample, turn: (TOKENIZER.encode("x"), LENGTH))
    with Collector(single_turn(lambda text, example: done(fault), truncated_reward=-0.5), 20) as collector:
        [group] = collector.run(engine, tasks(0, samples=1))
    assert group.rollouts[0].outcome == fault


def test_an_exception_of_an_episode_reaches_the_caller():
    def score(text, example):
        if text == "1.1":
            raise RuntimeError("a bug in the reward")
        return Future()  # never done

    engine = ScriptedEngine(text_script)
    with Collector(single_turn(score), 20) as collector:
        with pytest.raises(RuntimeError, match="a bug in the reward"):
            collector.run(engine, tasks(0, 1, 2))
    assert not engine.open_branches


def test_poll_abandons_the_work(capfd):
    class Stop(Exception):
        pass

    polls, verdicts = [], []

    def poll():
        polls.append(1)
        if len(polls) > 4:
            raise Stop

    def score(text, example):
        verdicts.append(Future())
        return verdicts[-1]

    engine = ScriptedEngine(text_script)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Collector(single_turn(score), 20, poll=poll) as collector:
            with pytest.raises(Stop):
                collector.run(engine, tasks(0, 1, 2))
        del collector
        gc.collect()
    assert time.perf_counter() - started < 5
    assert not engine.open_branches
    assert not [thread for thread in threading.enumerate() if thread.name == "episodes"]
    assert verdicts and all(future.cancelled() for future in verdicts), "the pool need not score what nobody waits for"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("closings", [0, 1, 3])
def test_a_branch_is_closed_once_whatever_the_episode_does(closings):
    async def episode(policy, task, sample):
        turn = await policy.draw(task.index, sample, 20)
        for _ in range(closings):
            policy.close(task.index, sample)
        await asyncio.sleep(0.01 * sample)
        return rollout(task, sample, [turn], [], "", Outcome(SCORED, 0.0))

    engine = ScriptedEngine(text_script)
    with Collector(episode, 20) as collector:
        collector.run(engine, tasks(0, 1))
        collector.run(engine, tasks(0, 1))  # the numbers are free again
    assert sorted(call for call in engine.calls if call[0] == "close") == sorted(
        2 * [("close", group, sample) for group in range(2) for sample in range(2)])


def test_a_slow_world_does_not_hold_up_the_others():
    """Without lock-step a branch whose world answers late does not keep the engine from drawing for the others."""
    is_drawn = threading.Event()

    async def episode(policy, task, sample):
        turn = await policy.draw(task.index, sample, 20)
        if sample == 1:  # waits in "the world" until its neighbour has finished two turns
            await asyncio.get_running_loop().run_in_executor(None, is_drawn.wait, 20)
        second = await policy.draw(task.index, sample, 20, ids=np.array([1], np.int32))
        if sample == 0:
            is_drawn.set()
        return rollout(task, sample, [turn, second], [np.array([1], np.int32)], "", Outcome(SCORED, 0.0))

    with Collector(episode, 50, is_lockstep=False) as collector:
        [group] = collector.run(ScriptedEngine(text_script), tasks(0))
    assert is_drawn.is_set() and len(group.rollouts) == 2


def test_turns_and_observations_are_joined():
    turns = [Turn(np.array([4, 5], np.int32), np.array([-0.5, -1.0], np.float32), LENGTH, 3),
             Turn(np.array([6], np.int32), np.array([-2.0], np.float32), STOP, 4)]
    joined = rollout(tasks(0)[0], 1, turns, [np.array([8, 9])], "six", Outcome(SCORED, 1.0))
    assert joined.ids.tolist() == [4, 5, 8, 9, 6] and joined.ids.dtype == np.int32
    assert joined.is_sampled.tolist() == [True, True, False, False, True]
    assert joined.logp.tolist() == [-0.5, -1.0, 0, 0, -2.0]
    assert joined.version.tolist() == [3, 3, -1, -1, 4]
    assert (joined.stop_reason, joined.text, joined.sample) == (STOP, "six", 1)
