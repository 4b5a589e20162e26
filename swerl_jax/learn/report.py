"""What a person reads after a run: tables with intervals, coloured diffs.

Off the path: it reads outcomes and changes nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TextIO

import numpy as np

from swerl_jax.data import records

_BLOCK_ENTRIES = 4_000_000  # resampled values held at once: 32 MB of float64
_RED, _GREEN, _CYAN, _BOLD, _PLAIN = "\x1b[31m", "\x1b[32m", "\x1b[36m", "\x1b[1m", "\x1b[0m"
# Control characters of a model's answer must not reach the terminal: shown as U+2400 … pictures instead.
_VISIBLE_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code != 9} | {127: "\u2421"} | {
    code: "\ufffd" for code in range(128, 160)
}


class Interval(NamedTuple):
    """A statistic of the values seen (`mean`, their mean unless asked otherwise) and its confidence interval."""

    mean: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class ExampleResult:
    """What became of one example's answers; infra faults are left out of all three and counted in `faults`."""

    example_id: str
    rewards: tuple[float, ...]
    is_well_formed: tuple[bool, ...]
    is_exact: tuple[bool, ...]
    faults: int = 0

    @classmethod
    def of(cls, example_id: str, outcomes: Sequence[records.Outcome]) -> ExampleResult:
        """Collects the outcomes of one example's answers; see `Outcome.is_well_formed`."""
        judged = [outcome for outcome in outcomes if outcome.status != records.INFRA_FAULT]
        return cls(
            example_id=example_id,
            rewards=tuple(float(outcome.reward) for outcome in judged),
            is_well_formed=tuple(outcome.is_well_formed for outcome in judged),
            is_exact=tuple(outcome.is_exact for outcome in judged),
            faults=len(outcomes) - len(judged),
        )


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    *,
    statistic: Callable[..., np.ndarray] = np.mean,
    samples: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The percentile bootstrap interval of a statistic.

    Args:
      values: float [n] or [n, C]; the n rows are what is resampled, with replacement.
      statistic: called as `statistic(float [samples, n(, C)], axis=1)`, returns [samples].
      samples: number of resamples.
      seed: same seed, same interval.
      level: probability the interval is to cover, in (0, 1).

    Returns:
      The statistic of `values` with its interval; resamples where it is not finite (0/0) are left out, and all three
      are nan if it is not finite for `values` itself.

    Raises:
      ValueError: no values.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), §13.3.
    """
    values = np.asarray(values, np.float64)
    if len(values) == 0:
        raise ValueError("a bootstrap interval needs at least one value, got none")
    with np.errstate(invalid="ignore", divide="ignore"):
        center = float(statistic(values[None], axis=1)[0])
        if not math.isfinite(center):
            return Interval(math.nan, math.nan, math.nan)
        rng = np.random.default_rng(seed)
        block = max(1, _BLOCK_ENTRIES // values.size)
        resampled = np.concatenate([
            statistic(values[rng.integers(0, len(values), (min(block, samples - start), len(values)))], axis=1)
            for start in range(0, samples, block)
        ])  # fmt: skip
    tail = (1 - level) / 2
    low, high = np.quantile(resampled[np.isfinite(resampled)], [tail, 1 - tail])
    return Interval(center, float(low), float(high))


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k answers drawn from n, of which c are right, is right.

    Returns:
      1 − C(n−c, k) / C(n, k), exact; an unbiased estimate of pass@k.

    Raises:
      ValueError: not 0 ≤ c ≤ n or not 1 ≤ k ≤ n.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 ≤ c ≤ n and 1 ≤ k ≤ n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def evaluation_intervals(results: Sequence[ExampleResult], pass_ks: Sequence[int] = ()) -> dict[str, Interval]:
    """The table's numbers: 95 % intervals with examples, not answers, resampled (a group's answers are alike).

    Args:
      results: one entry per example; entries without a judged answer are left out.
      pass_ks: each k for pass@k of exact fixes, over the examples with at least k judged answers.

    Returns:
      "format", "reward", "well_formed_reward", "exact" (shares and means over all answers), then "pass@K" (mean over
      examples; nan if none has k).

    Raises:
      ValueError: no judged answer at all.
    """
    judged = [result for result in results if result.rewards]
    if not judged:
        raise ValueError(f"no judged answer among {len(results)} examples: nothing to report")
    intervals = {name: bootstrap_interval(pairs, statistic=_ratio) for name, pairs in _counts(judged).items()}
    for k in pass_ks:
        solved = [pass_at_k(len(result.is_exact), sum(result.is_exact), k) for result in judged if len(result.is_exact) >= k]
        intervals[f"pass@{k}"] = bootstrap_interval(solved or [math.nan])
    return intervals


def change_intervals(before: Sequence[ExampleResult], after: Sequence[ExampleResult]) -> dict[str, Interval]:
    """after − before of the table's first four numbers, each example resampled together with itself.

    Args:
      before, after: results on the same examples; those without a judged answer in either are left out.

    Raises:
      ValueError: no example is judged in both.
    """
    known = {result.example_id: result for result in before if result.rewards}
    pairs = [(known[result.example_id], result) for result in after if result.rewards and result.example_id in known]
    if not pairs:
        raise ValueError("no example has a judged answer in both evaluations: nothing to compare")
    first, second = (_counts(results) for results in zip(*pairs, strict=True))
    return {
        name: bootstrap_interval(np.concatenate([first[name], second[name]], axis=-1), statistic=_ratio_change)
        for name in first
    }


def _counts(results: Sequence[ExampleResult]) -> dict[str, np.ndarray]:
    """Name → float [examples, 2], parts and wholes, whose sums' ratio is the number."""
    answers = np.array([len(result.rewards) for result in results], np.float64)
    well_formed = np.array([sum(result.is_well_formed) for result in results], np.float64)
    well_formed_reward = [
        sum(reward for reward, is_formed in zip(result.rewards, result.is_well_formed, strict=True) if is_formed)
        for result in results
    ]
    parts_and_wholes = {
        "format": (well_formed, answers),
        "reward": ([sum(result.rewards) for result in results], answers),
        "well_formed_reward": (well_formed_reward, well_formed),
        "exact": ([sum(result.is_exact) for result in results], answers),
    }
    return {name: np.stack(pair, axis=-1) for name, pair in parts_and_wholes.items()}


