"""What a run leaves for its reader: which examples are shown as improved, and how."""

import json

import pytest

from swerl_jax.data.records import Example
from swerl_jax.env.reward import PAPER
from swerl_jax.learn import answer, summary

BEFORE, AFTER = "def f(a):\n    return a < 1\n", "def f(a):\n    return a <= 1\n"
RIGHT = ("<think>\nt\n</think>\n<solution>\n```python\n### m.py\n<<<<<<< SEARCH\n    return a < 1\n=======\n    return a <= 1\n"
         ">>>>>>> REPLACE\n```\n</solution>")
WRONG, UNUSABLE = RIGHT.replace("<=", ">"), "<think>\nno\n"


def write_evaluation(directory, step, verdicts):
    """verdicts: example id → a letter an answer: r(ight), w(rong), u(nusable), n(ot judged)."""
    texts = {"r": (RIGHT, 1.0), "w": (WRONG, 0.9), "u": (UNUSABLE, -1.0), "n": (WRONG, None)}
    rows = []
    for i, (name, letters) in enumerate(verdicts.items()):
        rows.append({"kind": "group", "example_id": name, "index": i, "prompt_tokens": 3, "issue": f"issue of {name}",
                     "code_context": {"m.py": BEFORE}, "oracle_new_content": {"m.py": AFTER}})
        rows += [{"kind": "rollout", "example_id": name, "sample": j, "output": texts[x][0], "reward": texts[x][1],
                  "reason": "", "is_well_formed": x in "rw", "is_exact": x == "r"} for j, x in enumerate(letters)]
    path = directory / "evaluations" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "task": "rl", "reward/mean": 0.5}) + "\n")
    write_evaluation(tmp_path, 0, {"falls": "rrrr", "one": "uwuw", "most": "wuuu", "same": "rwrw", "fault": "nwrr"})
    return tmp_path


def test_examples_that_rose_most_come_first_with_a_wrong_and_a_right_answer(directory):
    write_evaluation(directory, 7, {"falls": "wwww", "one": "wrww", "most": "wrrr", "same": "wwrr", "fault": "rrrr"})
    text = summary.write(directory, [("rl", 7)], PAPER, colour=False)
    heads = [line for line in text.splitlines() if line.startswith(("====", "-- "))][:9]
    assert heads == [
        "==== most: issue of most", "-- before, 0 of 4 exact; this one: reward 0.900", "-- after, 3 of 4 exact",
        "==== fault: issue of fault", "-- before, 2 of 4 exact; this one: no verdict", "-- after, 4 of 4 exact",
        "==== one: issue of one", "-- before, 0 of 4 exact; this one: reward -1.000", "-- after, 1 of 4 exact"]
    assert text.count("+    return a <= 1") == 3
    assert (directory / "improved.diff").read_text() in text


def test_a_file_grown_past_the_limit_is_not_shown_as_deleted():
    """An empty search pastes before every line."""
    output = RIGHT.replace("    return a < 1\n===", "\n===").replace("    return a <= 1", "\n" + "x" * 600_000)
    example = Example("e", "", "", "", {"m.py": BEFORE}, {})
    assert answer.diff(example, output, colour=False) == "m.py: grown by more than 1,000,000 characters, not shown\n"


def test_where_nothing_rose_it_says_so(directory):
    write_evaluation(directory, 7, {"falls": "wwww", "one": "uuuu", "most": "uuuu", "same": "rwrw", "fault": "nwrr"})
    assert "No held-out example is answered right more often than before." in summary.write(
        directory, [("rl", 7)], PAPER, colour=False)
