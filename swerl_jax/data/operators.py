"""The bugs that can be injected: each operator lists the edits that would put its kind of bug into a function.

On the path: mutation picks an operator and one of its edits. An operator proposes; whether the result compiles and
differs is checked where it is applied.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

from swerl_jax.data.syntax import Edit, Function

Operator = Callable[[Function], Iterator[Edit]]

# Comparison: the pattern of its token, its boundary twin, its opposite.
_COMPARISONS = {
    ast.Lt: (r"<", "<=", ">"),
    ast.LtE: (r"<=", "<", ">="),
    ast.Gt: (r">", ">=", "<"),
    ast.GtE: (r">=", ">", "<="),
    ast.Eq: (r"==", "", "!="),
    ast.NotEq: (r"!=", "", "=="),
    ast.Is: (r"is", "", "is not"),
    ast.IsNot: (r"is\s+not", "", "is"),
    ast.In: (r"in", "", "not in"),
    ast.NotIn: (r"not\s+in", "", "in"),
}
_ARITHMETIC = {
    ast.Add: (r"\+", "-"),
    ast.Sub: (r"-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.Div: (r"/", "*"),
    ast.FloorDiv: (r"//", "%"),
    ast.Mod: (r"%", "//"),
    ast.Pow: (r"\*\*", "*"),
    ast.LShift: (r"<<", ">>"),
    ast.RShift: (r">>", "<<"),
    ast.BitAnd: (r"&", "|"),
    ast.BitOr: (r"\|", "&"),
}
_FUNCTIONS = (
    ("startswith", "endswith"), ("lstrip", "rstrip"), ("find", "rfind"), ("index", "rindex"), ("split", "rsplit"),
    ("partition", "rpartition"), ("lower", "upper"), ("keys", "values"), ("append", "extend"), ("min", "max"),
    ("any", "all"), ("ceil", "floor"), ("isdigit", "isalpha"), ("encode", "decode"), ("appendleft", "append"),
    ("remove", "add"), ("read", "readline"), ("add", "discard"), ("isinstance", "issubclass"), ("list", "set"),
    ("ljust", "rjust"), ("dirname", "basename"), ("isdir", "isfile"), ("pop", "get"), ("update", "setdefault"),
    ("getattr", "hasattr"), ("match", "search"), ("acquire", "release"), ("str", "repr"), ("int", "float"),
)
_TWIN = {name: twin for pair in _FUNCTIONS for name, twin in (pair, pair[::-1])}
_EXCEPTIONS = {
    "KeyError": "IndexError", "IndexError": "KeyError", "ValueError": "TypeError", "TypeError": "ValueError",
    "AttributeError": "KeyError", "OSError": "ValueError", "StopIteration": "IndexError", "ImportError": "OSError",
    "NotImplementedError": "TypeError", "RuntimeError": "ValueError", "FileNotFoundError": "PermissionError",
    "UnicodeDecodeError": "UnicodeEncodeError", "UnicodeEncodeError": "UnicodeDecodeError", "EOFError": "OSError",
}
_COMMUTING = frozenset({"max", "min", "isclose", "gcd"})
_DROPPABLE = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete, ast.Return)


def comparison_flipped(function: Function) -> Iterator[Edit]:
    """a < b → a > b, a == b → a != b, a in b → a not in b."""
    for node in _of(function, ast.Compare):
        if len(node.ops) == 1:
            pattern, _, opposite = _COMPARISONS[type(node.ops[0])]
            yield from _operator(function, node.left, node.comparators[0], pattern, opposite)


def boundary(function: Function) -> Iterator[Edit]:
    """a < b → a <= b and the other three."""
    for node in _of(function, ast.Compare):
        if len(node.ops) == 1 and (twin := _COMPARISONS[type(node.ops[0])][1]):
            pattern = _COMPARISONS[type(node.ops[0])][0]
            yield from _operator(function, node.left, node.comparators[0], pattern, twin)


def wrong_operator(function: Function) -> Iterator[Edit]:
    """a + b → a - b, a += b → a -= b, a // b → a % b."""
    for node in _of(function, ast.BinOp):
        if type(node.op) in _ARITHMETIC and not _is_text(node.left) and not _is_text(node.right):
            pattern, other = _ARITHMETIC[type(node.op)]
            yield from _operator(function, node.left, node.right, pattern, other)
    for node in _of(function, ast.AugAssign):
        if type(node.op) in _ARITHMETIC and not _is_text(node.value):
            pattern, other = _ARITHMETIC[type(node.op)]
            yield from _operator(function, node.target, node.value, f"{pattern}=", f"{other}=")


