"""From the rewards of a group to one advantage a branch, and from all branches to the weight of a token.

Pure Python on lists of floats; no arrays, so that every number can be checked by hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

STD_EPSILON = 1e-6  # ours; added to the standard deviation (the paper states no value)


def grpo(rewards: Sequence[float]) -> list[float]:
    """(r − mean) / (std + ε) with the population standard deviation; a group of one gets 0.

    Source: DeepSeekMath (arXiv 2402.03300), §4.1.2; SWE-RL (arXiv 2502.18449), §2.1.
    """
    mean = math.fsum(rewards) / len(rewards)
    std = math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / (std + STD_EPSILON) for r in rewards]


def dr_grpo(rewards: Sequence[float]) -> list[float]:
    """r − mean, without division by the standard deviation. Source: Dr. GRPO, arXiv 2503.20783."""
    mean = math.fsum(rewards) / len(rewards)
    return [r - mean for r in rewards]


def rloo(rewards: Sequence[float]) -> list[float]:
    """r − mean of the *others*; a group of one gets 0. Source: arXiv 2402.14740."""
    if len(rewards) == 1:
        return [0.0]
    return [a * len(rewards) / (len(rewards) - 1) for a in dr_grpo(rewards)]


ADVANTAGES: dict[str, Callable[[Sequence[float]], list[float]]] = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}


def group_advantages(kind: str, rewards: Sequence[float | None]) -> list[float | None]:
    """One advantage a branch; a reward of None (a fault of ours) leaves the baseline and gets None.

    Equal rewards give exactly 0, whatever the rounding of their mean.
    """
    known = [r for r in rewards if r is not None]
    advantages = iter([0.0] * len(known) if is_constant(known) else ADVANTAGES[kind](known))
    return [None if r is None else next(advantages) for r in rewards]


def is_constant(rewards: Sequence[float | None]) -> bool:
    """True when the group teaches nothing: fewer than two known rewards, or all of them equal."""
    return len({r for r in rewards if r is not None}) < 2


def token_weights(kind: str, lengths: Sequence[int], constant_length: int = 0) -> list[float]:
    """The weight of each loss token of every branch, so that the loss is a plain weighted sum over the whole batch.

    Normalised over the *global* batch: packing, accumulation and sharding cannot change the sum.

    Args:
      kind: "token_mean" (every token alike: DAPO, arXiv 2503.14476), "sequence_mean" (every branch alike: GRPO) or
        "constant" (sum over tokens divided by branches × constant_length: Dr. GRPO).
      lengths: loss tokens of every branch of the batch; a branch without any counts for nothing.
      constant_length: for "constant", the answer limit.

    Returns:
      The weight of one token of each branch.
    """
    total = sum(lengths)
    branches = sum(1 for n in lengths if n)
    if kind == "token_mean":
        return [1 / total if n else 0.0 for n in lengths]
    if kind == "sequence_mean":
        return [1 / (branches * n) if n else 0.0 for n in lengths]
    if kind == "constant":
        if constant_length < 1:
            raise ValueError(f"aggregation 'constant' needs a constant length of at least 1, got {constant_length}")
        return [1 / (branches * constant_length) if n else 0.0 for n in lengths]
    raise ValueError(f"unknown aggregation {kind!r}; choose token_mean, sequence_mean or constant")
