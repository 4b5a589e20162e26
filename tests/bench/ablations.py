"""One table of finished runs: what training changed, by variant, over seeds. Every answer is scored by the paper's reward.

    python tests/bench/ablations.py runs/tiny-1 runs/tiny-2 runs/tiny-discrete-1 …

Runs of one variant (`name` of the config) are taken together: the interval resamples the examples of all its seeds.
"""

import json
import pathlib
import sys

from swerl_jax.env.reward import PAPER, make_reward
from swerl_jax.learn.report import ExampleResult, change_intervals, evaluation_intervals
from swerl_jax.learn.summary import evaluations

REWARD = make_reward(PAPER)


def read_run(directory):
    """(variant, seed, minutes, results before, results after)."""
    config = json.loads((directory / "config.json").read_text())["config"]
    rows = list(evaluations(directory, [(name, config[f"{name}.steps"]) for name in config["phases"]]).values())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    minutes = sum(line.get("seconds/step", 0) + line.get("seconds/eval", 0) for line in lines) / 60
    return config["name"], config["seed"], minutes, *(results(config["seed"], some) for some in (rows[0], rows[-1]))


def results(seed, rows):
    """One result an example, by the paper's reward."""
    outcomes = {}
    for row in rows:
        outcome = REWARD(row["output"], row["group"]["code_context"], row["group"]["oracle_new_content"])
        outcomes.setdefault(f"{seed}/{row['example_id']}", []).append(outcome)
    return [ExampleResult.of(name, some) for name, some in outcomes.items()]


def cell(interval, scale, digits):
    """+mean [low, high]."""
    mean, low, high = (f"{scale * value:+.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def main():
    """Prints the table."""
    variants = {}
    for directory in sys.argv[1:]:
        variant, seed, minutes, before, after = read_run(pathlib.Path(directory))
        variants.setdefault(variant, []).append((seed, minutes, before, after))
    print("| | seeds | minutes | exact fix % after | change of exact fix, points | … each seed | change of format, points "
          "| change of reward if well-formed |\n|---|---|---:|---:|---:|---|---:|---:|")
    for variant, runs in variants.items():
        runs.sort(key=lambda run: run[0])
        before, after = ([result for run in runs for result in run[i]] for i in (2, 3))
        change = change_intervals(before, after)
        each = ", ".join(f"{100 * change_intervals(b, a)['exact'].mean:+.1f}" for _, _, b, a in runs)
        last = evaluation_intervals(after)["exact"]
        print(f"| {variant} | {', '.join(str(run[0]) for run in runs)} | {sum(run[1] for run in runs) / len(runs):.1f} "
              f"| {100 * last.mean:.1f} [{100 * last.low:.1f}, {100 * last.high:.1f}] | {cell(change['exact'], 100, 1)} | {each} "
              f"| {cell(change['format'], 100, 1)} | {cell(change['well_formed_reward'], 1, 3)} |")


if __name__ == "__main__":
    main()
