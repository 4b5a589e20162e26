"""The reward against recorded cases, hand-made cases and difflib."""

import difflib
import json
import math
import pathlib
import pickle
import random
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swerl_jax.data.records import FORMAT_REASONS, INFRA_FAULT, POLICY_FAULT, SCORED, Outcome
from swerl_jax.env import matching, reward
from swerl_jax.env.matching import Work
from swerl_jax.env.reward import RewardSpec, make_reward, search_replace_reward

CASES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "spec" / "reward_cases.jsonl"
FILES = {"m.py": "def f(a):\n    return a\n", "n.py": "x = 1\ny = 2\n"}
ORACLE = {"m.py": "def f(a):\n    return a + 1\n"}


def answer(*blocks, thought="t"):
    """A well-formed answer of (path, search, replace) blocks."""
    text = "\n".join(
        f"```python\n### {path}\n<<<<<<< SEARCH\n{search}\n=======\n{replace}\n>>>>>>> REPLACE\n```"
        for path, search, replace in blocks
    )
    return f"<think>{thought}</think>\n<solution>\n{text}\n</solution>"


FIX = ("m.py", "    return a", "    return a + 1")


def test_recorded_cases():
    if not CASES.exists():
        pytest.skip(f"the recorded cases are not at {CASES}")
    rows = [json.loads(line) for line in CASES.read_text().splitlines()]
    assert len(rows) >= 94
    for row in rows:
        if row["api"] == "search_replace":
            outcome = search_replace_reward(row["output"], row["code_context"], row["oracle_new_content"])
            assert (outcome.status == POLICY_FAULT) == ("error" in row["metadata"]), row["case"]
        elif row["api"] == "contents":
            outcome = reward.contents_reward(row["pred_new_content"], row["code_context"], row["oracle_new_content"])
        else:
            outcome = reward.unified_diff_reward(row["pred_patches"], row["oracle_patches"])
        assert outcome.reward == pytest.approx(row["reward"], abs=1e-9), row["case"]
        assert [(s.path, s.predicted, s.oracle) for s in outcome.similarities] == [
            (s["path"], s["pred_change"], s["oracle_change"]) for s in row["metadata"].get("similarities", [])
        ], row["case"]
        if "thought" in row["metadata"]:
            assert (outcome.thought, outcome.answer) == (row["metadata"]["thought"], row["metadata"]["answer"])


@pytest.mark.parametrize("output, reason", [
    ("", "tag_count"),
    (answer(FIX, thought=" <think>"), "tag_count"),
    ("<think> \n</think><solution></solution>", "empty_thought"),  # before the blocks are looked at
    ("<think>t</think><solution>prose</solution>", "no_blocks"),
    (answer(("m.py", "zz", "zz")), "no_change"),  # before it is searched
    (answer(FIX, ("n.py", "x = 1", "x = 1")), "no_change"),
    (answer(FIX, ("n.py", "z", "")), "search_not_found"),
    (answer(("m.py", "zz", "q"), ("m.py", "a", "a")), "search_not_found"),  # the first bad edit counts
])  # fmt: skip
def test_reasons(output, reason):
    outcome = search_replace_reward(output, FILES, ORACLE)
    assert (outcome.status, outcome.reward, outcome.reason) == (POLICY_FAULT, -1.0, reason)
    assert outcome.detail and not outcome.similarities and not outcome.is_exact


def test_exact_and_diluted():
    exact = search_replace_reward(answer(FIX), FILES, ORACLE)
    assert (exact.status, exact.reward, exact.is_exact, exact.reason) == (SCORED, 1.0, True, "")
    assert exact.similarities[0].predicted == "@@ -1,2 +1,2 @@\n def f(a):\n-    return a\n+    return a + 1"
    # A shown file that needed no change counts as one more file with similarity 0.
    diluted = search_replace_reward(answer(FIX, ("n.py", "y", "z")), FILES, ORACLE)
    assert (diluted.reward, diluted.is_exact) == (0.5, False)
    assert [(s.path, s.ratio) for s in diluted.similarities] == [("m.py", 1.0), ("n.py", 0.0)]


def test_partial_by_difflib():
    outcome = search_replace_reward(answer(("m.py", "    return a", "    return 1 + a")), FILES, ORACLE)
    head = "@@ -1,2 +1,2 @@\n def f(a):\n-    return a\n+    return "
    expected = difflib.SequenceMatcher(None, head + "1 + a", head + "a + 1", autojunk=False).ratio()
    assert outcome.reward == pytest.approx(expected, abs=1e-12) and 0.9 < expected < 1


