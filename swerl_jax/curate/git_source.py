"""Fixes in a clone's own history: merges, squashed pull requests and plain commits of the main line.

On the path: clone → **Change**, or Reject with a reason for every commit that is none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from swerl_jax.curate import attempts, git_message
from swerl_jax.curate.change import Change, Issue, Reject
from swerl_jax.curate.git_message import Message
from swerl_jax.curate.git_objects import Commit
from swerl_jax.curate.issue_file import Issues, linked_issues
from swerl_jax.curate.repository import Repository

STAGE = attempts.STAGE
REASONS = {
    "no_commits": "the clone has none",
    "root": "a commit without a parent changes nothing: it begins",
    "shallow": "the clone's history is cut off here, so what the commit changed is unknown",
    "octopus": "a merge of several branches at once is several changes",
    "revert": "it takes back another change",
    "reverted": "a later commit took it back",
    "merge_of_upstream": "a main or release line was merged: many changes, each of which is looked at by itself",
    "empty": "its files equal those of its first parent",
}

# What Change.meta says of changes from here.
MESSAGE_AS_ISSUE = "message_as_issue"  # true where no issue is linked, and the message stands for one
MERGE, SQUASH, COMMIT = "merge", "squash", "commit"  # meta["kind"]

_BRANCH_COMMITS = 100  # of a merged branch, whose messages are looked at
_MERGE_PATTERNS = ("^Merge(d| pull request| PR| branch|d in) ", "^Auto merge of #", r"\((#|pull request #)[0-9]+\) *$",
                   "^See merge request ")


@dataclasses.dataclass(frozen=True)
class Reverted:
    """What later commits of a history took back: ids (perhaps shortened) by their first seven digits, numbers, titles
    with the latest time at which they were taken back."""

    ids: Mapping[str, tuple[str, ...]]
    numbers: frozenset[int]
    titles: Mapping[str, int]

    def holds(self, commit: Commit, message: Message) -> bool:
        """Whether the commit, or the branch that it merged, was taken back."""
        for id_ in (commit.id, *commit.parents[1:]):
            if any(id_.startswith(named) for named in self.ids.get(id_[:7], ())):
                return True
        return message.number in self.numbers or self.titles.get(message.title, 0) > commit.committed_s


def changes(
    repository: Repository, first: int = 0, last: int | None = None, issues: Issues | None = None
) -> Iterator[Change | Reject]:
    """Yields what each commit of the history (`Repository.commits`) is: a change, or why it is none.

    Args:
      repository: an open clone.
      first, last: positions in the history, oldest first, `last` not included; None for its end.
      issues: those known (`issue_file.read_issues`); they are linked by closing keywords in the messages.

    Raises:
      RepositoryError: the clone cannot be read any further.
    """
    repo = repository.name()
    if not repository.count():
        yield Reject(repo, STAGE, "no_commits", f"{repository.path} has none")
        return
    reverted = find_reverted(repository)
    for commit in repository.commits(first, last):
        id_ = f"{repo}@{commit.id}"
        yield attempts.attempt(id_, repository, _found, repository, id_, repo, commit, reverted, issues)


def _found(repository: Repository, id_: str, repo: str, commit: Commit, reverted: Reverted, issues: Issues | None,
           ) -> Change | Reject:
    message = git_message.parse_message(commit.message)
    reason, detail = _reason(repository, commit, message, reverted)
    return Reject(id_, STAGE, reason, detail) if reason else _change(repository, id_, repo, commit, message, issues)


def find_reverted(repository: Repository) -> Reverted:
    """Reads from a whole history what was taken back in it."""
    ids: dict[str, tuple[str, ...]] = {}
    numbers: set[int] = set()
    titles: dict[str, int] = {}
    for commit in repository.matching(git_message.REVERT_PATTERNS):
        revert = git_message.parse_revert(commit.message)
        if not revert:
            continue
        for id_ in revert.ids:
            ids[id_[:7]] = (*ids.get(id_[:7], ()), id_)
        numbers |= set(revert.numbers)
        if not revert.ids and not revert.numbers:  # a title alone may be another's too, so it counts last
            titles |= {title: max(commit.committed_s, titles.get(title, 0)) for title in revert.titles}
    return Reverted(ids, frozenset(numbers - {0}), titles)


def merged_pull_requests(repository: Repository) -> dict[int, str]:
    """Returns the number of every pull request that the history names, with the first commit that brought it in."""
    found: dict[int, str] = {}
    for commit in repository.matching(_MERGE_PATTERNS):  # latest first, so that the first one stays
        message = git_message.parse_message(commit.message)
        if message.number and not git_message.parse_revert(commit.message):
            found[message.number] = commit.id
    return found


def completed(change: Change, repository: Repository, merged: Mapping[int, str]) -> Change:
    """Returns the change with what its events left out, as far as the clone tells it.

    Args:
      change: of the archive; meta["number"] is the pull request's.
      repository: a clone of its repository.
      merged: `merged_pull_requests` of it.

    Returns:
      The change; meta["merged"] is true where the clone has what was merged.
    """
    commit = merge_of(change, repository, merged)
    if not commit:
        return change
    message = _told(repository, commit, git_message.parse_message(commit.message))
    return dataclasses.replace(
        change,
        merge_commit=commit.id,
        title=change.title or message.title,
        body=change.body or message.body,
        author=change.author or commit.author,
        created_at=change.created_at or commit.created_at,
        meta={**change.meta, "merged": True},
    )


def merge_of(change: Change, repository: Repository, merged: Mapping[int, str]) -> Commit | None:
    """Returns the commit that brought a pull request in, None where the clone has none, or one that is another's.

    A number alone can be that of another repository's pull request, from before a fork or a move. So a commit known by it
    must be no older than the pull request (where that is known), a merge must be of its head, and its base must be there.

    Args:
      change, repository, merged: as of `completed`.
    """
    if change.merge_commit:
        return repository.commit(change.merge_commit)
    commit = repository.commit(merged.get(change.meta.get("number", 0), ""))
    if not commit or change.meta.get("is_opening_seen") and commit.committed_at < change.created_at:
        return None
    if len(commit.parents) == 2 and change.head not in ("", commit.parents[1]):
        return None
    return commit if not change.base or repository.is_shallow or repository.commit(change.base) else None


def _reason(repository: Repository, commit: Commit, message: Message, reverted: Reverted) -> tuple[str, str]:
    if not commit.parents:
        return "root", ""
    parent = repository.commit(commit.parents[0])
    if not parent:
        return "shallow", f"parent {commit.parents[0]} is not there"
    if len(commit.parents) > 2:
        return "octopus", f"{len(commit.parents)} parents"
    title = message.title or commit.message[:80]
    if git_message.parse_revert(commit.message):
        return "revert", title
    if reverted.holds(commit, message):
        return "reverted", title
    if len(commit.parents) == 2 and git_message.brings_in_upstream(commit.message, repository.owner):
        return "merge_of_upstream", commit.message[:80]
    return ("empty", title) if parent.tree == commit.tree else ("", "")


def _change(
    repository: Repository, id_: str, repo: str, commit: Commit, message: Message, issues: Issues | None
) -> Change:
    is_merge = len(commit.parents) == 2
    branch = _branch(repository, commit) if is_merge and (issues is not None or not message.title) else []
    message = _first_told(message, branch)
    created_at = branch[0].created_at if branch else commit.created_at
    texts = [commit.message, *(made.message for made in branch)]
    linked = linked_issues(texts, repo, created_at, issues) if issues else ()
    kind = MERGE if is_merge else SQUASH if message.is_squash else COMMIT
    meta = {"kind": kind, "number": message.number, "branch": message.branch, "committed_at": commit.committed_at}
    if not linked:
        meta[MESSAGE_AS_ISSUE] = True
        body = git_message.without_trailers(message.body)
        linked = (Issue(repo, 0, message.title, body, commit.author, created_at),)
    return Change(
        id=id_,
        source="git",
        repo=repo,
        base=commit.parents[0],
        head=commit.parents[-1] if is_merge else commit.id,
        merge_commit=commit.id,
        title=message.title,
        body=message.body,
        author=branch[0].author if branch else commit.author,
        created_at=created_at,
        issues=linked,
        meta={key: value for key, value in meta.items() if value},
    )


def _told(repository: Repository, commit: Commit, message: Message) -> Message:
    return message if message.title else _first_told(message, _branch(repository, commit))


def _first_told(message: Message, branch: list[Commit]) -> Message:
    """Returns the message, of a merge that tells nothing with what the first commit of its branch says."""
    if message.title or not branch:
        return message
    first = git_message.parse_message(branch[0].message)
    return dataclasses.replace(message, title=first.title, body=first.body)


def _branch(repository: Repository, merge: Commit) -> list[Commit]:
    """Returns the commits of the branch that a merge brought in, oldest first, the latest _BRANCH_COMMITS of them."""
    if len(merge.parents) != 2:
        return []
    if not all(repository.commit(parent) for parent in merge.parents):
        return []
    bases = set(repository.merge_bases(*merge.parents).ids)
    found: list[Commit] = []
    next_id = merge.parents[1]
    while next_id not in bases and len(found) < _BRANCH_COMMITS and (commit := repository.commit(next_id)):
        found.append(commit)
        next_id = commit.parents[0] if commit.parents else ""
    return found[::-1]
