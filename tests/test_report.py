"""Reports: the bootstrap against a plain loop, pass@k against brute force, tables and diffs by hand."""

import itertools
import json
import random
import statistics

import numpy as np
import pytest

from swerl_jax.data import records
from swerl_jax.env import matching, patch
from swerl_jax.learn import baselines, curves, report


def _plain_bootstrap(values, of, samples, seed):
    rng = random.Random(seed)
    found = sorted(of([rng.choice(values) for _ in values]) for _ in range(samples))
    return found[int(0.025 * samples)], found[int(0.975 * samples)]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bootstrap_agrees_with_a_plain_loop(seed):
    values = [0.0, 0.1, 0.4, 0.4, 0.9, -1.0, -1.0, 0.3, 0.2, 1.0, 0.5, -1.0]
    low, high = _plain_bootstrap(values, statistics.fmean, 20_000, seed)
    interval = report.bootstrap_interval(values, samples=20_000, seed=seed)
    assert interval.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
    # Two resamplings of 20,000: the standard error of an end of the interval is about 0.004.
    assert interval.low == pytest.approx(low, abs=0.02) and interval.high == pytest.approx(high, abs=0.02)
    assert interval == report.bootstrap_interval(values, samples=20_000, seed=seed)


def test_a_tiny_bootstrap_by_hand():
    # Resamples of (0, 1): 00, 01, 10, 11, so the mean is 0, ½, 1 with probability ¼, ½, ¼.
    assert report.bootstrap_interval([0, 1]) == (0.5, 0.0, 1.0)
    assert report.bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5, 0.5)
    assert report.bootstrap_interval([3]) == (3, 3, 3)
    assert report.bootstrap_interval([1, 5, 5], statistic=np.median).mean == 5
    with pytest.raises(ValueError, match="at least one"):
        report.bootstrap_interval([])


def test_blocks_cover_every_resample(monkeypatch):
    values = np.arange(7.0)
    monkeypatch.setattr(report, "_BLOCK_ENTRIES", 50)
    counted = []

    def mean(block, axis):
        counted.append(len(block))
        return block.mean(axis=axis)

    report.bootstrap_interval(values, samples=100, statistic=mean)
    assert counted == [1] + 14 * [7] + [2]  # the values themselves, then ⌊50 / 7⌋ at a time


def test_a_change_is_that_of_the_same_examples():
    def result(name, reward, is_exact=False):
        return report.ExampleResult(name, (reward,), (reward > -1,), (is_exact,))

    before = [result("a", -1.0), result("b", 0.5), result("only before", 1.0, True)]
    after = [result("only after", 1.0, True), result("b", 0.7), result("a", 0.3)]
    found = report.change_intervals(before, after)
    # a and b only; where a is drawn twice, no answer before was well-formed and the change has no value.
    assert found["format"] == (0.5, 0.0, 1.0) and found["exact"] == (0.0, 0.0, 0.0)
    assert found["reward"] == pytest.approx((0.75, 0.2, 1.3))
    assert found["well_formed_reward"] == pytest.approx((0.0, 0.0, 0.2))
    with pytest.raises(ValueError, match="no example has a judged answer in both"):
        report.change_intervals(before[2:], after)
    text = report.evaluation_table({"x": before, "y": after}, change=("x", "y")).splitlines()
    assert text[4].split()[:4] == ["change", "+50.0", "[+0.0,", "+100.0]"] and len(text[4]) <= len(text[0])


def test_answers_by_chance_change_one_line():
    files = {"m.py": "def f(a):\n    b = 1\n    return a + b\n", "n.py": "x = 2\n"}
    examples = [records.Example(str(i), "", "", "", files, {"m.py": "def f(a):\n    b = 1\n    return a - b\n"})
                for i in range(40)]
    changed = []

    def reward(output, shown, oracle):
        assert shown == files and oracle == examples[0].oracle
        edits = patch.parse(patch.split_output(output)[1])
        [(path, text)] = patch.apply_edits(edits, shown, matching.Work(10**6), 100).items()
        changed.append((path, files[path].splitlines(), text.splitlines()))
        return records.Outcome(records.SCORED, 0.1)

    found = baselines.results(examples, reward)
    assert list(found) == ["a comment at a random line", "a random line deleted"]
    assert found["a random line deleted"][3] == report.ExampleResult("3", (0.1,), (True,), (False,))
    for path, old, new in changed[:40]:
        assert [line for line in new if line.lstrip() != "# fixed"] == old and len(new) == len(old) + 1
    for path, old, new in changed[40:]:
        assert new in [old[:i] + old[i + 1:] for i in range(len(old))]
    assert len({(path, tuple(new)) for path, _, new in changed}) == 2 * 4  # every line of both files
    again = list(changed)
    changed.clear()
    baselines.results(examples, reward)
    assert changed == again


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    for n in range(1, 7):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations(range(n), k))
            right = sum(any(answer < c for answer in draw) for draw in draws)
            assert report.pass_at_k(n, c, k) == pytest.approx(right / len(draws), abs=1e-15)
    for n, c, k in [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)]:
        with pytest.raises(ValueError, match="pass@k"):
            report.pass_at_k(n, c, k)


def _results():
    scored = lambda reward, is_exact=False: records.Outcome(records.SCORED, reward, is_exact=is_exact)  # noqa: E731
    fault = records.Outcome(records.POLICY_FAULT, -1.0, "tag_count")
    broken = records.Outcome(records.INFRA_FAULT, None, "scorer died")
    return [
        report.ExampleResult.of("a", [scored(1.0, True), scored(0.5), fault]),
        report.ExampleResult.of("b", [fault, scored(0.3), broken]),
        report.ExampleResult.of("c", [broken]),
    ]


