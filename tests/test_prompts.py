"""Prompts by their structure; answers by applying them with rules written down here, apart from the code under test."""

import gzip
import json
import pathlib
import re

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from swerl_jax.data.records import Example
from swerl_jax.env import patch, prompts
from swerl_jax.env.matching import Work

BLOCK = re.compile(
    r"```[^\n]*\n### ([^\n]*)\n<<<<<<< SEARCH\n(.*?)\n=======\n(.*?)\n>>>>>>> REPLACE\n```", re.DOTALL
)  # SWE-RL's block, the empty body being one blank line
COUNTER = "a = 1\nb = 2\n\ndef f():\n    return a\n\ndef g():\n    return a\n"


def make_example(files, oracle, issue="f is wrong"):
    return Example(id="e", repo="", commit="", issue=issue, files=files, oracle=oracle)


def blocks_of(output):
    """The blocks of the solution, checked as SWE-RL checks them."""
    for tag in ("<think>", "</think>", "<solution>", "</solution>"):
        assert output.count(tag) == 1
    assert output.split("<think>")[1].split("</think>")[0].strip()
    return BLOCK.findall(output.split("<solution>")[1].split("</solution>")[0])


def apply_blocks(files, output):
    """Contents after the blocks, by SWE-RL's rule, each search required to be unique on top."""
    contents = dict(files)
    for path, search, replacement in blocks_of(output):
        content = "\n" + contents.get(path, "")
        assert search != replacement and content.count("\n" + search) == 1
        contents[path] = content.replace("\n" + search, "\n" + replacement).removeprefix("\n")
    edits = patch.parse(patch.split_output(output)[1])
    assert {**files, **patch.apply_edits(edits, files, Work(10**9), 10**9)} == contents  # and so says the reward's half
    return contents


@pytest.mark.parametrize(("after", "blocks"), [
    # A unique line alone.
    ("a = 1\nb = 3\n\ndef f():\n    return a\n\ndef g():\n    return a\n", [("b = 2", "b = 3")]),
    # "    return a" occurs twice: the line above makes it unique.
    ("a = 1\nb = 2\n\ndef f():\n    return b\n\ndef g():\n    return a\n",
     [("def f():\n    return a", "def f():\n    return b")]),
    # Deleted: the line above is repeated.
    ("a = 1\n\ndef f():\n    return a\n\ndef g():\n    return a\n", [("a = 1\nb = 2", "a = 1")]),
    # Inserted: likewise.
    ("a = 1\nb = 2\nc = 3\n\ndef f():\n    return a\n\ndef g():\n    return a\n", [("b = 2", "b = 2\nc = 3")]),
    # First line deleted: there is none above.
    ("b = 2\n\ndef f():\n    return a\n\ndef g():\n    return a\n", [("a = 1\nb = 2", "b = 2")]),
    # Two changes far apart by more than the markup of a block.
    ("a = 0\nb = 2\n\ndef f():\n    return a\n\ndef g():\n    return a, b\n",
     [("a = 1", "a = 0"), ("def g():\n    return a", "def g():\n    return a, b")]),
])  # fmt: skip
def test_minimal_blocks_by_hand(after, blocks):
    # The path is short and the distance long enough for the last case.
    before = COUNTER.replace("\n\ndef g", "\n" + "# padding\n" * 9 + "\ndef g")
    after = after.replace("\n\ndef g", "\n" + "# padding\n" * 9 + "\ndef g")
    output = prompts.answer_text(make_example({"m.py": before}, {"m.py": after}), "because")
    assert [block[1:] for block in blocks_of(output)] == blocks


def test_answer_text_by_hand():
    case = make_example({"m.py": "a = 1\n", "n.txt": "x"}, {"m.py": "a = 2\n", "n.txt": "y"})
    assert prompts.answer_text(case, "Two is right.") == (
        "<think>\nTwo is right.\n</think>\n<solution>\n"
        "```python\n### m.py\n<<<<<<< SEARCH\na = 1\n=======\na = 2\n>>>>>>> REPLACE\n```\n\n"
        "```\n### n.txt\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```\n</solution>"
    )


LINES = st.lists(st.sampled_from(["", "a", "ab", "  a", "b", "=======", "```", "x\r", ">>>>>>> REPLACE"]), max_size=9)