def off_by_one(function: Function) -> Iterator[Edit]:
    """A whole number that is added, subtracted, an index or the bound of a slice, one too high or too low."""
    for node in _numbers(function, int):
        parent = function.parents[node]
        parent = function.parents[parent] if isinstance(parent, ast.UnaryOp) else parent
        if isinstance(parent, (ast.Subscript, ast.Slice)) or _is_sum(parent):
            yield function.replace(node, str(node.value + 1), function.subject(parent) if _is_sum(parent) else "")
            if node.value > 0:
                yield function.replace(node, str(node.value - 1))
    for node in _of(function, ast.Slice):
        for bound in (node.lower, node.upper):
            if isinstance(bound, ast.Name):
                yield function.replace(bound, f"{bound.id} + 1", bound.id)


def wrong_bound(function: Function) -> Iterator[Edit]:
    """A range or slice that starts or ends in the wrong place: range(n) → range(n - 1), a[1:] → a[:]."""
    for node in _of(function, ast.Call):
        if _name(node.func) == "range" and node.args and not node.keywords and not _is_starred(node):
            last = node.args[0] if len(node.args) == 1 else node.args[1]
            yield function.replace(last, f"{_bracketed(function, last)} - 1", function.subject(last))
            yield function.replace(last, f"{_bracketed(function, last)} + 1", function.subject(last))
            if len(node.args) == 1:
                yield function.replace(last, f"1, {function.segment(last)}", function.subject(last))
    for node in _of(function, ast.Slice):
        whole = function.parents[node].value
        for bound in (node.lower, node.upper):
            if bound is not None and node.step is None:
                yield function.replace(bound, "", function.subject(whole))


def wrong_constant(function: Function) -> Iterator[Edit]:
    """Another number, the other truth value."""
    for node in _numbers(function, (int, float)):
        if not _is_sum(function.parents[node]):
            for value in (node.value + 1, node.value * 2, node.value * 10, 0):
                if value != node.value:
                    yield function.replace(node, repr(value), repr(value))
    for node in _of(function, ast.Constant):
        if isinstance(node.value, bool) and not isinstance(function.parents[node], ast.Return):
            yield function.replace(node, repr(not node.value), repr(not node.value))


def wrong_string(function: Function) -> Iterator[Edit]:
    """A short string where another short string of the function belongs."""
    strings = [node for node in _of(function, ast.Constant)
               if isinstance(node.value, (str, bytes)) and 0 < len(node.value) <= 16]
    for node in strings:
        if isinstance(function.parents[node], (ast.Expr, ast.JoinedStr)):
            continue
        others = dict.fromkeys(function.segment(other) for other in strings
                               if type(other.value) is type(node.value) and other.value != node.value)
        for text in others:
            if "\n" not in text + function.segment(node):
                yield function.replace(node, text, text)


def negated_condition(function: Function) -> Iterator[Edit]:
    """if a → if not a."""
    for node in _of(function, (ast.If, ast.While, ast.IfExp)):
        test = node.test
        if isinstance(test, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)):
            yield function.replace(test, f"not {function.segment(test)}", function.subject(test))
        elif isinstance(test, ast.BoolOp):
            yield function.replace(test, f"not ({function.segment(test)})", function.subject(test))


