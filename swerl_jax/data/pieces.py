"""Cuts a long function into short ones: its head over a few consecutive statements of one of its blocks.

On the path: standard library → here, for training only. A small policy needs many different short functions, and most
of the library's code stands in long ones.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from swerl_jax.data.syntax import dedent, parse_alone, without_docstring

MAX_STATEMENTS = 3  # of the block, whatever is nested in them
_INDENT = "    "


def pieces(text: str, max_bytes: int) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, str]]:
    """Yields functions that compile, each of at most `max_bytes`, from disjoint runs of statements: syntax tree and text.

    Args:
      text: one function without indentation, in ASCII, ending in a newline; of anything else there are no pieces.
      max_bytes: what does not fit is looked into, or left out.
    """
    node = parse_alone(text)
    body = [] if node is None else without_docstring(node.body)
    lines = text.splitlines(keepends=True)
    head = "".join(lines[node.lineno - 1:node.body[0].lineno - 1]) if body else ""
    if head:  # else it stands on one line
        for first, last in _runs(body, max_bytes - len(head), lines):
            piece = head + _indented(lines[first - 1:last])
            tree = parse_alone(piece) if len(piece) <= max_bytes else None
            if tree is not None and _compiles(tree):
                yield tree, piece


def _runs(block: list[ast.stmt], limit: int, lines: list[str]) -> Iterator[tuple[int, int]]:
    """Yields first and last line of runs of statements, greedily, of at most `limit` bytes before they are indented."""
    run: list[ast.stmt] = []
    for statement in block:
        longer = [*run, statement]
        if len(longer) <= MAX_STATEMENTS and _size(longer, lines) <= limit:
            run = longer
            continue
        if run:
            yield _first_line(run[0]), run[-1].end_lineno
        run = [statement] if _size([statement], lines) <= limit else []
        if not run:
            for inner in _blocks(statement):
                yield from _runs(inner, limit, lines)
    if run:
        yield _first_line(run[0]), run[-1].end_lineno


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    for holder in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        for field in ("body", "orelse", "finalbody"):
            if block := getattr(holder, field, None):
                yield block


def _first_line(statement: ast.stmt) -> int:
    return min([statement.lineno, *(decorator.lineno for decorator in getattr(statement, "decorator_list", ()))])


def _size(run: list[ast.stmt], lines: list[str]) -> int:
    return sum(map(len, lines[_first_line(run[0]) - 1:run[-1].end_lineno]))


def _indented(lines: list[str]) -> str:
    text = dedent("".join(lines))
    return "" if text is None else "".join(_INDENT + line if line.strip() else line for line in text.splitlines(True))


def _compiles(node: ast.stmt) -> bool:
    try:
        compile(ast.Module([node], []), "piece", "exec")
    except (SyntaxError, ValueError):
        return False
    return True
