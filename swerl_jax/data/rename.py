"""Gives a function other names, so that one function yields many tasks.

On the path: standard library → tasks → here → mutation. What the function does stays the same.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import random
import re
from collections.abc import Iterator

from swerl_jax.data.syntax import Edit, Function, all_arguments, parse_function

_VERBS = (
    "add", "apply", "build", "check", "clean", "collect", "compare", "convert", "copy", "count", "create", "decode",
    "expand", "extract", "fetch", "fill", "filter", "find", "format", "get", "handle", "join", "list", "load",
    "look_up", "make", "mark", "match", "merge", "move", "open", "pack", "parse", "pick", "prepare", "read",
    "reduce", "remove", "render", "reset", "resolve", "save", "scan", "select", "send", "set", "show", "sort",
    "split", "start", "store", "test", "update", "verify", "walk", "write",
)
_NOUNS = (
    "account", "area", "batch", "block", "box", "buffer", "cell", "chunk", "code", "color", "column", "config",
    "context", "cost", "count", "cursor", "data", "date", "delta", "depth", "edge", "entry", "event", "factor",
    "field", "first", "flag", "frame", "group", "handle", "head", "height", "host", "image", "index", "info",
    "input", "item", "job", "key", "kind", "label", "last", "layer", "left", "length", "level", "limit", "line",
    "link", "lower", "mark", "member", "message", "mode", "name", "node", "number", "offset", "order", "owner",
    "page", "pair", "part", "path", "place", "point", "port", "price", "prefix", "query", "queue", "rate", "record",
    "ref", "region", "reply", "result", "right", "root", "row", "rule", "sample", "score", "section", "shape",
    "side", "size", "slot", "source", "span", "stack", "state", "step", "suffix", "table", "tag", "tail", "target",
    "task", "term", "text", "time", "token", "total", "unit", "upper", "user", "value", "vector", "vertex",
    "weight", "width", "window", "word", "zone",
)
WORD = re.compile(r"\w+")
_KEPT = frozenset({"self", "cls", "_", "mcs", "mcls"})
_RESERVED = frozenset(dir(builtins)) | frozenset(keyword.kwlist) | frozenset(keyword.softkwlist)


def rename(
    source: str, span: tuple[int, int], rng: random.Random, *, is_public: bool = True
) -> tuple[str, dict[str, str]]:
    """Renames the local variables of one function, the same way throughout it.

    Kept are `self` and its like, names that are global, imported, caught, bound by a nested definition or a pattern,
    or used in an f-string, and double-underscore names; comments and texts stay as they are.

    Args:
      source: a whole Python file.
      span: first and last line of the function, 1-based, decorators included.
      rng: decides the names.
      is_public: rename the function, its parameters and the attributes of `self` and `cls` too; right only where
        neither a caller nor the class is in view.

    Returns:
      The file with the new names, and old name → new name; an attribute's names begin with a dot.
    """
    function = parse_function(source, span)
    fixed = _fixed_names(function.node)
    parameters = [argument.arg for argument in all_arguments(function.node)]
    stored = [node.id for node in function.nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    candidates = [name for name in dict.fromkeys(parameters + stored) if is_public or name not in parameters]
    taken = _RESERVED | _all_names(function.node)
    mapping: dict[str, str] = {}
    for name in candidates:
        if name not in fixed and name not in _KEPT and not name.startswith("__"):
            mapping[name] = _fresh(rng, _NOUNS, _NOUNS, taken | set(mapping.values()))
    if is_public and not function.node.name.startswith("__"):
        edits = [_rename_definition(function, _fresh(rng, _VERBS, _NOUNS, taken | set(mapping.values())))]
        mapping[function.node.name] = edits[0].text
    else:
        edits = []
    if is_public:
        mapping |= _attribute_names(function, rng)
    return function.apply(*edits, *_uses(function, mapping)), mapping


def function_name(rng: random.Random) -> str:
    """Returns a made-up name of a function."""
    return _fresh(rng, _VERBS, _NOUNS, _RESERVED)


def variable_names(rng: random.Random, count: int) -> list[str]:
    """Returns made-up names of variables, all different."""
    names: list[str] = []
    while len(names) < count:
        names.append(_fresh(rng, _NOUNS, _NOUNS, _RESERVED | set(names)))
    return names


def path(rng: random.Random) -> str:
    """Returns a made-up path of a Python file: a name alone, or one directory and a name."""
    name = f"{_fresh(rng, _VERBS, _NOUNS, set()) if rng.random() < 0.5 else rng.choice(_NOUNS)}.py"
    return name if rng.random() < 0.5 else f"{rng.choice(_NOUNS)}/{name}"


def _uses(function: Function, mapping: dict[str, str]) -> Iterator[Edit]:
    for node in ast.walk(function.node):
        name = node.id if isinstance(node, ast.Name) else node.arg if isinstance(node, ast.arg) else None
        if name in mapping:
            start = function.start(node)
            yield Edit(start, start + len(name), mapping[name])
        elif isinstance(node, ast.Attribute) and _is_own(node) and f".{node.attr}" in mapping:
            end = function.end(node)
            yield Edit(end - len(node.attr), end, mapping[f".{node.attr}"][1:])


def _attribute_names(function: Function, rng: random.Random) -> dict[str, str]:
    """Returns new names for the attributes of `self` and `cls`, each with a dot; those that are called get a verb."""
    nodes = list(ast.walk(function.node))
    called = {node.func.attr for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}
    kept = {part.attr for node in nodes if isinstance(node, ast.JoinedStr)
            for part in ast.walk(node) if isinstance(part, ast.Attribute)}
    found = dict.fromkeys(node.attr for node in nodes if isinstance(node, ast.Attribute) and _is_own(node))
    mapping: dict[str, str] = {}
    taken = _RESERVED | kept
    for name in found:
        if name not in kept and name.isascii() and not name.startswith("__"):
            fresh = _fresh(rng, _VERBS if name in called else _NOUNS, _NOUNS, taken)
            taken = taken | {fresh}
            mapping[f".{name}"] = f".{'_' * name.startswith('_')}{fresh}"
    return mapping


def _is_own(node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def _rename_definition(function: Function, new: str) -> Edit:
    name = function.node.name
    start = function.start(function.node)
    found = re.compile(rb"def\s+(?=" + re.escape(name.encode()) + rb"\b)").search(function.text, start)
    return Edit(found.end(), found.end() + len(name), new)


def _fixed_names(node: ast.AST) -> set[str]:
    """Returns the names that stand where the tree gives no position, or whose change would change more than a name."""
    fixed: set[str] = set()
    for part in ast.walk(node):
        match part:
            case ast.Global() | ast.Nonlocal():
                fixed.update(part.names)
            case ast.alias():
                fixed.add((part.asname or part.name).split(".")[0])
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
                fixed.add(part.name or "")
            case ast.MatchMapping():
                fixed.add(part.rest or "")
            case ast.JoinedStr():
                fixed |= _all_names(part)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Lambda() if part is not node:
                # A nested parameter may be passed by keyword, and a nested class's names are attributes.
                fixed |= {getattr(part, "name", "")}
                fixed |= _all_names(part) if isinstance(part, ast.ClassDef) else {a.arg for a in all_arguments(part)}
    return fixed


def _all_names(node: ast.AST) -> set[str]:
    names = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            names.add(part.id)
        elif isinstance(part, ast.arg):
            names.add(part.arg)
    return names


def _fresh(rng: random.Random, first: tuple[str, ...], second: tuple[str, ...], taken: set[str]) -> str:
    while True:
        is_single = first is second and rng.random() < 0.6
        name = rng.choice(second) if is_single else f"{rng.choice(first)}_{rng.choice(second)}"
        if name not in taken:
            return name
