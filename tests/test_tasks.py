"""Tasks made from the standard library: deterministic, split cleanly, broken and repairable."""

import ast
import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from swerl_jax.data import pieces, shards, stdlib, symptoms, tasks

# Small modules only: the scan takes a fraction of a second.
SMALL = tasks.TaskSpec(train_count=120, held_out_count=40, max_module_bytes=12_000)
WHOLE = dataclasses.replace(
    SMALL, scope=tasks.MODULE, train_count=30, held_out_count=10, distractor_files=2, max_function_bytes=2000)
PLAIN = dataclasses.replace(SMALL, is_renamed=False, distractor_files=1, held_out_count=5)


@pytest.fixture(scope="module")
def made():
    return {
        (spec, split): list(tasks.iter_tasks(spec, split)) for spec in (SMALL, WHOLE, PLAIN) for split in stdlib.SPLITS
    }


def test_every_task_is_broken_and_compiles(made):
    for (spec, _), examples in made.items():
        for example in examples:
            [(path, fixed)] = example.oracle.items()
            assert len(example.files) == 1 + spec.distractor_files
            for text in (*example.files.values(), fixed):
                compile(text, path, "exec", dont_inherit=True)
                assert text.isascii()
            assert ast.dump(ast.parse(example.files[path])) != ast.dump(ast.parse(fixed))
        assert len({(tuple(e.files.values()), tuple(e.oracle.values())) for e in examples}) == len(examples)
        named = sum(list(example.oracle) == [example.meta["module"]] for example in examples)
        assert named < len(examples) / 10 if spec is SMALL else named == len(examples)  # else the path is made up, too
        assert len({example.id for example in examples}) == len(examples)


def test_a_search_replace_edit_repairs_every_task_and_is_not_in_the_issue(made):
    for examples in made.values():
        for example in examples:
            [(path, fixed)] = example.oracle.items()
            search, replace = _edit(example.files[path], fixed)
            assert ("\n" + example.files[path]).replace("\n" + search, "\n" + replace)[1:] == fixed
            for line in set(fixed.splitlines()) - set(example.files[path].splitlines()):
                assert line.strip() not in example.issue
            if not example.meta["function"].startswith("__"):
                assert re.search(r"`\w+`", example.issue)


def _edit(broken: str, fixed: str) -> tuple[str, str]:
    """Returns the shortest run of whole lines that occurs once, and what to put in its place."""
    old, new = broken.splitlines(keepends=True), fixed.splitlines(keepends=True)
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    for margin in range(len(old) + 1):
        first, last = max(head - margin, 0), max(tail - margin, 0)
        search = "".join(old[first:len(old) - last])
        if search and ("\n" + broken).count("\n" + search) == 1:
            return search, "".join(new[first:len(new) - last])
    raise AssertionError("no edit repairs the file")


def test_splits_share_no_module_and_no_function(made):
    def shape(function: ast.AST) -> str:
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        for node in (function.args, *body):
            for part in ast.walk(node):
                for field in ("id", "arg", "name"):
                    if hasattr(part, field):
                        setattr(part, field, "")
        return ast.dump(function.args) + "".join(map(ast.dump, body))

    def functions(text: str) -> list[ast.AST]:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        return [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]

    for spec in (SMALL, WHOLE, PLAIN):
        train, held_out = (made[spec, split] for split in stdlib.SPLITS)
        modules = [{e.meta["module"].split("/")[0] for e in examples} for examples in (train, held_out)]
        assert not modules[0] & modules[1] and all(len(found) > 2 for found in modules)
        seen = {shape(f) for example in train for text in example.oracle.values() for f in functions(text)}
        for example in held_out:
            [(path, text)] = example.oracle.items()
            name = example.meta["function"].split(".")[-1]
            broken = [f for f in functions(text) if spec.scope == tasks.FUNCTION or f.name == name]
            assert broken[:1] and (spec.scope == tasks.MODULE or shape(broken[0]) not in seen)


def test_no_held_out_function_has_a_training_shape():
    corpus = stdlib.scan(60, 600, 2, 60_000)
    train, held_out = corpus.of(stdlib.TRAIN), corpus.of(stdlib.HELD_OUT)
    assert len(train) > 1000 and len(held_out) > 100
    assert not {f.shape for f in train} & {f.shape for f in held_out}
    excluded = {"test", "tests", "idlelib", "turtledemo", "lib2to3", "site-packages"}
    for function in train + held_out:
        assert not excluded & set(function.path.split("/"))
        assert 60 <= len(function.text) <= 600
        assert function.name.split(".")[-1] in function.text


