"""What is said of the answers of a step: metrics, and rows that can be scored again."""

import json
import math

import numpy as np
import pytest

from swerl_jax.data.records import INFRA_FAULT, LENGTH, POLICY_FAULT, SCORED, STOP, TRUNCATED, Example, Group, Outcome, Rollout, Similarity
from swerl_jax.env.reward import RewardSpec, make_reward
from swerl_jax.env.score_file import score_file
from swerl_jax.learn import evaluate
from swerl_jax.learn.metrics import METRICS, RolloutLog
from swerl_jax.learn.rl import rollout_metrics, rollout_rows

EXAMPLE = Example("e", "", "", "broken", {"m.py": "a\n"}, {"m.py": "b\n"})


def _answer(sample, n, stop_reason, outcome):
    return Rollout("e", sample, np.zeros(n, np.int32), np.arange(n) != 1, np.full(n, -0.5, np.float32),
                   np.full(n, 3, np.int32), stop_reason, f"text {sample}", outcome)


GROUPS = [
    Group(4, EXAMPLE, np.zeros(10, np.int32), (
        _answer(0, 5, STOP, Outcome(SCORED, 1.0, similarities=(Similarity("m.py", "p", "o", 1.0),), is_exact=True)),
        _answer(1, 9, LENGTH, Outcome(TRUNCATED, -1.0, "tag_count")),
        _answer(2, 3, STOP, Outcome(SCORED, 0.4)))),
    Group(5, EXAMPLE, np.zeros(20, np.int32), (
        _answer(0, 2, STOP, Outcome(POLICY_FAULT, -1.0, "no_blocks", "detail")),
        _answer(1, 4, STOP, Outcome(INFRA_FAULT, None, "the scorer died")),
        _answer(2, 7, STOP, Outcome(POLICY_FAULT, -1.0, "tag_count")))),
]


def test_rollout_metrics_by_hand():
    metrics = rollout_metrics(GROUPS)
    assert metrics == pytest.approx({
        "reward/mean": -0.32, "reward/std": math.sqrt((1.32**2 + 0.72**2 + 3 * 0.68**2) / 5),
        "reward/well_formed_mean": 0.7,
        "exact_frac": 0.2, "format/correct_frac": 0.4, "format/tag_count_frac": 0.4, "format/no_blocks_frac": 0.2,
        "format/empty_thought_frac": 0, "format/no_change_frac": 0, "format/search_not_found_frac": 0,
        "group/zero_std_frac": 0.5, "group/drawn": 2,
        "length/mean": 5, "length/p95": 8.5, "length/max": 9, "length/clipped_frac": 1 / 6,
        "prompt/mean": 15, "tokens/sampled": 30 - 6, "infra_faults": 1})
    assert set(metrics) <= set(METRICS)


def test_answers_without_any_verdict_have_no_numbers():
    """They are no zeros: nobody knows whether one of them is right."""
    unknown = [Group(4, EXAMPLE, np.zeros(10, np.int32), (_answer(0, 5, STOP, Outcome(INFRA_FAULT, None, "the scorer died")),))]
    found, held_out = rollout_metrics(unknown), evaluate.metrics(unknown)
    assert found["infra_faults"] == held_out["eval/infra_faults"] == 1
    assert all(math.isnan(found[name]) for name in found if name.startswith(("reward/", "exact", "format/")))
    assert all(math.isnan(held_out[f"eval/{name}"]) for name in ("reward", "well_formed_reward", "format_frac", "exact_frac"))


def test_an_evaluation_without_any_verdict_is_refused_with_its_faults():
    reasons = ["b", *"aa", *"cccc", "d", "e", "f", "g"]
    unknown = [Group(0, EXAMPLE, np.zeros(1, np.int32), tuple(
        _answer(i, 2, STOP, Outcome(INFRA_FAULT, None, reason)) for i, reason in enumerate(reasons)))]
    with pytest.raises(ValueError) as error:
        evaluate.results(unknown)
    assert str(error.value).splitlines()[:-1] == [
        "nothing was scored: none of the 11 answers has a verdict. What kept them from it:",
        "  4 × c", "  2 × a", "  1 × b", "  1 × d", "  1 × e", "  and 2 other faults"]
    assert [(one.rewards, one.faults) for one in evaluate.results([*unknown, *GROUPS])] == [
        ((), 11), ((1.0, -1.0, 0.4), 0), ((-1.0, -1.0), 1)]


def test_rollout_rows():
    head, first, *others = rollout_rows(GROUPS[0])
    assert head == {"kind": "group", "example_id": "e", "index": 4, "prompt_tokens": 10, "issue": "broken",
                    "code_context": {"m.py": "a\n"}, "oracle_new_content": {"m.py": "b\n"}}
    assert first == {"kind": "rollout", "example_id": "e", "sample": 0, "output": "text 0", "reward": 1.0,
                     "status": SCORED, "reason": "", "detail": "", "is_well_formed": True, "is_exact": True,
                     "stop_reason": STOP, "tokens": 5, "logp": -2.0, "version": 3, "similarities": [{"path": "m.py", "similarity": 1.0}]}
    assert [(row["sample"], row["status"], row["is_well_formed"]) for row in others] == [
        (1, TRUNCATED, False), (2, SCORED, True)]


ANSWERS = {
    "exact": "<think>t</think><solution>```\n### m.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n```</solution>",
    "near": "<think>t</think><solution>```\n### m.py\n<<<<<<< SEARCH\na\n=======\nbb\n>>>>>>> REPLACE\n```</solution>",
    "no tags": "b \ud800\x00",
    "no blocks": "<think>t</think><solution>b</solution>",
}


def test_rollouts_can_be_scored_again(tmp_path):
    reward = make_reward(RewardSpec())
    outcomes = {text: reward(text, dict(EXAMPLE.files), dict(EXAMPLE.oracle)) for text in ANSWERS.values()}
    assert [o.reward == -1 for o in outcomes.values()] == [False, False, True, True]
    one = np.zeros(1, np.int32)
    rollouts = [Rollout("e", i, one, one == 0, np.zeros(1, np.float32), one, STOP, text, outcome)
                for i, (text, outcome) in enumerate(outcomes.items())]
    group = Group(0, EXAMPLE, np.zeros(3, np.int32), tuple(rollouts))
    path = RolloutLog(tmp_path).write(1, rollout_rows(group))
    score_file(path, tmp_path / "again.jsonl", RewardSpec(), workers=1, deadline_s=60, progress=False)
    before, after = ([json.loads(line) for line in file.read_text().splitlines()]
                     for file in (path, tmp_path / "again.jsonl"))
    assert len(after) == 5
    for old, new in zip(before[1:], after[1:]):
        assert {key: new[key] for key in ("reward", "reason", "status", "is_exact", "output", "tokens")} == {
            key: old[key] for key in ("reward", "reason", "status", "is_exact", "output", "tokens")}
        assert [s["similarity"] for s in new["similarities"]] == [s["similarity"] for s in old["similarities"]]
