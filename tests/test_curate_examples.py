"""Candidates become examples that shards take and whose own answer scores 1.0, or are refused by name."""

import gzip
import json
import pathlib

import pytest
import unidiff
from hypothesis import given, settings, strategies

from swerl_jax.curate import examples, look, paths
from swerl_jax.curate.change import Candidate, Change, Comment, FileChange, Issue, Reject
from swerl_jax.data import shards
from swerl_jax.data.records import Example
from swerl_jax.env import prompts, reward
from swerl_jax.env.chat import Chat
from swerl_jax.env.tokenizer import ByteTokenizer

DEV = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "swebench_dev.jsonl.gz"
COUNTER = examples.TokenCounter(Chat(ByteTokenizer()))
ROOMY = examples.ExampleSettings(max_prompt_tokens=10_000, max_answer_tokens=4_000)
BEFORE = "def mean(values):\n    return sum(values) / len(values)\n"
AFTER = BEFORE.replace("    return", "    if not values:\n        raise ValueError('empty')\n    return")
MAIN = FileChange("src/m.py", "edit", BEFORE, AFTER)
KEY = "AKIA" + "QWERTYZ234567UIO"


def candidate(*files, **fields):
    given_fields = {"issues": (Issue("o/n", 1, "Crash", "mail jane@corp.com\r\nor \ud800"),), "title": "Fix", "licence": "MIT"}
    change = Change("o/n#2", "git", "o/n", "b", "h", **{**given_fields, **fields})
    return Candidate(change, "c0", files or (MAIN,))


def build(made, context=None, settings=ROOMY):
    return examples.build(made, context or {}, settings, COUNTER)


def test_an_example_holds_what_it_should():
    made = build(candidate(
        FileChange("CHANGES.md", "edit", "a\n", "b\n"), FileChange("src/a_new.py", "new", None, "y = 1\n"), MAIN,
        FileChange("tests/t.py", "edit", "1\n", "2\n"), FileChange("tests/old.py", "delete", "1\n", None),
        conversation=(Comment("review", "bob", "2024-01-01T00:00:00Z", "cc jane@corp.com"),), meta={"number": 2},
    ), {"lib/b.py": "b = 1\n", "src/m.py": "stale", "a.py": f"KEY = '{KEY}'\n"})
    assert made.issue == "Crash\n\nmail user1@example.com\nor \ufffd\ufffd\ufffd"
    assert dict(made.files) == {"lib/b.py": "b = 1\n", "src/m.py": BEFORE} and list(made.files) == ["lib/b.py", "src/m.py"]
    assert made.oracle == {"src/a_new.py": "y = 1\n", "src/m.py": AFTER}
    assert made.tests == {"test_files": {"tests/old.py": None, "tests/t.py": "2\n"}}
    assert (made.id, made.repo, made.commit, made.flags) == ("o/n#2", "o/n", "c0", ())
    assert made.meta["left_out"] == {"CHANGES.md": "documentation", "tests/t.py": "test", "tests/old.py": "test"}
    assert made.meta["conversation"][0]["body"] == "cc user1@example.com" and made.meta["origin"] == {"number": 2}
    assert (made.meta["language"], made.meta["licence"], made.meta["scrubbed"]) == ("Python", "MIT", {"email": 1})
    assert shards.example_from_json(json.loads(json.dumps(shards.example_to_json(made)))) == made
    answer = prompts.answer_text(made, "So.")
    assert reward.search_replace_reward(answer, made.files, made.oracle).reward == 1.0


def test_sources_give_tests_images_and_flags():
    made = build(candidate(issues=(), title="It crashes", meta={
        "tests": {"FAIL_TO_PASS": ["a"]}, "image": "img", "flags": ["partial_context"], "message_as_issue": True}))
    assert (made.tests, made.image) == ({"FAIL_TO_PASS": ["a"]}, "img")
    assert made.flags == ("partial_context", "message_as_issue", "no_context") and made.issue == "It crashes"
    made = [build(candidate(meta={"is_opening_seen": seen}, **more), {"b.py": "b = 1\n"})
            for seen, more in ((True, {}), (False, {}), (False, {"issues": ()}))]
    assert [one.flags for one in made] == [(), ("opening_unseen",), ("message_as_issue",)]


def test_tests_that_are_too_long_or_hold_secrets_stay_out():
    files = (MAIN, FileChange("tests/a.py", "new", None, "1\n" * 50), FileChange("tests/b.py", "new", None, KEY),
             FileChange("tests/c.png", "binary"), FileChange("tests/d.py", "rename", "1", "2\n", old_path="tests/e.py"))
    made = build(candidate(*files), settings=examples.ExampleSettings(max_prompt_tokens=10_000, max_test_chars=50))
    assert made.tests == {"test_files": {"tests/d.py": "2\n", "tests/e.py": None}} and made.flags == ("tests_left_out", "no_context")


def test_all_roles_can_be_the_oracles():
    made = build(candidate(MAIN, FileChange("README.md", "edit", "a\n", "b\n")), settings=examples.ExampleSettings(
        oracle_roles=tuple(paths.ROLES), max_prompt_tokens=10_000))
    assert list(made.oracle) == ["src/m.py", "README.md"] and not made.meta["left_out"]


