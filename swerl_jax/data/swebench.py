"""Rows in SWE-bench's format as examples.

On the path: a shard's row → here → Example. Without a clone of the repository only the patch is at hand, so each
file is shown as the lines its hunks cover, before and after; the reward then compares like with like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import unidiff

from swerl_jax.data.records import Example

PARTIAL_CONTEXT = "partial_context"

REQUIRED = ("repo", "instance_id", "base_commit", "patch", "problem_statement")
_TEST_LISTS = ("FAIL_TO_PASS", "PASS_TO_PASS")
_META = ("version", "created_at", "hints_text", "environment_setup_commit")


def example_from_swebench(row: Mapping[str, Any]) -> Example:
    """Builds the example of one SWE-bench row from its patch alone.

    Args:
      row: `repo`, `instance_id`, `base_commit`, `patch` and `problem_statement` are needed; `test_patch`,
        `FAIL_TO_PASS` and `PASS_TO_PASS` (lists, or lists as JSON text) go to `tests`, other known texts to `meta`.

    Returns:
      An example flagged PARTIAL_CONTEXT. `files` maps each patched file to its hunks' lines before the change, joined
      in order, `oracle` to the lines after it. A new file is in `oracle` alone, a deleted file's oracle is "", and a
      rename deletes one path and adds the other. Mode changes carry no text and are left out.

    Raises:
      ValueError: naming the row's id and why it is refused: keys missing or of a wrong type, an unreadable patch,
        binary files, a rename without hunks (its text is unknown), no file that exists before the fix.

    Source: SWE-bench (arXiv 2310.06770), which reads whole files from a clone instead.
    """
    name = row.get("instance_id", "without instance_id")
    try:
        return _convert(row)
    except (ValueError, unidiff.UnidiffParseError) as error:
        raise ValueError(f"SWE-bench row {name}: {error}") from error


def _convert(row: Mapping[str, Any]) -> Example:
    for key in (*REQUIRED, *(key for key in ("test_patch", *_META) if row.get(key) is not None)):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key} is {type(row.get(key)).__name__}; needed is a string")
    files, oracle = _contents(row["patch"])
    tests: dict[str, Any] = {key: _names(row[key], key) for key in _TEST_LISTS if key in row}
    if "test_patch" in row:
        tests["test_patch"] = row["test_patch"]
    return Example(
        id=row["instance_id"],
        repo=row["repo"],
        commit=row["base_commit"],
        issue=row["problem_statement"],
        files=files,
        oracle=oracle,
        tests=tests,
        flags=(PARTIAL_CONTEXT,),
        meta={key: row[key] for key in _META if row.get(key) is not None},
    )


def _contents(patch: str) -> tuple[dict[str, str], dict[str, str]]:
    files: dict[str, str] = {}
    oracle: dict[str, str] = {}
    for change in unidiff.PatchSet(patch):
        if change.is_binary_file:
            raise ValueError(f"{change.path} is binary; needed are text files")
        if change.is_rename and not change:
            raise ValueError(f"{change.path} is a rename without hunks, so its text is unknown; needed are hunks")
        if not change and not change.is_added_file and not change.is_removed_file:
            continue  # only its mode changes
        before, after = _path(change.source_file, "a/"), _path(change.target_file, "b/")
        if before in files or after in oracle:
            raise ValueError(f"{change.path} is patched twice; needed is one change a file")
        if change.is_rename or change.is_removed_file:
            oracle[before] = ""
        if not change.is_added_file:
            files[before] = "".join(hunk_side(hunk, "-") for hunk in change)
        if not change.is_removed_file:
            oracle[after] = "".join(hunk_side(hunk, "+") for hunk in change)
    if not files:
        raise ValueError("the patch changes no file that exists before it; needed is code to look at")
    return files, oracle


def hunk_side(hunk: unidiff.Hunk, sign: str) -> str:
    """Returns the lines of one side of a hunk, "-" before or "+" after, as they stand in the file."""
    lines: list[str] = []
    last_sign = ""
    for line in hunk:
        if line.line_type == "\\":  # belongs to the line before it: that one has no newline
            if last_sign in (" ", sign):
                lines[-1] = lines[-1].removesuffix("\n")
            continue
        last_sign = line.line_type or " "
        if last_sign in (" ", sign):
            lines.append(line.value)
    return "".join(lines)


def _path(name: str, prefix: str) -> str:
    return name.removeprefix(prefix)


def _names(value: Any, key: str) -> list[str]:
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key} is {value!r:.60}; needed is a list of test names")
    return value
