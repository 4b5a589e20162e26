"""The RL phase: which groups are learnt from, what is refused and reported; and a scripted agent on a real engine."""

import functools
import math
from concurrent.futures import Future

import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.data.loader import Drawn
from swerl_jax.data.records import INFRA_FAULT, LENGTH, POLICY_FAULT, SCORED, STOP, TRUNCATED, Example, Group, Outcome, Rollout
from swerl_jax.env.collector import Collector
from swerl_jax.env.episode import SingleTurn, Task, rollout
from swerl_jax.env.tokenizer import load_tokenizer
from swerl_jax.learn.batch import PackSettings
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.metrics import METRICS
from swerl_jax.learn.rl import RlPhase, RlSettings, StepError
from swerl_jax.policy.engine import Engine, EngineSettings

ARCH = reference.SMALL
ANSWER = 12  # tokens


def settings(**changes):
    values = {"steps": 9, "prompts": 2, "samples": 2, "minibatches": 1, "epochs": 1, "advantage": "grpo",
              "aggregation": "token_mean", "constant_length": ANSWER, "learn_truncated": True,
              "drop_constant_groups": False, "max_draws": 3, "max_logp_diff": 0.01, "importance_cap": 0.0, "max_fault_frac": 0.5}
    return RlSettings(**{**values, **changes})


class Stream:
    """Examples 0, 1, 2, …; the id says which."""

    def __init__(self):
        self.position = 0

    def take(self, count, encode):
        numbers = range(self.position, self.position + count)
        self.position += count
        examples = [Example(str(number), "", "", "x", {}, {}) for number in numbers]
        return [Drawn(number, example, encode(example)) for number, example in zip(numbers, examples)]


class SilentEngine:
    """Takes weights; nothing is drawn from it."""

    compilations = weight_bytes = 0

    def load(self, params, version):
        self.version = version

    def unload(self):
        self.version = None


class ScriptedCollector:
    """Answers each task with `rewards(index)`: one number a sample, None for a fault of ours; the ids are random."""

    seconds_waiting = 0.0

    def __init__(self, rewards, logp_error=0.0, stop_reason=lambda index, sample: STOP, lengths=(3, 7)):
        self.asked = []
        self._rewards, self._error, self._stop_reason, self._lengths = rewards, logp_error, stop_reason, lengths

    def run(self, engine, tasks):
        self.asked.append([task.index for task in tasks])
        return [Group(task.index, task.example, task.prompt, tuple(
            self._rollout(task, sample, reward) for sample, reward in enumerate(self._rewards(task.index))))
            for task in tasks]

    def _rollout(self, task, sample, reward):
        rng = np.random.default_rng([task.index, sample])
        n = self._lengths[sample % len(self._lengths)]
        ids = rng.integers(0, ARCH.V, n).astype(np.int32)
        logp = reference.answer_logp(_parameters(), ARCH, task.prompt, ids).astype(np.float32) + self._error
        status = INFRA_FAULT if reward is None else SCORED if reward >= 0 else POLICY_FAULT
        reason = "" if status == SCORED else "tag_count" if status == POLICY_FAULT else "the scorer died"
        return Rollout(task.example.id, sample, ids, np.ones(n, bool), logp, np.zeros(n, np.int32),
                       self._stop_reason(task.index, sample), "", Outcome(status, reward, reason))


@functools.cache
def _parameters():
    return reference.parameters(reference.random_model(ARCH, spread=0.09))


@functools.cache
def learner(kind="clip", importance_cap=0.0):
    optimizer = OptimizerSettings(0.05, "constant", 0, 100)
    return Learner(ARCH, reference.one_device(), optimizer, LossSettings(kind, importance_cap=importance_cap))


def state():
    return learner().begin(reference.random_model(ARCH, spread=0.09))


def prompt_ids(example):
    return np.arange(5, 9, dtype=np.int32)


PACKING = PackSettings((8,), (24,), block=4, max_branch_tokens=ANSWER, rows=2)


def phase(collector, using=None, **changes):
    return RlPhase(settings(**changes), Stream(), prompt_ids, SilentEngine(), collector, using or learner(), PACKING)


