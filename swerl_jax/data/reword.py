"""Gives a function other words: what it calls, its attributes, texts and numbers. It then does something else, or nothing.

On the path: standard library → renamed → here → mutation, for training alone. Code that is read often is learnt by heart, and
then the words of code never seen cannot be copied; here every word must be.
"""

from __future__ import annotations

import builtins
import io
import keyword
import random
import re
import string
import tokenize
from collections.abc import Collection, Iterable, Sequence

_KEPT = frozenset(dir(builtins)) | frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | {"self", "cls"}
_PART = re.compile(r"[A-Za-z][a-z]+|[A-Z]+")  # of a name: a word in one of its spellings
_RUN = re.compile(r"(?<![%\\{])\b[A-Za-z]{3,}")  # of a text: a word, but no directive and no escape
_NUMBER = re.compile(r"[1-9][0-9]*")
_WORD = re.compile(r"(?<![A-Za-z])[a-z]{3,10}(?![a-z])")
_SMALLEST_NUMBER = 3  # smaller ones carry the sense of a loop or a slice


def vocabulary(texts: Iterable[str]) -> list[str]:
    """Returns the lower-case words of some texts, each once, in order."""
    return sorted({word for text in texts for word in _WORD.findall(text)} - _KEPT)


def invented(words: Sequence[str], rng: random.Random) -> list[str]:
    """As many words that nobody uses: halves of two, one letter in them another; they can be copied, but not known."""
    return [_misspelt(one[:len(one) // 2 + 1] + other[len(other) // 2:], rng)
            for one, other in zip(words, rng.sample(list(words), len(words)), strict=True)]


def _misspelt(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word))
    return word[:at] + rng.choice(string.ascii_lowercase) + word[at + 1:]


def reword(text: str, words: Sequence[str], rng: random.Random, kept: Collection[str] = ()) -> str:
    """Gives one function other words, the same way throughout; layout, keywords, builtins and `__names__` stay.

    Args:
      text: a Python file.
      words: lower-case ones to draw from.
      rng: draws them.
      kept: names that stay.

    Returns:
      A text of the same tokens in kind and order, which compiles; `text` itself where that cannot be had.
    """
    lines = text.splitlines(keepends=True)
    mapping = {name: name for name in (*_KEPT, *kept)}
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        for token in reversed(tokens):
            new = _reworded(token, words, rng, mapping)
            (row, start), (end_row, end) = token.start, token.end
            if row == end_row and new != token.string:
                lines[row - 1] = lines[row - 1][:start] + new + lines[row - 1][end:]
        made = "".join(lines)
        compile(made, "reworded", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, tokenize.TokenError):
        return text
    return made


def _reworded(token: tokenize.TokenInfo, words: Sequence[str], rng: random.Random, mapping: dict[str, str]) -> str:
    old = token.string
    if token.type == tokenize.NAME and not old.startswith("__"):
        if old not in mapping:
            mapping[old] = _other_name(old, words, rng, set(mapping.values()))
        return mapping[old]
    if token.type == tokenize.STRING and old[0] in "'\"bB" or token.type == tokenize.COMMENT:
        return _RUN.sub(lambda found: _spelt(found[0], rng.choice(words)), old)
    if token.type == tokenize.NUMBER and _NUMBER.fullmatch(old) and int(old) >= _SMALLEST_NUMBER:
        return str(rng.randrange(max(_SMALLEST_NUMBER, 10 ** (len(old) - 1)), 10 ** len(old)))
    return old


def _other_name(old: str, words: Sequence[str], rng: random.Random, taken: set[str]) -> str:
    while True:
        new = _PART.sub(lambda found: _spelt(found[0], rng.choice(words)), old)
        new = new if new != old else f"{rng.choice(words)}{old[-1]}"  # a name without a word, such as `x`
        if new not in taken and new.isidentifier():
            return new


def _spelt(old: str, new: str) -> str:
    """`new` in capitals or with a capital, as `old` is."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new.capitalize() if old[0].isupper() else new
