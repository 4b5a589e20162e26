"""Each operator makes its own kind of bug, in place, and the issue does not give the repair away."""

import ast
import pathlib
import random
import sysconfig
import textwrap

import pytest
from hypothesis import given, settings, strategies

from swerl_jax.data import mutate, rename, symptoms
from swerl_jax.data.operators import OPERATORS
from swerl_jax.data.syntax import parse_function

# Operator, a line of code, and every line that the operator may turn it into.
CASES = [
    ("comparison_flipped", "if a < b: c()", {"if a > b: c()"}),
    ("comparison_flipped", "x = a not  in b", {"x = a in b"}),
    ("comparison_flipped", "x = (a) is (b)", {"x = (a) is not (b)"}),
    ("boundary", "x = a >= b", {"x = a > b"}),
    ("boundary", "x = a == b", set()),
    ("wrong_operator", "x = a // b", {"x = a % b"}),
    ("wrong_operator", "x += a", {"x -= a"}),
    ("wrong_operator", "x = '%d' % a", set()),
    ("off_by_one", "x = a[2]", {"x = a[1]", "x = a[3]"}),
    ("off_by_one", "x = a[:b]", {"x = a[:b + 1]"}),
    ("off_by_one", "x = a[-1]", {"x = a[-2]", "x = a[-0]"}),
    ("wrong_bound", "x = range(a)", {"x = range(a - 1)", "x = range(a + 1)", "x = range(1, a)"}),
    ("wrong_bound", "x = a[b:]", {"x = a[:]"}),
    ("wrong_constant", "x = f(3)", {"x = f(4)", "x = f(6)", "x = f(30)", "x = f(0)"}),
    ("wrong_constant", "x = f(True)", {"x = f(False)"}),
    ("wrong_string", "x = f('a', 'b')", {"x = f('a', 'a')", "x = f('b', 'b')"}),
    ("wrong_string", "x = f'{a}' + 'b'", set()),
    ("negated_condition", "while a: b()", {"while not a: b()"}),
    ("negated_condition", "if a and b: c()", {"if not (a and b): c()"}),
    ("missing_not", "x = not (a or b)", {"x = (a or b)"}),
    ("and_or", "x = a and (b or c)", {"x = a or (b or c)", "x = a and (b and c)"}),
    ("swapped_arguments", "x = f(a, b[0], c=d)", {"x = f(b[0], a, c=d)"}),
    ("swapped_arguments", "x = max(a, b)", set()),
    ("swapped_operands", "x = a - b", {"x = b - a"}),
    ("swapped_operands", "x = a + b", set()),
    ("dropped_statement", "x = a", {"", "x = a"}),  # the second without the print behind it
    ("wrong_variable", "f(a, other)", {"f(other, other)", "f(a, a)"}),
    ("wrong_return", "return True", {"return False"}),
    ("wrong_return", "return a", {"return None"}),
    ("loop_control", "for x in a: break", {"for x in a: continue"}),
    ("wrong_exception", "raise KeyError(a)", {"raise IndexError(a)"}),
    ("wrong_function", "x = a.startswith(b)", {"x = a.endswith(b)"}),
    ("wrong_function", "x = min(a)", {"x = max(a)"}),
]


@pytest.mark.parametrize("operator, line, expected", CASES)
def test_each_operator_makes_its_own_bug(operator, line, expected):
    head, tail = "# é before\nclass C:\n", "\n# after \x0c\n"
    parameters = "a, other" if operator == "wrong_variable" else "self"
    signature = f"    def function({parameters}):  # naïve\n"
    source = f"{head}{signature}        {line}\n        print('', end=None)\n{tail}"
    found = set()
    for seed in range(60):
        mutation = mutate.mutate(source, (3, 5), random.Random(seed), [operator])
        if mutation is not None:
            assert (mutation.operator, mutation.function) == (operator, "function")
            assert mutation.text.startswith(head + signature) and mutation.text.endswith(tail)
            assert mutation.removed in source and mutation.line in (4, 5)
            changed = mutation.text[len(head + signature):-len(tail)].replace("        print('', end=None)\n", "")
            found.add(changed.removeprefix("        ").removesuffix("\n"))
    # The print is there so that a body remains; a bug within it is no case of ours.
    assert {text for text in found if "print" not in text} == expected


def test_early_return_moves_into_the_loop():
    source = "def f(a):\n    for b in a:\n        if b:\n            c()\n\n    return a\n"
    mutation = mutate.mutate(source, (1, 6), random.Random(0), ["early_return"])
    assert mutation.text == "def f(a):\n    for b in a:\n        if b:\n            c()\n\n        return a\n"


def test_every_operator_has_a_case():
    assert {operator for operator, _, expected in CASES if expected} | {"early_return"} == set(OPERATORS)


def test_wrong_spans_and_operators_are_refused():
    for span in ((1, 1), (2, 4), (3, 3), (5, 9)):
        with pytest.raises(ValueError, match="function"):
            mutate.mutate("x = 1\ndef f():\n    return x\ny = 2\n", span, random.Random(0))
    with pytest.raises(ValueError, match="needed are names out of"):
        mutate.mutate("def f():\n    pass\n", (1, 2), random.Random(0), ["unknown"])


def test_a_function_without_a_place_for_a_bug_gives_none():
    assert mutate.mutate("def f():\n    'a text of 1 < 2'\n    pass\n", (1, 3), random.Random(0)) is None


def test_the_least_used_operator_is_taken():
    source = "def f(a, b):\n    if a < b and not a:\n        return a + 1\n    return b\n"
    counts = dict.fromkeys(OPERATORS, 0)
    for seed in range(300):
        counts[mutate.mutate(source, (1, 4), random.Random(seed), used=counts).operator] += 1
    applied = [count for count in counts.values() if count]
    assert len(applied) >= 7 and max(applied) - min(applied) <= 1