def test_shapes_are_equal_whatever_the_names_and_differ_otherwise(tmp_path):
    same = "def f(a):\n    '''Doc.'''\n    b = a + 1\n    return b\n"
    for name, text in {
        "x.py": same,
        "y.py": "if 1:\n    class C:\n        def g(q):  # other names\n            r = q + 1\n            return r\n",
        "z.py": same.replace("+ 1", "+ 2"),
        "test_x.py": same, "test/t.py": same, "bad.py": "def f(:", "u.py": same.replace("Doc", "\u00e9"),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    every = stdlib._modules(tmp_path)
    assert [path for path, _ in every] == ["bad.py", "x.py", "y.py", "z.py"]
    found = {path: list(stdlib._functions(text)) for path, text in stdlib._modules(tmp_path)}
    assert {path: [entry[0] for entry in entries] for path, entries in found.items()} == {
        "bad.py": [], "x.py": ["f"], "y.py": ["C.g"], "z.py": ["f"]}
    assert found["y.py"][0][3] == "def g(q):  # other names\n    r = q + 1\n    return r\n"
    shapes = {path: stdlib._shape(entries[0][1]) for path, entries in found.items() if entries}
    assert shapes["x.py"] == shapes["y.py"] != shapes["z.py"]


def test_operators_are_balanced(made):
    counts = collections.Counter(example.meta["operator"] for example in made[SMALL, stdlib.TRAIN])
    assert len(counts) >= 17
    assert max(counts.values()) <= 3 * len(made[SMALL, stdlib.TRAIN]) / len(counts)


def test_sizes_are_as_asked(made):
    assert all(len(text) <= 600 for e in made[PLAIN, stdlib.TRAIN] for text in e.oracle.values())
    assert max(len(text) for e in made[WHOLE, stdlib.TRAIN] for text in e.oracle.values()) > 5000


_DIGEST = """
import hashlib, sys
from swerl_jax.data import tasks
spec = tasks.TaskSpec(train_count=60, held_out_count=20, max_module_bytes=12_000, distractor_files=1)
made = [list(tasks.iter_tasks(spec, split)) for split in ("train", "held_out")]
print(hashlib.sha256(repr(made).encode()).hexdigest())
assert "jax" not in sys.modules
"""


def test_tasks_do_not_depend_on_the_hash_seed():
    spec = dataclasses.replace(SMALL, train_count=60, held_out_count=20, distractor_files=1)
    here = repr([list(tasks.iter_tasks(spec, split)) for split in stdlib.SPLITS])
    digests = {hashlib.sha256(here.encode()).hexdigest()}
    root = pathlib.Path(__file__).resolve().parents[1]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], cwd=root, env={**os.environ, "PYTHONHASHSEED": seed}, text=True,
            capture_output=True, timeout=60, check=True)
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    other = dataclasses.replace(spec, seed=1)
    assert next(tasks.iter_tasks(other, "train")) != next(tasks.iter_tasks(spec, "train"))


def test_shards_are_made_once_and_again_when_the_spec_changes(tmp_path, made):
    calls = []
    paths = tasks.make_tasks(SMALL, tmp_path / "tasks", lambda done, total: calls.append((done, total)))
    assert list(shards.open_examples(paths.train)) == made[SMALL, "train"]
    assert list(shards.open_examples(paths.held_out)) == made[SMALL, "held_out"]
    assert calls == [(done, 160) for done in range(161)]
    manifest = json.loads((tmp_path / "tasks" / tasks.MANIFEST).read_text())
    assert manifest["train"]["tasks"] == 120 and sum(manifest["train"]["operators"].values()) == 120
    stamp = paths.train.stat().st_mtime_ns
    assert tasks.make_tasks(SMALL, tmp_path / "tasks") == paths and paths.train.stat().st_mtime_ns == stamp
    fewer = dataclasses.replace(SMALL, train_count=7)
    tasks.make_tasks(fewer, tmp_path / "tasks")
    assert list(shards.open_examples(paths.train)) == made[SMALL, "train"][:7]


