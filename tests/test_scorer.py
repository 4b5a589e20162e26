"""The pool: verdicts, deaths, overruns, order; and that no answer is too slow for the default deadline."""

import difflib
import os
import pathlib
import signal
import sys
import threading
import time

import pytest

from swerl_jax.data.records import INFRA_FAULT, POLICY_FAULT, SCORED
from swerl_jax.env import patch
from swerl_jax.env.reward import RewardContractError, RewardSpec, search_replace_reward
from swerl_jax.env.scorer import ScoringCounts, ScoringPool, default_deadline_s

FILES = {"m.py": "a\n"}
ORACLE = {"m.py": "b\n"}
EXACT = "<think>t</think><solution>```\n### m.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n```</solution>"


def scripted(output, files, oracle):
    """A reward that does what the text says; runs in the worker."""
    command, _, argument = output.partition(" ")
    if command == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "die_once" and not pathlib.Path(argument).exists():
        pathlib.Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if command == "sleep":
        time.sleep(float(argument))
    if command == "raise":
        raise KeyError("their own mistake")
    if command == "modules":
        return float("jax" in sys.modules or "numpy" in sys.modules)
    if command == "none":
        return None
    return float(argument) if command == "value" else 0.0


SCRIPTED = RewardSpec(f"{__name__}:scripted")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(pathlib.Path(__file__).parent))  # the workers inherit the path


def test_verdicts_of_all_three_kinds():
    with ScoringPool(RewardSpec(), 1, 30.0) as pool:
        futures = [
            pool.submit(EXACT, FILES, ORACLE),
            pool.submit("\ud800\0", FILES, ORACLE),
            pool.submit_contents({"m.py": "b\n"}, FILES, ORACLE),
            pool.submit_patches(["nonsense"], ["--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"]),
        ]
        assert [future.result().reward for future in futures] == [1.0, -1.0, 1.0, 0.0]
        assert futures[1].result().status == POLICY_FAULT
        assert pool.counts == ScoringCounts()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(EXACT, FILES, ORACLE)


def test_death_overrun_and_exception(tmp_path):
    with ScoringPool(SCRIPTED, 1, 0.5) as pool:
        die_once = f"die_once {tmp_path / 'died'}"
        texts = ["value 1", "die", "value 2", die_once, "sleep 60", "raise", "value 3", "modules"]
        start_s = time.monotonic()
        outcomes = [future.result() for future in [pool.submit(text, {}, {}) for text in texts]]
        assert time.monotonic() - start_s < 20
        counts = pool.counts
    assert [outcome.reward for outcome in outcomes] == [1.0, None, 2.0, 0.0, None, None, 3.0, 0.0]
    assert [outcome.status == INFRA_FAULT for outcome in outcomes] == [reward is None for reward in
                                                                      [1, None, 2, 0, None, None, 3, 0]]  # fmt: skip
    assert "died (exit code -9)" in outcomes[1].reason
    assert "deadline of 0.5 s" in outcomes[4].reason
    assert "KeyError" in outcomes[5].reason
    # Two deaths, one, two overruns; the exception does not end its worker.
    assert counts == ScoringCounts(retries=4, faults=3, restarts=5)


def test_a_wrong_return_value_is_an_error_not_a_fault():
    with ScoringPool(SCRIPTED, 1, 30.0) as pool:
        with pytest.raises(RewardContractError, match="None"):
            pool.submit("none", {}, {}).result()
        assert pool.submit("value 1", {}, {}).result().reward == 1.0
        assert pool.counts == ScoringCounts()