def test_constant_groups_are_dropped_and_others_drawn_instead():
    collector = ScriptedCollector(lambda index: (0.5, 0.5) if index in (0, 3) else (0.25, 1.0))
    new, metrics, rows = phase(collector, drop_constant_groups=True, prompts=3).step(state(), 4)
    assert collector.asked == [[0, 1, 2], [3], [4]]
    assert (metrics["group/drawn"], metrics["group/dropped"]) == (5, 2)
    assert metrics["group/zero_std_frac"] == pytest.approx(2 / 5)
    assert metrics["tokens/learned"] == 3 * (3 + 7)
    assert [row["index"] for row in rows if row["kind"] == "group"] == [0, 1, 2, 3, 4], "dropped groups are logged too"


def test_too_many_constant_groups_end_the_run():
    collector = ScriptedCollector(lambda index: (-1.0, -1.0))
    with pytest.raises(StepError, match=r"6 groups were drawn and only 0 have unequal rewards, 2 are needed; "
                                        r"raise rl\.max_draws") as error:
        phase(collector, drop_constant_groups=True).step(state(), 4)
    assert [row["index"] for row in error.value.rows if row["kind"] == "group"] == list(range(6))
    assert collector.asked == [[0, 1], [2, 3], [4, 5]]


def test_constant_groups_stay_by_default_and_learn_nothing():
    """Alone they give no update; beside others they count in the mean over tokens and are not computed."""
    before = state()
    kept = reference.parameters(before.params)
    new, metrics, _ = phase(ScriptedCollector(lambda index: (0.1, 0.1, 0.1), lengths=(3, 7, 5)), samples=3).step(before, 0)
    assert metrics["group/zero_std_frac"] == 1 and metrics["update/count"] == 0
    assert all((kept[name] == value).all() for name, value in reference.parameters(new.params).items())
    both = ScriptedCollector(lambda index: (0.0, 1.0) if index == 0 else (0.5, 0.5))
    _, metrics, _ = phase(both).step(state(), 0)
    a = 0.5 / (0.5 + 1e-6)
    assert metrics["tokens/learned"] == 10 and metrics["loss"] == pytest.approx(-(3 * -a + 7 * a) / 20, rel=1e-4)


def test_a_penalty_holds_answers_without_an_advantage_too():
    one = RlPhase(settings(), Stream(), prompt_ids, SilentEngine(), ScriptedCollector(lambda index: (0.5, 0.5)),
                  Learner(ARCH, reference.one_device(), OptimizerSettings(0.01, "constant", 0, 100),
                          LossSettings("clip", kl_coefficient=0.1)),
                  PACKING, reference=reference.random_model(ARCH, spread=0.05))
    _, metrics, _ = one.step(state(), 0)
    assert metrics["tokens/learned"] == 2 * 10 and metrics["kl_ref"] > 0 and metrics["grad_norm"] > 0


def test_faults_of_ours_are_outside_baseline_and_gradient():
    """(0.2, None, 0.8) learns exactly what (0.2, 0.8) does."""
    with_fault = phase(ScriptedCollector(lambda index: (0.2, None, 0.8), lengths=(3, 12, 7)), samples=3)
    without = phase(ScriptedCollector(lambda index: (0.2, 0.8), lengths=(3, 7)))
    # The ids depend on (index, sample): the third answer must be the same as the second there.
    plain, other = without._collector._rollout, with_fault._collector._rollout
    without._collector._rollout = functools.partial(_shifted, plain, other)
    one, metrics, rows = with_fault.step(state(), 0)
    two, expected, _ = without.step(state(), 0)
    assert metrics["infra_faults"] == 2 and metrics["grad_norm"] == expected["grad_norm"] > 0
    assert metrics["reward/mean"] == pytest.approx(0.5) and metrics["reward/std"] == pytest.approx(0.3)
    assert metrics["tokens/learned"] == 2 * 10 and metrics["tokens/sampled"] == 2 * 22
    ours, theirs = reference.parameters(one.params), reference.parameters(two.params)
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert [row["reward"] for row in rows if row["kind"] == "rollout"] == [0.2, None, 0.8] * 2


def _shifted(plain, other, task, sample, reward):
    return plain(task, sample, reward) if sample == 0 else other(task, 2, reward)