def test_drills_tell_the_whole_change_and_come_first(tmp_path):
    spec = dataclasses.replace(SMALL, drill_count=300, train_count=3, held_out_count=1)
    drills = list(tasks.iter_drills(spec))
    assert len({tuple(drill.files.values()) for drill in drills}) == 300 and drills == list(tasks.iter_drills(spec))
    for drill in drills:
        [(path, broken)], [(_, fixed)] = drill.files.items(), drill.oracle.items()
        old, new = re.findall("`(.*?)`", drill.issue)
        if drill.issue.startswith("Write"):
            old, new = new, old
        if re.fullmatch(r"\w+", old) and re.fullmatch(r"\w+", new):  # a name changes everywhere
            assert re.sub(rf"\b{old}\b", new, broken) == fixed != broken
        else:
            changed = [pair for pair in zip(broken.splitlines(), fixed.splitlines(), strict=True) if pair[0] != pair[1]]
            assert [(a.strip(), b.strip()) for a, b in changed] == [(old, new)]
        for text in (broken, fixed):
            compile(text, path, "exec", dont_inherit=True)
    paths = tasks.make_tasks(spec, tmp_path)
    assert [e.id[:5] for e in shards.open_examples(paths.train)] == ["drill"] * 300 + ["train"] * 3
    assert [e.id for e in shards.open_examples(paths.held_out)] == ["held_out-000000"]


LONG = '''\
@deco
def long(a,
         b=1):
    """Doc."""
    c = a
    d = b; e = d
    if c:
        d = """
  flush left"""
        while d:
            for f in e:
                break
        return c + d + "a text that is much too long to fit in the piece with other statements"
    else:
        e = 2

    return d
'''


def test_long_functions_are_cut_into_runs_of_statements():
    head = "def long(a,\n         b=1):\n"
    inner = "    while d:\n        for f in e:\n            break\n"
    assert _texts(LONG, 90) == [
        head + "    c = a\n    d = b; e = d\n", head + inner, head + "    e = 2\n", head + "    return d\n"]
    assert _texts(LONG, 41) == [
        head + "    c = a\n", head + "    e = 2\n", head + "    return d\n"]
    assert not _texts("def one(): a = 1; b = 2\n", 20)


def _texts(text, max_bytes):
    return [piece for _, piece in pieces.pieces(text, max_bytes)]


def test_pieces_are_for_both_splits_and_told_repairs_for_training_alone():
    spec = dataclasses.replace(SMALL, max_function_bytes=240, is_cut=True, told_share=0.5)
    corpus, whole = tasks.scan(spec), tasks.scan(dataclasses.replace(spec, is_cut=False))
    for split in stdlib.SPLITS:
        assert len(corpus.of(split)) > 2 * len(whole.of(split))
    assert not {f.shape for f in corpus.of(stdlib.HELD_OUT)} & {f.shape for f in corpus.of(stdlib.TRAIN)}

    def is_told(example):
        pattern = "It says|Write|Add|Remove|`.*` (is missing after|must not)"
        return re.match(pattern, example.issue, re.DOTALL) is not None

    train, held_out = (list(tasks.iter_tasks(spec, split, corpus)) for split in stdlib.SPLITS)
    assert 35 <= sum(map(is_told, train)) <= 85 and not any(map(is_told, held_out))
    with pytest.raises(ValueError, match="told_share is 2"):
        dataclasses.replace(spec, told_share=2)
    with pytest.raises(ValueError, match="a sum of at most 1"):
        dataclasses.replace(spec, told_share=0.5, babbled_share=0.6)
    with pytest.raises(ValueError, match="is_cut needs"):
        dataclasses.replace(spec, scope=tasks.MODULE)


def test_functions_with_few_choices_are_left_out():
    spec = dataclasses.replace(SMALL, operators=("comparison_flipped", "boundary"), min_choices=3)
    for example in itertools.islice(tasks.iter_tasks(spec, stdlib.TRAIN), 20):
        compared = [type(op) for text in example.oracle.values() for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.Compare) and len(node.ops) == 1 for op in node.ops]
        ordered = sum(op in (ast.Lt, ast.LtE, ast.Gt, ast.GtE) for op in compared)
        assert len(compared) + ordered >= 3


