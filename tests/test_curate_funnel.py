"""Counts add up, in any order, and are shown in the order of the pipeline."""

import json

import pytest
from hypothesis import given, strategies

from swerl_jax.curate import funnel
from swerl_jax.curate.change import Reject
from swerl_jax.curate.funnel_plot import plot_funnel

OUTCOMES = [Reject("1", "filters", "bot"), "kept", Reject("2", "filters", "empty"), Reject("3", "git", "octopus"),
            Reject("4", "filters", "bot"), "kept"]  # fmt: skip
ORDER = [("git", "root"), ("git", "octopus"), ("filters", "empty"), ("filters", "bot")]


def test_outcomes_are_counted_and_shown():
    made = funnel.tally(OUTCOMES, {"torn_hours": 1, "none": 0})
    assert (made.entered, made.kept) == (6, 2)
    assert made.dropped == {("filters", "bot"): 2, ("filters", "empty"): 1, ("git", "octopus"): 1}
    assert funnel.rows(made, ORDER) == [("git", "octopus", 1, 5), ("filters", "empty", 1, 4), ("filters", "bot", 2, 2)]
    assert [row[:2] for row in funnel.rows(made, ORDER[3:])] == [("filters", "bot"), ("filters", "empty"), ("git", "octopus")]
    assert funnel.table(made, ORDER) == """\
stage    reason   dropped  % of all  left
-----------------------------------------
         in                             6
git      octopus        1      16.7     5
filters  empty          1      16.7     4
filters  bot            2      33.3     2
         out                   33.3     2

also seen: torn_hours 1
"""
    assert "| git     | octopus |       1 |     16.7 |    5 | many parents |" in funnel.table(
        made, ORDER, {("git", "octopus"): "many parents", ("filters", "octopus"): "others"}, markdown=True)


def test_nothing_in_gives_an_empty_table():
    assert funnel.table(funnel.Funnel()).count("\n") == 4


PAIRS = strategies.tuples(strategies.sampled_from("ab"), strategies.sampled_from("xyz"))
FUNNELS = strategies.lists(strategies.one_of(PAIRS.map(lambda pair: Reject("i", *pair)), strategies.just(1))).map(funnel.tally)


@given(strategies.lists(FUNNELS))
def test_merging_is_counting_and_survives_json(parts):
    whole = funnel.merge(parts)
    assert whole == funnel.merge(reversed(parts)) == funnel.merge([funnel.merge(parts[:1]), funnel.merge(parts[1:])])
    assert whole.entered == sum(part.entered for part in parts)
    assert funnel.from_json(json.loads(funnel.dumps(whole))) == whole
    assert funnel.dumps(whole) == funnel.dumps(funnel.merge(reversed(parts)))


def test_a_later_stage_takes_from_what_was_kept():
    made = funnel.then(funnel.tally(OUTCOMES), "near_duplicates", {"near_duplicate": 1})
    assert (made.entered, made.kept, made.dropped["near_duplicates", "near_duplicate"]) == (6, 1, 1)
    with pytest.raises(ValueError, match="drops 3 of 2"):
        funnel.then(funnel.tally(OUTCOMES), "near_duplicates", {"x": 3})


def test_counts_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="3 in, 1 out and 1 dropped does not add up"):
        funnel.Funnel(3, 1, {("a", "b"): 1})
    with pytest.raises(ValueError, match="format 9; needed is 1"):
        funnel.from_json({"format": 9})


def test_the_picture_is_the_same_for_the_same_funnel(tmp_path):
    for name in ("a.png", "b.png"):
        plot_funnel(funnel.tally(OUTCOMES), tmp_path / name, ORDER)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() != b""
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    plot_funnel(funnel.Funnel(), tmp_path / "empty.png")
