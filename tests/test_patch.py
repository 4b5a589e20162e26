"""Reading, applying and diffing edits, against a regular expression, hand-made cases and difflib."""

import difflib
import functools
import re
import time
import unittest.mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swerl_jax.env import patch
from swerl_jax.env.matching import Work
from swerl_jax.env.patch import Edit, FormatFault

# The published pattern in words, as one expression; slow on hostile text, right on all.
BLOCK = re.compile(r"```.*?\n### (.*)\n<<<<<<< SEARCH\n([\s\S]*?)\n=======\n([\s\S]*?)\n>>>>>>> REPLACE\n```")

PIECES = st.lists(
    st.sampled_from([
        "```", "`", "```python", "\n", "\n", "\n", "### ", "### a", "### b```", "a", "\r", " ",
        "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "\n=======\n", "\n>>>>>>> REPLACE\n```",
        "```\n### p\n<<<<<<< SEARCH\n", "\n### p\n<<<<<<< SEARCH\n",
        "```\n### p\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```",
    ]),
    max_size=25,
).map("".join)  # fmt: skip


def work():
    return Work(10**9)


@settings(max_examples=600)
@given(PIECES)
@example("```\n### a\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```"
         "```\n### b\n<<<<<<< SEARCH\n\n=======\nz\n>>>>>>> REPLACE\n```")
@example("```\n### a\n<<<<<<< SEARCH\n### b\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```")
@example("```\n### a```\n### b\n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```")
@example("```\n### \n<<<<<<< SEARCH\nx\n=======\ny\n>>>>>>> REPLACE\n```")
def test_parse_equals_the_expression(text):
    assert [(e.path, e.search, e.replace) for e in patch.parse(text)] == BLOCK.findall(text)


BLOCKS = st.tuples(st.sampled_from(["a.py", "b c", ""]), st.text("ab \n`#", max_size=9), st.text("ab\n ", max_size=9))


@given(st.lists(BLOCKS))
def test_render_is_read_back(blocks):
    edits = [Edit(*block) for block in blocks]
    assert patch.parse(patch.render(edits)) == edits


@pytest.mark.parametrize("text", [
    "`" * 1_000_000 + "\n### a\n<<<<<<< SEARCH\n",
    "```\n" * 250_000,
    "```\n### a\n<<<<<<< SEARCH\n" * 40_000,
    "```\n### a\n<<<<<<< SEARCH\nx\n=======\n" * 30_000,
    "\n=======\n" * 100_000 + "\n>>>>>>> REPLACE\n" * 5_000,
    "### " * 250_000,
], ids=["ticks", "fences", "openings", "unclosed", "dividers", "paths"])  # fmt: skip
def test_parse_is_quick_on_hostile_text(text):
    start_s = time.perf_counter()
    assert patch.parse(text) == []
    assert time.perf_counter() - start_s < 1.0  # milliseconds; the expression takes minutes on some


def test_parse_many_blocks():
    assert len(patch.parse(patch.render([Edit("a", "x", "y")] * 20_000))) == 20_000


@pytest.mark.parametrize("output, thought, answer", [
    ("<think> t\n</think>x<solution>\n a </solution>", "t", "a"),
    ("<solution>a</solution><think>t</think>", "t", "a"),
    ("<think>t<solution>a</solution></think>", "t<solution>a</solution>", "a"),
    ("</think>x<think>t<solution>a</solution>", "t<solution>a</solution>", "a"),
    ("<think>t</think></solution>x<solution>y", "t", "y"),
    ("<think></think><solution></solution>", "", ""),
])  # fmt: skip
def test_split_output(output, thought, answer):
    assert patch.split_output(output) == (thought, answer)


@pytest.mark.parametrize("output", [
    "", "<think>t</think><solution>a", "<THINK>t</THINK><solution>a</solution>",
    "<think>t</think><solution>see <think></solution>", "<think>t</think><solution></solution><solution>",
])  # fmt: skip
def test_split_output_wants_each_tag_once(output):
    with pytest.raises(FormatFault) as fault:
        patch.split_output(output)
    assert fault.value.reason == "tag_count"