def test_asking_for_too_much_is_an_error():
    with pytest.raises(ValueError, match="wider bounds"):
        list(tasks.iter_tasks(dataclasses.replace(SMALL, max_module_bytes=400, is_renamed=False), "train"))
    with pytest.raises(ValueError, match="distractor files were asked for"):
        list(tasks.iter_tasks(dataclasses.replace(SMALL, distractor_files=10_000), "train"))
    with pytest.raises(ValueError, match="needed is 'function' or 'module'"):
        tasks.TaskSpec(scope="file")
    with pytest.raises(ValueError, match="split"):
        next(tasks.iter_tasks(SMALL, "test"))


def test_issues_are_told_babbled_or_in_the_voice_that_is_asked_for():
    spec = dataclasses.replace(SMALL, told_share=0.2, babbled_share=0.3, voice="user")
    corpus = tasks.scan(spec)
    plain, spoken = ([re.sub("`.*?`", "", example.issue) for example in tasks.iter_tasks(one, "held_out", corpus)]
                     for one in (dataclasses.replace(spec, voice="maintainer"), spec))
    assert not set(plain) & set(spoken)
    words = set(corpus.words)
    said = [re.sub("`.*?`", "", example.issue) for example in tasks.iter_tasks(spec, "train", corpus)]
    babbled = [set(re.findall(r"[^ .]+", text)) <= words for text in said]
    assert 0.2 < sum(babbled) / len(babbled) < 0.4
    with pytest.raises(ValueError, match="voice is 'nobody'; needed is one of maintainer, user"):
        dataclasses.replace(spec, voice="nobody")


@pytest.mark.parametrize("share, low, high", [("misled_share", 0.3, 0.7), ("overheard_share", 0.0, 0.0)])
def test_a_users_issues_are_of_a_bug_by_chance_or_of_the_one_there_is(share, low, high):
    kinds = ("comparison_flipped", "boundary")
    spec = dataclasses.replace(SMALL, operators=kinds, min_choices=2, train_count=240, **{share: 1.0})
    sentences = {kind: {_plain(text) for texts in symptoms.VOICES["user"][kind] for text in texts} for kind in kinds}
    corpus = tasks.scan(spec)
    train = [example for example in tasks.iter_tasks(spec, "train", corpus) if _has_both(example)]
    blamed = [next(kind for kind in kinds if _plain(example.issue) in sentences[kind]) for example in train]
    wrong = sum(kind != example.meta["operator"] for kind, example in zip(blamed, train, strict=True))
    assert len(train) > 30 and low <= wrong / len(train) <= high
    for example in train:  # what is pointed at stands there
        assert all(code in "".join(example.files.values()) for code in re.findall("`(.*?)`", example.issue))
    without = tasks.iter_tasks(dataclasses.replace(spec, **{share: 0.0}), "held_out", corpus)
    assert [example.issue for example in tasks.iter_tasks(spec, "held_out", corpus)] == [example.issue for example in without]


def test_a_guess_is_an_edit_that_seldom_repairs():
    """Without new names a repaired function stands in the library, and a guess does not."""
    spec = dataclasses.replace(SMALL, is_renamed=False, told_share=0.5)
    corpus = tasks.scan(spec)
    known = {function.text for function in corpus.of("train")}
    repaired = {}
    for share in (0.0, 0.5, 1.0):
        train = list(tasks.iter_tasks(dataclasses.replace(spec, guessed_share=share), "train", corpus))
        assert all(example.oracle[path] != text for example in train for path, text in example.files.items())
        repaired[share] = sum(set(example.oracle.values()) <= known for example in train) / len(train)
        for example in train:  # what is told is done
            changed = "".join(example.oracle.values())
            assert all(code.splitlines()[-1] in changed for code in re.findall("Write `(.*?)` instead", example.issue, re.DOTALL))
    assert repaired[0.0] == 1.0 and 0.3 < repaired[0.5] < 0.8 and repaired[1.0] < 0.4
    held_out = [list(tasks.iter_tasks(dataclasses.replace(spec, guessed_share=share), "held_out", corpus)) for share in (0.0, 1.0)]
    assert held_out[0] == held_out[1]


def _has_both(example):
    """Whether its one comparison can be flipped and be wrong at its bound: both kinds are as likely then."""
    compared = [op for text in example.oracle.values() for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Compare) for op in node.ops]
    return len(compared) == 1 and isinstance(compared[0], (ast.Lt, ast.LtE, ast.Gt, ast.GtE))


def _plain(issue):
    return re.sub("`.*?`", "", issue)
