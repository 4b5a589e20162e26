"""The functions of the standard library on this machine, split by module into training and held-out.

On the path: first of all for tasks made here; no network, nothing shipped.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
import random
import re
import sysconfig
from collections.abc import Iterator

from swerl_jax.data.mutate import normalised
from swerl_jax.data.pieces import pieces
from swerl_jax.data.reword import invented, vocabulary
from swerl_jax.data.syntax import dedent, parse_alone, parse_quietly, without_docstring

TRAIN = "train"
HELD_OUT = "held_out"
SPLITS = (TRAIN, HELD_OUT)

# One top-level module in so many is held out, whatever the seed: tasks of different seeds never mix the splits.
HELD_OUT_PERIOD = 7

_EXCLUDED = frozenset({
    "test", "tests", "idlelib", "turtledemo", "lib2to3", "site-packages", "dist-packages", "__pycache__", "ensurepip",
    "pydoc_data", "lib-dynload", "__phello__", "_sysconfigdata",
})
_EXCLUDED_FILE = re.compile(r"(^test_|_test\.py$|^_sysconfigdata|^__phello__)")
_IDENTIFIERS = re.compile(r"\b(id|arg|name|attr)='[^']*'")


@dataclasses.dataclass(frozen=True)
class StdlibFunction:
    """A function at the top of a module or in a class there.

    Attributes:
      path: of its module below the library, with "/".
      name: dotted, within the module.
      span: first and last line in the module, 1-based, decorators included; of a piece, those of the whole function.
      text: the function alone, without indentation, ending in a newline.
      shape: digest of its syntax tree with variables, parameters, attributes and function names made equal, docstring
        left out.
      split: TRAIN or HELD_OUT, by the module's top-level name.
    """

    path: str
    name: str
    span: tuple[int, int]
    text: str
    shape: bytes
    split: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What tasks are made from: functions in the order of their paths and lines, and their modules' texts."""

    functions: tuple[StdlibFunction, ...]
    modules: dict[str, str]

    @functools.cached_property
    def words(self) -> list[str]:
        """The words of the training modules, and as many invented ones."""
        words = vocabulary(text for path, text in self.modules.items() if split_of(path) == TRAIN)
        return words + invented(words, random.Random(0))

    def of(self, split: str) -> list[StdlibFunction]:
        """Returns the functions of one split."""
        return [function for function in self.functions if function.split == split]


def scan(
    min_bytes: int,
    max_bytes: int,
    min_statements: int,
    max_module_bytes: int,
    *,
    are_modules_shown: bool = True,
    are_cut: bool = False,
    root: pathlib.Path | None = None,
) -> Corpus:
    """Reads the library and keeps the ASCII functions within the bounds.

    Args:
      min_bytes, max_bytes: of a function's text, both included.
      min_statements: at least so many, nested ones counted, the docstring not.
      max_module_bytes: larger modules are left out.
      are_modules_shown: tasks show whole modules, so that functions beyond the bounds count as training ones too.
      are_cut: functions above `max_bytes` are cut into pieces within the bounds, see `pieces`.
      root: the library's directory; by default this interpreter's.

    Returns:
      A corpus in which no held-out function has the shape of a training function.
    """
    modules = {
        path: text for path, text in _modules(root or pathlib.Path(sysconfig.get_paths()["stdlib"]))
        if len(text) <= max_module_bytes
    }
    kept: list[StdlibFunction] = []
    trained: set[bytes] = set()
    for path, source in modules.items():
        split = split_of(path)
        for name, whole, span, text in _functions(source):
            is_long = are_cut and len(text) > max_bytes
            for node, part in pieces(text, max_bytes) if is_long else [(whole, text)]:
                is_within = min_bytes <= len(part) <= max_bytes and _has_statements(node, min_statements)
                shape = _shape(node) if is_within or (are_modules_shown and split == TRAIN) else b""
                if is_within and (node is not whole or parse_alone(part) is not None):
                    kept.append(StdlibFunction(path, name, span, part, shape, split))
                if shape and split == TRAIN:
                    trained.add(shape)
    return Corpus(tuple(each for each in kept if each.split == TRAIN or each.shape not in trained), modules)


def split_of(path: str) -> str:
    """Returns the split of the module at `path`, the same for all modules of one package."""
    # `_pydecimal` and `decimal`, `_collections_abc` and `collections_abc` are one family.
    top = re.sub(r"^_+(py_?)?", "", path.split("/")[0].removesuffix(".py"))
    number = int.from_bytes(hashlib.sha256(top.encode()).digest()[:4], "big")
    return HELD_OUT if number % HELD_OUT_PERIOD == 0 else TRAIN


def _modules(root: pathlib.Path) -> Iterator[tuple[str, str]]:
    for directory, folders, files in os.walk(root):
        # In place, so that the walk skips them and does not follow the file system's order.
        folders[:] = sorted(name for name in folders if name not in _EXCLUDED and not name.startswith("config-"))
        for name in sorted(files):
            if name.endswith(".py") and not _EXCLUDED_FILE.search(name):
                path = pathlib.Path(directory, name)
                data = path.read_bytes()
                if data.isascii() and b"\r" not in data:
                    yield path.relative_to(root).as_posix(), data.decode()


def _functions(source: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, tuple[int, int], str]]:
    try:
        tree = parse_quietly(source)
    except SyntaxError:  # templates and code for other versions
        return
    lines = source.encode().splitlines(keepends=True)
    for name, node in _definitions(tree, ""):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        text = dedent(b"".join(lines[first - 1:node.end_lineno]).decode())
        if text is not None:
            yield name, node, (first, node.end_lineno), text if text.endswith("\n") else text + "\n"


def _definitions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + child.name, child  # what is nested within goes with it
        elif isinstance(child, ast.ClassDef):
            yield from _definitions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.stmt):
            yield from _definitions(child, prefix)


def _has_statements(node: ast.AST, count: int) -> bool:
    found = (part for top in without_docstring(node.body) for part in ast.walk(top) if isinstance(part, ast.stmt))
    return sum(1 for _ in itertools.islice(found, count)) == count


def _shape(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bytes:
    body = without_docstring(node.body)
    text = normalised(node.args) + "".join(normalised(statement) for statement in body)
    return hashlib.sha256(_IDENTIFIERS.sub(r"\1=''", text).encode()).digest()[:16]