def test_too_many_faults_end_the_run():
    faulty = ScriptedCollector(lambda index: (0.2, None))
    phase(faulty).step(state(), 0)  # half of them: just allowed
    with pytest.raises(StepError, match=r"2 of 4 answers have no verdict.*40%.*reward\.max_fault_frac") as error:
        phase(faulty, max_fault_frac=0.4).step(state(), 0)
    assert [row["reason"] for row in error.value.rows if row["kind"] == "rollout"] == 2 * ["", "the scorer died"]


def test_a_step_of_faults_alone_learns_nothing():
    before = state()
    kept = reference.parameters(before.params)
    new, metrics, _ = phase(ScriptedCollector(lambda index: (None, None)), max_fault_frac=1.0).step(before, 0)
    assert metrics["update/count"] == 0 and metrics["infra_faults"] == 4 and math.isnan(metrics["reward/mean"])
    assert all((kept[name] == value).all() for name, value in reference.parameters(new.params).items())
    assert metrics.pop("skips") == [] and set(metrics) <= set(METRICS)


def test_truncated_answers_may_be_kept_from_the_loss():
    collector = ScriptedCollector(lambda index: (0.0, 0.5, 1.0), lengths=(3, 12, 7),
                                  stop_reason=lambda index, sample: LENGTH if sample == 1 else STOP)
    _, metrics, _ = phase(collector, samples=3, learn_truncated=False).step(state(), 0)
    assert metrics["tokens/learned"] == 2 * 10 and metrics["length/clipped_frac"] == pytest.approx(1 / 3)
    # Still in the baseline: advantages of the others are ∓(1/2) / sqrt(1/6), all ratios are 1.
    a = 0.5 / (math.sqrt(1 / 6) + 1e-6)
    assert metrics["loss"] == pytest.approx(-(2 * 3 * -a + 2 * 7 * a) / 20, rel=1e-4)
    # Learnt from but for its advantage of 0, its tokens count in the mean all the same.
    _, metrics, _ = phase(collector, samples=3).step(state(), 0)
    assert metrics["tokens/learned"] == 2 * 10
    assert metrics["loss"] == pytest.approx(-(2 * 3 * -a + 2 * 7 * a) / 44, rel=1e-4)


def test_minibatches_and_epochs_are_updates_of_their_own_and_clip():
    collector = ScriptedCollector(lambda index: (0.0, 1.0))
    new, metrics, _ = phase(collector, prompts=4, minibatches=2, epochs=3).step(state(), 0)
    assert metrics["update/count"] == 6 and int(new.step) == 6
    assert metrics["clip/low_frac"] > 0 and metrics["clip/high_frac"] > 0
    assert metrics["logp_diff/max"] < 1e-5, "of the first update only, whose weights are the sampler's"
    assert metrics["tokens/learned"] == 3 * 4 * 10
    _, once, _ = phase(collector, prompts=4).step(state(), 0)
    assert once["update/count"] == 1 and once["clip/low_frac"] == once["clip/high_frac"] == 0


def test_sampler_and_learner_that_disagree_end_the_run():
    rewards = lambda index: (0.0, 1.0)  # noqa: E731
    _, metrics, _ = phase(ScriptedCollector(rewards, logp_error=0.005)).step(state(), 0)
    assert metrics["logp_diff/mean"] == pytest.approx(0.005, abs=1e-5)
    with pytest.raises(StepError, match=r"logp_diff/mean is .* above rl\.max_logp_diff=0\.01") as error:
        phase(ScriptedCollector(rewards, logp_error=0.02)).step(state(), 0)
    assert len(error.value.rows) == 2 * (1 + 2)


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_numbers_that_are_not_finite_are_skipped_from_the_first_batch_on(cap):
    """No disagreement: the update changes nothing and is counted, so that the loop can end the run for what it is."""
    before = state()
    kept = reference.parameters(before.params)
    collector = ScriptedCollector(lambda index: (0.0, 1.0), logp_error=math.nan)
    new, metrics, _ = phase(collector, minibatches=2, importance_cap=cap).step(before, 0)
    assert metrics["skips"] == [True, True] and metrics["update/skipped"] == 2 and math.isnan(metrics["logp_diff/mean"])
    assert all((kept[name] == value).all() for name, value in reference.parameters(new.params).items())