def test_the_numbers_of_an_evaluation_by_hand():
    results = _results()
    assert results[1] == report.ExampleResult("b", (-1.0, 0.3), (False, True), (False, False), faults=1)
    found = report.evaluation_intervals(results, pass_ks=[2])
    centers = {name: interval.mean for name, interval in found.items()}
    assert centers == pytest.approx(
        # pass@2: of a's three pairs two hold the exact answer; b has none.
        {"format": 3 / 5, "reward": -0.2 / 5, "well_formed_reward": 1.8 / 3, "exact": 1 / 5, "pass@2": (2 / 3 + 0) / 2}
    )
    # Only aa, ab, ba, bb can be drawn: the ends are the examples' own values.
    assert found["format"][1:] == pytest.approx((1 / 2, 2 / 3))
    assert found["well_formed_reward"][1:] == pytest.approx((0.3, 0.75))
    with pytest.raises(ValueError, match="nothing to report"):
        report.evaluation_intervals(results[2:])


def test_the_table_as_text_and_markdown():
    hopeless = [report.ExampleResult("a", (-1.0, -1.0), (False, False), (False, False))]
    text = report.evaluation_table({"before": hopeless, "after": _results()})
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["before", "after"]
    assert lines[2].split()[1:] == "0.0 [0.0, 0.0] -1.000 [-1.000, -1.000] – 0.0 [0.0, 0.0] 1 2 0".split()
    assert lines[3].split()[1:] == (
        "60.0 [50.0, 66.7] -0.040 [-0.350, 0.167] 0.600 [0.300, 0.750] 20.0 [0.0, 33.3] 3 5 2".split()
    )
    assert len(lines[0]) == len(lines[1]) == len(lines[2]) == len(lines[3])
    markdown = report.evaluation_table({"after": _results()}, pass_ks=[1], markdown=True).splitlines()
    assert {line.count("|") for line in markdown[:3]} == {10} and "pass@1 %" in markdown[0]
    assert set(markdown[1]) == set("|-: ")


def _is_drawn(path, least_bytes=10_000):
    data = path.read_bytes()
    return data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > least_bytes


def test_curves_are_drawn_also_where_series_are_missing(tmp_path):
    sft = tmp_path / "sft.jsonl"
    sft.write_text("".join(json.dumps({"step": s, "sft/loss": 3 / s}) + "\n" for s in range(1, 9)))
    rl = tmp_path / "rl.jsonl"
    rows = [{"step": s, "reward/mean": -1 + s / 9, "reward/std": 0.1, "eval/reward": "nan"} for s in range(9, 18)]
    rl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for name, source in {"both.png": [sft, rl], "rl.png": rl, "empty.png": str(empty)}.items():
        curves.plot_rewards(source, tmp_path / name)
        assert _is_drawn(tmp_path / name, 1000 if source == str(empty) else 10_000)
    assert (tmp_path / "both.png").read_bytes() != (tmp_path / "rl.png").read_bytes()
    with pytest.raises(FileNotFoundError):
        curves.plot_rewards(tmp_path / "absent.jsonl", tmp_path / "x.png")


def test_a_diff_is_plain_or_coloured_and_never_obeyed():
    plain = report.coloured_diff("a\nb\n", "a\nc\x1b[2J\ud800", "x.py", colour=False)
    assert plain == (
        "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n a\n-b\n+c\u241b[2J\\ud800\n\\ No newline at end of file\n"
    )
    coloured = report.coloured_diff("a\nb\n", "a\nc\n", "x.py", colour=True)
    assert coloured.splitlines()[3:] == [" a", "\x1b[31m-b\x1b[0m", "\x1b[32m+c\x1b[0m"]
    assert report.coloured_diff("", "new\n", "x.py", colour=False).startswith("--- /dev/null\n+++ b/x.py\n")
    assert report.coloured_diff("same", "same", "x.py", colour=True) == ""


def test_colour_only_on_a_terminal_that_does_not_refuse_it(monkeypatch):
    class Stream:
        def __init__(self, is_terminal):
            self.isatty = lambda: is_terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert report.wants_colour(Stream(True)) and not report.wants_colour(Stream(False))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not report.wants_colour(Stream(True))


def test_a_fault_leaves_its_example_out_of_pass_at_k_alone():
    """Of a's answers two are judged and one is exact; b lost one of its two, c both of its."""
    def result(name, exact, faults):
        return report.ExampleResult(name, tuple(map(float, exact)), (True,) * len(exact), tuple(exact), faults)

    results = [result("a", [True, False], 0), result("b", [False], 1), result("c", [], 2)]
    found = report.evaluation_intervals(results, pass_ks=[1, 2])
    assert (found["exact"].mean, found["pass@1"].mean, found["pass@2"].mean) == (1 / 3, (1 / 2 + 0) / 2, 1)
    table = report.evaluation_table({"it": results, "b": results[1:]}, pass_ks=[2]).splitlines()
    assert table[-2:] == ["pass@2 of it: 2 of 3 examples have fewer than 2 judged answers and are left out.",
                          "pass@2 of b: 2 of 2 examples have fewer than 2 judged answers and are left out."]
    assert table[3].split()[-4:] == ["–", "2", "1", "3"]
