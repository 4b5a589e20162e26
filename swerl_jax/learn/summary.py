"""The end of a run: the table of its evaluations, and rewards.png."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from swerl_jax.data.atomic_file import write_atomically
from swerl_jax.learn.loop import read_evaluation
from swerl_jax.learn.metrics import EVALUATIONS_NAME, METRICS_NAME
from swerl_jax.learn.report import ExampleResult, evaluation_table, plot_rewards

TABLE_NAME = "table.md"
PICTURE_NAME = "rewards.png"


def write(directory: pathlib.Path, phases: Sequence[tuple[str, int]]) -> str:
    """Writes the table and the picture into the run's directory.

    Args:
      phases: (name, steps) in order.

    Returns:
      The table as text, with where both files are.
    """
    step, rows = 0, {}
    for label, steps in [("before", 0), *((f"after {name}", steps) for name, steps in phases)]:
        step += steps
        path = directory / EVALUATIONS_NAME / f"step_{step:06d}.jsonl"
        if path.exists():
            rows[f"{label} (step {step})"] = results(path)
    write_atomically(directory / TABLE_NAME, evaluation_table(rows, markdown=True))
    plot_rewards(directory / METRICS_NAME, directory / PICTURE_NAME)
    return (f"\nHeld-out, unseen modules:\n\n{evaluation_table(rows)}\n"
            f"table    {directory / TABLE_NAME}\ncurves   {directory / PICTURE_NAME}\n"
            f"answers  {directory / EVALUATIONS_NAME}/")


def results(path: pathlib.Path) -> list[ExampleResult]:
    """One entry an example of an evaluation's file."""
    by_example: dict[str, list[dict]] = {}
    for row in read_evaluation(path):
        by_example.setdefault(row["example_id"], []).append(row)
    return [_result(name, rows) for name, rows in by_example.items()]


def _result(name: str, rows: list[dict]) -> ExampleResult:
    judged = [row for row in rows if row["reward"] is not None]
    return ExampleResult(name, tuple(row["reward"] for row in judged), tuple(row["is_well_formed"] for row in judged),
                         tuple(row["is_exact"] for row in judged), len(rows) - len(judged))
