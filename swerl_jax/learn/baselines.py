"""Answers that need no learning: what the numbers of an evaluation have to be read against."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

from swerl_jax.data.records import Example
from swerl_jax.env.prompts import answer_text
from swerl_jax.env.reward import RewardFunction
from swerl_jax.learn.report import ExampleResult


def _with_comment(lines: list[str], at: int) -> list[str]:
    indent = lines[at][:len(lines[at]) - len(lines[at].lstrip())]
    return [*lines[:at], f"{indent}# fixed", *lines[at:]]


def _without_line(lines: list[str], at: int) -> list[str]:
    return [*lines[:at], *lines[at + 1:]]


BASELINES: dict[str, Callable[[list[str], int], list[str]]] = {
    "a comment at a random line": _with_comment,
    "a random line deleted": _without_line,
}


def results(examples: Sequence[Example], reward: RewardFunction, seed: int = 0) -> dict[str, list[ExampleResult]]:
    """Label → one result an example: a well-formed answer that changes one line, which chance takes from the files shown.

    An example whose change cannot be written as an answer has no verdict and counts as a fault.
    """
    return {label: [_result(example, change, reward, random.Random(f"{seed}/{label}/{example.id}")) for example in examples]
            for label, change in BASELINES.items()}


def _result(example: Example, change: Callable[[list[str], int], list[str]], reward: RewardFunction, rng: random.Random,
            ) -> ExampleResult:
    path = rng.choice(sorted(example.files))
    lines = example.files[path].split("\n")
    at = rng.randrange(max(1, len(lines) - 1))  # the last piece is what follows the last line's end
    try:
        output = answer_text(dataclasses.replace(example, oracle={path: "\n".join(change(lines, at))}), "By chance.")
    except ValueError:
        return ExampleResult(example.id, (), (), (), faults=1)
    return ExampleResult.of(example.id, [reward(output, example.files, example.oracle)])