@pytest.mark.parametrize("before, edits, after", [
    ("a\nb\n", [("a", "c")], "c\nb\n"),
    ("ab\nb\n", [("a", "c")], "cb\nb\n"),  # a match may end within a line
    ("a\nx a\na", [("a", "c")], "c\nx a\nc"),  # every match that starts a line
    ("a\nb\n", [("b", "")], "a\n\n"),  # an empty replacement leaves the line break
    ("a\nb\n", [("", "c")], "ca\ncb\nc"),  # an empty search is every line break, the added first one too
    ("", [("", "x = 1")], "x = 1"),
    ("a\n", [("a", "b"), ("b", "c")], "c\n"),
    ("\na", [("\na", "b")], "b"),  # the file's own first line break is matched behind the added one
])  # fmt: skip
def test_apply_edits_by_hand(before, edits, after):
    edits = [Edit("f", *sides) for sides in edits]
    assert patch.apply_edits(edits, {"f": before, "g": "left out"}, work(), 100) == {"f": after}


@pytest.mark.parametrize("edits, reason", [
    ([Edit("f", "z", "z")], "no_change"),  # before looking whether it is there
    ([Edit("f", "z", "y")], "search_not_found"),
    ([Edit("f", "b", "y")], "search_not_found"),  # not at the start of a line
    ([Edit("f ", "a", "y")], "search_not_found"),
    ([Edit("f", "a", "y"), Edit("g", "q", "q"), Edit("f", "z", "y")], "search_not_found"),  # file by file
    ([Edit("f", "a", "y"), Edit("f", "a", "z")], "search_not_found"),
])  # fmt: skip
def test_apply_edits_faults(edits, reason):
    with pytest.raises(FormatFault) as fault:
        patch.apply_edits(edits, {"f": "a b\n"}, work(), 100)
    assert fault.value.reason == reason


def test_growth_is_bounded():
    grow = Edit("f", "", "\n\n\n")
    # Eleven line breaks, the added one too, become four each.
    assert patch.apply_edits([grow], {"f": "a\n" * 10}, work(), 33) == {"f": "\n\n\na" + "\n\n\n\na" * 9 + "\n" * 4}
    assert patch.apply_edits([grow], {"f": "a\n" * 10}, work(), 32) == {"f": None}
    with pytest.raises(FormatFault) as fault:
        patch.apply_edits([grow] * 60, {"f": "a\n" * 10}, work(), 10_000)  # 4^60 lines if it went on
    assert fault.value.reason == "search_not_found" and "limit" in fault.value.detail


LINES = st.lists(st.sampled_from(["", "a", "b", "  a", "def f():", "x\r", "y\x0cz", "\ud800", "\0"]), max_size=40)


@given(LINES, LINES, st.booleans(), st.booleans())
def test_file_diff_equals_difflib(a, b, a_ends, b_ends):
    before, after = "\n".join(a) + "\n" * a_ends, "\n".join(b) + "\n" * b_ends
    expected = list(difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm=""))[2:]
    assert patch.file_diff(before, after, True, work()) == "\n".join(expected)


@settings(max_examples=40)
@given(st.lists(st.sampled_from("aaaabcdefgh"), min_size=180, max_size=260), st.data())
def test_file_diff_of_long_files_equals_difflib(lines, data):
    """From 200 lines on difflib's autojunk works; the reference without it is difflib with that default changed."""
    other = list(lines)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(other)))
        other[at : at + data.draw(st.integers(0, 3))] = data.draw(st.lists(st.sampled_from("abxyz"), max_size=3))
    before, after = "\n".join(lines), "\n".join(other)
    expected = list(difflib.unified_diff(lines, other, lineterm=""))[2:]
    assert patch.file_diff(before, after, True, work()) == "\n".join(expected)
    plain = functools.partial(difflib.SequenceMatcher, autojunk=False)
    with unittest.mock.patch.object(difflib, "SequenceMatcher", plain):
        expected = list(difflib.unified_diff(lines, other, lineterm=""))[2:]
    assert patch.file_diff(before, after, False, work()) == "\n".join(expected)
