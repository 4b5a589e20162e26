"""The nouns that every other module shares: frozen, free of jax, cheap to import.

On the path: example → prompt → ids → rollouts → outcomes → advantages. A record is made once and never changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# What became of one answer (the design's typed outcomes).
SCORED = "scored"  # parsed and compared with the oracle
TRUNCATED = "truncated"  # cut by the length limit before it was finished
POLICY_FAULT = "policy_fault"  # malformed: reward −1 (a user's function may give another) with a reason from FORMAT_REASONS
INFRA_FAULT = "infra_fault"  # our machinery failed: no reward, outside baseline and gradient
STATUSES = (SCORED, TRUNCATED, POLICY_FAULT, INFRA_FAULT)

# The closed list of reasons for a reward of −1, in the order in which they are checked.
FORMAT_REASONS = ("tag_count", "empty_thought", "no_blocks", "no_change", "search_not_found")

# Why sampling of one turn ended.
STOP = "stop"  # the policy wrote a stop id (it is part of the ids)
LENGTH = "length"  # the token limit came first


@dataclasses.dataclass(frozen=True)
class Example:
    """One issue with the code before and after its fix.

    Attributes:
      id: unique within a source.
      repo, commit: provenance, e.g. "owner/name" and the commit the files were read at.
      issue: the problem statement shown to the policy.
      files: path → complete text before the fix, of *every* file shown in the prompt (changed or not).
      oracle: path → complete text after the fix, of the changed files only ("" where the fix deletes the file).
      tests: test names and patches kept for execution, as the source gave them.
      image: container image in which the tests run, "" if none.
      flags: remarks such as "partial_context" (files hold only the lines around the change).
      meta: anything else worth keeping, JSON values only.
    """

    id: str
    repo: str
    commit: str
    issue: str
    files: Mapping[str, str]
    oracle: Mapping[str, str]
    tests: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image: str = ""
    flags: tuple[str, ...] = ()
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Similarity:
    """How close the predicted change of one file is to the oracle's: `ratio` in [0, 1] of the two diff texts."""

    path: str
    predicted: str
    oracle: str
    ratio: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The verdict on one answer.

    Attributes:
      status: one of STATUSES.
      reward: −1 or a number in [0, 1] for the paper's reward, any for a user's; None exactly when status is INFRA_FAULT.
      reason: one of FORMAT_REASONS for a policy fault, a description for an infra fault, else "".
      detail: what a person needs to find the fault, e.g. the path whose search text did not match.
      similarities: one entry per file on either side, sorted by path.
      is_exact: the predicted contents equal the oracle's.
      thought, answer: the two tagged parts where they could be read.
    """

    status: str
    reward: float | None
    reason: str = ""
    detail: str = ""
    similarities: tuple[Similarity, ...] = ()
    is_exact: bool = False
    thought: str = ""
    answer: str = ""

    @property
    def is_well_formed(self) -> bool:
        """The answer could be parsed and applied, whether the limit cut it or not."""
        return self.status in (SCORED, TRUNCATED) and not self.reason


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the policy wrote in one go.

    Attributes:
      ids: int32 [T], the sampled ids, stop id included.
      logp: float32 [T], log-probability of each under the unfiltered distribution at the sampling temperature.
      stop_reason: STOP or LENGTH.
      version: the policy version (optimiser step) that sampled it.
    """

    ids: np.ndarray
    logp: np.ndarray
    stop_reason: str
    version: int


@dataclasses.dataclass(frozen=True)
class Rollout:
    """One branch of a group: the append-only list of ids that the policy read and wrote after the prompt.

    Attributes:
      example_id: the example it answers.
      sample: index in its group, 0 … R−1.
      ids: int32 [T], everything after the prompt: sampled ids and observations in order.
      is_sampled: bool [T], True where the policy wrote the id.
      logp: float32 [T], as in Turn; 0 where not sampled.
      version: int32 [T], policy version per token; −1 where not sampled.
      stop_reason: of the last turn.
      text: the decoded sampled text of the last turn (derived from ids, never turned back).
      outcome: its verdict.
    """

    example_id: str
    sample: int
    ids: np.ndarray
    is_sampled: np.ndarray
    logp: np.ndarray
    version: np.ndarray
    stop_reason: str
    text: str
    outcome: Outcome


@dataclasses.dataclass(frozen=True)
class Group:
    """One prefix with its branches.

    Attributes:
      index: position of the example in the stream of its source; keys of the random numbers are folded from it.
      example: what was asked.
      prompt: int32 [S], the prompt's ids.
      rollouts: the R branches, ordered by `sample`.
    """

    index: int
    example: Example
    prompt: np.ndarray
    rollouts: tuple[Rollout, ...]