def test_many_threads_and_workers():
    results = {}

    def score(start):
        futures = {n: pool.submit(f"value {n}", {}, {}) for n in range(start, start + 50)}
        results.update((n, future.result().reward) for n, future in futures.items())

    with ScoringPool(SCRIPTED, 2, 30.0) as pool:
        threads = [threading.Thread(target=score, args=(start,)) for start in (0, 50, 100)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert results == {n: float(n) for n in range(150)}


def test_a_slow_item_does_not_hold_up_the_others():
    with ScoringPool(SCRIPTED, 2, 30.0) as pool:
        slow = pool.submit("sleep 1.5", {}, {})
        quick = [pool.submit("value 1", {}, {}) for _ in range(20)]
        assert [future.result().reward for future in quick] == [1.0] * 20
        assert not slow.done()


def test_wrong_set_up():
    with pytest.raises(ValueError, match="worker"):
        ScoringPool(RewardSpec(), 0, 1.0)
    with pytest.raises(ValueError, match="deadline"):
        ScoringPool(RewardSpec(), 1, 0.0)
    with pytest.raises(ValueError, match="no_such_module"):
        ScoringPool(RewardSpec("no_such_module:f"), 1, 1.0)


def test_default_deadline_by_hand():
    # 5 + 4 × (1.5e8 / 1.5e8 + (1e6 + 2 × 5e5) × 1e-6)
    assert default_deadline_s(1_000_000, 500_000, 150_000_000) == pytest.approx(17.0)


def _block(path, search, replace):
    return patch.render([patch.Edit(path, search, replace)]) + "\n\n"


def _hostile_answers():
    """Answers of 64,000 characters (or of 1 MB, where more hurts) made to be slow, with their context and oracle."""
    source = (pathlib.Path(difflib.__file__).read_text() * 2)[:60_000].rstrip("\n") + "\n"
    files = {"m.py": source}
    oracle = {"m.py": source.replace("self.", "this."), "n.py": "\n" + "ab" * 8_000}
    blank = {"m.py": "\n" * 2_000 + "x\n" + "\n" * 2_000}
    blank_oracle = {"m.py": ("\n" * 5 + "y\n") * 700}
    return {
        "rewrite": (_block("m.py", source[:-1], source[:-1].upper()), files, oracle),
        "single characters": (_block("n.py", "", "a" * 64_000), files, oracle),
        "pasted before every line": (_block("m.py", "", "\n" + "this." * 80), files, oracle),
        "many edits": (_block("m.py", " ", "  ") * 15_000, files, oracle),
        "many files": ("".join(_block(f"{n}.py", "", "x") for n in range(15_000)), files, oracle),
        "blank lines": (_block("m.py", "x", ("\n" * 3 + "y\n") * 12_000), blank, blank_oracle),
        "distinct lines": (_block("n.py", "", "\n".join(map(str, range(140_000)))), files, oracle),
        "fences": ("```\n" * 250_000, files, oracle),
        "bait": ("```\n### m.py\n<<<<<<< SEARCH\nx\n=======\n" * 25_000, files, oracle),
    }


def _slowest(spec):
    slowest_s, name = 0.0, ""
    for label, (text, files, oracle) in _hostile_answers().items():
        start_s = time.perf_counter()
        outcome = search_replace_reward(f"<think>t</think><solution>{text}</solution>", files, oracle, spec)
        took_s = time.perf_counter() - start_s
        assert outcome.status in (SCORED, POLICY_FAULT) and outcome.reward < 0.5
        slowest_s, name = max((slowest_s, name), (took_s, label))
    return slowest_s, name


def test_hostile_answers_stay_inside_the_deadline_small():
    for autojunk in (True, False):
        spec = RewardSpec(work_limit_pairs=100_000_000, line_autojunk=autojunk)
        slowest_s, name = _slowest(spec)
        assert slowest_s < default_deadline_s(1_000_000, 80_000, spec.work_limit_pairs), name


@pytest.mark.slow
def test_hostile_answers_stay_inside_the_deadline():
    spec = RewardSpec(line_autojunk=False)
    slowest_s, name = _slowest(spec)
    deadline_s = default_deadline_s(1_000_000, 80_000)
    print(f"slowest: {name}, {slowest_s:.1f} s of {deadline_s:.0f} s")
    assert slowest_s < deadline_s / 2
