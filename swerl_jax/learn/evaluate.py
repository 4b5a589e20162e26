"""Held-out evaluation: the same examples every time, answered by an engine of its own shape."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swerl_jax.data.records import LENGTH, Example, Group
from swerl_jax.env.collector import Collector
from swerl_jax.env.episode import Task
from swerl_jax.learn import deal
from swerl_jax.learn.processes import ALONE, Processes
from swerl_jax.learn.report import ExampleResult
from swerl_jax.policy.engine import Engine
from swerl_jax.policy.llama import Llama

MAX_REASONS = 5  # told of why nothing was scored


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Answers `examples`, `samples` times each.

    Attributes:
      prompt_ids: example → int32 [S].
      processes: deal the answers among themselves.
    """

    examples: Sequence[Example]
    samples: int
    prompt_ids: Callable[[Example], np.ndarray]
    engine: Engine
    collector: Collector
    processes: Processes = ALONE

    def run(self, params: Llama, version: int) -> list[Group]:
        """The groups, in the examples' order; random numbers depend on the example's place only."""
        self.engine.load(params, version)
        tasks = [Task(i, example, self.prompt_ids(example), self.samples) for i, example in enumerate(self.examples)]
        groups = deal.answer(f"evaluation of version {version}", tasks, self.engine, self.collector, self.processes)
        self.engine.unload()
        return groups


def results(groups: Sequence[Group]) -> list[ExampleResult]:
    """One entry an example, for report.evaluation_table.

    Raises:
      ValueError: no answer has a verdict, with how often each fault kept one from it.
    """
    rollouts = [r for g in groups for r in g.rollouts]
    faults = collections.Counter(r.outcome.reason for r in rollouts if r.outcome.reward is None)
    if faults.total() == len(rollouts):
        told = [f"  {count} × {reason:.200}" for reason, count in faults.most_common(MAX_REASONS)]
        told += [f"  and {len(faults) - MAX_REASONS} other faults"] if len(faults) > MAX_REASONS else []
        raise ValueError("\n".join([
            f"nothing was scored: none of the {len(rollouts)} answers has a verdict. What kept them from it:", *told,
            "Raise reward.deadline_s where a deadline was overrun; else mend the reward, or what ends its processes"]))
    return [ExampleResult.of(g.example.id, [r.outcome for r in g.rollouts]) for g in groups]


def metrics(groups: Sequence[Group]) -> dict[str, Any]:
    """The eval/ values of metrics.METRICS."""
    rollouts = [r for g in groups for r in g.rollouts]
    known = [r for r in rollouts if r.outcome.reward is not None]
    formed = [r.outcome.reward for r in known if r.outcome.is_well_formed]
    count = len(known) or math.nan  # without a verdict there is no number
    return {"eval/reward": sum(r.outcome.reward for r in known) / count,
            "eval/well_formed_reward": float(np.mean(formed)) if formed else float("nan"),
            "eval/format_frac": len(formed) / count,
            "eval/exact_frac": sum(r.outcome.is_exact for r in known) / count,
            "eval/clipped_frac": float(np.mean([r.stop_reason == LENGTH for r in rollouts])),
            "eval/length_mean": float(np.mean([len(r.ids) for r in rollouts])),
            "eval/answers": len(rollouts), "eval/infra_faults": len(rollouts) - len(known)}