def test_discrete():
    spec = RewardSpec(discrete=True)
    assert search_replace_reward(answer(FIX), FILES, ORACLE, spec).reward == 1.0
    wrong = search_replace_reward(answer(FIX, ("n.py", "y", "z")), FILES, ORACLE, spec)
    assert wrong.reward == 0.0 and wrong.similarities[0].ratio == 1.0
    assert search_replace_reward("", FILES, ORACLE, spec).reward == -1.0
    # A final line break that is missing is no exact match.
    assert not reward.contents_reward({"m.py": ORACLE["m.py"][:-1]}, FILES, ORACLE).is_exact


def test_indel_by_hand():
    # The longest common subsequence of "abcd" and "axcyd" is "acd": 2·3 / 9.
    assert reward._ratio("abcd", "axcyd", "indel", Work(10**6)) == pytest.approx(2 * 3 / 9)
    outcome = search_replace_reward(answer(("m.py", "    return a", "    return 1 + a")), FILES, ORACLE,
                                    RewardSpec(similarity="indel"))  # fmt: skip
    assert 0.9 < outcome.reward < 1


def test_line_autojunk_keeps_a_wrong_edit_high():
    """In a long repetitive file the released setting sees two large diffs that are nearly the same."""
    rng = random.Random(3)
    lines = [rng.choice(["    x = 1", "    y = 2", "", "    if x:", "        return x"]) for _ in range(400)]
    lines[200] = "    marker = 1"
    right, wrong = list(lines), list(lines)
    right[200], wrong[200] = "    marker = 2", "    raise ValueError"
    texts = ["\n".join(part) + "\n" for part in (lines, right, wrong)]
    scores = {
        autojunk: reward.contents_reward(
            {"f": texts[2]}, {"f": texts[0]}, {"f": texts[1]}, RewardSpec(line_autojunk=autojunk)
        )
        for autojunk in (True, False)
    }
    expected = list(difflib.unified_diff(lines, right, lineterm=""))[2:]
    assert scores[True].similarities[0].oracle == "\n".join(expected)
    assert scores[False].similarities[0].oracle.count("\n") == 8  # header, 3 + 3 context, − and +
    assert scores[False].reward < scores[True].reward


WORDS = st.sampled_from(["return x", "\n    self.value = ", "def f():\n", "\ud800"])
PARTS = st.lists(st.one_of(st.text("ab \n", max_size=6), WORDS), max_size=30).map("".join)


@settings(max_examples=300)
@given(PARTS, PARTS)
def test_ratio_equals_difflib(a, b):
    assert matching.ratio(a, b, Work(10**9)) == difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


@settings(max_examples=100)
@given(st.text("ab", min_size=1, max_size=60), st.text("ab", min_size=1, max_size=60), st.integers(0, 200_000))
def test_ratio_within_a_limit_is_a_lower_bound(a, b, limit):
    work = Work(limit)
    got, whole = matching.ratio(a, b, work), difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()
    assert got <= whole and (got == whole or work.is_exhausted)


OUTPUTS = st.lists(
    st.one_of(
        st.text(st.characters(codec=None, exclude_categories=()), max_size=20),  # NUL and lone surrogates among them
        st.sampled_from(
            ["<think>", "</think>", "<solution>", "</solution>", "t", "```", "\n", "### m.py", "<<<<<<< SEARCH",
             "=======",
             ">>>>>>> REPLACE", "    return a", "x = 1", "```\n### n.py\n<<<<<<< SEARCH\n", "\n>>>>>>> REPLACE\n```",
             "diff --git a/m.py b/m.py\n", "--- a/m.py\n+++ b/m.py\n", "@@ -1,2 +1,2 @@\n",
             "Binary files a and b differ\n"]
        ),
    ),
    max_size=30,
).map("".join)  # fmt: skip


@settings(max_examples=300)
@given(OUTPUTS, st.booleans())
def test_no_text_raises(text, is_wrapped):
    output = f"<think>t</think><solution>```\n### n.py\n<<<<<<< SEARCH\nx{text}</solution>" if is_wrapped else text
    for name in ("search_replace", "unified_diff"):
        outcome = make_reward(RewardSpec(name))(output, FILES, ORACLE)
        assert outcome.reward == -1 or 0 <= outcome.reward <= 1
        assert (outcome.reward == -1) == (outcome.status == POLICY_FAULT) == (outcome.reason in FORMAT_REASONS)
    assert 0 <= reward.unified_diff_reward([text], [text]).reward <= 1


def test_limits_never_help():
    files = {"m.py": "a\n" * 1000}
    oracle = {"m.py": "a\n" * 999 + "b\n"}
    blown = answer(("m.py", "", "\n" + "a" * 2000))
    outcome = search_replace_reward(blown, files, oracle)
    assert (outcome.status, outcome.reward) == (SCORED, 0.0) and "grown" in outcome.detail
    little = answer(("m.py", "a\na\na", "b"))
    whole = search_replace_reward(little, files, oracle)
    assert 0 < whole.reward < 1 and not whole.detail
    for limit in (1, 10_000, 100_000, 1_000_000):
        cut = search_replace_reward(little, files, oracle, RewardSpec(work_limit_pairs=limit))
        assert cut.reward < whole.reward and cut.status != INFRA_FAULT and "limit" in cut.detail


