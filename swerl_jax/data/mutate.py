"""Injects one bug into one function, leaving every other byte of the file as it was.

On the path: standard library → tasks → here → Example. The operators live in `operators`; `symptoms` words
the issues.
"""

from __future__ import annotations

import ast
import dataclasses
import random
from collections.abc import Collection, Mapping

from swerl_jax.data.operators import OPERATORS
from swerl_jax.data.syntax import Edit, Function, parse_function, parse_quietly


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One injected bug.

    Attributes:
      text: the whole file with the bug.
      operator: name in OPERATORS.
      function: name of the function that holds the bug.
      subject: code that an issue may mention, which shows where the bug is, or "" for none.
      removed: the code that the bug replaces, which no issue may mention.
      line: 1-based line of `text` where the edit begins.
    """

    text: str
    operator: str
    function: str
    subject: str
    removed: str
    line: int


def mutate(
    source: str,
    span: tuple[int, int],
    rng: random.Random,
    operators: Collection[str] = (),
    used: Mapping[str, int] | None = None,
) -> Mutation | None:
    """Injects one bug into the function on the lines `span` of `source`.

    Args:
      source: a whole Python file.
      span: first and last line of the function, 1-based, decorators included.
      rng: decides operator and place.
      operators: names in OPERATORS to choose from; empty: all.
      used: how often each operator was used so far; the least used that applies is taken, which balances a corpus. Without
        it all that apply are as likely.

    Returns:
      The mutation, or None where no operator applies. It compiles, and its syntax tree differs from the original's.

    Raises:
      ValueError: `span` holds no function, or an operator is unknown.
    """
    check_operators(operators)
    function = parse_function(source, span)
    original = normalised(function.node)
    for name in _order(operators or OPERATORS, rng, used or {}):
        edits = list(OPERATORS[name](function))
        rng.shuffle(edits)
        for edit in edits:
            if _is_bug(function, edit, original):
                return Mutation(
                    function.apply(edit), name, function.node.name, edit.subject, function.replaced(edit), function.line(edit)
                )
    return None


def has_choices(text: str, operators: Collection[str], count: int) -> bool:
    """Whether the function `text`, which stands alone, admits at least `count` bugs of the kinds `operators` (empty: all)."""
    if count <= 1:  # `mutate` finds out
        return True
    function = parse_function(text, (1, text.count("\n")))
    return sum(1 for name in operators or OPERATORS for _ in OPERATORS[name](function)) >= count


def check_operators(names: Collection[str]) -> None:
    """Raises ValueError if one is not in OPERATORS."""
    if unknown := sorted(set(names) - set(OPERATORS)):
        raise ValueError(f"got the operators {unknown}; needed are names out of {sorted(OPERATORS)}")


def normalised(tree: ast.AST) -> str:
    """Returns the syntax tree as text, without positions, comments and layout: equal texts, equal programs."""
    return ast.dump(tree)


def _order(names: Collection[str], rng: random.Random, used: Mapping[str, int]) -> list[str]:
    names = sorted(names)
    rng.shuffle(names)
    return sorted(names, key=lambda name: used.get(name, 0))  # stable: ties stay shuffled


def _is_bug(function: Function, edit: Edit, original: str) -> bool:
    try:
        tree = parse_quietly(function.edited(edit))
        compile(tree, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return normalised(function.find(tree)) != original
