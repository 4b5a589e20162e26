"""One function of a file as text and syntax tree side by side, so that edits can be made by position.

On the path: below mutation and renaming.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import itertools
import re
import textwrap
import warnings
from collections.abc import Iterable, Iterator

# An indented function is parsed as the body of this, which keeps its columns.
_WRAPPER = b"if True:\n"

_SUBJECT_CHARACTERS = 40


@dataclasses.dataclass(frozen=True)
class Edit:
    """Replaces bytes `start` to `end` of a Function's text by `text`; `subject` is code that the edit is about."""

    start: int
    end: int
    text: str
    subject: str = ""


class Function:
    """A function, its bytes and its nodes.

    Attributes:
      node: the definition.
      nodes: all nodes of its body with a reliable position, in a fixed order: not the docstring, nothing within
        f-strings (whose inner positions Python 3.11 gets wrong).
      parents: node → the node above it.
    """

    def __init__(self, before: bytes, wrapper: bytes, snippet: bytes, after: bytes, first_line: int):
        self._before, self._wrapper, self._after = before, wrapper, after
        self._first_line = first_line
        self.text = wrapper + snippet
        # As the parser counts: form feeds and the like end no line.
        self._line_starts = [0, *itertools.accumulate(len(line) for line in self.text.splitlines(keepends=True))]
        self.node = self.find(parse_quietly(self.text))
        self.parents: dict[ast.AST, ast.AST] = {}
        self.nodes = list(self._walk(self.node, without_docstring(self.node.body)))

    def _walk(self, parent: ast.AST, children: Iterable[ast.AST]) -> Iterator[ast.AST]:
        for child in children:
            self.parents[child] = parent
            yield child
            if not isinstance(child, ast.JoinedStr):
                yield from self._walk(child, ast.iter_child_nodes(child))

    def find(self, tree: ast.Module) -> ast.FunctionDef | ast.AsyncFunctionDef:
        """Returns the function in a tree parsed from `text` or an edit of it."""
        body = tree.body[0].body if self._wrapper else tree.body
        if len(body) != 1 or not isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)):
            raise ValueError("the lines hold something else than one function")
        return body[0]

    def start(self, node: ast.expr | ast.stmt | ast.arg) -> int:
        """Returns where the node begins, in bytes."""
        return self._line_starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.expr | ast.stmt | ast.arg) -> int:
        """Returns where the node ends, in bytes."""
        return self._line_starts[node.end_lineno - 1] + node.end_col_offset

    def line_start(self, line: int) -> int:
        """Returns where a line (1-based, as in the nodes) begins, in bytes."""
        return self._line_starts[line - 1]

    def segment(self, node: ast.expr | ast.stmt) -> str:
        """Returns the node's source text."""
        return self.text[self.start(node):self.end(node)].decode()

    def subject(self, node: ast.expr | ast.stmt) -> str:
        """Returns the node's source text if it is short enough for a sentence, else ""."""
        text = self.segment(node)
        return text if len(text) <= _SUBJECT_CHARACTERS and "\n" not in text and "`" not in text else ""

    def replace(self, node: ast.expr | ast.stmt, text: str, subject: str = "") -> Edit:
        """Returns the edit that puts `text` in the node's place."""
        return Edit(self.start(node), self.end(node), text, subject)

    def replace_between(
        self, left: ast.expr, right: ast.expr, pattern: str, text: str, subject: str = ""
    ) -> Iterator[Edit]:
        """Yields the edit of what stands between two nodes, if `pattern` matches there exactly once."""
        start, end = self.end(left), self.start(right)
        gap = self.text[start:end].decode()
        found = list(re.finditer(pattern, gap))
        if len(found) == 1 and "#" not in gap:
            # Bytes before the match are ASCII: brackets, blanks, line ends.
            yield Edit(start + found[0].start(), start + found[0].end(), text, subject)

    @functools.cached_property
    def local_names(self) -> list[str]:
        """Parameters, then assigned names that live beyond a comprehension, each once, in order of appearance."""
        arguments = [argument.arg for argument in all_arguments(self.node)]
        stored = [
            node.id for node in self.nodes
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            and not isinstance(self.parents[node], ast.comprehension)
        ]
        return list(dict.fromkeys(arguments + stored))

    def replaced(self, edit: Edit) -> str:
        """Returns the text that the edit takes away."""
        return self.text[edit.start:edit.end].decode()

    def edited(self, *edits: Edit) -> bytes:
        """Returns the function's text, wrapper included, after edits that do not overlap."""
        text = self.text
        for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
            text = text[:edit.start] + edit.text.encode() + text[edit.end:]
        return text

    def apply(self, *edits: Edit) -> str:
        """Returns the whole file after edits that do not overlap."""
        return (self._before + self.edited(*edits)[len(self._wrapper):] + self._after).decode()

    def line(self, edit: Edit) -> int:
        """Returns the line of the whole file, 1-based, in which the edit begins."""
        return self._first_line + self.text[len(self._wrapper):edit.start].count(b"\n")


def parse_function(source: str, span: tuple[int, int]) -> Function:
    """Reads the function on the lines `span` (first and last, 1-based, decorators included) of a file.

    Raises:
      ValueError: there is something else than one function.
    """
    lines = source.encode().splitlines(keepends=True)
    first, last = span
    snippet = b"".join(lines[first - 1:last])
    wrapper = _WRAPPER if snippet[:1] in (b" ", b"\t") else b""
    try:
        return Function(b"".join(lines[:first - 1]), wrapper, snippet, b"".join(lines[last:]), first)
    except (SyntaxError, IndexError) as error:
        raise ValueError(f"lines {first} to {last} hold no function ({error})") from error


def parse_alone(text: str) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """Returns the function that `text` is and nothing besides: a one-liner behind `if x:` or a `;` is not."""
    try:
        body = parse_quietly(text).body
    except SyntaxError:
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], (ast.FunctionDef, ast.AsyncFunctionDef)) else None


def parse_quietly(text: str | bytes) -> ast.Module:
    """Parses Python; that the parser finds something odd (an old escape, `is` with a number) is nobody's concern here.

    Raises:
      SyntaxError: it is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(text)


def without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Returns the statements after the docstring."""
    value = body[0].value if isinstance(body[0], ast.Expr) else None
    return body[1:] if isinstance(value, ast.Constant) and isinstance(value.value, str) else body


def all_arguments(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> list[ast.arg]:
    """Returns every parameter, in the order of the signature."""
    arguments = node.args
    star, double_star = [arguments.vararg], [arguments.kwarg]
    ordered = arguments.posonlyargs + arguments.args + star + arguments.kwonlyargs + double_star
    return [argument for argument in ordered if argument is not None]


def dedent(text: str) -> str | None:
    """Returns the lines without the first one's indentation, or None where a line has less (a string spans lines)."""
    lines = text.splitlines(keepends=True)
    indent = lines[0][:len(lines[0]) - len(lines[0].lstrip())]
    if not all(line.startswith(indent) or not line.strip() for line in lines):
        return None
    return textwrap.dedent(text) if indent else text