@pytest.mark.parametrize("limit", [1, 5_000, 60_000, 10**9])
def test_an_exact_fix_has_1_whatever_its_size(limit):
    """Its diff is the oracle's, so no limit of matching cuts it; a wrong one of the same size is cut, or below 1."""
    before, after = "".join(f"a{i}\n" for i in range(40)), "".join(f"b{i}\n" for i in range(40))
    spec = RewardSpec(work_limit_pairs=limit)
    files, oracle = {"m.py": before, "n.py": "x\n"}, {"m.py": after}
    exact = reward.contents_reward({"m.py": after, "n.py": "x\n"}, files, oracle, spec)
    assert (exact.reward, exact.is_exact, exact.detail) == (1.0, True, "")
    wrong = reward.contents_reward({"m.py": after.replace("b39", "c39")}, files, oracle, spec)
    assert wrong.reward < 1 and not wrong.is_exact and bool(wrong.detail) == (limit < 10**9)


def test_unified_diff_of_an_answer():
    score = make_reward(RewardSpec("unified_diff"))
    diff = "--- a/m.py\n+++ b/m.py\n@@ -1,2 +1,2 @@\n def f(a):\n-    return a\n+    return a + 1\n"
    for text in (diff, f"```diff\n{diff}```", f"Look:\n```diff\n{diff}```\nDone."):
        outcome = score(f"<think>t</think><solution>{text}</solution>", FILES, ORACLE)
        assert (outcome.reward, outcome.is_exact) == (1.0, True)
    assert score("<think>t</think><solution>nonsense</solution>", FILES, ORACLE).reward == 0.0
    assert score(diff, FILES, ORACLE).reason == "tag_count"


def test_hostile_diff_headers_are_bounded():
    for text in ("diff --git :// " + "a " * 50_000, "Binary files " + " and x" * 50_000, "\n" * 100_000):
        outcome = reward.unified_diff_reward([text], ["--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"],
                                             RewardSpec(work_limit_pairs=10**8))  # fmt: skip
        assert outcome.reward == 0.0


@pytest.fixture
def user_module(monkeypatch):
    module = types.ModuleType("their_rewards")
    monkeypatch.setitem(sys.modules, "their_rewards", module)
    return module


def test_user_function(user_module):
    user_module.length = lambda output, files, oracle: len(output) + len(files) / 10
    score = make_reward(RewardSpec("their_rewards:length"))
    malformed = score("abc", FILES, ORACLE)
    assert (malformed.status, malformed.reward, malformed.reason, malformed.is_exact) == (POLICY_FAULT, 3.2, "tag_count", False)
    exact, wrong = (score(answer(("m.py", "    return a", f"    return {text}")), FILES, ORACLE) for text in ("a + 1", "b"))
    assert exact.is_well_formed and wrong.is_well_formed and (exact.is_exact, wrong.is_exact) == (True, False)
    assert exact.reward == len(answer(FIX)) + 0.2
    user_module.typed = lambda output, files, oracle: Outcome(POLICY_FAULT, -1.0, "tag_count")
    assert make_reward(RewardSpec("their_rewards:typed"))("", {}, {}).reason == "tag_count"


@pytest.mark.parametrize("value", [
    None, "1", math.nan, math.inf, Outcome("fine", 1.0), Outcome(SCORED, None), Outcome(INFRA_FAULT, 0.0),
    Outcome(POLICY_FAULT, -1.0, "no_tests"), Outcome(SCORED, 1.0, "slow"),
])  # fmt: skip
def test_user_function_must_return_a_reward(user_module, value):
    user_module.wrong = lambda output, files, oracle: value
    with pytest.raises(reward.RewardContractError, match="their_rewards:wrong"):
        make_reward(RewardSpec("their_rewards:wrong"))("", {}, {})


@pytest.mark.parametrize("arguments", [
    {"name": "bleu"}, {"similarity": "cosine"}, {"work_limit_pairs": 0}, {"max_growth_chars": -1},
])  # fmt: skip
def test_wrong_specs(arguments):
    with pytest.raises(ValueError, match="reward"):
        RewardSpec(**arguments)


@pytest.mark.parametrize("name", ["no_such_module:f", "json:no_such_function", "json:__name__", ":f"])
def test_wrong_user_names(name):
    with pytest.raises(ValueError, match="reward"):
        make_reward(RewardSpec(name))


def test_spec_can_be_pickled():
    spec = RewardSpec(similarity="indel", discrete=True)
    assert pickle.loads(pickle.dumps(spec)) == spec
