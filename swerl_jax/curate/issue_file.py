"""Issues from a file of JSON lines, and those among them that a change says it closes.

On the path: a file of issues + the messages of a change → **linked issues** → Change.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from swerl_jax.curate import links
from swerl_jax.curate.change import Comment, Issue
from swerl_jax.curate.facts import utc

Issues = Mapping[tuple[str, int], Issue]  # (repository in lower case, "" where the file names none; number)


def read_issues(path: str | os.PathLike[str], repo: str, is_only: bool = True) -> tuple[dict[tuple[str, int], Issue], list[str]]:
    """Reads the issues of one repository.

    Args:
      path: JSON lines, perhaps .gz: `number` and `title` are needed; `repo` ("owner/name"), `body`, `author`,
        `created_at` (ISO 8601), `labels` (names) and `comments` (objects of `author`, `created_at`, `body`) are used; as
        GitHub's REST API has them, `repository_url`, `user.login` and labels with a `name` will do. Rows with a
        `pull_request` are none.
      repo: rows that name another one are passed over.
      is_only: False: there are other repositories, so that a row without one cannot be used.

    Returns:
      Issues by repository and number, the last of a number; and a line of text for every row that could not be used.
    """
    found: dict[tuple[str, int], Issue] = {}
    faults = []
    unnamed = 0
    opened = gzip.open(path, "rb") if os.fspath(path).endswith(".gz") else open(path, "rb")
    with opened as file:
        for number, line in enumerate(file, start=1):
            try:
                issue = _issue(json.loads(line)) if line.strip() else None
            except (ValueError, RecursionError) as error:
                faults.append(f"{os.fspath(path)}, row {number}: {error}")
                continue
            if issue and not issue.repo and not is_only:
                unnamed += 1
            elif issue and issue.repo.lower() in ("", repo.lower()):
                found[issue.repo.lower(), issue.number] = dataclasses.replace(issue, repo=repo)
    if unnamed:
        faults.append(f"{os.fspath(path)}: {unnamed} rows were left out, for they name no repository and there is more than one "
                      "clone; needed is repo, such as \"owner/name\"")
    return found, faults


def linked_issues(texts: Iterable[str], repo: str, before: str, issues: Issues) -> tuple[Issue, ...]:
    """Returns the issues that the texts say they close, in order, as they stood at a time.

    Args:
      texts: messages of a change.
      repo: of the change.
      before: ISO 8601, UTC; later issues and comments are left out. "" for no such bound.
      issues: those known.
    """
    named = dict.fromkeys(link for text in texts for link in links.closing_links(text, is_markdown=False))
    found = []
    for link in named:
        keys = [((link.repo or repo).lower(), link.number)]
        keys += [("", link.number)] if link.repo.lower() in ("", repo.lower()) else []
        issue = next((issues[key] for key in keys if key in issues), None)
        if issue and issue not in found and (not before or issue.created_at <= before):
            found.append(issue)
    return tuple(
        dataclasses.replace(issue, comments=tuple(c for c in issue.comments if not before or c.created_at <= before))
        for issue in found
    )


def _issue(row: Any) -> Issue | None:
    if not isinstance(row, dict):
        raise ValueError(f"the row is {type(row).__name__}; needed is an object")
    if row.get("pull_request"):
        return None
    number = row.get("number")
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"number is {number!r:.40}; needed is a positive integer")
    labels = row.get("labels") or []
    comments = row.get("comments") or []
    return Issue(
        repo=_text(row, "repo") or "/".join(_text(row, "repository_url").rstrip("/").split("/")[-2:]),
        number=number,
        title=_text(row, "title"),
        body=_text(row, "body"),
        author=_author(row),
        created_at=_time(row),
        labels=tuple(name for label in labels if (name := _label(label))) if isinstance(labels, list) else (),
        comments=tuple(
            Comment("issue", _author(comment), _time(comment), _text(comment, "body"))
            for comment in (comments if isinstance(comments, list) else ())  # a count, as the REST API has it, is none
            if isinstance(comment, dict)
        ),
    )


def _author(row: Mapping[str, Any]) -> str:
    user = row.get("user")
    return _text(row, "author") or (_text(user, "login") if isinstance(user, dict) else "")


def _label(label: Any) -> str:
    name = label.get("name") if isinstance(label, dict) else label
    return name if isinstance(name, str) else ""


def _time(row: Mapping[str, Any]) -> str:
    written = _text(row, "created_at")
    time = utc(written)
    if written and not time:
        raise ValueError(f"created_at is {written!r:.40}; needed is ISO 8601, such as 2024-01-31T12:00:00Z")
    return time


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key) or ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is {type(value).__name__} {value!r:.40}; needed is a string")
    return value.encode("utf-8", "replace").decode("utf-8")
