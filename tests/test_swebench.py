"""Rows in SWE-bench's format become examples with the lines their patch shows, or are refused by name."""

import gzip
import json
import pathlib

import pytest
from hypothesis import given, settings, strategies

from swerl_jax.data import shards
from swerl_jax.data.swebench import example_from_swebench

DEV = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data" / "swebench_dev.jsonl.gz"

MODIFIED = """diff --git a/m.py b/m.py
--- a/m.py
+++ b/m.py
@@ -1,3 +1,3 @@ header
 one
-two
+TWO
 three
@@ -10,2 +10,3 @@
 ten
+new
 eleven
"""
ADDED = "diff --git a/n.py b/n.py\nnew file mode 100644\n--- /dev/null\n+++ b/n.py\n@@ -0,0 +1,2 @@\n+a\n+b\n"
DELETED = "diff --git a/d.py b/d.py\ndeleted file mode 100644\n--- a/d.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-gone\n"
RENAMED = """diff --git a/old.py b/new.py
similarity index 90%
rename from old.py
rename to new.py
--- a/old.py
+++ b/new.py
@@ -1 +1 @@
-x
+y
"""
BARE_RENAME = "diff --git a/p.py b/q.py\nsimilarity index 100%\nrename from p.py\nrename to q.py\n"
BINARY = "diff --git a/i.png b/i.png\nindex 1..2 100644\nBinary files a/i.png and b/i.png differ\n"
MODE = "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n"
ENDINGS = """--- a/e.py
+++ b/e.py
@@ -1,2 +1,2 @@
 a\x0cb\u2028c\r
-last
\\ No newline at end of file
+last
"""


def row(patch: str, **changes) -> dict:
    made = {"repo": "o/n", "instance_id": "o__n-1", "base_commit": "c0", "patch": patch, "problem_statement": "broken",
            "test_patch": "T", "FAIL_TO_PASS": '["t::a"]', "PASS_TO_PASS": [], "version": "1"}
    return {**made, **changes}


def test_hunks_are_joined_in_order_on_both_sides():
    example = example_from_swebench(row(MODIFIED + MODE))
    assert example.files == {"m.py": "one\ntwo\nthree\nten\neleven\n"}
    assert example.oracle == {"m.py": "one\nTWO\nthree\nten\nnew\neleven\n"}
    assert example.flags == ("partial_context",)
    assert example.tests == {"FAIL_TO_PASS": ["t::a"], "PASS_TO_PASS": [], "test_patch": "T"}
    assert (example.id, example.repo, example.commit, example.issue) == ("o__n-1", "o/n", "c0", "broken")


def test_new_deleted_and_renamed_files():
    example = example_from_swebench(row(MODIFIED + ADDED + DELETED + RENAMED))
    assert {path: text for path, text in example.files.items() if path != "m.py"} == {"d.py": "gone\n", "old.py": "x\n"}
    assert {path: text for path, text in example.oracle.items() if path != "m.py"} == {
        "n.py": "a\nb\n", "d.py": "", "old.py": "", "new.py": "y\n"}


def test_line_endings_are_kept():
    example = example_from_swebench(row(ENDINGS))
    assert example.files == {"e.py": "a\x0cb\u2028c\r\nlast"}
    assert example.oracle == {"e.py": "a\x0cb\u2028c\r\nlast\n"}


@pytest.mark.parametrize("changes, fault", [
    ({"patch": MODIFIED + BINARY}, "i.png is binary"),
    ({"patch": MODIFIED + BARE_RENAME}, "q.py is a rename without hunks"),
    ({"patch": ADDED}, "no file that exists before"),
    ({"patch": ""}, "no file that exists before"),
    ({"patch": MODIFIED + MODIFIED}, "m.py is patched twice"),
    ({"patch": MODIFIED[:-8]}, "Hunk is shorter"),
    ({"patch": None}, "patch is NoneType"),
    ({"FAIL_TO_PASS": "{}"}, "FAIL_TO_PASS is {}"),
    ({"FAIL_TO_PASS": "["}, "Expecting"),
])
def test_what_cannot_be_shown_is_refused_by_name(changes, fault):
    with pytest.raises(ValueError, match=f"SWE-bench row o__n-1: .*{fault}"):
        example_from_swebench(row(**{"patch": MODIFIED, **changes}))


@settings(max_examples=200, deadline=None)
@given(strategies.lists(
    strategies.sampled_from(MODIFIED.splitlines(keepends=True) + ["@@ -1 +1 @@\n", "\\ x\n", "\x00"])))
def test_any_patch_converts_or_is_refused(lines):
    try:
        example = example_from_swebench(row("".join(lines)))
    except ValueError as error:
        assert "o__n-1" in str(error)
    else:
        assert example.files and example.oracle


def test_the_real_rows_convert_or_are_refused_by_name():
    if not DEV.exists():
        pytest.skip(f"{DEV} is absent")
    raw = [json.loads(line) for line in gzip.open(DEV, "rt")]
    opened = shards.open_examples(DEV)
    assert len(opened) == len(raw) == 216
    refused = {}
    for index, source in enumerate(raw):
        try:
            example = opened[index]
        except shards.MalformedRow as error:
            refused[source["instance_id"]] = error.row
            continue
        assert example.id == source["instance_id"]
        before = "".join(line[1:] for line in _body(source["patch"]) if line[0] in " -")
        after = "".join(line[1:] for line in _body(source["patch"]) if line[0] in " +")
        # Files stand in the patch's order, so joined they are the patch's two sides.
        assert "".join(example.files.values()) == before
        assert "".join(example.oracle.values()) == after != before
    # The one renames without a hunk, the other only adds a file.
    assert refused == {"pyvista__pyvista-432": 160, "sqlfluff__sqlfluff-3330": 189}


def _body(patch: str) -> list[str]:
    lines = [line + "\n" for line in patch.split("\n")[:-1]]
    headers = ("diff --git ", "index ", "--- ", "+++ ", "@@ ", "new file mode ", "deleted file mode ", "similarity ",
               "rename ", "\\ ")
    return [line for line in lines if not line.startswith(headers)]