@given(before=LINES, after=LINES)
@example(before=["a", ""], after=["a"])  # the final line break goes
@example(before=["a"], after=["a", ""])  # and comes
@example(before=["a", "b", ""], after=[])  # the file is emptied
@example(before=[], after=["a", "", "b", ""])  # a new file
@example(before=["", "", ""], after=["", ""])
def test_random_edits_reach_the_oracle_or_are_refused(before, after):
    before, after = "\n".join(before), "\n".join(after)
    assume(before != after)
    case = make_example({"m.py": before}, {"m.py": after})
    try:
        output = prompts.answer_text(case, "t")
    except ValueError as error:
        assert "'e'" in str(error)
        assert "=======" in before or ">>>>>>> REPLACE" in after  # nothing else stands in the way
        return
    assert apply_blocks(case.files, output)["m.py"] == after


@pytest.mark.parametrize("count, blocks", [
    (1, [("4\n5\n6", "4\nX\n6"), ("8\n9\n10", "8\nY\n10"), ("98\n99\n100", "98\n100")]),
    (2, [("3\n4\n5\n6\n7\n8\n9\n10\n11", "3\n4\nX\n6\n7\n8\nY\n10\n11"), ("97\n98\n99\n100\n101", "97\n98\n100\n101")]),
])
def test_lines_around_a_change_come_along(count, blocks):
    lines = [str(i) for i in range(200)]
    after = [{"5": "X", "9": "Y"}.get(line, line) for line in lines if line != "99"]
    padded = ["\n".join(text).replace("7\n", "7" + "padding " * 20 + "\n") for text in (lines, after)]
    case = make_example({"m.py": padded[0]}, {"m.py": padded[1]})
    found = blocks_of(prompts.answer_text(case, "t", count))
    assert [tuple(side.replace("padding ", "") for side in block[1:]) for block in found] == blocks


def test_lines_around_end_with_the_last_line():
    case = make_example({"m.py": "a\nb\nc\n"}, {"m.py": "a\nX\nc\n"})
    assert [block[1:] for block in blocks_of(prompts.answer_text(case, "t", 100))] == [("a\nb\nc", "a\nX\nc")]


@given(data=st.data())
def test_many_edits_in_a_repetitive_file(data):
    before = [f"{'    ' * (i % 3)}x{data.draw(st.integers(0, 3))}" for i in range(40)] + [""]
    after = list(before)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(after) - 1))
        after[at : at + data.draw(st.integers(0, 2))] = data.draw(st.sampled_from([[], ["x0"], ["    x1", "y"]]))
    before, after = "\n".join(before), "\n".join(after)
    assume(before != after)
    case = make_example({"m.py": before}, {"m.py": after})
    assert apply_blocks(case.files, prompts.answer_text(case, "t", data.draw(st.sampled_from([0, 1, 5, 50]))))["m.py"] == after


def test_marker_lines_are_stepped_round_where_they_do_not_change():
    before = "Title\n=======\n\none\ntwo\n=======\nthree\n"
    after = "Title\n=======\n\n1\ntwo\n=======\n3\n"
    case = make_example({"a.rst": before}, {"a.rst": after})
    assert apply_blocks(case.files, prompts.answer_text(case, "t"))["a.rst"] == after


@pytest.mark.parametrize(("files", "oracle", "thought", "complaint"), [
    ({"m.py": "a\n"}, {"m.py": "a\n"}, "t", "'e' has no change"),
    ({"m.py": "a\n"}, {"m.py": "b\n"}, " \n", "'e': the thought of an answer must not be empty"),
    ({"m.py": "a\n"}, {"m.py": "b\n"}, "<think>", "'e': .* holds <think>"),
    ({"m.py": "a\n"}, {"m.py": "'</solution>'\n"}, "t", "'e': .* holds </solution>"),
    ({"m.py": "a\n=======\nb\n"}, {"m.py": ""}, "t", "'e': the change of 'm.py' cannot be written"),
    ({}, {"m\nn.py": "a"}, "t", "'e': the change of 'm.nn.py' cannot be written"),
])  # fmt: skip
def test_what_cannot_be_expressed_is_refused(files, oracle, thought, complaint):
    with pytest.raises(ValueError, match=complaint):
        prompts.answer_text(make_example(files, oracle), thought)


