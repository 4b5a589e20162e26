"""The archive's work items: each reads files, writes one, and can be done again or by another machine.

On the path, each step for all its items before the next begins:

    write_hour   an hour's file                  → facts by repository, names by name
    ask          facts, a bucket                 → questions by repository, or by name where a link tells no more
    resolve      names and questions, a bucket   → those questions by repository
    answer       facts and questions, a bucket   → answers by pull request
    changes      facts and answers, a bucket     → changes

`compact` merges the runs of a step where the next could not read so many at once (`runs.FAN_IN`). In every run the first
half of the buckets is by repository, the second by name. What is there already is not written again.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import fsspec

from swerl_jax.curate import attempts, events, pull_requests, runs
from swerl_jax.curate.change import Change, Reject
from swerl_jax.curate.facts import Fact, NameSeen, fact_from_row
from swerl_jax.curate.pull_requests import Answer, Ask, Thread

_NAMES_LIMIT = 200_000  # held in memory while an hour is read

_Left = TypeVar("_Left")
_Right = TypeVar("_Right")


def write_hour(path: str, out: str, buckets: int) -> Mapping[str, Any]:
    """Writes what an hour's file tells as the run `out`.

    Args:
      path: as of `events.read_hour`.
      buckets: how many parts the repositories are divided into; the same in all steps.

    Returns:
      {"path", "counts", "fault"}: those of `events.Hour`, the same where the run was there before.
    """
    if not _exists(out):
        hour = events.read_hour(path)
        runs.write_run(
            out, _rows_of_hour(hour, buckets), 2 * buckets,
            lambda: {"path": path, "counts": dict(sorted(hour.counts.items())), "fault": hour.fault},
        )  # fmt: skip
    return runs.read_meta(out)


def ask(facts: Sequence[str], bucket: int, buckets: int, out: str,
        message: Callable[[Thread], str] = lambda thread: "") -> None:
    """Writes the questions of a bucket's pull requests as the run `out`.

    Args:
      facts: runs of `write_hour`.
      bucket: of repositories.
      message: gives the commit messages of a pull request where a clone has them, else "".
    """
    asked = (row for thread in pull_requests.threads(_facts(facts, bucket))
             for row in pull_requests.asks(thread, message(thread)))  # fmt: skip
    _write(out, ((row.repo_id, row) for row in asked), buckets)


def resolve(names: Sequence[str], asks: Sequence[str], bucket: int, buckets: int, out: str) -> None:
    """Writes the questions of a bucket of names with the repositories' ids as the run `out`.

    Args:
      names: runs of `write_hour`.
      asks: runs of `ask`.
      bucket: of names, from 0.
    """
    seen = (NameSeen(row[1], 0, row[2], 0, "name", row[5], row[3]) for row in _rows(names, buckets + bucket))
    asked = (Ask(*row) for row in _rows(asks, buckets + bucket))
    pairs = _joined(_grouped(seen, lambda name: name.repo.lower()), _grouped(asked, lambda row: row.repo_id))
    resolved = (pull_requests.resolve(of_name or (), row) for of_name, rows in pairs for row in rows or ())
    _write(out, ((row.repo_id, row) for row in resolved), buckets)


def answer(facts: Sequence[str], asks: Sequence[str], bucket: int, buckets: int, out: str) -> None:
    """Writes the answers that a bucket's issues give as the run `out`.

    Args:
      facts: runs of `write_hour`.
      asks: runs of `ask` and of `resolve`, all of them.
      bucket: of repositories.
    """
    asked = _grouped((Ask(*row) for row in _rows(asks, bucket)), lambda row: (row.repo_id, row.number))
    pairs = _joined(_keyed_threads(facts, bucket), asked)
    answers = (pull_requests.answer(thread, row) for thread, rows in pairs for row in rows or ())
    _write(out, ((row.asker_id, row) for row in answers), buckets)


def changes(facts: Sequence[str], answers: Sequence[str], bucket: int) -> Iterator[Change | Reject]:
    """Yields the pull requests of a bucket of repositories, in order of (repository, number).

    Args:
      facts: runs of `write_hour`.
      answers: runs of `answer`.
    """
    answered = _grouped((Answer(*row) for row in _rows(answers, bucket)), lambda row: (row.asker_id, row.asker_number))
    for thread, rows in _joined(_keyed_threads(facts, bucket), answered):
        if thread and thread.pulls:
            id_ = f"{thread.pulls[-1].repo}#{thread.number}@{thread.repo_id}"
            yield attempts.attempt(id_, None, pull_requests.change, thread, rows or ())


def compact(urls: Sequence[str], directory: str) -> list[str]:
    """Merges runs in `directory` until they are few enough to be read at once; returns what to read instead of them."""
    urls = sorted(urls)
    while len(urls) > runs.FAN_IN:
        groups = [urls[start:start + runs.FAN_IN] for start in range(0, len(urls), runs.FAN_IN)]
        urls = []
        for group in groups:
            name = hashlib.sha256("\n".join(group).encode()).hexdigest()[:24]
            out = f"{directory}/{name}.run"
            if not _exists(out):
                runs.merge_runs(group, out)
            urls.append(out)
    return urls


def _rows_of_hour(hour: Iterable[Fact], buckets: int) -> Iterator[tuple[int, Sequence[Any]]]:
    """Yields every fact, and by id and by name what the repositories were called."""
    names: dict[tuple[int, str], tuple[str, str]] = {}
    for fact in hour:
        first, last = names.get((fact.repo_id, fact.repo), (fact.at, fact.at))
        names[fact.repo_id, fact.repo] = min(first, fact.at), max(last, fact.at)
        yield _bucket(fact.repo_id, buckets), fact
        if len(names) >= _NAMES_LIMIT:
            yield from _name_rows(names, buckets)
            names.clear()
    yield from _name_rows(names, buckets)


def _name_rows(names: Mapping[tuple[int, str], tuple[str, str]], buckets: int) -> Iterator[tuple[int, Sequence[Any]]]:
    for (repo_id, repo), (first, last) in names.items():
        yield _bucket(repo_id, buckets), NameSeen(repo_id, 0, first, 0, "name", repo, last)
        yield _bucket(repo.lower(), buckets), (repo.lower(), repo_id, first, last, 0, repo)


def _bucket(key: int | str, buckets: int) -> int:
    return runs.bucket_of(key, buckets) + (buckets if isinstance(key, str) else 0)


def _rows(urls: Sequence[str], bucket: int) -> Iterator[list[Any]]:
    return runs.read_bucket(urls, bucket)


def _facts(urls: Sequence[str], bucket: int) -> Iterator[Fact]:
    return (fact_from_row(row) for row in _rows(urls, bucket))


def _keyed_threads(urls: Sequence[str], bucket: int) -> Iterator[tuple[Any, Thread]]:
    return (((thread.repo_id, thread.number), thread) for thread in pull_requests.threads(_facts(urls, bucket)))


def _write(out: str, rows: Iterable[tuple[int | str, Sequence[Any]]], buckets: int) -> None:
    if not _exists(out):
        runs.write_run(out, ((_bucket(key, buckets), row) for key, row in rows), 2 * buckets)


def _exists(url: str) -> bool:
    files, path = fsspec.core.url_to_fs(url)
    return files.exists(path)


def _grouped(rows: Iterable[_Left], key: Callable[[_Left], Any]) -> Iterator[tuple[Any, list[_Left]]]:
    return ((value, list(group)) for value, group in itertools.groupby(rows, key))


def _joined(left: Iterator[tuple[Any, _Left]], right: Iterator[tuple[Any, _Right]],
            ) -> Iterator[tuple[_Left | None, _Right | None]]:
    """Yields the values of both sides key by key, None where a side lacks it; keys ascend on both."""
    nothing = (None, None)
    a, b = next(left, nothing), next(right, nothing)
    while a is not nothing or b is not nothing:
        takes_a = b is nothing or (a is not nothing and a[0] <= b[0])
        takes_b = a is nothing or (b is not nothing and b[0] <= a[0])
        yield a[1] if takes_a else None, b[1] if takes_b else None
        a, b = next(left, nothing) if takes_a else a, next(right, nothing) if takes_b else b
