"""Reward throughput against difflib, one process each: prints one JSON line.

    python tests/bench/reward.py [--pairs 24] [--seed 0]

The mix: pairs of unified diffs of Python source, `--pairs` of them, of 2,000 to 12,000 characters each (log-uniform). A
third are near misses (the oracle with one line in twenty changed), a third share half of their hunks, a third have
nothing to do with each other. Both sides time `SequenceMatcher(None, a, b, autojunk=False).ratio()` or our equal of it
on the same pair; the numbers must be the same. The bar is a median ratio of at least 15.
"""

import argparse
import difflib
import json
import math
import pathlib
import random
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from swerl_jax.env import matching  # noqa: E402: the checkout comes first
from swerl_jax.env.reward import WORK_LIMIT_PAIRS  # noqa: E402


def diff_text(lines: list[str], chars: int, rng: random.Random) -> str:
    """A unified diff of about `chars` characters: one line in eight is changed, from a random line on."""
    start = rng.randrange(len(lines) // 2)
    before = lines[start:]
    after = [line.replace("self", "this") + "  # seen" if rng.random() < 1 / 8 else line for line in before]
    return "\n".join(list(difflib.unified_diff(before, after, lineterm=""))[2:])[:chars]


def make_pair(lines: list[str], kind: int, rng: random.Random) -> tuple[str, str]:
    """Predicted and oracle diff: 0 a near miss, 1 half the hunks, 2 unrelated."""
    chars = round(2_000 * math.exp(rng.random() * math.log(6)))
    oracle = diff_text(lines, chars, rng)
    if kind == 0:
        changed = [line + " or None" if rng.random() < 1 / 20 else line for line in oracle.split("\n")]
        return "\n".join(changed)[:12_000], oracle
    other = diff_text(lines, chars, rng)
    return (other if kind == 2 else oracle[: chars // 2] + other[: chars // 2]), oracle


def main() -> None:
    """Times both on every pair."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    rng = random.Random(flags.seed)
    folder = pathlib.Path(difflib.__file__).parent
    lines = [line for name in ("argparse", "difflib", "inspect", "typing") for line in
             (folder / f"{name}.py").read_text().splitlines()]  # fmt: skip
    speedups, ours_s, theirs_s, chars = [], 0.0, 0.0, []
    for number in range(flags.pairs):
        predicted, oracle = make_pair(lines, number % 3, rng)
        start_s = time.perf_counter()
        ours = matching.ratio(predicted, oracle, matching.Work(WORK_LIMIT_PAIRS))
        middle_s = time.perf_counter()
        theirs = difflib.SequenceMatcher(None, predicted, oracle, autojunk=False).ratio()
        end_s = time.perf_counter()
        assert ours == theirs, (number, ours, theirs)
        speedups.append((end_s - middle_s) / (middle_s - start_s))
        ours_s, theirs_s = ours_s + middle_s - start_s, theirs_s + end_s - middle_s
        chars += [len(predicted), len(oracle)]
    print(json.dumps({
        "bench": "reward", "pairs": flags.pairs, "seed": flags.seed, "chars_min": min(chars), "chars_max": max(chars),
        "chars_median": statistics.median(chars), "speedup_median": round(statistics.median(speedups), 2),
        "speedup_min": round(min(speedups), 2), "speedup_total": round(theirs_s / ours_s, 2),
        "ours_s": round(ours_s, 3), "difflib_s": round(theirs_s, 3), "equal": True,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