def _ratio(pairs: np.ndarray, axis: int) -> np.ndarray:
    sums = pairs.sum(axis=axis)
    return sums[..., 0] / sums[..., 1]


def _ratio_change(quadruples: np.ndarray, axis: int) -> np.ndarray:
    return _ratio(quadruples[..., 2:], axis) - _ratio(quadruples[..., :2], axis)


def evaluation_table(
    rows: Mapping[str, Sequence[ExampleResult]],
    *,
    pass_ks: Sequence[int] = (),
    change: tuple[str, str] | None = None,
    markdown: bool = False,
) -> str:
    """A table of evaluations, one row each, with 95 % bootstrap intervals.

    Args:
      rows: label → results, e.g. "before" and "after".
      pass_ks: as in `evaluation_intervals`.
      change: two labels; a last row says what the second has over the first, see `change_intervals`.
      markdown: True: a Markdown table; False: aligned text.

    Raises:
      ValueError: as `evaluation_intervals`.
    """
    header = ["", "correct format %", "mean reward", "reward if well-formed", "exact fix %"]
    header += [f"pass@{k} %" for k in pass_ks] + ["examples", "answers", "infra faults"]
    lines = [_table_cells(label, results, pass_ks) for label, results in rows.items()]
    if change is not None:
        cells = [_interval_text(*one, "+") for one in change_intervals(rows[change[0]], rows[change[1]]).items()]
        lines.append(["change", *cells, *[""] * (len(header) - 1 - len(cells))])
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    padded = [
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        for line in [header, *lines]
    ]
    notes = [f"pass@{k} of {label}: {few} of {len(results)} examples have fewer than {k} judged answers and are left out."
             for k in pass_ks for label, results in rows.items() if (few := sum(len(one.is_exact) < k for one in results))]
    note = "[low, high]: 95 % percentile bootstrap over examples; width 0 means equal resamples, not certainty."
    if markdown:
        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        body = ["| " + " | ".join(cells) + " |" for cells in [padded[0], rule, *padded[1:]]]
    else:
        body = ["  ".join(cells).rstrip() for cells in padded]
        body.insert(1, "-" * len("  ".join(padded[0])))
    return "\n".join([*body, "", note, *notes]) + "\n"


def _table_cells(label: str, results: Sequence[ExampleResult], pass_ks: Sequence[int]) -> list[str]:
    intervals = evaluation_intervals(results, pass_ks)
    cells = [_interval_text(name, interval) for name, interval in intervals.items()]
    answers = sum(len(result.rewards) for result in results)
    return [label, *cells, str(len(results)), str(answers), str(sum(result.faults for result in results))]


def _interval_text(name: str, interval: Interval, sign: str = "") -> str:
    """`sign`: "+" shows the sign of positive numbers too."""
    if math.isnan(interval.mean):
        return "–"
    is_reward = name.endswith("reward")
    scale, digits = (1, 3) if is_reward else (100, 1)
    mean, low, high = (f"{scale * value:{sign}.{digits}f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def coloured_diff(before: str, after: str, path: str, *, colour: bool) -> str:
    """The unified diff of one file for the terminal, "" if nothing changed.

    Args:
      before, after: whole texts; an empty one stands for a file that does not exist.
      path: shown in the header.
      colour: True: ANSI colours; see `wants_colour`.

    Returns:
      Lines ending in a newline, safe to print: control characters are shown as pictures, never obeyed.
    """
    old_name, new_name = (f"a/{path}" if before else "/dev/null"), (f"b/{path}" if after else "/dev/null")
    lines = difflib.unified_diff(_lines(before), _lines(after), old_name, new_name)
    return "".join(_shown(line, number < 2, colour) for number, line in enumerate(lines))


def wants_colour(stream: TextIO) -> bool:
    """Whether to colour what is printed to `stream`: a terminal, and NO_COLOR (no-color.org) unset or empty."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _lines(text: str) -> list[str]:
    """Lines with their ends, split at newlines only (a form feed ends no line of code)."""
    *whole, last = text.split("\n")
    return [line + "\n" for line in whole] + ([last] if last else [])


def _shown(line: str, is_header: bool, colour: bool) -> str:
    body = line.removesuffix("\n")
    text = body.translate(_VISIBLE_CONTROLS).encode("utf-8", "backslashreplace").decode("utf-8")
    if colour:
        start = _BOLD if is_header else {"+": _GREEN, "-": _RED, "@": _CYAN}.get(line[0], "")
        text = f"{start}{text}{_PLAIN}" if start else text
    return text + ("\n" if line.endswith("\n") else "\n\\ No newline at end of file\n")
