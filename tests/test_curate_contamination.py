"""Evaluation repositories are recognised by name, number and root commit; copied rows by their words."""

import dataclasses
import gzip
import json
import pathlib

import fsspec
import pytest

from swerl_jax.curate import contamination, paths
from swerl_jax.curate.change import Change, Issue
from swerl_jax.data import shards
from swerl_jax.data.records import Example

DEV = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "swebench_dev.jsonl.gz"
EVALUATION = contamination.load()


def change(repo="o/n", **fields):
    return Change(id="x", source="git", repo=repo, base="", head="", **fields)


@pytest.mark.parametrize("name", [
    "django/django", "Django/DJANGO", "automattic/wp-calypso", "chartjs/chart.js", "https://github.com/psf/requests.git",
    "git@github.com:sympy/sympy.git", "ssh://git@github.com/sympy/sympy", "kennethreitz/requests", "django__django",
    "django__django.git", "sympy", "django-django", "scikit-learn", "eslint/eslint",
    "someone/django", "gitlab.com/x/sympy", "requests", "flask", "someone/x__django.1fd52536", "mirrors/psf__requests",
    "swesmith/psf__requests.4a5b6c7d", "clones/astropy__astropy",
])  # fmt: skip
def test_evaluation_repositories_by_name(name):
    assert EVALUATION.change_reason(change(name)) == f"named {name}"


@pytest.mark.parametrize("name", [
    "someone/core", "django/djangoproject.com", "core", "alibaba/druid", "someone/django-tools", "a/b__c",
    "sqlfluff/sqlfluff", "marshmallow-code/marshmallow",
    "pvlib/pvlib-python", "pydicom/pydicom", "pyvista/pyvista", "pylint-dev/astroid", "", "/",
])  # fmt: skip
def test_other_repositories_are_allowed(name):
    assert EVALUATION.change_reason(change(name)) == ""


def test_numbers_and_renames_are_learnt_from_an_archive():
    seen = EVALUATION.with_seen([("django/django", 7), ("old/dj", 7), ("new/dj", 7), ("old/dj", 8), ("a/b", 9), ("psf/requests", 0)])
    assert seen.change_reason(change("fork/dj", repo_id=7)) == "repository 7"
    assert seen.change_reason(change("new/DJ")) == "named new/DJ"
    assert seen.change_reason(change("a/b", repo_id=9)) == seen.change_reason(change("a/b", repo_id=0)) == ""
    assert seen.change_reason(change("x/y", repo_id=8)) == ""  # it once had a name that number 7 had, too
    assert seen.change_reason(change("x/y", meta={"names": ["x/z", "new/dj"]})) == "named new/dj"


def test_forks_share_a_root_commit():
    seen = EVALUATION.with_clones([("sympy/sympy", ["r1", "r2"]), ("a/b", ["r3"]), ("core", ["r4"])])
    assert seen.change_reason(change("fork/algebra"), ["r0", "r2"]) == "shares root commit r2"
    assert seen.change_reason(change("fork/b"), ["r3", "r4"]) == ""
    assert seen.change_reason(change("fork/b")) == ""


def test_an_issue_of_an_evaluation_repository():
    issues = (Issue("o/n", 1, "t", "b"), Issue("PSF/requests", 2, "t", "b"))
    assert EVALUATION.change_reason(change(issues=issues)) == "fixes an issue of PSF/requests"
    seen = EVALUATION.with_seen([("django/django", 7)])
    assert seen.change_reason(change(meta={"issue_repo_ids": [6, 7]})) == "fixes an issue of repository 7"


def test_the_list_is_whole():
    value = json.loads(contamination.REPOSITORIES_PATH.read_text())
    names = {name.lower() for split in value["splits"].values() for name in split}
    assert len(names) == 69 and names < EVALUATION.names
    assert not [name for name in EVALUATION.names if not contamination.normal_name(name) == name]


def test_a_list_without_repositories_is_refused(tmp_path):
    for content in ("{}", '{"splits": {"a": ["django"]}}'):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match='x.json has no evaluation repositories; needed are "splits"'):
            contamination.load([tmp_path / "x.json"])


def words(prefix, count):
    return [f"{prefix}{number}" for number in range(count)]


ROWS = [{
    "instance_id": "row-1", "problem_statement": " ".join(words("i", 60)),
    "patch": "--- a/m.py\n+++ b/m.py\n@@ -1 +1,2 @@\n-" + " ".join(words("old", 20)) + "\n+" + " ".join(words("new", 20)) + "\n ctx\n",
}]  # fmt: skip


