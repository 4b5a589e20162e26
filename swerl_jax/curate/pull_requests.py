"""Facts of an issue or pull request, in order → merged pull requests with the issues that they say they close.

On the path: runs → threads → **what to ask of other threads** → answers → **changes**. An issue may be in another
repository, so far away among the facts; therefore every link is a question sent there, and its answer is sent back.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from swerl_jax.curate import links
from swerl_jax.curate.change import Change, Comment, Issue, Reject
from swerl_jax.curate.facts import Fact, IssueSeen, NameSeen, PullRequestSeen, Remark

STAGE = "pull_requests"
REJECTS = ("open", "not_merged", "no_commit")

# What became of a link.
LINKED = "linked"
NOT_SEEN = "not_seen"  # no fact of such an issue
PULL_REQUEST = "pull_request"  # the number is a pull request's
NEWER = "newer"  # the issue is not older than the pull request
NO_TEXT = "no_text_before"  # its text was seen only after the pull request was opened
UNKNOWN_NAME = "unknown_repository"  # its name was seen of none, or of several and at that time not of exactly one
STATUSES = (LINKED, NOT_SEEN, PULL_REQUEST, NEWER, NO_TEXT, UNKNOWN_NAME)

MAX_LINKS = 50  # of a pull request; what names more is a release or a list


@dataclasses.dataclass(frozen=True)
class Thread:
    """All facts of one issue or pull request, each kind in order of time.

    Attributes:
      repo_id, number: which.
      names: of the repository, over all time, oldest first.
      issues, pulls, remarks: the facts.
    """

    repo_id: int
    number: int
    names: tuple[str, ...]
    issues: tuple[IssueSeen, ...]
    pulls: tuple[PullRequestSeen, ...]
    remarks: tuple[Remark, ...]


class Ask(NamedTuple):
    """A question for an issue's thread; sorts beside its facts.

    Attributes:
      repo_id, number: of the issue; the repository's name in lower case as long as its id is not known, 0 if it cannot be.
      before: when the pull request was opened.
      asker_id, asker_number: the pull request.
      position: of the link among those of the pull request.
      written: the link, for people.
    """

    repo_id: int | str
    number: int
    before: str
    asker_id: int
    asker_number: int
    position: int
    written: str


class Answer(NamedTuple):
    """What an issue's thread says; sorts beside the facts of the pull request.

    Attributes:
      asker_id, asker_number, position, written: as asked.
      repo_id, number: of the issue.
      status: one of STATUSES.
      issue: fields of an `Issue` for LINKED, else empty.
    """

    asker_id: int
    asker_number: int
    position: int
    written: str
    repo_id: int
    number: int
    status: str
    issue: Mapping[str, Any]


def threads(facts: Iterable[Fact]) -> Iterator[Thread]:
    """Yields the threads of facts that come in order of (repository, number, time)."""
    for repo_id, of_repository in itertools.groupby(facts, key=lambda fact: fact.repo_id):
        names: tuple[str, ...] = ()
        for number, group in itertools.groupby(of_repository, key=lambda fact: fact.number):
            kinds: dict[type, list[Any]] = {NameSeen: [], IssueSeen: [], PullRequestSeen: [], Remark: []}
            for fact in group:
                kinds[type(fact)].append(fact)
            if number == 0:
                names = _names(kinds[NameSeen])
            else:
                yield Thread(repo_id, number, names, *(tuple(kinds[kind]) for kind in (IssueSeen, PullRequestSeen, Remark)))


def asks(thread: Thread, message: str = "") -> list[Ask]:
    """Returns the questions of a pull request that was or may be merged, for the issues it says it closes, MAX_LINKS at most.

    Args:
      thread: any; issues and unmerged pull requests ask nothing.
      message: of the commits that it brought, where known.
    """
    if not thread.pulls:
        return []
    pull = folded(thread)
    if _reason(pull):
        return []
    found = (*links.closing_links(f"{pull.title}\n\n{pull.body}"), *links.closing_links(message, is_markdown=False))
    return [
        Ask(link.repo.lower() if link.repo and link.repo.lower() != pull.repo.lower() else thread.repo_id, link.number,
            pull.created_at, thread.repo_id, thread.number, position, f"{link.repo}#{link.number}")
        for position, link in enumerate(list(dict.fromkeys(found))[:MAX_LINKS])
    ]


def resolve(seen: Iterable[NameSeen], ask: Ask) -> Ask:
    """Returns the question with the repository's id instead of its name, 0 where it cannot be known.

    Names change hands: after a rename GitHub forwards the old one, until somebody takes it. So a name that only one
    repository ever had means that one; of several, the one that was seen under it before and after the moment.

    Args:
      seen: everything seen under the name of `ask`, of any repositories.
    """
    spans: dict[int, tuple[str, str]] = {}
    for name in seen:
        first, last = spans.get(name.repo_id, (name.at, name.last))
        spans[name.repo_id] = min(first, name.at), max(last, name.last)
    found = list(spans)
    if len(found) > 1:
        found = [repo_id for repo_id, (first, last) in spans.items() if first <= ask.before <= last]
    return ask._replace(repo_id=found[0] if len(found) == 1 else 0)


def answer(thread: Thread | None, ask: Ask) -> Answer:
    """Returns the issue as it stood before the pull request was opened, or why there is none.

    Args:
      thread: of the issue; None where there are no facts of it.
    """
    if ask.repo_id == 0:
        return _answer(ask, UNKNOWN_NAME)
    if thread is None or not (thread.issues or thread.pulls):
        return _answer(ask, NOT_SEEN)
    if thread.pulls:
        return _answer(ask, PULL_REQUEST)
    created_at = next((seen.created_at for seen in thread.issues if seen.created_at), thread.issues[0].at)
    if created_at >= ask.before:
        return _answer(ask, NEWER)
    texts = [seen for seen in thread.issues if seen.at < ask.before]
    if not texts:
        return _answer(ask, NO_TEXT)
    last = texts[-1]
    issue = Issue(
        repo=last.repo, number=last.number, title=last.title, body=last.body, author=last.author, created_at=created_at,
        labels=last.labels, comments=_comments(remark for remark in thread.remarks if remark.at < ask.before),
    )  # fmt: skip
    return _answer(ask, LINKED, dataclasses.asdict(issue))


def change(thread: Thread, answers: Sequence[Answer]) -> Change | Reject:
    """Returns what the thread of a pull request tells, with the issues that answered.

    Args:
      answers: to the questions of this pull request, in order of their position.

    Returns:
      A change whose `meta` holds what else was seen: "number", "merged" (None where the cut payloads do not say),
      "merged_at", "schema" ("2025" where title, body and the rest have to come from the clone), "names" (of the
      repository, oldest first), "links" (link → what became of it), "bots" (accounts known to be such), and more.
    """
    pull = folded(thread)
    name = thread.names[-1] if thread.names else pull.repo
    identity = f"{name}#{thread.number}@{thread.repo_id}"  # a name may come to mean another repository
    if reason := _reason(pull):
        return Reject(identity, STAGE, reason)
    linked = {(found.repo_id, found.number): found for found in reversed(answers) if found.status == LINKED}
    issues = [found for found in answers if linked.get((found.repo_id, found.number)) is found]
    return Change(
        id=identity, source="gharchive", repo=name, repo_id=thread.repo_id, base=pull.base, head=pull.head,
        merge_commit=pull.merge_commit, title=pull.title, body=pull.body, author=pull.author, created_at=pull.created_at,
        issues=tuple(issue_from_json(found.issue) for found in issues), conversation=_comments(thread.remarks),
        language=pull.language, licence=pull.licence,
        meta={
            "number": thread.number, "schema": pull.schema, "merged": pull.merged, "merged_at": pull.merged_at,
            "names": list(thread.names or (pull.repo,)), "base_ref": pull.base_ref, "head_ref": pull.head_ref,
            "is_opening_seen": any(seen.created_at or seen.action == "opened" for seen in thread.pulls),
            "links": {found.written: found.status for found in answers},
            "issue_repo_ids": [found.repo_id for found in issues],
            "is_bot": pull.is_bot, "labels": list(pull.labels), "is_fork": pull.is_fork,
            "bots": sorted({fact.author for fact in (*thread.pulls, *thread.remarks) if fact.is_bot}),
            **{key: getattr(pull, key) for key in ("files", "additions", "deletions", "commits", "stars")},
        },
    )  # fmt: skip


def folded(thread: Thread) -> PullRequestSeen:
    """Returns what all facts of a pull request tell together.

    The text is the last seen up to its end, when GitHub decides what it closes; commits are those of its end;
    `created_at` is never empty: where unknown, the first moment at which it was seen.
    """
    seen = thread.pulls
    ends = [fact for fact in seen if fact.action in ("closed", "merged")]
    merges = [fact for fact in seen if fact.merged]
    end = next((fact for fact in merges if fact in ends), ends[-1] if ends else seen[-1])
    texts = [fact for fact in seen if fact.title]
    text = next((fact for fact in reversed(texts) if fact.at <= end.at), texts[0] if texts else seen[0])
    newest_first = (end, *reversed(seen))
    told: dict[str, Any] = {key: _first(newest_first, key) for key in (
        "base_ref", "base", "head_ref", "head", "language", "licence", "stars", "is_fork")}  # fmt: skip
    told |= {key: _first(newest_first, key) for key in ("files", "additions", "deletions", "commits")}
    return end._replace(
        repo=seen[-1].repo, author=_first(seen, "author") or "", is_bot=any(fact.is_bot for fact in seen),
        created_at=_first(seen, "created_at") or min((fact.at for fact in seen if fact.action == "opened"), default=seen[0].at),
        title=text.title, body=text.body, labels=text.labels,
        action="closed" if ends or merges else "opened",
        merged=True if merges else end.merged if ends else None,
        merged_at=_first(merges, "merged_at") or (merges[0].at if merges else ""),
        merge_commit=_first(merges, "merge_commit") or "",
        schema="2015" if any(fact.schema == "2015" for fact in ends) else "2025",
        **told,
    )  # fmt: skip


def issue_from_json(fields: Mapping[str, Any]) -> Issue:
    """Returns the issue whose fields an answer carries."""
    comments = tuple(Comment(**comment) for comment in fields["comments"])
    return Issue(**{**fields, "labels": tuple(fields["labels"]), "comments": comments})


def _reason(pull: PullRequestSeen) -> str:
    if pull.action != "closed":
        return "open"
    if pull.merged is False:
        return "not_merged"
    return "" if pull.head or pull.merge_commit else "no_commit"


def _answer(ask: Ask, status: str, issue: Mapping[str, Any] | None = None) -> Answer:
    return Answer(ask.asker_id, ask.asker_number, ask.position, ask.written, ask.repo_id, ask.number, status, issue or {})


def _names(seen: Sequence[NameSeen]) -> tuple[str, ...]:
    """Returns the names in order of when each was last seen."""
    last: dict[str, str] = {}
    for name in seen:
        last[name.repo] = max(name.last, last.get(name.repo, ""))
    return tuple(sorted(last, key=lambda name: (last[name], name)))


def _comments(remarks: Iterable[Remark]) -> tuple[Comment, ...]:
    """Returns the remarks in order of when they were written, each in its last wording."""
    latest: dict[tuple[str, int], Remark] = {}
    for remark in remarks:
        latest[remark.where, remark.remark or -remark.event] = remark
    ordered = sorted(latest.values(), key=lambda remark: (remark.created_at, remark.remark, remark.event))
    return tuple(Comment(remark.where, remark.author, remark.created_at, remark.body, remark.path) for remark in ordered)


def _first(facts: Iterable[PullRequestSeen], key: str) -> Any:
    """Returns the first value that is told, else the empty one of its type."""
    values = [getattr(fact, key) for fact in facts]
    return next((value for value in values if value not in ("", None)), values[0] if values else "")
