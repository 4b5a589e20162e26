"""One issue, one answer, shown to a person: the `sample` task."""

from __future__ import annotations

import pathlib

import numpy as np

from swerl_jax.data.records import Example, Turn
from swerl_jax.env import patch
from swerl_jax.env.matching import Work
from swerl_jax.env.reward import MAX_GROWTH_CHARS, WORK_LIMIT_PAIRS
from swerl_jax.env.vocabulary import Tokenizer
from swerl_jax.learn.report import coloured_diff
from swerl_jax.policy.engine import Policy


def read_example(issue: str, paths: str) -> Example:
    """An example without an oracle, from the issue's text (or @FILE) and the files' paths, separated by commas.

    Raises:
      ValueError: something is missing or unreadable.
    """
    if not issue or not paths:
        raise ValueError("task sample needs --config.sample.issue=TEXT (or @FILE) and --config.sample.files=PATH,PATH")
    text = pathlib.Path(issue[1:]).read_text(encoding="utf-8") if issue.startswith("@") else issue
    files = {path: pathlib.Path(path).read_text(encoding="utf-8") for path in paths.split(",")}
    return Example("sample", "", "", text, files, {})


def ask(policy: Policy, prompt: np.ndarray, max_tokens: int) -> Turn:
    """Draws one turn."""
    policy.open(0, prompt, 1, max_branch_tokens=max_tokens)
    policy.draw(0, 0, max_tokens)
    while not (turns := policy.tick()):
        pass
    policy.close(0, 0)
    return turns[0][2]


def show(example: Example, turn: Turn, tokenizer: Tokenizer, stop_ids: tuple[int, ...], *, colour: bool) -> str:
    """The thought, then the diff; or the raw answer and why it cannot be applied."""
    output = tokenizer.decode([int(i) for i in turn.ids if int(i) not in stop_ids])
    try:
        thought, after = _applied(example, output)
    except patch.FormatFault as fault:
        return f"{output}\n\nnot a usable answer: {fault}"
    return f"{thought}\n\n{_diffs(example, after, colour)}"


def diff(example: Example, output: str, *, colour: bool) -> str:
    """What an answer does to the files, as unified diffs; or one line with why it cannot be applied."""
    try:
        return _diffs(example, _applied(example, output)[1], colour)
    except patch.FormatFault as fault:
        return f"not a usable answer: {fault}\n"


def _applied(example: Example, output: str) -> tuple[str, dict[str, str | None]]:
    """(the thought, the edited files: path → content)."""
    thought, answer = patch.split_output(output)
    patch.check_thought(thought)
    edits = patch.parse(answer)
    if not edits:
        raise patch.FormatFault("no_blocks", "it holds no complete search/replace block")
    return thought, patch.apply_edits(edits, example.files, Work(WORK_LIMIT_PAIRS), MAX_GROWTH_CHARS)


def _diffs(example: Example, after: dict[str, str | None], colour: bool) -> str:
    return "\n".join(f"{path}: grown by more than {MAX_GROWTH_CHARS:,} characters, not shown\n" if new is None else
                     coloured_diff(example.files.get(path, ""), new, path, colour=colour) for path, new in after.items())
