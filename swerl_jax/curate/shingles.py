"""Texts → sets of short runs of words, as numbers: what near-duplicates and contamination are compared by.

The numbers are the same in every process and on every machine, so sets made apart can be compared.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from swerl_jax.data.records import Example

_WORD = re.compile(r"\w+")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)  # of an issue template: nobody sees it, everybody sends it
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
MAX_WORDS = 200_000  # of one text; what is longer is compared by its beginning


def words(text: str) -> list[str]:
    """Letters and digits in a row, in lower case; operators and layout do not count."""
    return _WORD.findall(text.lower())[:MAX_WORDS]


def shingles(text: str, size: int, seed: int = 0) -> np.ndarray:
    """The distinct runs of `size` words of a text.

    Args:
      text: anything.
      size: words in a run, at least 1.
      seed: tells sets of different kinds of text apart.

    Returns:
      uint64 [n], ascending; none where the text has fewer words.
    """
    ids = np.array([zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words(text)], np.uint64)
    count = len(ids) - size + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    value = np.full(count, seed, np.uint64)
    for start in range(size):
        value = _mixed(value ^ ids[start : start + count])
    return np.unique(value)


def _mixed(value: np.ndarray) -> np.ndarray:
    value = value * _MULTIPLIER
    return value ^ (value >> _SHIFT)


def visible_text(issue: str) -> str:
    """The issue without what templates hide in comments."""
    return _COMMENT.sub(" ", issue) if "<!--" in issue else issue


@functools.lru_cache(maxsize=16)  # several filters ask for the same files
def changed_lines(before: str, after: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines only one side has, (removed, added), in order; a line that moves counts as unchanged. Linear in the texts."""
    a, b = before.split("\n"), after.split("\n")
    return _surplus(a, b), _surplus(b, a)


def _surplus(lines: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    left: dict[str, int] = {}
    for line in others:
        left[line] = left.get(line, 0) + 1
    surplus = []
    for line in lines:
        count = left.get(line, 0)
        if count:
            left[line] = count - 1
        else:
            surplus.append(line)
    return tuple(surplus)


def change_text(files: Mapping[str, str], oracle: Mapping[str, str]) -> str:
    """The changed lines of all files, removed before added, in the order of the paths."""
    parts: list[str] = []
    for path in sorted(oracle):
        removed, added = changed_lines(files.get(path, ""), oracle[path])
        parts += [*removed, *added]
    return "\n".join(parts)


def example_change(example: Example) -> str:
    """`change_text` of an example."""
    return change_text(example.files, example.oracle)
