"""Scores answers in processes of their own, each within a deadline.

On the path: text → **processes** → outcomes. A scorer that dies or overruns is our fault, not the policy's: the answer
is tried once more, then excluded as an infra fault. The reward's own work limit (see `reward`) keeps every answer well
inside the default deadline, so a policy cannot get excluded by being slow to score.

Own pool, because a `ProcessPoolExecutor` cannot kill one job and breaks when a worker dies, and because a signal does
not interrupt matching in C++. One thread of the parent looks after one worker.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from swerl_jax.data.records import INFRA_FAULT, Outcome
from swerl_jax.env.reward import (
    WORK_LIMIT_PAIRS,
    RewardContractError,
    RewardSpec,
    contents_reward,
    make_reward,
    unified_diff_reward,
)

ATTEMPTS = 2
START_S = 120.0  # for a worker to import what it needs, on a machine that is busy

PAIRS_PER_S = 1.5e8  # slowest seen, of the hostile answers in tests/test_scorer.py with both cores busy; 2.7e8 idle
LINEAR_S_PER_CHAR = 1e-6  # copying to the worker, splitting, parsing
DEADLINE_SAFETY = 4.0
DEADLINE_FLOOR_S = 5.0

_Item = tuple[str, tuple[Any, ...]]  # which function, its arguments


def default_deadline_s(
    max_answer_chars: int, largest_files_chars: int, work_limit_pairs: int = WORK_LIMIT_PAIRS
) -> float:
    """Returns the seconds that no answer of the built-in rewards takes, whatever is in it.

    5 s + 4 × (work_limit_pairs / 1.5e8 + (max_answer_chars + 2 · largest_files_chars) × 1e-6). The first term is the
    worst case: matching is quadratic to cubic in the answer, hence bounded by the work limit and not by the length.

    Args:
      max_answer_chars: longest text that the policy may write.
      largest_files_chars: all files of the largest example together; they count twice, for the oracle.
      work_limit_pairs: as in RewardSpec.
    """
    chars = max_answer_chars + 2 * largest_files_chars
    return DEADLINE_FLOOR_S + DEADLINE_SAFETY * (work_limit_pairs / PAIRS_PER_S + chars * LINEAR_S_PER_CHAR)


@dataclasses.dataclass(frozen=True)
class ScoringCounts:
    """What went wrong so far: items tried again, items given up as infra faults, workers started anew."""

    retries: int = 0
    faults: int = 0
    restarts: int = 0


class ScoringPool:
    """Worker processes that score answers; `submit` may be called from any thread."""

    def __init__(self, spec: RewardSpec, workers: int, deadline_s: float):
        """Starts `workers` processes; `deadline_s` counts from when a worker is given the item.

        Raises:
          ValueError: no worker, no time, or a reward that cannot be imported.
        """
        if workers < 1 or not deadline_s > 0:
            raise ValueError(
                f"a scoring pool has {workers} workers and a deadline of {deadline_s} s; "
                "needed are at least 1 worker and more than 0 s"
            )
        make_reward(spec)  # a wrong name shows here, not in a worker
        self.deadline_s = deadline_s
        self._spec = spec
        self._items: queue.SimpleQueue[tuple[Future[Outcome], _Item] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._counts = ScoringCounts()
        self._threads = [threading.Thread(target=self._serve, name=f"scorer-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    @property
    def counts(self) -> ScoringCounts:
        """Counters since the pool was made."""
        with self._lock:
            return self._counts

    def submit(self, output: str, files: Mapping[str, str], oracle: Mapping[str, str]) -> Future[Outcome]:
        """Queues one answer; the future holds its Outcome, an infra fault where scoring failed twice.

        The future raises RewardContractError where a user's function returned no reward: that is no bad luck but a
        mistake in the function.

        Raises:
          RuntimeError: the pool is closed.
        """
        return self._queue("output", output, dict(files), dict(oracle))

    def submit_contents(
        self, predicted: Mapping[str, str], files: Mapping[str, str], oracle: Mapping[str, str]
    ) -> Future[Outcome]:
        """Queues predicted contents for `reward.contents_reward`; else as `submit`."""
        return self._queue("contents", dict(predicted), dict(files), dict(oracle))

    def submit_patches(self, predicted: Sequence[str], oracle: Sequence[str]) -> Future[Outcome]:
        """Queues diff texts for `reward.unified_diff_reward`; else as `submit`."""
        return self._queue("patches", list(predicted), list(oracle))

    def _queue(self, kind: str, *arguments: Any) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the scoring pool is closed; submit before close()")
            self._items.put((future, (kind, arguments)))
        return future

    def close(self) -> None:
        """Finishes what is queued, then ends the workers; a second call does nothing."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                for _ in self._threads:
                    self._items.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> ScoringPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        """One thread: feeds one worker, item by item, and replaces it when it fails."""
        worker = _Worker(self._spec)
        while (queued := self._items.get()) is not None:
            future, item = queued
            if not future.set_running_or_notify_cancel():
                continue
            for attempt in range(ATTEMPTS):
                answer = worker.score(item, self.deadline_s)
                if not worker.is_alive:
                    worker = _Worker(self._spec)
                    self._count(restarts=1)
                if not isinstance(answer, _Failure):
                    break
                self._count(retries=1) if attempt + 1 < ATTEMPTS else self._count(faults=1)
            _settle(future, answer)
        worker.stop()

    def _count(self, **more: int) -> None:
        with self._lock:
            added = {name: getattr(self._counts, name) + number for name, number in more.items()}
            self._counts = dataclasses.replace(self._counts, **added)


