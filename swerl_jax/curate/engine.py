"""Who does the work: an engine calls one function on many items. Here: processes of this machine.

Off the path: what is done is the function's business, and its results are files. Apache Beam is the other engine
(`beam_engine`), for one machine or a thousand.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

_ATTEMPTS = 2
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss [bytes]


class Engine(Protocol):
    """Calls a function on items, in any order, in any process."""

    def run(self, function: Callable[[Any], None], items: Sequence[Any]) -> Iterator[tuple[int, str]]:
        """Yields (index of the item, "") once it is done, or why nothing can be known of it: its worker died.

        Args:
          function: can be pickled; tells by files what came out, and lets no exception out.
          items: can be pickled.
        """

    def close(self) -> None:
        """Ends what was started."""


@dataclasses.dataclass
class _Worker:
    """A process, and what it is busy with: index and item, None where it is idle."""

    process: Any
    connection: multiprocessing.connection.Connection
    index: int | None = None
    deadline_s: float = 0.0


class LocalEngine:
    """A few processes that stay for all stages; one that dies is replaced, and its item tried once more.

    A worker that overruns the time for an item is killed, and one that has grown too large is replaced after its item.
    """

    def __init__(self, workers: int, timeout_s: float, memory_bytes: int):
        """Starts at most `workers` processes, once there is work."""
        self._limit = workers
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._workers: list[_Worker] = []
        self._context = multiprocessing.get_context("spawn")

    def run(self, function: Callable[[Any], None], items: Sequence[Any]) -> Iterator[tuple[int, str]]:
        """See `Engine`."""
        waiting = collections.deque(range(len(items)))
        attempts: collections.Counter[int] = collections.Counter()
        while waiting or self._busy():
            for worker in self._idle(len(waiting)):
                worker.index = waiting.popleft()
                worker.deadline_s = time.monotonic() + self._timeout_s
                with contextlib.suppress(OSError):  # it died while it was idle: waiting for its answer shows that
                    worker.connection.send((function, items[worker.index]))
            for worker in self._ready():
                index, fault = worker.index, self._take(worker)
                attempts[index] += 1
                if fault and attempts[index] < _ATTEMPTS:
                    print(f"curate: {fault}; its item is tried once more", file=sys.stderr)
                    waiting.append(index)
                else:
                    yield index, fault

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            self._end(worker)
        self._workers = []

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.index is not None]

    def _idle(self, wanted: int) -> list[_Worker]:
        idle = [worker for worker in self._workers if worker.index is None]
        while len(idle) < wanted and len(self._workers) < self._limit:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that its end shows
            idle.append(_Worker(process, ours))
            self._workers.append(idle[-1])
        return idle[:wanted]

    def _ready(self) -> list[_Worker]:
        """Waits for workers that are done, dead or late."""
        busy = self._busy()
        left_s = max(0.0, min(worker.deadline_s for worker in busy) - time.monotonic())
        done = multiprocessing.connection.wait([worker.connection for worker in busy], min(left_s, 3600.0))
        return [worker for worker in busy if worker.connection in done or worker.deadline_s <= time.monotonic()]

    def _take(self, worker: _Worker) -> str:
        """Takes the answer of a worker, which is idle or gone then; returns why there is none."""
        worker.index, fault, peak_bytes = None, "", 0
        try:
            if worker.connection.poll():
                peak_bytes = worker.connection.recv()
            else:
                fault = f"a worker took longer than {self._timeout_s:g} s"
        except (EOFError, OSError):
            worker.process.join(5)
            fault = f"a worker died (exit code {worker.process.exitcode})"
        if fault or peak_bytes > self._memory_bytes:
            self._end(worker)
            self._workers.remove(worker)
        return fault

    @staticmethod
    def _end(worker: _Worker) -> None:
        worker.connection.close()
        worker.process.kill()
        worker.process.join()


def _serve(connection: multiprocessing.connection.Connection) -> None:
    """A worker's life: answers every (function, item) with its peak memory, until nobody asks any more."""
    while True:
        try:
            function, item = connection.recv()
        except (EOFError, KeyboardInterrupt):
            os._exit(0)
        function(item)
        connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT)
