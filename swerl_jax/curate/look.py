"""What a person sees of a set of examples: one example as a page, all of them as a table of numbers.

Off the path: it reads examples and changes nothing.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from swerl_jax.curate import examples, paths
from swerl_jax.curate.examples import TokenCounter
from swerl_jax.data.records import Example
from swerl_jax.env.reward import PAPER, RewardSpec
from swerl_jax.learn.report import coloured_diff

_BOLD, _RED, _GREEN, _PLAIN = "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
_CONTROLS = {code: chr(0x2400 + code) for code in range(32) if code not in (9, 10)} | {127: "\u2421"} | {
    code: "\ufffd" for code in range(128, 160)
}
_SHARES = (0.05, 0.5, 0.95)
_MOST_COMMON = 12


def page(example: Example, counter: TokenCounter, reward: RewardSpec = PAPER, *, colour: bool) -> str:
    """One example for the terminal: where it is from, the issue, the files, the diff, tokens, the oracle's own reward.

    Args:
      example: any, of whatever source.
      counter: of tokens.
      reward: what scores the oracle's answer.
      colour: True: ANSI colours.

    Returns:
      Lines safe to print: control characters in what people wrote are shown as pictures.
    """
    parts = [
        _title(f"{example.id}", colour),
        "\n".join(f"{name:10} {value}" for name, value in _facts(example) if value),
        _title("Issue", colour),
        example.issue.rstrip(),
        _title("Files", colour),
        _files(example, counter),
        _title("Change", colour),
    ]
    text = "\n".join(_safe(part) if not part.startswith(_BOLD) else part for part in parts)
    diffs = [
        coloured_diff(example.files.get(path, ""), after, path, colour=colour) for path, after in sorted(example.oracle.items())
    ]
    return f"{text}\n{''.join(diffs)}{_title('Tokens and reward', colour)}\n{_score(example, counter, reward, colour)}\n"


def _title(text: str, colour: bool) -> str:
    line = _safe(f"── {text} " + "─" * max(3, 100 - len(text)))
    return f"{_BOLD}{line}{_PLAIN}" if colour else line


def _safe(text: str) -> str:
    return text.translate(_CONTROLS).encode("utf-8", "backslashreplace").decode("utf-8")


def _facts(example: Example) -> list[tuple[str, str]]:
    meta = example.meta
    return [
        ("repository", f"{example.repo} at {example.commit}"),
        ("source", str(meta.get("source", ""))),
        ("title", str(meta.get("title", ""))),
        ("issues", ", ".join(f"{one['repo']}#{one['number']}" for one in meta.get("issues", ()))),
        ("language", str(meta.get("language", ""))),
        ("licence", str(meta.get("licence", ""))),
        ("flags", ", ".join(example.flags)),
        ("scrubbed", _counts(meta.get("scrubbed", {}))),
        ("left out", ", ".join(f"{path} ({role})" for path, role in meta.get("left_out", {}).items())),
        ("tests", ", ".join(example.tests.get("test_files", {})) or ", ".join(example.tests)),
    ]


def _files(example: Example, counter: TokenCounter) -> str:
    lines = []
    for path in sorted({*example.files, *example.oracle}):
        what = "changed" if path in example.oracle else "context"
        what = what if path in example.files else "new"
        text = example.files.get(path, "")
        lines.append(f"{what:8} {counter.file(path, text):7,} tokens  {text.count(chr(10)):6,} lines  {path}")
    return "\n".join(lines)


def _score(example: Example, counter: TokenCounter, reward: RewardSpec, colour: bool) -> str:
    reason, text = examples.oracle_score(example, reward)
    changed = sum(counter.file(path, text) for path, text in example.files.items() if path in example.oracle)
    everything = counter.exact(example)
    outside = counter.without_files(example)
    lines = [
        f"prompt     {everything:7,} tokens: {outside:,} for issue and instructions, {changed:,} for changed files, "
        f"{max(0, everything - outside - changed):,} for others",
    ]
    if reason:
        lines.append(f"the oracle's own answer fails: {reason}: {_safe(text)}")
    else:
        lines.append(f"answer     {counter.answer(text):7,} tokens (the oracle's own, with a thought of one line)")
        lines.append("reward         1.0 of the oracle's own answer")
    if colour:
        lines[-1] = f"{_RED if reason else _GREEN}{lines[-1]}{_PLAIN}"
    return "\n".join(lines)


def summary(rows: Iterable[Example], counter: TokenCounter) -> str:
    """Numbers of a set: how many, from where, how long.

    Each example is read once, so a set of any size will do; what is kept of one is a few numbers.
    """
    repositories: collections.Counter[str] = collections.Counter()
    counters: dict[str, collections.Counter[str]] = {
        name: collections.Counter() for name in ("source", "language", "licence", "flag", "year")
    }
    measures: dict[str, list[int]] = collections.defaultdict(list)
    for example in rows:
        repositories[example.repo] += 1
        for name, values in _kinds(example).items():
            counters[name].update(values)
        for name, value in _measures(example, counter).items():
            measures[name].append(value)
    if not repositories:
        return "no examples\n"
    lines = [f"{repositories.total():,} examples of {len(repositories):,} repositories", "", _measure_table(measures), ""]
    lines += [f"{name:13} {_counts(counted)}" for name, counted in {"repository": repositories, **counters}.items() if counted]
    return _safe("\n".join(lines)) + "\n"


def _kinds(example: Example) -> dict[str, list[str]]:
    meta = example.meta
    language = meta.get("language") or paths.main_language(example.oracle)
    return {
        "source": [str(meta.get("source") or "unknown")],
        "language": [str(language or "unknown")],
        "licence": [str(meta.get("licence") or "unknown")],
        "flag": list(example.flags),
        "year": [str(meta.get("created_at") or "unknown")[:4].replace("unkn", "unknown")],
    }


def _measures(example: Example, counter: TokenCounter) -> dict[str, int]:
    meta = example.meta
    changed = [path for path in example.oracle if path in example.files]
    return {
        "prompt tokens": meta.get("prompt_tokens") or counter.exact(example),
        "answer tokens": meta.get("answer_tokens") or _answer_tokens(example, counter),
        "issue words": len(example.issue.split()),
        "files changed": len(example.oracle),
        "of them new": len(example.oracle) - len(changed),
        "files of context": len(example.files) - len(changed),
    }


def _answer_tokens(example: Example, counter: TokenCounter) -> int:
    reason, text = examples.oracle_score(example)
    return 0 if reason else counter.answer(text)


def _measure_table(measures: Mapping[str, Sequence[int]]) -> str:
    lines = [f"{'':18}{'mean':>10}{'5 %':>9}{'median':>9}{'95 %':>9}{'max':>9}"]
    for name, values in measures.items():
        low, middle, high = (int(value) for value in np.quantile(values, _SHARES, method="inverted_cdf"))
        lines.append(f"{name:18}{np.mean(values):10,.1f}{low:9,}{middle:9,}{high:9,}{max(values):9,}")
    return "\n".join(lines)


def _counts(counts: Mapping[str, Any]) -> str:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {count:,}" for name, count in ordered[:_MOST_COMMON])
    return shown + (f", {len(ordered) - _MOST_COMMON:,} more" if len(ordered) > _MOST_COMMON else "")
