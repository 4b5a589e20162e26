"""Drills: made-up functions with an issue that tells the whole change, so that copying is all there is to learn.

On the path: here → tasks → shards, before the tasks proper. Nothing in a drill can be known by heart: a model from random
parameters learns from them to find a line of its prompt and to write it again, which memorised code does not teach.
"""

from __future__ import annotations

import random

from swerl_jax.data import rename
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
_RENAMED = ("Rename `{old}` to `{new}` in `{name}`.", "`{name}`: `{old}` must be called `{new}`.")
_REPLACED = ("`{name}` says `{old}` where it must say `{new}`.", "In `{name}` write `{new}` instead of `{old}`.")


def drill(rng: random.Random) -> Example:
    """Returns one drill: a name that changes everywhere, or one statement that becomes another."""
    name, path = rename.function_name(rng), rename.path(rng)
    *names, unused = rename.variable_names(rng, rng.randint(3, 5))
    lines = [f"def {name}({', '.join(['self', *names[:2]])}):", *_body(rng, names)]
    change = _rename if rng.random() < 0.5 else _replace
    issue, fixed = change(rng, name, lines, names, unused)
    before, after = ("".join(line + "\n" for line in text) for text in (lines, fixed))
    return Example("", "", "", issue, {path: before}, {path: after}, meta={"operator": "drill"})


def _rename(rng: random.Random, name: str, lines: list[str], names: list[str], unused: str) -> tuple[str, list[str]]:
    old = rng.choice([each for each in names if any(each in rename.WORD.findall(line) for line in lines)])
    issue = rng.choice(_RENAMED).format(name=name, old=old, new=unused)
    return issue, [rename.WORD.sub(lambda found: unused if found[0] == old else found[0], line) for line in lines]


def _replace(rng: random.Random, name: str, lines: list[str], names: list[str], unused: str) -> tuple[str, list[str]]:
    at = rng.randrange(1, len(lines))
    old = lines[at].strip()
    new = old
    while new == old:
        new = _filled(rng, rng.choice(_BLOCKS if old.endswith(":") else _STATEMENTS), [*names, unused])
    issue = rng.choice(_REPLACED).format(name=name, old=old, new=new)
    return issue, [*lines[:at], lines[at].replace(old, new), *lines[at + 1:]]


def _body(rng: random.Random, names: list[str]) -> list[str]:
    """Two to six lines, indented."""
    lines = [_filled(rng, rng.choice(_STATEMENTS), names) for _ in range(rng.randint(0, 2))]
    if rng.random() < 0.7:
        lines += [_filled(rng, rng.choice(_BLOCKS), names),
                  "    " + _filled(rng, rng.choice(_STATEMENTS + _ENDS), names)]
    lines += [_filled(rng, rng.choice(_STATEMENTS), names) for _ in range(rng.randint(1, 2))]
    return ["    " + line for line in [*lines, _filled(rng, rng.choice(_ENDS), names)]]


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
