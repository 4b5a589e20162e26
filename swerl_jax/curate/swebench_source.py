"""Rows in SWE-bench's format as candidates: with a clone the whole files at `base_commit`, else the lines of the hunks.

On the path: a row → **Change and Candidate**, or Reject with a reason → filters. Hints are where people discuss the fix, so
they are left out unless asked for; the test fields are kept for later execution.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gzip
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import fsspec
import unidiff

from swerl_jax.curate import candidates, change as kinds, git_source
from swerl_jax.curate.change import Candidate, Change, FileChange, Issue, Reject
from swerl_jax.curate.repository import Repository
from swerl_jax.data import swebench

STAGE = git_source.STAGE
REASONS = {
    "malformed_row": "not in SWE-bench's format, or without a file that exists before the fix",
    "missing_commit": "the clone lacks the row's base_commit",
    "patch_fails": "the patch does not fit the files at base_commit",
}
SOURCE = "swebench"
_TESTS = ("FAIL_TO_PASS", "PASS_TO_PASS", "test_patch")
_KEPT = ("version", "environment_setup_commit")


def read_rows(url: str, first: int = 0, last: int | None = None) -> Iterator[Any]:
    """Yields the rows of a file from number `first` up to (without) `last`: decoded objects, or the text of what is none.

    Args:
      url: JSON lines, perhaps .gz, or .parquet (which needs pyarrow).

    Raises:
      ValueError: it is no such file.
    """
    if url.endswith(".parquet"):
        yield from itertools.islice(_parquet_rows(url), first, last)
        return
    with fsspec.open(url, "rb") as raw, gzip.open(raw) if url.endswith(".gz") else contextlib.nullcontext(raw) as file:
        try:
            for line in itertools.islice((line for line in file if line.strip()), first, last):
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError):
                    yield line.decode("utf-8", "replace")
        except (EOFError, OSError) as error:
            raise ValueError(f"{url} cannot be read to its end ({error}); needed are JSON lines, gzip or parquet") from error


def change_of(row: Any, with_hints: bool) -> Change | Reject:
    """What a row tells, or why it is none."""
    missing = [key for key in swebench.REQUIRED if not (isinstance(row, dict) and isinstance(row.get(key), str))]
    if missing:
        name = row.get("instance_id") if isinstance(row, dict) else None
        return Reject(str(name or f"{row!r:.80}"), STAGE, "malformed_row", f"without the texts {', '.join(missing)}")
    hints = row.get("hints_text") or ""
    number = row["instance_id"].rpartition("-")[2]
    number = int(number) if number.isdecimal() and len(number) < 10 else 0
    text = row["problem_statement"] + (f"\n\n{hints}" if with_hints and hints else "")
    title, _, body = text.partition("\n")
    created_at = row.get("created_at") or ""
    return Change(
        id=row["instance_id"], source=SOURCE, repo=row["repo"], base=row["base_commit"], head="", created_at=str(created_at),
        title=title, issues=(Issue(row["repo"], 0, title, body.strip("\n")),),
        meta={"number": number, **{key: row[key] for key in _KEPT if row.get(key)}},
    )  # fmt: skip


def candidate_of(change: Change, row: Mapping[str, Any], repository: Repository | None) -> Candidate | Reject:
    """Reads the files that a row's patch changes: whole from the clone, else what the hunks show.

    Raises:
      RepositoryError: the clone cannot be read any further.
    """
    try:
        partial = swebench.example_from_swebench(row)
        patches = list(unidiff.PatchSet(row["patch"]))
    except (ValueError, unidiff.UnidiffParseError) as error:
        partial, patches, fault = None, _parsed(row["patch"]), str(error)
    meta = {**change.meta, "tests": dict(partial.tests) if partial else {key: row[key] for key in _TESTS if key in row}}
    if repository is None:
        if partial is None and not any(map(_kind_fault, patches)):
            return Reject(change.id, STAGE, "malformed_row", fault)
        texts = (partial.files, partial.oracle) if partial else ({}, {})
        files = [_partial(file, *texts) for file in patches]
        change = _with(change, {**meta, "flags": [swebench.PARTIAL_CONTEXT]})
        return Candidate(change, change.base, tuple(sorted(files, key=lambda file: file.path)))
    before = _texts_before(repository, change.base, patches)
    if before is None:
        return Reject(change.id, STAGE, "missing_commit", change.base)
    try:
        files = [_whole(file, before) for file in patches]
    except ValueError as error:
        return Reject(change.id, STAGE, "patch_fails", str(error))
    commit = repository.commit(change.base)
    change = dataclasses.replace(change, licence=candidates.licence(repository, commit) if commit else "")
    return Candidate(_with(change, meta), change.base, tuple(sorted(files, key=lambda file: file.path)))


def _with(change: Change, meta: Mapping[str, Any]) -> Change:
    return dataclasses.replace(change, meta=meta)


def _parsed(patch: str) -> list[unidiff.PatchedFile]:
    try:
        return list(unidiff.PatchSet(patch))
    except unidiff.UnidiffParseError:
        return []


def _kind_fault(file: unidiff.PatchedFile) -> str:
    """The kind of a change that edits cannot say, "" for those that they can."""
    if file.is_binary_file:
        return kinds.BINARY
    if file.is_rename:
        return kinds.RENAME
    if file.is_removed_file:
        return kinds.DELETE
    return kinds.MODE if not file and not file.is_added_file else ""


def _paths(file: unidiff.PatchedFile) -> tuple[str, str]:
    return (file.source_file or "").removeprefix("a/"), (file.target_file or "").removeprefix("b/")


def _partial(file: unidiff.PatchedFile, files: Mapping[str, str], oracle: Mapping[str, str]) -> FileChange:
    old, new = _paths(file)
    kind = _kind_fault(file) or (kinds.NEW if file.is_added_file else kinds.EDIT)
    return FileChange(file.path, kind, files.get(old), oracle.get(new), old if kind == kinds.RENAME else "")


def _texts_before(repository: Repository, commit: str, patches: list[unidiff.PatchedFile]) -> dict[str, str | None] | None:
    """Path → text at a commit, None for what is no text; only those that are there. None where the commit is not."""
    tree = repository.tree(commit)
    if tree is None:
        return None
    wanted = {path: tree[path][1] for file in patches if (path := _paths(file)[0]) in tree}
    texts = repository.texts(wanted.values())
    return {path: texts[blob] for path, blob in wanted.items()}


def _whole(file: unidiff.PatchedFile, texts: Mapping[str, str | None]) -> FileChange:
    """Raises ValueError where the patch does not fit."""
    old, new = _paths(file)
    if file.is_added_file:
        return FileChange(new, kinds.NEW, None, _applied(file, ""))
    if kind := _kind_fault(file):
        return FileChange(file.path, kind, texts.get(old), None, old if kind == kinds.RENAME else "")
    if old not in texts:
        raise ValueError(f"{old} is not there")
    before = texts[old]
    return FileChange(new, kinds.NOT_UTF8) if before is None else FileChange(new, kinds.EDIT, before, _applied(file, before))


def _applied(file: unidiff.PatchedFile, before: str) -> str:
    """The text after the patch; every line must stand exactly where the patch has it."""
    lines = before.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    made: list[str] = []
    position = 0
    for hunk in file:
        start = max(0, hunk.source_start - 1) if hunk.source_length else hunk.source_start
        old, new = swebench.hunk_side(hunk, "-"), swebench.hunk_side(hunk, "+")
        made += lines[position:start]
        position = start + hunk.source_length
        if "".join(lines[start:position]) != old:
            raise ValueError(f"{file.path}, line {hunk.source_start}: the file reads otherwise")
        made.append(new)
    return "".join(made + lines[position:])


def _parquet_rows(url: str) -> Iterator[Any]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f"{url} is parquet, which needs pyarrow: pip install -e .[curate], in an environment of its own") from error
    with fsspec.open(url, "rb") as file:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(256):
            for row in batch.to_pylist():
                yield {key: _iso(value) if isinstance(value, datetime.datetime) else value for key, value in row.items()}


def _iso(time: datetime.datetime) -> str:
    """As JSON has it, in UTC, which a time without a zone is taken for."""
    zoned = time if time.tzinfo else time.replace(tzinfo=datetime.UTC)
    return zoned.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
