"""Drills: made-up functions with an issue that tells the whole change, so that copying is all there is to learn.

On the path: here → tasks → shards, before the tasks proper. Nothing in a drill can be known by heart: a model from random
parameters learns from them to find a line of its prompt and to write it again, which memorised code does not teach.
"""

from __future__ import annotations

import random

from swerl_jax.data import rename, symptoms
from swerl_jax.data.records import Example

# {v} variables, {f} functions, {a} attributes, {w} words in a text, {n} numbers: drawn for every drill and slot anew.
_STATEMENTS = (
    "{v} = {f}({v}, {v})", "{v} = {v}.{a}", "{v}.{a} = {v}", "self.{a} = {v}", "{v} = self.{a}", "{f}({v})",
    "self.{f}({v}, {v})", "{v}.{f}('{w}')", "{v} = {v}[{n}]", "{v} += {n}", "{v} = {v} + {v}", "{v} = {v} - {n}",
    "{v} = [{v}, {v}]", "{v} = {{'{w}': {v}}}", "{v} = '{w}_{w}'", "{v}, {v} = {f}({v})", "del {v}[{v}]",
    "{v} = {f}(self.{a})", "{v} = {v} or {v}", "assert {v} is not None", "{v} = not {v}", "{f}({v}, {a}={v})",
)
_BLOCKS = (
    "if {v} {o} {v}:", "if not {v}:", "if {v} is None:", "for {v} in {v}:", "for {v} in range({n}):", "while {v} {o} {n}:",
    "with {f}({v}) as {v}:", "if {v} in self.{a}:", "if {f}({v}) {o} {n}:", "if {v} and {v}:",
)
_ENDS = ("return {v}", "return {f}({v})", "return {v}.{a}", "raise {e}('{w} {w}')", "return {v} {o} {v}", "return self.{a}",
         "return {v} + {n}", "return None", "yield {v}", "return True")
_COMPARISONS = ("==", "!=", "<", ">", "<=", ">=", "in")
_ERRORS = ("ValueError", "TypeError", "KeyError", "OSError", "IndexError", "RuntimeError")
_RENAMED = ("Rename `{old}` to `{new}`.", "`{old}` must be called `{new}`.")
MAX_STATEMENTS = 6


def drill(rng: random.Random, statements: int) -> Example:
    """Returns one drill: a name that changes everywhere, or one statement that becomes another.

    Args:
      rng: decides everything else.
      statements: 1 … MAX_STATEMENTS: of the file; it is a function from two on.
    """
    path = rename.path(rng)
    *names, unused = rename.variable_names(rng, rng.randint(3, 5))
    lines = [_filled(rng, rng.choice(_STATEMENTS), names) for _ in range(statements)]
    if statements > 1:
        if rng.random() < 0.5:
            at = rng.randrange(statements - 1)
            lines[at:at + 2] = [_filled(rng, rng.choice(_BLOCKS), names), f"    {lines[at + 1]}"]
        lines[-1] = lines[-1][:len(lines[-1]) - len(lines[-1].lstrip())] + _filled(rng, rng.choice(_ENDS), names)
        head = f"def {rename.function_name(rng)}({', '.join(['self', *names[:2]])}):"
        lines = [head, *("    " + line for line in lines)]
    change = _rename if rng.random() < 0.5 else _replace
    issue, fixed = change(rng, lines, names, unused)
    before, after = ("".join(line + "\n" for line in text) for text in (lines, fixed))
    return Example("", "", "", issue, {path: before}, {path: after}, meta={"operator": "drill"})


def _rename(rng: random.Random, lines: list[str], names: list[str], unused: str) -> tuple[str, list[str]]:
    old = rng.choice([each for each in names if any(each in rename.WORD.findall(line) for line in lines)])
    issue = rng.choice(_RENAMED).format(old=old, new=unused)
    return issue, [rename.WORD.sub(lambda found: unused if found[0] == old else found[0], line) for line in lines]


def _replace(rng: random.Random, lines: list[str], names: list[str], unused: str) -> tuple[str, list[str]]:
    at = rng.randrange(len(lines) > 1, len(lines))
    old = new = lines[at].strip()
    while new == old:
        new = _filled(rng, rng.choice(_BLOCKS if old.endswith(":") else _STATEMENTS), [*names, unused])
    fixed = [*lines[:at], lines[at].replace(old, new), *lines[at + 1:]]
    return symptoms.tell(rng, "\n".join(lines), "\n".join(fixed)), fixed


def _filled(rng: random.Random, template: str, names: list[str]) -> str:
    """The template with every slot drawn by itself."""
    drawn = {
        "v": lambda: rng.choice(names), "f": lambda: rename.function_name(rng), "a": lambda: rename.variable_names(rng, 1)[0],
        "w": lambda: rename.variable_names(rng, 1)[0], "n": lambda: str(rng.randint(0, 99)),
        "o": lambda: rng.choice(_COMPARISONS), "e": lambda: rng.choice(_ERRORS),
    }
    for slot, draw in drawn.items():
        while f"{{{slot}}}" in template:
            template = template.replace(f"{{{slot}}}", draw(), 1)
    return template.replace("{{", "{").replace("}}", "}")