def test_the_issue_leaves_out_what_the_repair_brings_back():
    for seed in range(20):
        assert "secret" not in symptoms.describe(random.Random(seed), "maintainer", "wrong_variable", "f", "a.secret", "secret")


def test_every_voice_has_words_of_its_own_for_every_operator():
    said = {}
    for voice, texts in symptoms.VOICES.items():
        assert texts.keys() == OPERATORS.keys() == symptoms.VOICES["maintainer"].keys()
        said[voice] = {symptoms.describe(random.Random(seed), voice, operator, "f", "x.y", "gone")
                       for operator in OPERATORS for seed in range(20)}
        assert all("`f`" in text for text in said[voice])
    assert len(set.union(*said.values())) == sum(map(len, said.values())) > 60


def test_babble_names_the_function_and_says_nothing():
    words = ["river", "stone", "cloud"]
    for seed in range(40):
        issue = symptoms.babble(random.Random(seed), "f", words)
        before, after = issue.removesuffix(".").split("`f`")
        assert set(before.split()) | set(after.split()) <= set(words) and issue == issue.strip()


def _library_functions():
    text = pathlib.Path(sysconfig.get_paths()["stdlib"], "textwrap.py").read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            yield text, (node.lineno, node.end_lineno)


FUNCTIONS = list(_library_functions())


@settings(max_examples=60, deadline=None)
@given(strategies.sampled_from(FUNCTIONS), strategies.randoms(use_true_random=False), strategies.booleans())
def test_library_functions_mutate_in_place(function, rng, is_renamed):
    source, span = function
    if is_renamed:
        source, _ = rename.rename(source, span, rng)
    mutation = mutate.mutate(source, span, rng)
    if mutation is None:
        return
    compile(mutation.text, "mutant", "exec")
    assert ast.dump(ast.parse(mutation.text)) != ast.dump(ast.parse(source))
    before, after = source.splitlines(keepends=True), mutation.text.splitlines(keepends=True)
    rest = len(before) - span[1]
    assert before[:span[0] - 1] == after[:span[0] - 1] and before[-rest:] == after[-rest:]


def test_renaming_is_consistent_and_keeps_what_it_must():
    source = textwrap.dedent('''\
        @deco
        def walk(self, item, *rest, key=None):
            """Walk item."""
            global seen
            import os
            total = len(rest)  # total
            for item in rest:
                seen = walk(item, key=total)
            try:
                return f"{key}", [part for part in os.listdir(item)]
            except OSError as error:
                return error, total
        ''')
    new, names = rename.rename(source, (1, 12), random.Random(0))
    assert set(names) == {"walk", "item", "rest", "total", "part"}
    assert len(set(names.values())) == 5 and not set(names.values()) & set(names)
    expected = source
    for old, fresh in names.items():
        expected = expected.replace(f"{old}", f"<{fresh}>")
    expected = expected.replace("<", "").replace(">", "")
    for text in ('"""Walk item."""', "# total"):  # the only places where the plain words stay
        expected = expected.replace(_replaced(text, names), text)
    assert new == expected
    assert ast.dump(_renamed_tree(source, names)) == ast.dump(ast.parse(new))


def _replaced(text: str, names: dict[str, str]) -> str:
    for old, fresh in names.items():
        text = text.replace(old, fresh)
    return text


def _renamed_tree(source: str, names: dict[str, str]) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for field in ("id", "arg", "name"):
            if isinstance(node, (ast.Name, ast.arg, ast.FunctionDef)) and hasattr(node, field):
                setattr(node, field, names.get(getattr(node, field), getattr(node, field)))
    return tree


def test_private_renaming_keeps_the_signature():
    source = "class C:\n    def f(self, a):\n        b = a\n        return b\n"
    new, names = rename.rename(source, (2, 4), random.Random(1), is_public=False)
    assert set(names) == {"b"}
    assert new == source.replace("b = a", f"{names['b']} = a").replace("return b", f"return {names['b']}")


def test_attributes_of_self_are_renamed_where_the_class_is_not_in_view():
    source = "def f(self, a):\n    self.x = a.x\n    self._y(self.x)\n    return self.__z, f'{self.w}', self.w\n"
    new, names = rename.rename(source, (1, 4), random.Random(2))
    assert set(names) == {"f", "a", ".x", "._y"} and names["._y"].startswith("._")
    x, y, a = names[".x"], names["._y"], names["a"]
    assert new == (f"def {names['f']}(self, {a}):\n    self{x} = {a}.x\n    self{y}(self{x})\n"
                   "    return self.__z, f'{self.w}', self.w\n")
    assert set(rename.rename(source, (1, 4), random.Random(2), is_public=False)[1]) == set()


@pytest.mark.parametrize("before, after, issue", [
    ("a\n    b\nc\n", "a\n    d\nc\n", {"It says `b` where it must say `d`.", "Write `d` instead of `b`."}),
    ("a\nc\n", "a\n  b\nc\n", {"`b` is missing after `a`.", "Add `b` after `a`."}),
    ("a\n  b\nc\n", "a\nc\n", {"`b` must not be there.", "Remove `b`."}),
])
def test_a_told_repair_quotes_the_lines_that_change(before, after, issue):
    assert {symptoms.tell(random.Random(seed), before, after) for seed in range(20)} == issue


def test_positions_count_bytes_and_real_lines():
    source = "def f(a):\n    b = 'é\x0c\u2028'; return a < b\n"
    function = parse_function(source, (1, 2))
    assert [function.segment(node) for node in function.nodes if isinstance(node, ast.Compare)] == ["a < b"]
