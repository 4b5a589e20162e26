"""Fixes from clones alone: which ranges of their histories there are to do, and how one is done.

On the path: `git:PATH` → clones → **ranges of commits** → verdicts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from swerl_jax.curate import attempts, git_source, issue_file, judge, outcomes
from swerl_jax.curate.change import Change, Reject
from swerl_jax.curate.clones import Clone
from swerl_jax.curate.issue_file import Issues
from swerl_jax.curate.judge import JudgeSettings, Tally
from swerl_jax.curate.outcomes import Verdict
from swerl_jax.curate.repository import Repository, RepositoryError
from swerl_jax.curate.work import Item
from swerl_jax.data import files

STAGE = git_source.STAGE
REASONS = {
    "unreadable_clone": "the clone, or the rest of it, cannot be read",
    **attempts.REASONS,
}


def items(clones: Sequence[Clone], range_commits: int, issues: str) -> list[Item]:
    """Every clone in ranges of so many commits, at least one range each; `issues` is a file of them, "" for none."""
    state = files.state(issues) if issues else ""
    found = []
    for clone in clones:
        for first in range(0, max(1, clone.count), range_commits):
            last = min(first + range_commits, clone.count)
            found.append(Item(f"{clone.path} {first}:{last}", (clone, first, last, issues, len(clones) == 1),
                              f"{clone.state} {state}", changes=max(1, last - first)))
    return found


def read_range(settings: tuple[JudgeSettings, int], clone: Clone, first: int, last: int, issues: str, is_only: bool, out: str,
               ) -> Any:
    """Judges a range of a clone's commits; a stage's function.

    Args:
      settings: of the judge, and how many buckets.
      is_only: whether there is no other clone, so that all of the issues are its own.
    """
    judged, buckets = settings
    tally = Tally()
    known, faults = _issues(issues, clone.name, is_only) if issues and not clone.fault else (None, [])
    value = outcomes.write(out, _verdicts(judged, clone, first, last, known, tally), clone.path, first, tally, buckets)
    return {**value, "faults": [clone.fault] if clone.fault else faults if first == 0 else []}


def _verdicts(settings: JudgeSettings, clone: Clone, first: int, last: int, known: Issues | None, tally: Tally,
              ) -> Iterator[Verdict]:
    judging = judge.judge_of(settings)
    name = f"{clone.name} {first}:{last}"
    if clone.fault:
        yield Verdict(Reject(clone.path, STAGE, "unreadable_clone", clone.fault))
        return
    if reason := judging.repository_reason(clone.all_names, 0, clone.roots):
        yield Verdict(Reject(name, judge.STAGE, "repository", reason), changes=max(1, last - first))
        return
    done = 0
    try:
        with Repository(clone.path) as repository:
            for found in git_source.changes(repository, first, last, known):
                if isinstance(found, Change):
                    found = attempts.attempt(found.id, repository, judging.change, found, repository, clone.roots, tally)
                yield Verdict(found, clone.family)
                done += 1
    except RepositoryError as error:
        yield Verdict(Reject(name, STAGE, "unreadable_clone", str(error)), changes=max(1, last - first - done))


@functools.lru_cache(maxsize=1)
def _issues(path: str, repo: str, is_only: bool) -> tuple[Issues, list[str]]:
    return issue_file.read_issues(path, repo, is_only)