@dataclasses.dataclass(frozen=True)
class _Failure:
    """One attempt that gave no verdict."""

    reason: str


def _settle(future: Future[Outcome], answer: Any) -> None:
    if isinstance(answer, RewardContractError):
        future.set_exception(answer)
    elif isinstance(answer, _Failure):
        future.set_result(Outcome(INFRA_FAULT, None, answer.reason))
    else:
        future.set_result(answer)


class _Worker:
    """The parent's end of one process."""

    def __init__(self, spec: RewardSpec):
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of jax's threads
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, spec), name="scorer", daemon=True)
        self._process.start()
        theirs.close()  # else the end of the process would not end the stream
        self._is_ready = False
        self.is_alive = True

    def score(self, item: _Item, deadline_s: float) -> Any:
        """Returns an Outcome, a RewardContractError or a _Failure; after a death or an overrun the worker is gone."""
        if not self._is_ready:
            started = self._receive(START_S, f"the scorer did not start within {START_S:g} s")
            if isinstance(started, _Failure):
                return started
            self._is_ready = True
        try:
            self._connection.send(item)
        except OSError:
            return self._failed("the scorer died before it was given the answer")
        return self._receive(deadline_s, f"the scorer overran its deadline of {deadline_s:g} s")

    def stop(self) -> None:
        """Ends the process, which is idle or gone."""
        self._connection.close()
        self._process.join(5.0)
        self._process.kill()
        self._process.join()

    def _receive(self, timeout_s: float, overrun: str) -> Any:
        try:
            if self._connection.poll(timeout_s):
                return self._connection.recv()
        except (EOFError, OSError):
            self._process.join(5.0)
            return self._failed(f"the scorer died (exit code {self._process.exitcode})")
        return self._failed(overrun)

    def _failed(self, reason: str) -> _Failure:
        self._process.kill()
        self._process.join()
        self._connection.close()
        self.is_alive = False
        return _Failure(reason)


def _work(connection: Connection, spec: RewardSpec) -> None:
    """The process: scores what comes until the parent closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what ends when
    functions = {
        "output": make_reward(spec),
        "contents": functools.partial(contents_reward, options=spec),
        "patches": functools.partial(unified_diff_reward, options=spec),
    }
    with contextlib.suppress(EOFError, OSError):  # the parent closed the pipe or is gone
        connection.send(None)
        while True:
            kind, arguments = connection.recv()
            connection.send(_attempt(functions[kind], arguments))


def _attempt(function: Callable[..., Outcome], arguments: tuple[Any, ...]) -> Outcome | RewardContractError | _Failure:
    try:
        return function(*arguments)
    except RewardContractError as error:
        return error
    except Exception as error:  # noqa: BLE001: a user's function may raise anything; the parent counts it
        return _Failure(f"the reward raised {type(error).__name__}: {error}")
