"""What an event of GH Archive tells of an issue or a pull request, as small records.

On the path: a line of an hour's file → **facts** → runs, sorted by repository → pull requests with their issues.

On 2025-10-07 GitHub cut its payloads: a pull request's own events then lack title, body and whether it was merged. Both
forms are read, told apart by what is there; what is missing may be told by comments and reviews, which repeat parts of it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

_EVENT = re.compile(r"\d{1,18}", re.ASCII)
_SECONDS = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


class Incomplete(Exception):
    """An event lacks what no fact can be without: repository, number or time."""


class NameSeen(NamedTuple):
    """What a repository was called. Like every fact a tuple that sorts by its first six columns; before all others.

    Attributes:
      repo_id: GitHub's number of it, which never changes.
      number, event: 0.
      at, last: when it was first and last seen under this name.
      kind: "name".
      repo: "owner/name".
    """

    repo_id: int
    number: int
    at: str
    event: int
    kind: str
    repo: str
    last: str


class IssueSeen(NamedTuple):
    """The text of an issue at a moment.

    Attributes:
      repo_id, number: of the issue.
      at: from when on it surely read so: the later of the event's time and the issue's last update; the payload may be
        younger than its event.
      event: the event's id.
      kind: "issue".
      repo: "owner/name" at that time.
      author: login, "" where unknown; is_bot: by the account's type or name.
      created_at, title, body, labels: of the issue.
    """

    repo_id: int
    number: int
    at: str
    event: int
    kind: str
    repo: str
    author: str
    is_bot: bool
    created_at: str
    title: str
    body: str
    labels: tuple[str, ...]


class PullRequestSeen(NamedTuple):
    """What one event tells of a pull request; "" or None where it does not.

    Attributes:
      repo_id, number, at, event, repo, author, is_bot, created_at, title, body, labels: as of IssueSeen.
      kind: "pull_request".
      action: the event's ("opened", "closed", "merged", …), or "commented" and "reviewed" where another event told it.
      merged: None where unknown.
      merged_at, merge_commit, base_ref, base, head_ref, head: as GitHub has them; commits are full ids.
      language, licence: the repository's main language and SPDX id.
      files, additions, deletions, commits, stars: counts.
      is_fork: the repository is one.
      schema: "2015", or "2025" for the cut payloads.
    """

    repo_id: int
    number: int
    at: str
    event: int
    kind: str
    repo: str
    author: str
    is_bot: bool
    created_at: str
    title: str
    body: str
    labels: tuple[str, ...]
    action: str
    merged: bool | None
    merged_at: str
    merge_commit: str
    base_ref: str
    base: str
    head_ref: str
    head: str
    language: str
    licence: str
    files: int | None
    additions: int | None
    deletions: int | None
    commits: int | None
    stars: int | None
    is_fork: bool | None
    schema: str


class Remark(NamedTuple):
    """A comment or a review, with text.

    Attributes:
      repo_id, number, at, event, repo, author, is_bot, created_at, body: as of IssueSeen.
      kind: "remark".
      where: "issue", "pull_request", "review" or "review_comment", as in `change.Comment`.
      remark: its id at GitHub among those of the same `where`.
      path: the file that a review comment is about.
      state: of a review: "approved", "changes_requested", "commented", "dismissed".
    """

    repo_id: int
    number: int
    at: str
    event: int
    kind: str
    repo: str
    author: str
    is_bot: bool
    created_at: str
    body: str
    where: str
    remark: int
    path: str
    state: str


Fact = NameSeen | IssueSeen | PullRequestSeen | Remark
_FACTS: Mapping[str, type] = {"name": NameSeen, "issue": IssueSeen, "pull_request": PullRequestSeen, "remark": Remark}


def fact_from_row(row: list[Any]) -> Fact:
    """Returns the fact whose columns were written as a JSON list."""
    return _FACTS[row[4]](*(tuple(value) if isinstance(value, list) else value for value in row))


def facts_of(event: Mapping[str, Any]) -> list[Fact]:
    """Returns what an event of a type in WANTED tells.

    Raises:
      Incomplete: if it lacks repository, number or time.
    """
    return list(WANTED[event["type"]](_Event(event)))


class _Event:
    """What all facts of an event share."""

    def __init__(self, event: Mapping[str, Any]):
        repo = _object(event.get("repo"))
        self.repo_id = _number(repo.get("id")) or 0
        self.repo = _text(repo.get("name"))
        self.at = utc(event.get("created_at"))
        self.payload = _object(event.get("payload"))
        self.action = _text(self.payload.get("action"))
        name = str(event.get("id"))
        self.event = int(name) if _EVENT.fullmatch(name) else 0
        if self.repo_id <= 0 or not self.at or "/" not in self.repo.strip("/"):
            raise Incomplete

    def key(self, number: Any, at: str, kind: str) -> tuple[int, int, str, int, str, str]:
        number = _number(number)
        if not number or number < 0:
            raise Incomplete
        return self.repo_id, number, max(self.at, at), self.event, kind, self.repo


def utc(value: Any) -> str:
    """Returns ISO 8601 in UTC to the second, "" for what is no time."""
    if not isinstance(value, str):
        return ""
    if _SECONDS.fullmatch(value):
        return value
    try:
        time = datetime.datetime.fromisoformat(value.replace(" UTC", "Z"))
    except ValueError:
        return ""
    if time.tzinfo is None:
        time = time.replace(tzinfo=datetime.UTC)
    try:
        return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        return ""


def _from_issue(event: _Event) -> Iterator[Fact]:
    yield _issue(event, _object(event.payload.get("issue")))


def _from_issue_comment(event: _Event) -> Iterator[Fact]:
    issue, comment = _object(event.payload.get("issue")), _object(event.payload.get("comment"))
    if event.action == "deleted":
        return
    is_pull_request = bool(issue.get("pull_request"))
    if not is_pull_request:
        yield _issue(event, issue)
    elif "author_association" not in comment:  # the cut payloads: the pull request's own events lack its text
        told = {**issue, "merged_at": _object(issue["pull_request"]).get("merged_at")}
        yield _pull_request(event, told, issue.get("number"), "commented")
    yield from _remark(event, issue.get("number"), comment, "pull_request" if is_pull_request else "issue")


def _from_pull_request(event: _Event) -> Iterator[Fact]:
    told = _object(event.payload.get("pull_request"))
    yield _pull_request(event, told, event.payload.get("number") or told.get("number"), event.action)


def _from_review(event: _Event) -> Iterator[Fact]:
    yield from _from_reviewing(event, _object(event.payload.get("review")), "review")


def _from_review_comment(event: _Event) -> Iterator[Fact]:
    yield from _from_reviewing(event, _object(event.payload.get("comment")), "review_comment")


def _from_reviewing(event: _Event, remark: Mapping[str, Any], where: str) -> Iterator[Fact]:
    told = _object(event.payload.get("pull_request"))
    if event.action == "deleted":
        return
    if "author_association" not in remark and "title" in told:
        yield _pull_request(event, told, told.get("number"), "reviewed")
    yield from _remark(event, told.get("number"), remark, where)


WANTED: Mapping[str, Callable[[_Event], Iterator[Fact]]] = {
    "IssuesEvent": _from_issue,
    "IssueCommentEvent": _from_issue_comment,
    "PullRequestEvent": _from_pull_request,
    "PullRequestReviewEvent": _from_review,
    "PullRequestReviewCommentEvent": _from_review_comment,
}


def _issue(event: _Event, issue: Mapping[str, Any]) -> IssueSeen:
    key = event.key(issue.get("number"), utc(issue.get("updated_at")), "issue")
    return IssueSeen(*key, *_author(issue), utc(issue.get("created_at")), *_words(issue))


def _pull_request(event: _Event, told: Mapping[str, Any], number: Any, action: str) -> PullRequestSeen:
    base, head = _object(told.get("base")), _object(told.get("head"))
    repo = _object(base.get("repo"))
    merged = told.get("merged")
    merged_at = utc(told.get("merged_at"))
    if not isinstance(merged, bool):
        merged = True if merged_at or action == "merged" else None
    licence = _text(_object(repo.get("license")).get("spdx_id"))
    return PullRequestSeen(
        *event.key(number, utc(told.get("updated_at")), "pull_request"), *_author(told), utc(told.get("created_at")),
        *_words(told), action, merged, merged_at, _text(told.get("merge_commit_sha")) if merged else "",
        _text(base.get("ref")), _text(base.get("sha")), _text(head.get("ref")), _text(head.get("sha")),
        _text(repo.get("language")), "" if licence == "NOASSERTION" else licence,
        *(_number(told.get(name)) for name in ("changed_files", "additions", "deletions", "commits")),
        _number(repo.get("stargazers_count")), repo["fork"] if isinstance(repo.get("fork"), bool) else None,
        "2015" if "title" in told and action not in ("commented", "reviewed") else "2025",
    )  # fmt: skip


def _remark(event: _Event, number: Any, remark: Mapping[str, Any], where: str) -> Iterator[Remark]:
    body = _text(remark.get("body"))
    key = event.key(number, utc(remark.get("updated_at")), "remark")
    if body.strip():  # most approvals say nothing
        written = utc(remark.get("created_at")) or utc(remark.get("submitted_at")) or event.at
        yield Remark(*key, *_author(remark), written, body, where, _number(remark.get("id")) or 0,
                     _text(remark.get("path")), _text(remark.get("state")).lower())


def _author(value: Mapping[str, Any]) -> tuple[str, bool]:
    user = _object(value.get("user"))
    login = _text(user.get("login"))
    return login, user.get("type") == "Bot" or login.endswith("[bot]")


def _words(value: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    labels = value.get("labels")
    names = [_text(_object(label).get("name")) for label in labels] if isinstance(labels, list) else []
    return _text(value.get("title")), _text(value.get("body")), tuple(name for name in names if name)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return ""
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # half of a pair, escaped in JSON: it cannot be written as UTF-8
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value