def example(issue, before="a\n", after="b\n"):
    return Example("x", "o/n", "c", issue, {"m.py": before}, {"m.py": after})


def test_copies_of_rows_are_found_by_content():
    texts = contamination.EvaluationTexts(ROWS)
    issue = words("i", 60)
    assert texts.reason(example("Dear all! " + " ".join(issue[:50]).upper())) == "issue shares 95% with row-1"  # 41 of 43 runs
    assert texts.reason(example(" ".join(issue[:20]))) == "issue shares 100% with row-1"  # an excerpt
    assert texts.reason(example(" ".join(words("j", 100) + issue[:25]))) == ""  # 16 of 51 runs
    assert texts.reason(example(" ".join(issue[:13]))) == ""  # four runs are too few
    before = "\n".join([*words("else", 400), " ".join(words("old", 20)), ""])
    after = "\n".join([*words("other", 400), " ".join(words("new", 20)), ""])
    assert texts.reason(example("short", before, after)) == "change shares 71% with row-1"  # 2 · 11 of 31: copied elsewhere
    assert texts.reason(example("short")) == ""


def test_what_many_rows_say_is_no_copy():
    template = " ".join(words("t", 40))
    rows = [{"instance_id": str(i), "problem_statement": f"{template} {' '.join(words(f'r{i}_', 30))}", "patch": ""}
            for i in range(5)]
    texts = contamination.EvaluationTexts(rows)
    assert texts.reason(example(template + " it is broken")) == ""
    assert texts.reason(example(" ".join(words("r3_", 30)))) == "issue shares 100% with 3"
    assert contamination.EvaluationTexts([]).reason(example("anything")) == ""


def test_a_short_fix_is_found_by_its_lines():
    patch = """--- a/src/m.py
+++ b/src/m.py
@@ -1,4 +1,5 @@
 def total(values):
-    return sum(values)
+    values = values or ()
+    return sum(map(float, values))
 # end
--- a/CHANGES.md
+++ b/CHANGES.md
@@ -1,1 +1,2 @@
+ - The total of nothing is zero
 # Changes
"""
    texts = contamination.EvaluationTexts([{"instance_id": "short", "problem_statement": "", "patch": patch}])
    before = "import os\nclass Total:\n\tdef total(self, values):\n\t\treturn sum(values)\n"
    first = before.replace("return sum(values)", "values = values or ()\n\t\treturn sum(values)")
    both = first.replace("return sum(values)", "return sum(map(float, values))")
    assert texts.reason(example("other", before, both)) == "change adds all lines of short"
    assert texts.reason(example("other", before, first)) == texts.reason(example("other", both, before)) == ""


def test_rows_are_read_or_refused_by_number(tmp_path):
    packed = gzip.compress(json.dumps(ROWS[0]).encode() + b"\n\n{}\n")
    for url in (tmp_path / "rows.jsonl.gz", "memory://rows.jsonl.gz"):
        with fsspec.open(str(url), "wb") as file:
            file.write(packed)
        rows = contamination.read_rows(url)
        assert next(rows) == ROWS[0]
        with pytest.raises(ValueError, match="rows.jsonl.gz, row 2 is no evaluation row"):
            list(rows)


def test_real_rows_are_found_and_others_are_not():
    if not DEV.exists():
        pytest.skip(f"{DEV} is absent")
    rows = list(contamination.read_rows(DEV))
    assert not [row["repo"] for row in rows if EVALUATION.change_reason(change(row["repo"]))]
    halves = {True: rows[::2], False: rows[1::2]}  # of the same six repositories: as alike as strangers get
    texts = contamination.EvaluationTexts(halves[True])
    opened = shards.open_examples(DEV)
    found = {}
    for index in range(len(opened)):
        try:
            found[index] = texts.reason(opened[index])
        except shards.MalformedRow:
            continue
    everything = contamination.EvaluationTexts(rows)
    copies = [dataclasses.replace(opened[index], issue="Something else altogether") for index in found]
    copies = [dataclasses.replace(one, oracle={path: text for path, text in one.oracle.items() if paths.role(path) == "source"})
              for one in copies]
    missed = [one.id for one in copies if not everything.reason(one)]
    print(len(copies), missed)
    assert len(missed) <= 4, "of 214: what adds no line of 14 characters"
    same = [reason for index, reason in found.items() if index % 2 == 0]
    other = [f"{opened[index].id}: {reason}" for index, reason in found.items() if index % 2 and reason]
    print(len(same), sum(map(bool, same)), other)
    assert sum(map(bool, same)) >= 0.95 * len(same) and len(other) <= 0.06 * len(found)
