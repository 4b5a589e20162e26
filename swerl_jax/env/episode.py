"""What happens between a prompt and a verdict: one coroutine a branch.

On the path: ids → **episode** → rollout with its outcome. An episode sees the policy only through `draw` and `close`,
turn by turn; a single-turn answer is the shortest one. It runs in the collector's thread and never touches a device.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from swerl_jax.data.records import LENGTH, TRUNCATED, Example, Outcome, Rollout, Turn
from swerl_jax.env.vocabulary import Tokenizer


class Drawer(Protocol):
    """The policy as an episode sees it; `draw` waits for the engine."""

    async def draw(self, group: int, sample: int, max_tokens: int, ids: np.ndarray | None = None) -> Turn:
        """Feeds `ids` that the policy did not draw, then draws a turn of at most `max_tokens`."""

    def close(self, group: int, sample: int) -> None:
        """The branch will not be drawn from again."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt to be answered R times.

    Attributes:
      index: the group's number, unique while it is open; random numbers are folded from it.
      example: what is asked. prompt: its ids, int32 [S]. samples: R.
      here: which of the samples are answered, where others answer the rest; None: all.
    """

    index: int
    example: Example
    prompt: np.ndarray
    samples: int
    here: range | None = None

    @property
    def numbers(self) -> range:
        """Of the samples to be answered."""
        return range(self.samples) if self.here is None else self.here


Episode = Callable[[Drawer, Task, int], "asyncio.Future[Rollout]"]
Score = Callable[[str, Example], Future[Outcome]]


@dataclasses.dataclass(frozen=True)
class SingleTurn:
    """SWE-RL's episode: one answer, scored against the oracle.

    Attributes:
      tokenizer: ids → text. stop_ids: not part of the text.
      max_tokens: limit of the answer.
      score: starts scoring a text against an example.
      truncated_reward: of an answer that the limit cut; None scores its text like any other (the released reward then
        finds a tag missing and gives −1). The paper does not say what it does; this default is ours.
    """

    tokenizer: Tokenizer
    stop_ids: tuple[int, ...]
    max_tokens: int
    score: Score
    truncated_reward: float | None = None

    async def __call__(self, policy: Drawer, task: Task, sample: int) -> Rollout:
        turn = await policy.draw(task.index, sample, self.max_tokens)
        policy.close(task.index, sample)
        text = self.tokenizer.decode([int(i) for i in turn.ids if int(i) not in self.stop_ids])
        outcome = await asyncio.wrap_future(self.score(text, task.example))
        if turn.stop_reason == LENGTH and outcome.reward is not None:
            reward = outcome.reward if self.truncated_reward is None else self.truncated_reward
            outcome = dataclasses.replace(outcome, status=TRUNCATED, reward=reward)
        return rollout(task, sample, [turn], [], text, outcome)


def rollout(task: Task, sample: int, turns: list[Turn], observations: list[np.ndarray], text: str, outcome: Outcome,
            ) -> Rollout:
    """Joins turns and the observations between them (observations[i] follows turns[i]) into one record."""
    ids, is_sampled, logp, version = [], [], [], []
    for i, turn in enumerate(turns):
        n = len(turn.ids)
        ids.append(turn.ids)
        is_sampled.append(np.ones(n, bool))
        logp.append(turn.logp)
        version.append(np.full(n, turn.version, np.int32))
        if i < len(observations):
            m = len(observations[i])
            ids.append(np.asarray(observations[i], np.int32))
            is_sampled.append(np.zeros(m, bool))
            logp.append(np.zeros(m, np.float32))
            version.append(np.full(m, -1, np.int32))
    joined = (np.concatenate(parts) for parts in (ids, is_sampled, logp, version))
    return Rollout(task.example.id, sample, *joined, turns[-1].stop_reason, text, outcome)