@pytest.mark.parametrize("files, fields, reason", [
    ([FileChange("n.py", "new", None, "x = 1\n")], {}, "no_file"),
    ([FileChange("m.py", "edit", "a\n", "<<<<<<< SEARCH\n=======\n>>>>>>> REPLACE\n```\n")], {}, "unwritable"),
    ([FileChange("m.py", "edit", "a\n", "x = '<think>'\n")], {}, "unwritable"),
    ([FileChange("m.py", "edit", "a\n", "a")], {}, "invisible"),
    ([FileChange("m.py", "edit", "a\n", "b\n" * 2500)], {}, "answer_tokens"),
    ([FileChange("m.py", "edit", "a\n" + "c = 1\n" * 2000, "b\n" + "c = 1\n" * 2000)], {}, "prompt_tokens"),
    ([MAIN], {"issues": (Issue("o/n", 1, "", " "),)}, "invalid"),
    ([FileChange("a/../m.py", "edit", "a\n", "b\n")], {}, "invalid"),
])
def test_what_cannot_be_an_example_is_refused_by_name(files, fields, reason):
    made = build(candidate(*files, **fields))
    assert isinstance(made, Reject) and (made.id, made.stage, made.reason) == ("o/n#2", "examples", reason) and made.detail
    assert reason in examples.REASONS


def test_context_fills_the_prompt_and_no_more():
    context = {f"c{number}.py": "x = 1\n" * 40 for number in range(60)}
    bare = build(candidate())
    assert bare.meta["prompt_tokens"] == COUNTER.exact(bare) + 2  # every file is counted with the blank line behind it
    for limit in (4_000, 4_130, 4_255, 6_000):
        made = build(candidate(), context, examples.ExampleSettings(max_prompt_tokens=limit))
        assert set(made.files) == {"src/m.py", *list(context)[:len(made.files) - 1]}
        assert COUNTER.exact(made) <= limit < COUNTER.exact(made) + 2 * COUNTER.file("c00.py", "x = 1\n" * 40)
        assert made.meta["prompt_tokens"] == pytest.approx(COUNTER.exact(made), abs=2)


def test_a_small_file_fits_where_a_large_one_does_not():
    context = {"large.py": "x" * 20_000, "small.py": "y = 1\n"}
    assert list(build(candidate(), context).files) == ["small.py", "src/m.py"]


LINES = strategies.lists(strategies.sampled_from(
    ["a", "b", "", "    c", "=======", "<<<<<<< SEARCH", ">>>>>>> REPLACE", "```", "### x", "é\u2028", "\r", "<think>"]), max_size=8)


@settings(max_examples=150)
@given(LINES, LINES, strategies.booleans())
def test_an_example_scores_one_or_is_no_example(before, after, is_new):
    file = FileChange("m.py", "new" if is_new else "edit", None if is_new else "\n".join(before), "\n".join(after))
    made = build(candidate(file), {"z.py": "z\n"})
    if isinstance(made, Example):
        outcome = reward.search_replace_reward(prompts.answer_text(made, "So."), made.files, made.oracle)
        assert outcome.reward == 1.0 and outcome.is_exact and outcome.similarities
        shards.example_from_json(shards.example_to_json(made))
    else:
        assert made.reason in ("unwritable", "invisible")


def test_the_page_and_the_numbers_can_be_read():
    made = build(candidate(title="Fix \x1b[31m"), {"lib/b.py": "b = 1\n"})
    shown = look.page(made, COUNTER, colour=False)
    for expected in ("o/n#2", "o/n at c0", "mail user1@example.com", "context", "lib/b.py", "+    if not values:", "1.0 of the",
                     "Fix \u241b[31m", "email 1", f"{COUNTER.exact(made):,} tokens"):
        assert expected in shown
    assert "\x1b" not in shown and "\x1b[32m+    if not values:" in look.page(made, COUNTER, colour=True)
    numbers = look.summary([made, made], COUNTER)
    assert "2 examples of 1 repositories" in numbers and "Python 2" in numbers and "MIT 2" in numbers
    assert [line.split() for line in numbers.splitlines() if line.startswith("files changed")] == [
        ["files", "changed", "1.0", "1", "1", "1", "1"]]
    assert look.summary([], COUNTER) == "no examples\n"
    assert "fails: unwritable" in look.page(Example("x", "", "", "i", {"a": "1"}, {"a": "<think>"}), COUNTER, colour=False)


def inexpressible(patch: str) -> list[str]:
    """Kinds of change in a patch that edits cannot say."""
    found = []
    for file in unidiff.PatchSet(patch):
        found += ["rename"] * file.is_rename + ["delete"] * file.is_removed_file + ["binary"] * file.is_binary_file
        found += ["mode"] * (not file and not (file.is_added_file or file.is_rename or file.is_removed_file))
    return found


def test_the_oracles_of_the_real_rows_score_one():
    """At least 95 % of the rows whose change is expressible; what is not is counted by kind."""
    if not DEV.exists():
        pytest.skip(f"{DEV} is absent")
    raw = [json.loads(line) for line in gzip.open(DEV, "rt")]
    opened = shards.open_examples(DEV)
    kinds, faults, expressible = [], {}, 0
    for index, row in enumerate(raw):
        if found := inexpressible(row["patch"]):
            kinds += found
            continue
        expressible += 1
        try:
            fault = examples.oracle_score(opened[index])
        except shards.MalformedRow as error:
            fault = "row", error.problem
        if fault[0]:
            faults[row["instance_id"]] = fault[0]
    print(f"{expressible} of {len(raw)} rows are expressible, {expressible - len(faults)} of them score 1.0; others: {kinds}; {faults}")
    assert len(raw) == 216 and expressible - len(faults) >= 0.95 * expressible
    assert faults == {"sqlfluff__sqlfluff-3330": "row"}  # only adds a file: without a clone there is nothing to show
    assert kinds == ["rename", "rename"]