def missing_not(function: Function) -> Iterator[Edit]:
    """not a → a."""
    for node in _of(function, ast.UnaryOp):
        if isinstance(node.op, ast.Not):
            # Only the word and the blanks behind it: brackets that follow stay.
            word = re.match(rb"not\s*", function.text[function.start(node):])
            yield Edit(function.start(node), function.start(node) + word.end(), "", function.subject(node.operand))


def and_or(function: Function) -> Iterator[Edit]:
    """a and b → a or b, and back."""
    for node in _of(function, ast.BoolOp):
        word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        if len(node.values) == 2:
            yield from function.replace_between(*node.values, word, other, function.subject(node.values[0]))


def swapped_arguments(function: Function) -> Iterator[Edit]:
    """f(a, b) → f(b, a)."""
    for node in _of(function, ast.Call):
        if _name(node.func) in _COMMUTING or _is_starred(node):
            continue
        for first, second in zip(node.args, node.args[1:]):
            swapped = _swapped(function, first, second)
            if swapped:
                yield Edit(function.start(first), function.end(second), swapped, function.subject(node.func))


def swapped_operands(function: Function) -> Iterator[Edit]:
    """a - b → b - a, where the order matters."""
    for node in _of(function, ast.BinOp):
        if isinstance(node.op, (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)) and not _is_text(node.left):
            simple = (ast.Name, ast.Attribute, ast.Constant, ast.Call, ast.Subscript)
            if isinstance(node.left, simple) and isinstance(node.right, simple):
                swapped = _swapped(function, node.left, node.right)
                if swapped:
                    yield function.replace(node, swapped)


def dropped_statement(function: Function) -> Iterator[Edit]:
    """A statement on lines of its own is gone."""
    for node in _of(function, _DROPPABLE):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        start, end = function.line_start(node.lineno), function.line_start(node.end_lineno + 1)
        before, after = function.text[start:function.start(node)], function.text[function.end(node):end]
        is_idle = isinstance(node, ast.Return) and node.value is None and node is function.node.body[-1]
        if not (is_text or is_idle or before.strip() or after.strip()):
            yield Edit(start, end, "", _topic(function, node))


def wrong_variable(function: Function) -> Iterator[Edit]:
    """A local variable or parameter where another one belongs."""
    known = set(function.local_names) - {"self", "cls"}
    first_line = {name: 0 for name in known}
    for node in _of(function, ast.Name):
        if isinstance(node.ctx, ast.Store) and node.id in known:
            first_line[node.id] = min(first_line[node.id] or node.lineno, node.lineno)
    for node in _of(function, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id in known:
            for name in function.local_names:
                if name in known - {node.id} and first_line[name] < node.lineno:
                    yield function.replace(node, name, name)


def wrong_return(function: Function) -> Iterator[Edit]:
    """return True → return False, return a → return b or None."""
    for node in _of(function, ast.Return):
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, bool):
            yield function.replace(node.value, repr(not node.value.value), repr(not node.value.value))
        elif node.value is not None and not isinstance(node.value, ast.Constant):
            yield function.replace(node.value, "None", "None")


def early_return(function: Function) -> Iterator[Edit]:
    """The return behind a loop slips into its body: only the first round is made."""
    for loop in _of(function, (ast.For, ast.While)):
        after = _next_statement(function, loop)
        if isinstance(after, ast.Return) and not loop.orelse and loop.body[-1].lineno > loop.lineno:
            last = loop.body[-1]
            start = function.line_start(after.lineno)
            indent = function.text[function.line_start(last.lineno):function.start(last)].decode()
            if not indent.strip() and not function.text[start:function.start(after)].strip():
                yield Edit(start, function.start(after), indent)


def loop_control(function: Function) -> Iterator[Edit]:
    """break → continue, and back."""
    for node in _of(function, (ast.Break, ast.Continue)):
        yield function.replace(node, "continue" if isinstance(node, ast.Break) else "break")


