"""Groups dealt over the teams that sample them, and joined again.

A group is dealt whole where there are enough of them, and else in equal runs of its samples, so that a few prompts keep
many engines busy. Random numbers depend on (group, sample), so an answer is the same wherever it is drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from swerl_jax.data.records import Group, Rollout
from swerl_jax.env.collector import Collector
from swerl_jax.env.episode import Task
from swerl_jax.learn.processes import Processes
from swerl_jax.policy.engine import Engine


def parts(groups: int, samples: int, teams: int) -> int:
    """In how many parts a group is dealt: the fewest that give all teams equally much, or else something to each."""
    divisors = [n for n in range(1, min(samples, teams) + 1) if samples % n == 0]
    equal = [n for n in divisors if groups * n % teams == 0]
    enough = [n for n in divisors if groups * n >= teams]
    return (equal or enough or divisors[-1:])[0]


def answer(name: str, tasks: Sequence[Task], engine: Engine, collector: Collector, processes: Processes) -> list[Group]:
    """The tasks' groups in their order, whole, on every process; each team answers its share of them.

    Args:
      name: of the exchange.
      tasks: all of as many samples.
      engine: of this process's team; where that has several processes, the collector of the leading one alone is used.

    Raises:
      As Processes.exchange.
    """
    if processes.count == 1:
        return collector.run(engine, tasks)
    team, n = engine.team, parts(len(tasks), tasks[0].samples, engine.team.count)
    dealt = [dataclasses.replace(task, here=range(task.samples)[i * task.samples // n:(i + 1) * task.samples // n])
             for task in tasks for i in range(n)]
    mine = dealt[team.index::team.count]
    # Only answers travel: every process has the examples and the prompts.
    answered = processes.exchange(name, lambda: [
        (group.index, group.rollouts) for group in engine.serve(lambda: collector.run(engine, mine)) or ()])
    rollouts: dict[int, list[Rollout]] = {task.index: [] for task in tasks}
    for index, some in (pair for pairs in answered for pair in pairs):
        rollouts[index] += some
    return [Group(task.index, task.example, task.prompt, tuple(sorted(rollouts[task.index], key=lambda r: r.sample)))
            for task in tasks]
