"""Runs episodes in a thread of their own, beside the main thread that owns the devices.

The main thread ticks the engine; the collector's asyncio thread parses, runs sandboxes and waits for rewards. They meet
here, under one lock: episodes leave requests, the main thread takes them, in order of (group, sample), and brings turns.
In lock-step mode the main thread first waits until every episode has either asked for a turn, closed its branch or
ended, so that the order of the engine's work does not depend on the clock; a world that really takes time turns it off.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from swerl_jax.data.records import Group, Rollout, Turn
from swerl_jax.env.episode import Episode, Task


class Engine(Protocol):
    """What the collector needs of an engine (see policy.engine.Policy)."""

    def open(self, group: int, prompt: np.ndarray, samples: int, *, max_branch_tokens: int) -> None: ...
    def draw(self, group: int, sample: int, max_tokens: int, *, ids: np.ndarray | None = None) -> None: ...
    def close(self, group: int, sample: int) -> None: ...
    def tick(self) -> list[tuple[int, int, Turn]]: ...


@dataclasses.dataclass(frozen=True)
class _Draw:
    group: int
    sample: int
    max_tokens: int
    ids: np.ndarray | None
    answer: asyncio.Future[Turn]


@dataclasses.dataclass(frozen=True)
class _Close:
    group: int
    sample: int


class Collector:
    """Starts episodes and gathers their groups; use it as a context manager.

    Args:
      episode: the coroutine function of one branch.
      max_branch_tokens: what a branch may hold in all.
      is_lockstep: see the module's text.
      poll: called between ticks; may raise to abandon the work (a stop signal).
    """

    def __init__(self, episode: Episode, max_branch_tokens: int, *, is_lockstep: bool = True,
                 poll: Callable[[], None] = lambda: None):
        self._episode, self._max_branch_tokens = episode, max_branch_tokens
        self._is_lockstep, self._poll = is_lockstep, poll
        self._changed = threading.Condition()
        self._requests: list[_Draw | _Close] = []
        self._open: set[tuple[int, int]] = set()  # branches not closed yet
        self._busy = 0  # episodes that neither wait for a turn nor have closed their branch
        self._pending: dict[tuple[int, int], _Draw] = {}
        self._groups: dict[int, Group] = {}
        self._failure: BaseException | None = None
        self.seconds_waiting = 0.0  # spent with nothing left to sample and verdicts still to come, since it was made
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run_loop, name="episodes", daemon=True)
        self._thread.start()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.shutdown()

    def shutdown(self) -> None:
        """Ends the thread; episodes under way are abandoned."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)

    def run(self, engine: Engine, tasks: Iterable[Task]) -> list[Group]:
        """Answers every task and returns the groups in the tasks' order, when all their verdicts are in.

        Raises:
          Whatever an episode or `poll` raised; the groups under way are closed.
        """
        tasks = list(tasks)
        for task in tasks:
            engine.open(task.index, task.prompt, task.samples, max_branch_tokens=self._max_branch_tokens)
            for sample in set(range(task.samples)) - set(task.numbers):
                engine.close(task.index, sample)
        with self._changed:
            branches = [(task.index, sample) for task in tasks for sample in task.numbers]
            self._open.update(branches)
            self._busy += len(branches)
        for task in tasks:
            asyncio.run_coroutine_threadsafe(self._run_group(task), self._loop)
        try:
            while len(self._groups) < len(tasks):
                self._poll()
                self._serve(engine)
            self._hand_over(engine)  # the last closings: the engine is left empty
        except BaseException:
            self._abandon(engine, tasks)
            raise
        with self._changed:
            groups, self._groups = self._groups, {}
        return [groups[task.index] for task in tasks]

    async def draw(self, group: int, sample: int, max_tokens: int, ids: np.ndarray | None = None) -> Turn:
        """See episode.Drawer; called in the collector's thread."""
        request = _Draw(group, sample, max_tokens, ids, self._loop.create_future())
        with self._changed:
            self._requests.append(request)
            self._busy -= 1
            self._changed.notify()
        return await request.answer

    def close(self, group: int, sample: int) -> None:
        """See episode.Drawer; called in the collector's thread. A second call does nothing."""
        with self._changed:
            if (group, sample) not in self._open:
                return
            self._open.remove((group, sample))
            self._requests.append(_Close(group, sample))
            self._busy -= 1
            self._changed.notify()

    def _serve(self, engine: Engine) -> None:
        """One round: requests to the engine, a tick, turns to the episodes."""
        with self._changed:
            waits = (lambda: self._busy == 0) if self._is_lockstep else (lambda: self._requests or self._pending)
            self._changed.wait_for(lambda: self._failure or waits(), timeout=0.2)
            if self._failure:
                raise self._failure
            if not waits():
                return
        self._hand_over(engine)
        if self._pending:
            self._deliver(engine.tick())
        else:
            started = time.perf_counter()
            with self._changed:  # only verdicts are awaited
                self._changed.wait_for(lambda: self._failure or self._requests or self._busy, timeout=0.01)
            self.seconds_waiting += time.perf_counter() - started

    def _hand_over(self, engine: Engine) -> None:
        with self._changed:
            requests, self._requests = sorted(self._requests, key=lambda r: (r.group, r.sample)), []
        for request in requests:
            if isinstance(request, _Close):
                engine.close(request.group, request.sample)
            else:
                engine.draw(request.group, request.sample, request.max_tokens, ids=request.ids)
                self._pending[request.group, request.sample] = request

    def _deliver(self, turns: list[tuple[int, int, Turn]]) -> None:
        with self._changed:
            self._busy += len(turns)
        for group, sample, turn in turns:
            request = self._pending.pop((group, sample))
            self._loop.call_soon_threadsafe(_resolve, request.answer, turn)

    async def _run_group(self, task: Task) -> None:
        try:
            rollouts: list[Rollout] = list(await asyncio.gather(
                *(self._run_branch(task, sample) for sample in task.numbers)))
            with self._changed:
                self._groups[task.index] = Group(task.index, task.example, task.prompt, tuple(rollouts))
                self._changed.notify()
        except Exception as error:  # carried to the main thread, which raises it
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify()

    async def _run_branch(self, task: Task, sample: int) -> Rollout:
        rollout = await self._episode(self, task, sample)
        self.close(task.index, sample)  # an episode may end without a word
        return rollout

    def _abandon(self, engine: Engine, tasks: list[Task]) -> None:
        self.shutdown()
        for task in tasks:
            for sample in task.numbers:
                with contextlib.suppress(ValueError):  # closed already
                    engine.close(task.index, sample)

    def _run_loop(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _resolve(answer: asyncio.Future[Turn], turn: Turn) -> None:
    if not answer.done():
        answer.set_result(turn)
