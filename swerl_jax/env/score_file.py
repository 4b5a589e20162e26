"""The task `score`: a file of answers in, the same rows with rewards out.

On the path: recorded text → **rewards**, away from training: to compare rewards, to score another system's answers, or
to score the rollouts of a run again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import gzip
import json
import os
import pathlib
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import IO, Any

from swerl_jax.data.atomic_file import PARTIAL_SUFFIX, fsync_directory
from swerl_jax.data.records import Outcome
from swerl_jax.env.progress import Progress
from swerl_jax.env.reward import RewardSpec
from swerl_jax.env.scorer import ScoringPool

APIS = ("search_replace", "contents", "unified_diff")
_WINDOW = 8  # rows in flight per worker

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class ScoreSummary:
    """What came of one file.

    Attributes:
      rows: rows scored, infra faults included.
      skipped: malformed rows left out.
      groups: group lines passed through.
      statuses: how many rows had which status.
      reasons: how many malformed answers had which reason.
      mean_reward: over the rows that have a reward; None if there is none.
      exact: rows whose predicted change equals the oracle's.
    """

    rows: int
    skipped: int
    groups: int
    statuses: Mapping[str, int]
    reasons: Mapping[str, int]
    mean_reward: float | None
    exact: int

    def __str__(self) -> str:
        mean = "no reward" if self.mean_reward is None else f"mean reward {self.mean_reward:.4f}"
        counts = [f"{name} {count}" for name, count in sorted({**self.statuses, **self.reasons}.items())]
        skipped = f", {self.skipped} malformed rows skipped" if self.skipped else ""
        return f"{self.rows} rows, {mean}, exact {self.exact}; {', '.join(counts) or 'nothing scored'}{skipped}"


def score_file(
    input_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    spec: RewardSpec,
    workers: int,
    deadline_s: float,
    on_malformed: str = "stop",
    progress: bool = True,
    overwrite: bool = False,
) -> ScoreSummary:
    """Scores each row of a JSON-lines file (.gz or not) and writes it back with its verdict, in the same order.

    A row holds `code_context` and `oracle_new_content` (path → text) with `output`, a policy's text, or with
    `api` "contents" and `pred_new_content`, or it has `api` "unified_diff", `pred_patches` and `oracle_patches`. In a
    rollout file the group line gives the context of the rollouts behind it and passes through unchanged; rollouts that
    the length limit cut are scored by their text like the others. Added or replaced are `reward` (null for an infra
    fault), `status`, `reason`, `detail`, `is_well_formed`, `is_exact` and `similarities`.

    Args:
      deadline_s: for one row, see `scorer.default_deadline_s`.
      on_malformed: "stop", or "skip" to name a malformed row on stderr, leave it out and go on.
      progress: shows a bar on stderr.
      overwrite: replace an existing output; it is written under another name and renamed when complete.

    Raises:
      ValueError: wrong arguments, or a malformed row, named by file and row number.
    """
    source, target = pathlib.Path(input_path), pathlib.Path(output_path)
    _check_paths(source, target, on_malformed, overwrite)
    scratch = target.with_name(target.name + PARTIAL_SUFFIX)
    run = _Run(source, on_malformed)
    bar = Progress(source.stat().st_size, f"scoring {source.name}") if progress else None
    try:
        with contextlib.ExitStack() as stack:
            pool = stack.enter_context(ScoringPool(spec, workers, deadline_s))
            lines = stack.enter_context(_open_binary(source, "rb", source))
            results = stack.enter_context(_open_binary(scratch, "wb", target))
            if bar:
                stack.enter_context(bar)
            for row, outcome in _in_order(run.submit_all(lines, pool, bar), workers * _WINDOW):
                results.write(_line(row if outcome is None else run.scored(row, outcome)))
        os.replace(scratch, target)
        fsync_directory(target.absolute().parent)
    finally:
        scratch.unlink(missing_ok=True)
    return run.summary()


def _check_paths(source: pathlib.Path, target: pathlib.Path, on_malformed: str, overwrite: bool) -> None:
    if on_malformed not in ("stop", "skip"):
        raise ValueError(f"on_malformed is {on_malformed!r}; it must be 'stop' or 'skip'")
    if not source.is_file():
        raise ValueError(f"{source} is no file; the input must be JSON lines, .jsonl or .jsonl.gz")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is both input and output; give the output another name")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; remove it, or give another name with --config.output")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent} is no directory; make it before scoring into it")


def _open_binary(path: pathlib.Path, mode: str, named: pathlib.Path) -> IO[bytes]:
    """Opens plain or gzip by the suffix of `named`."""
    return gzip.open(path, mode) if named.suffix == ".gz" else open(path, mode)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode("ascii") + b"\n"  # escaped, since a policy may write lone surrogates


def _in_order(
    submitted: Iterator[tuple[Row, Future[Outcome] | None]], window: int
) -> Iterator[tuple[Row, Outcome | None]]:
    """Yields rows with outcomes in the order submitted, at most `window` of them in memory."""
    pending: collections.deque[tuple[Row, Future[Outcome] | None]] = collections.deque()
    for item in submitted:
        pending.append(item)
        while pending and (len(pending) >= window or pending[0][1] is None or pending[0][1].done()):
            yield _settled(*pending.popleft())
    while pending:
        yield _settled(*pending.popleft())


def _settled(row: Row, future: Future[Outcome] | None) -> tuple[Row, Outcome | None]:
    return row, None if future is None else future.result()


class _Run:
    """Reads and submits the rows of one file, and counts."""

    def __init__(self, source: pathlib.Path, on_malformed: str):
        self._source = source
        self._on_malformed = on_malformed
        self._group: Row | None = None
        self._skipped = self._groups = self._exact = 0
        self._statuses: collections.Counter[str] = collections.Counter()
        self._reasons: collections.Counter[str] = collections.Counter()
        self._rewarded, self._reward_sum = 0, 0.0

    def submit_all(
        self, lines: IO[bytes], pool: ScoringPool, bar: Progress | None
    ) -> Iterator[tuple[Row, Future[Outcome] | None]]:
        """Yields each row with its future, or with None where there is nothing to score."""
        position = 0
        for number, line in enumerate(_lines(lines, self._source), start=1):
            if bar:
                # Compressed files are counted as read from disk.
                now = lines.fileobj.tell() if isinstance(lines, gzip.GzipFile) else position + len(line)
                bar.advance(now - position, f"row {number}")
                position = now
            if not line.strip():
                continue
            try:
                yield self._submit(line, pool)
            except ValueError as error:
                self._malformed(number, error)

    def _malformed(self, number: int, error: ValueError) -> None:
        problem = f"{self._source}, row {number}: {error}"
        if self._on_malformed == "stop":
            raise ValueError(problem) from error
        self._skipped += 1
        print(f"skipped {problem}", file=sys.stderr)

    def _submit(self, line: bytes, pool: ScoringPool) -> tuple[Row, Future[Outcome] | None]:
        row = _decoded(line)
        if row.get("kind") == "group":
            self._group = None  # where this one is malformed its rollouts must not be scored against the last one
            _texts(row, "code_context")
            _texts(row, "oracle_new_content")
            self._group = row
            self._groups += 1
            return row, None
        context = row
        if row.get("kind") == "rollout":
            if self._group is None:
                raise ValueError("a rollout without a group line above it, so without files to apply it to")
            context = self._group
            if row.get("example_id") != context.get("example_id"):
                raise ValueError(
                    f"a rollout of example {row.get('example_id')!r} in the group of {context.get('example_id')!r}"
                )
        return row, _submit_row(row, context, pool)

    def scored(self, row: Row, outcome: Outcome) -> Row:
        """Returns the row with its verdict and counts it."""
        self._statuses[outcome.status] += 1
        self._exact += outcome.is_exact
        if outcome.reward is not None:
            self._rewarded += 1
            self._reward_sum += outcome.reward
            if outcome.reason:
                self._reasons[outcome.reason] += 1
        similarities = [
            {"path": s.path, "pred_change": s.predicted, "oracle_change": s.oracle, "similarity": s.ratio}
            for s in outcome.similarities
        ]
        return row | {
            "reward": outcome.reward,
            "status": outcome.status,
            "reason": outcome.reason,
            "detail": outcome.detail,
            "is_well_formed": outcome.is_well_formed,
            "is_exact": outcome.is_exact,
            "similarities": similarities,
        }

    def summary(self) -> ScoreSummary:
        """Returns the counts so far."""
        mean = self._reward_sum / self._rewarded if self._rewarded else None
        return ScoreSummary(
            sum(self._statuses.values()), self._skipped, self._groups, dict(self._statuses), dict(self._reasons), mean,
            self._exact,
        )  # fmt: skip


def _lines(file: IO[bytes], source: pathlib.Path) -> Iterator[bytes]:
    try:
        yield from file
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{source} is no gzip file, or is damaged ({error})") from error


def _decoded(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except RecursionError as error:
        raise ValueError("the row is nested too deeply to be read") from error
    if not isinstance(row, dict):
        raise ValueError(f"the row is {type(row).__name__}; needed is an object")
    return row


def _submit_row(row: Row, context: Row, pool: ScoringPool) -> Future[Outcome]:
    api = row.get("api", APIS[0])
    if api == "unified_diff":
        return pool.submit_patches(_text_list(row, "pred_patches"), _text_list(row, "oracle_patches"))
    if api not in APIS:
        raise ValueError(f"api is {api!r}; needed is one of {APIS}")
    files, oracle = _texts(context, "code_context"), _texts(context, "oracle_new_content")
    if api == "contents":
        return pool.submit_contents(_texts(row, "pred_new_content"), files, oracle)
    if not isinstance(row.get("output"), str):
        raise ValueError(f"output is {type(row.get('output')).__name__}; needed is a text")
    return pool.submit(row["output"], files, oracle)


def _texts(row: Row, key: str) -> dict[str, str]:
    value = row.get(key)
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError(f"{key} is missing or wrong; needed is an object of path: text")
    return value


def _text_list(row: Row, key: str) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{key} is missing or wrong; needed is a list of texts")
    return value
