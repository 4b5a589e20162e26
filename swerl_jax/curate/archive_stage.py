"""Merged pull requests of an archive, each with a clone of its repository.

On the path: `gharchive:DIR` → hours → facts → asks → answers → **changes, judged by bucket of repositories**. `archive` says
what each step does; here it is told to do so for all items, and joined to the clones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from swerl_jax.curate import archive, attempts, git_source, judge, outcomes, pull_requests, runs
from swerl_jax.curate.change import Change, Reject
from swerl_jax.curate.clones import Clone, Clones
from swerl_jax.curate.contamination import normal_name
from swerl_jax.curate.git_objects import Commit
from swerl_jax.curate.judge import JudgeSettings, Tally
from swerl_jax.curate.outcomes import Verdict
from swerl_jax.curate.pull_requests import Thread
from swerl_jax.curate.repository import Repository, RepositoryError
from swerl_jax.data.records import Example

REASONS = {
    "no_clone": "there is no clone of its repository",
}
PULL_REASONS = {
    "open": "it was not closed",
    "not_merged": "it was closed without being merged",
    "no_commit": "no event names its commits",
    "merge_unknown": "neither its events nor the clone tell whether it was merged",
}
_Merged = Callable[[Repository], dict[int, str]]  # number of a pull request → the commit that brought it in
_BRANCH_COMMITS = 100  # of a pull request, whose messages are searched for links


@dataclasses.dataclass(frozen=True)
class Joining:
    """What the steps share: into how many parts repositories are divided, and the clones."""

    buckets: int
    clones: tuple[Clone, ...] = ()


def write_hour(joining: Joining, path: str, out: str) -> Any:
    """Reads one file of events; a stage's function."""
    return archive.write_hour(path, out + outcomes.RUN, joining.buckets)


def merge(shared: None, urls: Sequence[str], out: str) -> Any:
    """Merges runs into one; a stage's function."""
    del shared
    return {"rows": runs.merge_runs(urls, out + outcomes.RUN)}


def names_seen(joining: Joining, facts: Sequence[str], bucket: int, wanted: Sequence[str], ids: Sequence[int], out: str) -> Any:
    """Which repositories had one of the wanted names, and which names repositories of these ids had; a stage's function."""
    del out
    names, numbers = frozenset(wanted), frozenset(ids)
    rows = runs.read_bucket(facts, joining.buckets + bucket)
    return sorted({(row[0], row[1]) for row in rows if row[1] in numbers or normal_name(row[0]) in names})


def ask(joining: Joining, facts: Sequence[str], bucket: int, out: str) -> Any:
    """Asks for the issues of a bucket's pull requests, by what they and their commits say; a stage's function."""
    with Clones(joining.clones) as clones:
        messages = functools.partial(_messages, clones, _remembered(git_source.merged_pull_requests))
        archive.ask(facts, bucket, joining.buckets, out + outcomes.RUN, messages)


def resolve(joining: Joining, facts: Sequence[str], asks: Sequence[str], bucket: int, out: str) -> Any:
    """Finds the repositories of a bucket of names; a stage's function."""
    archive.resolve(facts, asks, bucket, joining.buckets, out + outcomes.RUN)


def answer(joining: Joining, facts: Sequence[str], asks: Sequence[str], bucket: int, out: str) -> Any:
    """Answers what is asked of a bucket's issues; a stage's function."""
    archive.answer(facts, asks, bucket, joining.buckets, out + outcomes.RUN)


def read_bucket(shared: tuple[JudgeSettings, Joining], facts: Sequence[str], answers: Sequence[str], bucket: int, out: str,
                ) -> Any:
    """Judges the pull requests of a bucket of repositories; a stage's function."""
    settings, joining = shared
    tally = Tally()
    with Clones(joining.clones) as clones:
        found = archive.changes(facts, answers, bucket)
        verdicts = _verdicts(found, clones, judge.judge_of(settings), tally)
        return {**outcomes.write(out, verdicts, f"bucket {bucket}", 0, tally, joining.buckets), "faults": []}


def _verdicts(found: Iterable[Change | Reject], clones: Clones, judging: judge.Judge, tally: Tally) -> Iterator[Verdict]:
    merged = _remembered(git_source.merged_pull_requests)
    for one in found:
        if isinstance(one, Reject):
            yield Verdict(one)
            continue
        clone = clones.find(_names(one))
        if rejected := judging.contaminated(one, *((clone.roots, clone.all_names) if clone else ())):
            yield Verdict(rejected)
        elif not clone:
            yield Verdict(Reject(one.id, git_source.STAGE, "no_clone", ", ".join(_names(one))))
        else:
            yield _verdict(one, clone, clones, judging, tally, merged)


def _verdict(change: Change, clone: Clone, clones: Clones, judging: judge.Judge, tally: Tally,
             merged: _Merged) -> Verdict:
    try:
        repository = clones.repository(clone)
        made = attempts.attempt(change.id, repository, _judged, change, repository, clone, judging, tally, merged)
        return Verdict(made, clone.family)
    except RepositoryError as error:
        clones.give_up(clone, str(error))
        return Verdict(Reject(change.id, git_source.STAGE, "unreadable_clone", str(error)))


def _judged(change: Change, repository: Repository, clone: Clone, judging: judge.Judge, tally: Tally, merged: _Merged,
            ) -> Example | Reject:
    change = git_source.completed(change, repository, merged(repository))
    if change.meta["merged"] is None:
        return Reject(change.id, pull_requests.STAGE, "merge_unknown", clone.path)
    return judging.change(change, repository, clone.roots, tally)


def _names(change: Change) -> list[str]:
    """What the repository was called, the latest name first."""
    return list(dict.fromkeys((change.repo, *reversed(change.meta["names"]))))


def _remembered(merged: _Merged) -> _Merged:
    """The same, done once for a repository; they come one after the other."""
    return functools.lru_cache(maxsize=1)(merged)


def _messages(clones: Clones, merged: _Merged, thread: Thread) -> str:
    """The messages of a pull request's commits and of its merge, "" where no clone has them."""
    pull = attempts.attempt("", None, pull_requests.change, thread, ()) if thread.pulls else None
    clone = clones.find(_names(pull)) if isinstance(pull, Change) else None
    if not clone:
        return ""
    try:
        repository = clones.repository(clone)
        found = attempts.attempt(pull.id, repository, _messages_in, repository, pull, merged)
    except RepositoryError as error:
        clones.give_up(clone, str(error))
        return ""
    return "" if isinstance(found, Reject) else found


def _messages_in(repository: Repository, pull: Change, merged: _Merged) -> str:
    head = repository.commit(pull.head)
    merge = git_source.merge_of(pull, repository, {} if pull.merge_commit else merged(repository))
    base = repository.commit(merge.parents[0] if merge and merge.parents else pull.base)
    found = _branch(repository, base, head) if base and head else []
    return "\n\n".join(one.message for one in (*found, *([merge] if merge else [])))


def _branch(repository: Repository, base: Commit, head: Commit) -> list[Commit]:
    """The commits from `head` down to where it left the main line."""
    bases = repository.merge_bases(base.id, head.id)
    found: list[Commit] = []
    below: Commit | None = head
    while below and below.id not in bases.ids and len(found) < _BRANCH_COMMITS and bases.ids:
        found.append(below)
        below = repository.commit(below.parents[0]) if below.parents else None
    return found
