"""What an item's changes became, as files: examples in a run sorted for the shards, rejects as lines, counts as JSON.

On the path: verdicts → **a run of examples, rejects, counts** → near-duplicates → shards.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from swerl_jax.curate import funnel, judge, runs
from swerl_jax.curate.change import Reject
from swerl_jax.curate.funnel import Funnel
from swerl_jax.curate.judge import Tally
from swerl_jax.data import files, shards
from swerl_jax.data.records import Example

RUN, REJECTS = ".run", ".rejects.jsonl.gz"
FAMILY, EXAMPLE = 6, 7  # columns of a row, behind its key


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What one change became.

    Attributes:
      outcome: an Example or a Reject.
      family: what its repository has in common with its forks, under whatever names; needed of an Example.
      changes: how many a Reject speaks for.
    """

    outcome: Example | Reject
    family: str = ""
    changes: int = 1


def write(out: str, verdicts: Iterable[Verdict], source: str, first: int, tally: Tally, buckets: int) -> dict[str, Any]:
    """Writes the verdicts of an item as they come.

    Args:
      out: beginning of the files' names.
      verdicts: read once; `tally` is read after the last.
      source, first: where they are from, and which is the first of them there: that tells rows of the same id apart.
      buckets: parts of the run; an id's is the same in every item.

    Returns:
      What an item's result tells: "funnel", "kinds", "found", "ranked", and "kept_out": why repositories are evaluated on →
      changes.
    """
    dropped: collections.Counter[tuple[str, str]] = collections.Counter()
    kept_out: collections.Counter[str] = collections.Counter()
    kept = 0

    def rows(rejects: BinaryIO) -> Iterator[tuple[int, Sequence[Any]]]:
        nonlocal kept
        for number, verdict in enumerate(verdicts, first):
            if isinstance(verdict.outcome, Reject):
                dropped[verdict.outcome.stage, verdict.outcome.reason] += verdict.changes
                if (verdict.outcome.stage, verdict.outcome.reason) == (judge.STAGE, "repository"):
                    kept_out[verdict.outcome.detail] += verdict.changes
                write_reject(rejects, verdict.outcome, verdict.changes)
                continue
            kept += 1
            place = place_of(verdict.outcome.id)
            value = shards.example_to_json(verdict.outcome)
            yield place % buckets, (place, verdict.outcome.id, source, number, "", 0, verdict.family, value)

    with rejects_file(out + REJECTS) as file:
        runs.write_run(out + RUN, rows(file), buckets)
    counts = Funnel(kept + dropped.total(), kept, dict(dropped))
    return {"funnel": funnel.to_json(counts), "kinds": dict(sorted(tally.kinds.items())), "ranked": tally.ranked,
            "kept_out": dict(sorted(kept_out.items())),
            "found": {str(k): tally.found[k] for k in sorted(tally.found)}}


def place_of(text: str) -> int:
    """A number below 2⁶³ that stands for a text, the same in every process: the order of rows, and draws by chance."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8]) >> 1


@contextlib.contextmanager
def rejects_file(url: str) -> Iterator[BinaryIO]:
    """Opens a file for `write_reject`; the same rejects give the same bytes."""
    with files.written(url) as path, open(path, "wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        yield file


def write_reject(file: BinaryIO, reject: Reject, changes: int = 1) -> None:
    """Writes one line; `changes` is told where it is not one."""
    value: Mapping[str, Any] = dataclasses.asdict(reject) | ({} if changes == 1 else {"changes": changes})
    file.write(json.dumps(value, ensure_ascii=True).encode() + b"\n")