def test_importance_weights_are_truncated_and_leave_the_clip_to_the_updates():
    """Where the sampler was 0.3 nats lower, every weight is exp(0.3), or the cap; the ratio starts at 1 all the same."""
    def step(error, **changes):
        collector = ScriptedCollector(lambda index: (0.0, 1.0), logp_error=error)
        _, metrics, _ = phase(collector, max_logp_diff=1.0, **changes).step(state(), 0)
        return metrics

    plain = step(0.0)
    for cap, weight in ((2.0, math.exp(0.3)), (1.1, 1.1)):
        metrics = step(-0.3, importance_cap=cap)
        for key in ("loss", "grad_norm"):
            assert metrics[key] == pytest.approx(weight * plain[key], rel=1e-3)
        assert metrics["logp_diff/mean"] == pytest.approx(0.3, rel=1e-3)
        assert metrics["importance/capped_frac"] == (cap < weight + 0.1)
        assert metrics["clip/low_frac"] == metrics["clip/high_frac"] == 0
    assert step(-0.3)["clip/high_frac"] > 0, "uncorrected, the clip sees the difference"


@pytest.mark.parametrize("kind", ["clip", "cispo"])
def test_the_pass_of_a_single_update_weighs_as_a_pass_before_it_would(kind):
    collector = ScriptedCollector(lambda index: (0.0, 1.0), logp_error=-0.3)
    changes = {"max_logp_diff": 1.0, "importance_cap": 1.2}
    one, asked, _ = phase(collector, learner(kind), **changes).step(state(), 0)
    two, within, _ = phase(collector, learner(kind, 1.2), **changes).step(state(), 0)
    for key in ("loss", "grad_norm", "logp_diff/mean", "logp_diff/max", "importance/capped_frac", "entropy"):
        assert within[key] == pytest.approx(asked[key], rel=1e-6), key
    assert within["importance/capped_frac"] == 1 and within["clip/high_frac"] == asked["clip/high_frac"] == 0
    for name, value in reference.parameters(one.params).items():
        np.testing.assert_allclose(reference.parameters(two.params)[name], value, rtol=1e-5, atol=1e-6)


TEMPERATURE = 0.8
STOP_IDS = (57, 58, 59, 60)
OBSERVATIONS = [[7, 8, 9], [10]]
LONGEST = 24  # tokens of a branch: 6 + 4 + 6 + 2 + 6


async def three_turns(policy, task, sample):
    """Draws, observes, draws, observes, draws; the world's words and the limits depend on the branch."""
    turns, observations = [await policy.draw(task.index, sample, 6)], []
    for words in OBSERVATIONS:
        observations.append(np.array([*words, sample], np.int32))
        turns.append(await policy.draw(task.index, sample, 4 + sample, ids=observations[-1]))
    policy.close(task.index, sample)
    outcome = Outcome(INFRA_FAULT, None, "lost") if (task.index, sample) == (12, 1) else Outcome(SCORED, 0.3 * sample**2)
    return rollout(task, sample, turns, observations, "", outcome)


@functools.cache
def _agent():
    """(engine, learner), compiled once for all tests; three groups do not fit the two slots at one time."""
    engine = Engine(ARCH, EngineSettings(groups=2, samples=3, prefix_buckets=(8,), branch_buckets=(LONGEST,), ticks=16,
                                         stop_ids=STOP_IDS, extend_tokens=8, temperature=TEMPERATURE, seed=3,
                                         is_unrolled=False), reference.one_device())
    return engine, Learner(ARCH, reference.one_device(), OptimizerSettings(0.01, "constant", 0, 100),
                           LossSettings("clip", temperature=TEMPERATURE))


def _agent_phase(episode):
    stream = Stream()
    stream.position = 10
    packing = PackSettings((8,), (3 * LONGEST,), block=4, max_branch_tokens=LONGEST, rows=2)
    engine, agent = _agent()
    return RlPhase(settings(prompts=3, samples=3), stream, _agent_prompt, engine, Collector(episode, LONGEST), agent,
                   packing)


def _agent_prompt(example):
    return np.arange(5 + int(example.id) % 4, dtype=np.int32)


