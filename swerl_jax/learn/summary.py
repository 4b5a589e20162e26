"""The end of a run: the table of its evaluations, rewards.png, and answers to the examples that rose most."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from swerl_jax.data.atomic_file import write_atomically
from swerl_jax.data.records import Example
from swerl_jax.env.reward import PAPER, RewardSpec, make_reward
from swerl_jax.learn import baselines
from swerl_jax.learn.answer import diff
from swerl_jax.learn.curves import plot_rewards
from swerl_jax.learn.loop import read_evaluation
from swerl_jax.learn.metrics import EVALUATIONS_NAME, METRICS_NAME
from swerl_jax.learn.report import ExampleResult, evaluation_table

TABLE_NAME = "table.md"
PICTURE_NAME = "rewards.png"
IMPROVED_NAME = "improved.diff"
IMPROVED_COUNT = 5

Row = Mapping[str, Any]


def write(directory: pathlib.Path, phases: Sequence[tuple[str, int]], reward: RewardSpec, *, colour: bool) -> str:
    """Writes the table, the picture and answers to the examples that rose most into the run's directory.

    Args:
      phases: (name, steps) in order.
      reward: of the run; the answers that need no learning are search/replace edits, so only that reward judges them.
      colour: of what is returned; files are plain.

    Returns:
      All of it as text, with where the files are.
    """
    rows_of = evaluations(directory, phases)
    labels = list(rows_of)
    results = {label: _results(rows) for label, rows in rows_of.items()}
    change = (labels[0], labels[-1]) if len(labels) > 1 else None
    first = rows_of[labels[0]]
    if reward.name == PAPER.name:
        results |= baselines.results([_example(rows[0]) for rows in _by_example(first).values()], make_reward(reward))
    write_atomically(directory / TABLE_NAME, evaluation_table(results, change=change, markdown=True))
    plot_rewards(directory / METRICS_NAME, directory / PICTURE_NAME)
    improved = _improved(first, rows_of[labels[-1]])
    write_atomically(directory / IMPROVED_NAME, _shown(improved, colour=False))
    return (f"\n{_shown(improved, colour=colour)}\nHeld-out, unseen modules:\n\n{evaluation_table(results, change=change)}\n"
            f"table    {directory / TABLE_NAME}\ncurves   {directory / PICTURE_NAME}\n"
            f"diffs    {directory / IMPROVED_NAME}\nanswers  {directory / EVALUATIONS_NAME}/")


def evaluations(directory: pathlib.Path, phases: Sequence[tuple[str, int]]) -> dict[str, list[Row]]:
    """Label → answer rows, of the evaluations before and after each phase."""
    step, found = 0, {}
    for label, steps in [("before", 0), *((f"after {name}", steps) for name, steps in phases)]:
        step += steps
        path = directory / EVALUATIONS_NAME / f"step_{step:06d}.jsonl"
        if path.exists():
            found[f"{label} (step {step})"] = read_evaluation(path)
    return found


def _by_example(rows: Sequence[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["example_id"], []).append(row)
    return grouped


def _results(rows: Sequence[Row]) -> list[ExampleResult]:
    """One entry an example."""
    return [_result(name, some) for name, some in _by_example(rows).items()]


def _result(name: str, rows: Sequence[Row]) -> ExampleResult:
    judged = [row for row in rows if row["reward"] is not None]
    return ExampleResult(name, tuple(row["reward"] for row in judged), tuple(row["is_well_formed"] for row in judged),
                         tuple(row["is_exact"] for row in judged), len(rows) - len(judged))


def _example(row: Row) -> Example:
    group = row["group"]
    return Example(group["example_id"], "", "", group["issue"], group["code_context"], group["oracle_new_content"])


def _improved(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Sequence[Row], Sequence[Row]]]:
    """The answers to the examples whose share of exact ones rose most; of equals the first."""
    old = _by_example(before)
    pairs = [(old[name], rows) for name, rows in _by_example(after).items() if name in old]
    rises = sorted(((_exact_share(pair[1]) - _exact_share(pair[0]), -i) for i, pair in enumerate(pairs)), reverse=True)
    return [pairs[-i] for rise, i in rises[:IMPROVED_COUNT] if rise > 0]


def _exact_share(rows: Sequence[Row]) -> float:
    return sum(row["is_exact"] for row in rows) / len(rows)


def _shown(pairs: Sequence[tuple[Sequence[Row], Sequence[Row]]], *, colour: bool) -> str:
    """Of every pair one answer that was wrong and one that is right."""
    if not pairs:
        return "No held-out example is answered right more often than before.\n"
    parts = [f"The {len(pairs)} held-out examples with the largest rise: an answer before, an answer after\n"]
    for before, after in pairs:
        wrong, right = next(row for row in before if not row["is_exact"]), next(row for row in after if row["is_exact"])
        example = _example(right)
        parts += [f"\n==== {example.id}: {example.issue}\n\n-- before, {_counted(before)}; this one: {_verdict(wrong)}\n",
                  diff(example, wrong["output"], colour=colour), f"\n-- after, {_counted(after)}\n",
                  diff(example, right["output"], colour=colour)]
    return "".join(parts)


def _counted(rows: Sequence[Row]) -> str:
    return f"{sum(row['is_exact'] for row in rows)} of {len(rows)} exact"


def _verdict(row: Row) -> str:
    return "no verdict" if row["reward"] is None else f"reward {row['reward']:.3f}"