def test_real_patches():
    source = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "swebench_dev.jsonl.gz"
    if not source.exists():
        pytest.skip("needs the shared SWE-bench rows beside the checkout")
    with gzip.open(source, "rt") as rows:
        cases = [_hunks_of(json.loads(row)) for row in rows]
    refused = 0
    for files, oracle in cases:
        case = make_example(files, oracle)
        try:
            output = prompts.answer_text(case, "t")
        except ValueError:
            refused += 1
            continue
        assert apply_blocks(files, output) == {**files, **oracle}
    assert len(cases) == 216 and refused <= 2


def _hunks_of(row):
    """Contents before and after, as far as the patch shows them."""
    files, oracle, path = {}, {}, ""
    for line in row["patch"].split("\n"):
        if line.startswith("diff --git "):
            path = ""
        elif line.startswith("--- ") and not path:
            continue
        elif line.startswith("+++ ") and not path:
            path = line[4:].removeprefix("b/")
            files[path], oracle[path] = "", ""
        elif path and line[:1] in ("-", " "):
            files[path] += line[1:] + "\n"
        if path and line[:1] in ("+", " ") and not line.startswith("+++ "):
            oracle[path] += line[1:] + "\n"
    return files, oracle


def test_swe_rl_messages_have_the_published_structure():
    files = {"b.py": "x = {}\n", "a/c.py": "y = '{issue}'"}
    system, user = prompts.messages(make_example(files, {}, issue="It {breaks}."), "swe_rl")
    assert (system.role, user.role) == ("system", "user")
    assert all(system.text.count(tag) == 1 for tag in ("<think>", "</think>", "<solution>", "</solution>"))
    assert "BEGIN ISSUE ---\nIt {breaks}.\n--- END ISSUE" in user.text
    assert "BEGIN FILE ---\n```\n### b.py\nx = {}\n\n\n### a/c.py\ny = '{issue}'\n```\n--- END FILE" in user.text
    assert len(BLOCK.findall(user.text.split("END FILE")[1])) == 1  # the example can be parsed
    for message in (system, user):
        assert message.text == message.text.strip()


def test_compact_message_is_bare():
    files = {"b.py": "x\n", "a.py": "y"}
    (only,) = prompts.messages(make_example(files, {}, issue="broken"), "compact")
    assert (only.role, only.text) == ("user", "broken\n### b.py\nx\n### a.py\ny")


def test_order_of_files_depends_on_the_seed_alone():
    forward = {f"{i}.py": "" for i in range(8)}
    backward = dict(reversed(forward.items()))
    texts = [
        [prompts.messages(make_example(files, {}), "compact", order_seed=seed)[0].text for seed in range(5)]
        for files in (forward, backward)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) == 5
    assert sorted(re.findall(r"### (.*)", texts[0][3])) == sorted(forward)


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="needed is one of swe_rl, compact"):
        prompts.messages(make_example({}, {}), "chatty")


@pytest.mark.parametrize("before, after, told", [
    ("if a < b:\n", "if a <= b:\n", "`a < b` becomes `a <= b`."),
    ("x = f(a, b.c)\n", "x = f(b.c, a)\n", "`(a, b.c)` becomes `(b.c, a)`."),
    ("if x:\n    y\n", "if not x:\n    y\n", "`if x` becomes `if not x`."),
    ("if not x:\n    y\n", "if x:\n    y\n", "`if not x` becomes `if x`."),
    ("for a in b:\n    return a\n", "for a in b:\n  return a\n", "Move `return`."),
    ("a = 2\nreturn a\n", "return a\n", "Remove `a = 2`."),
    ("a\nb\n", "a\n  c(1)\nb\n", "Add `c(1)`."),
    ("a = b\nc = a\nreturn a\n", "d = b\nc = d\nreturn d\n", "`a =` becomes `d =`. `= a` becomes `= d`. `return a` becomes `return d`."),
    ("a = 1\n" + "x\n" * 60 + "b = 2\n", "a = 2\n" + "x\n" * 60 + "b = 3\n", "`= 1` becomes `= 2`. `= 2` becomes `= 3`."),
])
def test_a_thought_tells_the_change(before, after, told):
    example = Example("e", "", "", "issue", {"p.py": before}, {"p.py": after})
    assert f"<think>\n{told} p.py\n</think>\n" in prompts.taught_answer(example, "{change} {paths}")
    assert "<think>\nFix p.py.\n</think>\n" in prompts.taught_answer(example, "Fix {paths}.")