def _three_turn_groups(*indices):
    engine, _ = _agent()
    engine.load(reference.random_model(ARCH, spread=0.09), 5)
    examples = [Example(str(index), "", "", "x", {}, {}) for index in indices]
    with Collector(three_turns, LONGEST) as collector:
        return collector.run(engine, [Task(int(e.id), e, _agent_prompt(e), 3) for e in examples])


def test_three_scripted_turns_on_a_real_engine():
    groups = _three_turn_groups(10, 11, 12)
    for group in groups:
        for r in group.rollouts:
            # the observations stand where the world spoke, and nowhere else
            words = np.concatenate([[*o, r.sample] for o in OBSERVATIONS])
            assert r.ids[~r.is_sampled].tolist() == words.tolist()
            assert (r.version == np.where(r.is_sampled, 5, -1)).all() and (r.logp[~r.is_sampled] == 0).all()
            edges = np.flatnonzero(np.diff(r.is_sampled.astype(int), prepend=0, append=0))
            lengths = np.diff(edges)[::2]
            assert len(lengths) == 3 and (lengths <= [6, 4 + r.sample, 4 + r.sample]).all()
            assert r.stop_reason == (STOP if r.ids[-1] in STOP_IDS else LENGTH)
            # and every id was drawn at the log-probability that the plain model gives it
            plain = reference.answer_logp(_parameters(), ARCH, group.prompt, r.ids, TEMPERATURE)
            assert np.abs(plain - r.logp)[r.is_sampled].max() <= 1e-5
    texts = {tuple(r.ids) for group in groups for r in group.rollouts}
    assert len(texts) == 9
    for group, again in zip(groups, _three_turn_groups(10, 11, 12), strict=True):
        for a, b in zip(group.rollouts, again.rollouts, strict=True):
            assert (a.ids == b.ids).all() and (a.logp == b.logp).all()
    [alone] = _three_turn_groups(12)  # keys are folded from names, not from the queue
    assert [r.ids.tolist() for r in alone.rollouts] == [r.ids.tolist() for r in groups[2].rollouts]


@pytest.mark.slow
def test_several_turns_are_learnt_like_one():
    """The whole phase on the scripted agent: the learner's log-probs of what was sampled equal the engine's."""
    one = _agent_phase(three_turns)
    with one._collector:
        new, metrics, rows = one.step(one.learner.begin(reference.random_model(ARCH, spread=0.09)), 0)
        again, second, _ = one.step(new, 1)
    assert metrics["logp_diff/max"] <= 1e-5 and second["logp_diff/max"] <= 1e-5
    assert metrics["infra_faults"] == 1 and metrics["grad_norm"] > 0
    tokens = [row["tokens"] for row in rows if row["kind"] == "rollout"]
    observed = sum(len(o) + 1 for o in OBSERVATIONS)
    assert metrics["tokens/sampled"] == sum(tokens) - 9 * observed
    assert metrics["tokens/learned"] == metrics["tokens/sampled"] - (tokens[7] - observed), "not the lost one"
    assert [row["version"] for row in rows if row["kind"] == "rollout"] == [0] * 9


def test_single_turns_on_a_real_engine_with_faults_and_cuts():
    """SWE-RL's own episode: text from ids without the stop id, verdicts late, and a cut answer known as such."""
    tokenizer = load_tokenizer("byte")

    def score(text, example):
        assert len(text.encode("utf-8", "surrogateescape")) <= 3 * 8
        future = Future()
        future.set_result(Outcome(SCORED, 0.5))
        return future

    one = _agent_phase(SingleTurn(tokenizer, STOP_IDS, 8, score, truncated_reward=0.25))
    with one._collector:
        _, metrics, rows = one.step(one.learner.begin(reference.random_model(ARCH, spread=0.09)), 0)
    answers = [row for row in rows if row["kind"] == "rollout"]
    assert {row["stop_reason"] for row in answers} == {STOP, LENGTH}, "the seed shows both"
    for row in answers:
        assert (row["status"], row["reward"]) == ((TRUNCATED, 0.25) if row["stop_reason"] == LENGTH else (SCORED, 0.5))
        assert (row["tokens"] == 8) >= (row["stop_reason"] == LENGTH)
    assert metrics["weights/bytes"] == 4 * ARCH.parameters and metrics["seconds/weights"] <= metrics["seconds/sample"]
    assert metrics["logp_diff/max"] <= 1e-5
