"""Rows in SWE-bench's format: which parts of a file there are to do, and how one is done.

On the path: `swebench:FILE` + clones where given → **ranges of rows** → verdicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from swerl_jax.curate import files, judge, outcomes, swebench_source
from swerl_jax.curate.change import Reject
from swerl_jax.curate.clones import Clone, Clones
from swerl_jax.curate.judge import JudgeSettings, Tally
from swerl_jax.curate.outcomes import Verdict
from swerl_jax.curate.repository import RepositoryError
from swerl_jax.curate.work import Item

ROWS = 500  # of an item


def count(shared: None, url: str, out: str) -> Any:
    """Counts the rows that can be read; a stage's function."""
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
    return [Item(f"{url} {first}:{min(first + ROWS, rows)}", (url, first, min(first + ROWS, rows), tuple(clones), with_hints), state)
            for first in range(0, max(1, rows), ROWS)]


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
        return {**outcomes.write(out, verdicts, url, tally, buckets), "faults": []}


def _verdict(row: Any, judging: judge.Judge, clones: Clones, with_hints: bool, tally: Tally) -> Verdict:
    change = swebench_source.change_of(row, with_hints)
    if isinstance(change, Reject):
        return Verdict(change)
    clone = clones.find([change.repo])
    if rejected := judging.contaminated(change, clone.roots if clone else ()):
        return Verdict(rejected)
    try:
        repository = clones.repository(clone) if clone else None
        made = swebench_source.candidate_of(change, row, repository)
        family = clone.family if clone else change.repo.lower()
        return Verdict(made if isinstance(made, Reject) else judging.candidate(made, repository, tally), family)
    except RepositoryError as error:
        clones.give_up(clone, str(error))
        return Verdict(Reject(change.id, swebench_source.STAGE, "unreadable_clone", str(error)))