def wrong_exception(function: Function) -> Iterator[Edit]:
    """Another exception is raised or caught."""
    for node in _of(function, ast.Name):
        parent = function.parents[node]
        parent = function.parents[parent] if isinstance(parent, (ast.Call, ast.Tuple)) else parent
        if node.id in _EXCEPTIONS and isinstance(parent, (ast.Raise, ast.ExceptHandler)):
            yield function.replace(node, _EXCEPTIONS[node.id], _EXCEPTIONS[node.id])


def wrong_function(function: Function) -> Iterator[Edit]:
    """A function or method where its twin belongs: startswith → endswith, min → max."""
    for node in _of(function, ast.Call):
        name = _name(node.func)
        if isinstance(node.func, ast.Attribute) and node.func.attr in _TWIN:
            name = node.func.attr
            yield Edit(function.end(node.func) - len(name), function.end(node.func), _TWIN[name], _TWIN[name])
        elif name in _TWIN:
            yield function.replace(node.func, _TWIN[name], _TWIN[name])


OPERATORS: dict[str, Operator] = {
    operator.__name__: operator
    for operator in (
        comparison_flipped, boundary, wrong_operator, off_by_one, wrong_bound, wrong_constant, wrong_string,
        negated_condition, missing_not, and_or, swapped_arguments, swapped_operands, dropped_statement,
        wrong_variable, wrong_return, early_return, loop_control, wrong_exception, wrong_function,
    )
}


# Those whose repair follows from the issue and the code in view; the others ask for a constant, a text, a variable or a
# statement that may have been anything.
INFERABLE = (
    "comparison_flipped", "boundary", "wrong_operator", "off_by_one", "negated_condition", "missing_not", "and_or", "early_return",
    "loop_control", "wrong_exception", "wrong_function",
)


def _of(function: Function, kind: type | tuple[type, ...]) -> Iterator[Any]:
    return (node for node in function.nodes if isinstance(node, kind))


def _numbers(function: Function, kind: type | tuple[type, ...]) -> Iterator[ast.Constant]:
    for node in _of(function, ast.Constant):
        if isinstance(node.value, kind) and not isinstance(node.value, bool) and abs(node.value) < 1e6:
            yield node


def _operator(function: Function, left: ast.expr, right: ast.expr, pattern: str, text: str) -> Iterator[Edit]:
    yield from function.replace_between(left, right, pattern, text, function.subject(left))


def _swapped(function: Function, first: ast.expr, second: ast.expr) -> str:
    """Returns the source from the first to the second with the two exchanged, "" where that changes nothing."""
    texts = function.segment(first), function.segment(second)
    is_simple = not any(isinstance(node, (ast.GeneratorExp, ast.NamedExpr)) for node in (first, second))
    between = function.text[function.end(first):function.start(second)].decode()
    return texts[1] + between + texts[0] if texts[0] != texts[1] and is_simple else ""


def _next_statement(function: Function, node: ast.stmt) -> ast.stmt | None:
    parent = function.parents[node]
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(parent, field, [])
        if isinstance(statements, list) and node in statements[:-1]:
            return statements[statements.index(node) + 1]
    return None


def _bracketed(function: Function, node: ast.expr) -> str:
    text = function.segment(node)
    return text if isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.Constant)) else f"({text})"


def _is_sum(node: ast.AST) -> bool:
    return isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, (ast.Add, ast.Sub))


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, (str, bytes)))


def _is_starred(node: ast.Call) -> bool:
    return any(isinstance(argument, ast.Starred) for argument in node.args)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _topic(function: Function, node: ast.stmt) -> str:
    """Returns what a statement is about without giving it away: the target it sets, the object or function it calls."""
    match node:
        case ast.Assign(targets=[about, *_]) | ast.AugAssign(target=about) | ast.Delete(targets=[about, *_]):
            pass
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=about), args=[])):
            pass
        case ast.Expr(value=ast.Call(func=about, args=[_, *_])):
            pass
        case ast.Return(value=ast.Name() as about):
            pass
        case _:
            return ""
    text = function.subject(about)
    return "" if text in ("self", "cls") else text
