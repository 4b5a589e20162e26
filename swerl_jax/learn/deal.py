"""Groups dealt over the processes that sample them, and joined again.

A group is dealt whole where there are enough of them, and else in equal runs of its samples, so that a few prompts keep
many engines busy. Random numbers depend on (group, sample), so an answer is the same wherever it is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from swerl_jax.data.records import Group, Rollout
from swerl_jax.env.episode import Task
from swerl_jax.learn.processes import Processes


def parts(groups: int, samples: int, processes: int) -> int:
    """In how many parts a group is dealt: the fewest that give all processes equally much, or else something to each."""
    divisors = [n for n in range(1, min(samples, processes) + 1) if samples % n == 0]
    equal = [n for n in divisors if groups * n % processes == 0]
    enough = [n for n in divisors if groups * n >= processes]
    return (equal or enough or divisors[-1:])[0]


def answer(name: str, tasks: Sequence[Task], parts: int, processes: Processes, run: Callable[[list[Task]], list[Group]],
           ) -> list[Group]:
    """The tasks' groups in their order, whole, on every process; each answers its share by `run`.

    Args:
      name: of the exchange.
      parts: of every task's samples, a divisor of their number.

    Raises:
      As Processes.exchange.
    """
    if processes.count == 1:
        return run(list(tasks))
    dealt = [dataclasses.replace(task, here=range(task.samples)[i * task.samples // parts:(i + 1) * task.samples // parts])
             for task in tasks for i in range(parts)]
    mine = dealt[processes.index::processes.count]
    # Only answers travel: every process has the examples and the prompts.
    answered = processes.exchange(name, lambda: [(group.index, group.rollouts) for group in run(mine)])
    rollouts: dict[int, list[Rollout]] = {task.index: [] for task in tasks}
    for index, some in (pair for pairs in answered for pair in pairs):
        rollouts[index] += some
    return [Group(task.index, task.example, task.prompt, tuple(sorted(rollouts[task.index], key=lambda r: r.sample)))
            for task in tasks]
