"""Near-duplicates are found by what they share, whatever their order; unlike examples stay apart."""

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies

from swerl_jax.curate import near_duplicates, shingles
from swerl_jax.data.records import Example

WORDS = [f"w{number}" for number in range(3000)]


def example(name, issue, before="a\n", after="b\n"):
    return Example(name, "o/n", "c", issue, {"m.py": before}, {"m.py": after})


def text(seed, count=200):
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def test_runs_of_words_are_sets_of_numbers():
    assert len(shingles.shingles("a b c d", 3)) == 2
    assert len(shingles.shingles("a b a b a b", 2)) == 2
    assert len(shingles.shingles("a b", 3)) == 0
    assert np.array_equal(shingles.shingles("A-b,  C!", 3), shingles.shingles("a\tb\nc", 3))
    assert not set(shingles.shingles("a b c", 3, seed=1)) & set(shingles.shingles("a b c", 3, seed=2))
    # The value itself, computed by hand: files of signatures outlive a process.
    assert shingles.shingles("fix the bug", 3).tolist() == [8218901961615286369]


def test_changed_lines_are_those_of_one_side():
    assert shingles.changed_lines("a\nb\nb\nc", "c\nb\nd") == (("a", "b"), ("d",))
    assert shingles.change_text({"b": "1", "a": "x"}, {"b": "2", "new": "n"}) == "1\n2\n\nn"


@given(strategies.text(alphabet="ab\n", max_size=30), strategies.text(alphabet="ab\n", max_size=30))
def test_changed_lines_account_for_every_line(before, after):
    removed, added = shingles.changed_lines(before, after)
    assert sorted([*before.split("\n"), *added]) == sorted([*after.split("\n"), *removed])
    assert not set(removed) & set(added)


def test_the_estimate_is_near_the_true_share():
    ours, theirs = np.arange(2000, dtype=np.uint64), np.arange(500, 2000, dtype=np.uint64)
    mixed = [near_duplicates._minima(shingles._mixed(side + np.uint64(7))) for side in (ours, theirs)]
    assert near_duplicates.similarity(*mixed) == pytest.approx(0.75, abs=0.12)  # three standard deviations


def test_of_a_cluster_the_first_stays():
    issue, change = text(1), text(2)
    rows = [
        example("a", issue, after=change),
        example("b", text(3), after=text(4)),
        example("c", issue + " backport", before="z\n", after=change),  # the same, but for a word and a line
        example("d", issue.upper(), after=change),
        example("e", text(5), after=text(6)),
        example("f", text(3), after=text(4) + " more"),
    ]
    signatures = np.stack([near_duplicates.signature(row) for row in rows])
    assert near_duplicates.first_of(signatures).tolist() == [0, 1, 0, 0, 4, 1]
    assert near_duplicates.first_of(signatures[::-1]).tolist() == [0, 1, 2, 2, 0, 2]


def test_a_common_template_makes_no_duplicates():
    template = "<!-- " + text(9, 400) + " -->"
    rows = [example(str(i), template + text(i + 10), after=text(i + 50)) for i in range(5)]
    signatures = np.stack([near_duplicates.signature(row) for row in rows])
    assert near_duplicates.first_of(signatures).tolist() == [0, 1, 2, 3, 4]


def test_short_examples_are_the_same_only_if_they_are():
    rows = [example("a", "fix"), example("b", "fix"), example("c", "fix", after="c\n"), example("d", "crash")]
    signatures = np.stack([near_duplicates.signature(row) for row in rows])
    assert near_duplicates.first_of(signatures).tolist() == [0, 0, 2, 3]
    assert near_duplicates.first_of(signatures[:0]).tolist() == []


@settings(max_examples=50)
@given(strategies.lists(strategies.integers(0, 4), min_size=1, max_size=12))
def test_equal_signatures_have_one_representative(numbers):
    base = [near_duplicates._minima(shingles.shingles(text(seed), 3)) for seed in range(5)]
    kept = near_duplicates.first_of(np.stack([base[number] for number in numbers]))
    assert kept.tolist() == [numbers.index(number) for number in numbers]


def test_many_are_compared_quickly():
    base = np.random.default_rng(0).integers(0, 2**32, (4000, near_duplicates.HASHES), dtype=np.uint32)
    signatures = np.concatenate([base, base[:3000], np.repeat(base[:1], 3000, axis=0)])  # pairs, and one large cluster
    started = time.process_time()
    kept = near_duplicates.first_of(signatures)
    assert time.process_time() - started < 8
    assert kept.tolist() == [*range(4000), *range(3000), *[0] * 3000]
