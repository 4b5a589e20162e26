"""Rows in SWE-bench's format: which parts of a file there are to do, and how one is done.

On the path: `swebench:FILE` + clones where given → **ranges of rows** → verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swerl_jax.curate import attempts, judge, outcomes, swebench_source
from swerl_jax.curate.change import Change, Reject
from swerl_jax.curate.clones import Clone, Clones
from swerl_jax.curate.judge import JudgeSettings, Tally
from swerl_jax.curate.outcomes import Verdict
from swerl_jax.curate.repository import Repository, RepositoryError
from swerl_jax.curate.work import Item
from swerl_jax.data import files
from swerl_jax.data.records import Example

ROWS = 500  # of an item


def count(shared: None, url: str, out: str) -> Any:
    """Counts the rows that can be read, which depends on what is installed, too; a stage's function."""
    del shared, out
    number, fault = 0, ""
    try:
        for _ in swebench_source.read_rows(url):
            number += 1
    except ValueError as error:
        fault = str(error)
    return {"rows": number, "fault": fault}


def items(url: str, rows: int, clones: Sequence[Clone], with_hints: bool) -> list[Item]:
    """The file in ranges of rows, at least one."""
    state = files.state(url)
    ranges = [(first, min(first + ROWS, rows)) for first in range(0, max(1, rows), ROWS)]
    return [Item(f"{url} {first}:{last}", (url, first, last, tuple(clones), with_hints), state, changes=max(1, last - first))
            for first, last in ranges]


def read_range(settings: tuple[JudgeSettings, int], url: str, first: int, last: int, clones: Sequence[Clone], with_hints: bool,
               out: str) -> Any:
    """Judges a range of rows; a stage's function.

    Args:
      settings: of the judge, and how many buckets.
    """
    judged, buckets = settings
    tally = Tally()
    with Clones(clones) as opened:
        judging = judge.judge_of(judged)
        verdicts = (_verdict(row, judging, opened, with_hints, tally) for row in swebench_source.read_rows(url, first, last))
        return {**outcomes.write(out, verdicts, url, first, tally, buckets), "faults": []}


def _verdict(row: Any, judging: judge.Judge, clones: Clones, with_hints: bool, tally: Tally) -> Verdict:
    name = row.get("instance_id") if isinstance(row, dict) else None
    change = attempts.attempt(str(name or f"{row!r:.80}"), None, swebench_source.change_of, row, with_hints)
    if isinstance(change, Reject):
        return Verdict(change)
    clone = clones.find([change.repo])
    if rejected := judging.contaminated(change, *((clone.roots, clone.all_names) if clone else ())):
        return Verdict(rejected)
    try:
        repository = clones.repository(clone) if clone else None
        made = attempts.attempt(change.id, repository, _judged, change, row, repository, judging, tally)
        return Verdict(made, clone.family if clone else change.repo.lower())
    except RepositoryError as error:
        clones.give_up(clone, str(error))
        return Verdict(Reject(change.id, swebench_source.STAGE, "unreadable_clone", str(error)))


def _judged(change: Change, row: Any, repository: Repository | None, judging: judge.Judge, tally: Tally) -> Example | Reject:
    made = swebench_source.candidate_of(change, row, repository)
    return made if isinstance(made, Reject) else judging.candidate(made, repository, tally)
