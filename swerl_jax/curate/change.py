"""What every source finds and every later stage handles: a fix that somebody made, and what became of it.

On the path: clones, archives, rows → **Change** → Candidate (with the files' texts) → Example, or Reject with a reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# How a path differs between the two sides of a change. Only EDIT and NEW can be written as search/replace edits.
EDIT = "edit"
NEW = "new"
DELETE = "delete"
RENAME = "rename"  # with or without edits; known under the new path
MODE = "mode"  # only the permission bits
BINARY = "binary"  # NUL bytes on either side
NOT_UTF8 = "not_utf8"
SYMLINK = "symlink"
SUBMODULE = "submodule"
ODD_PATH = "odd_path"  # a name that no example can hold: not UTF-8, or with characters that cannot be seen
MISSING = "missing"  # the clone lacks the object (partial or damaged clone)
TOO_LARGE = "too_large"
KINDS = (EDIT, NEW, DELETE, RENAME, MODE, BINARY, NOT_UTF8, SYMLINK, SUBMODULE, ODD_PATH, MISSING, TOO_LARGE)


@dataclasses.dataclass(frozen=True)
class Comment:
    """One contribution to a conversation.

    Attributes:
      kind: "issue", "pull_request", "review" or "review_comment": where it was written.
      author: login, "" where unknown.
      created_at: ISO 8601 in UTC, e.g. "2024-01-31T12:00:00Z".
      body: its text.
      path: the file a review comment is about, else "".
    """

    kind: str
    author: str
    created_at: str
    body: str
    path: str = ""


@dataclasses.dataclass(frozen=True)
class Issue:
    """A problem somebody reported, as it stood *before* the fix was proposed.

    Attributes:
      repo: "owner/name" it was reported in (another repository's for cross-repository links).
      number: its number there; 0 for text that is no tracked issue (a commit message).
      title, body: the last seen before the pull request was opened.
      author, created_at: as in Comment.
      labels: names.
      comments: in time order.
    """

    repo: str
    number: int
    title: str
    body: str
    author: str = ""
    created_at: str = ""
    labels: tuple[str, ...] = ()
    comments: tuple[Comment, ...] = ()


@dataclasses.dataclass(frozen=True)
class Change:
    """A fix: which two commits, and what was said about it; no file contents.

    Attributes:
      id: unique within a source, stable between runs, e.g. "owner/name#12" or "owner/name@<head>".
      source: "git", "gharchive" or "swebench".
      repo: "owner/name"; for a clone without such a remote the directory's name.
      repo_id: GitHub's number of the repository, 0 where unknown.
      base: commit on the branch that it was merged into, before the merge ("" where only the merge commit is known).
      head: the last commit of the change.
      merge_commit: the commit that brought it in, "" where unknown.
      title, body: of the pull request, or of the commit's message.
      author, created_at: who proposed it and when (ISO 8601, UTC).
      issues: what it says it fixes; empty where nothing is linked.
      conversation: the pull request's own comments and reviews, in time order.
      language, licence: as the source tells them, "" where it does not.
      meta: anything else worth keeping, JSON values only.
    """

    id: str
    source: str
    repo: str
    base: str
    head: str
    repo_id: int = 0
    merge_commit: str = ""
    title: str = ""
    body: str = ""
    author: str = ""
    created_at: str = ""
    issues: tuple[Issue, ...] = ()
    conversation: tuple[Comment, ...] = ()
    language: str = ""
    licence: str = ""
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class FileChange:
    """One path of a change.

    Attributes:
      path: after the change; before it where the change deletes the file.
      kind: one of KINDS.
      before: text before; None where there is none (NEW) or it is no text.
      after: text after; None where there is none (DELETE) or it is no text.
      old_path: before a rename, else "".
    """

    path: str
    kind: str
    before: str | None = None
    after: str | None = None
    old_path: str = ""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A change with the text of every path it touches, read at the merge base and at its end.

    Attributes:
      change: what was found.
      commit: full id of the merge base, at which `before` was read.
      files: sorted by path.
    """

    change: Change
    commit: str
    files: tuple[FileChange, ...]


@dataclasses.dataclass(frozen=True)
class Reject:
    """What was dropped: `reason` is a name from a closed list of its stage, `detail` what a person needs to see why."""

    id: str
    stage: str
    reason: str
    detail: str = ""
