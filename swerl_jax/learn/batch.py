"""Groups packed into fixed-shape prefix/branch rows, on the host, in numpy.

A row is [prefix padded to S | branch 1 | branch 2 | …]. The prefix is the prompt without its last id; every branch
begins with that id, so that each loss position lies in a branch. Position i of a branch reads its i-th id and is scored
on the next one, its `target`; the last id of an answer is a target only. A group too large for one row is split over
rows that repeat the prefix.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from swerl_jax.policy import context
from swerl_jax.policy.attention import RowShape


WHOLE_ROW = 512  # tokens; up to it a row of one branch is attended in one product, without windows


@dataclasses.dataclass(frozen=True)
class Branch:
    """One answer as the learner sees it.

    Attributes:
      ids: int32 [T], what follows the prompt. is_sampled: bool [T], True where the loss applies.
      logp: float32 [T], the sampler's log-probabilities.
      advantage: one number for all tokens. weight: of one token in the loss (see advantage.token_weights); a number,
        or float32 [T] where tokens differ.
    """

    ids: np.ndarray
    is_sampled: np.ndarray
    logp: np.ndarray
    advantage: float
    weight: float | np.ndarray


@dataclasses.dataclass(frozen=True)
class Prefixed:
    """One prompt, int32 [S], with its branches."""

    prompt: np.ndarray
    branches: Sequence[Branch]


@partial(jax.tree_util.register_dataclass, meta_fields=["shape"],
         data_fields=["ids", "position", "is_valid", "branch_start", "target", "is_sampled", "advantage", "logp",
                      "weight"])
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of one shape; where they are cut into parts, T and T−S stand part by part (see policy/context.py).

    Attributes:
      ids, position: int32 [B T]; positions run on from the prefix's real length in every branch.
      is_valid: bool [B T], False on padding.
      branch_start: int32 [B T−S], where the token's branch begins, counted from S in row order; padding points to itself.
      target: int32 [B T−S], the id that follows.
      is_sampled: bool [B T−S], True where the target carries loss.
      advantage, logp, weight: float32 [B T−S], of the target (see Branch); 0 elsewhere.
      shape: static.
    """

    ids: np.ndarray
    position: np.ndarray
    is_valid: np.ndarray
    branch_start: np.ndarray
    target: np.ndarray
    is_sampled: np.ndarray
    advantage: np.ndarray
    logp: np.ndarray
    weight: np.ndarray
    shape: RowShape


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """The shapes that rows may take.

    Attributes:
      prefix_buckets: sizes S, ascending. 0 is allowed as the first one.
      branch_buckets: sizes T − S, ascending, multiples of `block`.
      block: branches begin at its multiples.
      max_branch_tokens: the longest branch there can be.
      rows: rows of a microbatch (B), a multiple of the number of data shards.
      parts: into so many parts rows are cut, one for each device of the context axis.
    """

    prefix_buckets: tuple[int, ...]
    branch_buckets: tuple[int, ...]
    block: int
    max_branch_tokens: int
    rows: int
    parts: int = 1

    def __post_init__(self) -> None:
        longest = -(-self.max_branch_tokens // self.block) * self.block
        if self.branch_buckets[-1] < longest:
            raise ValueError(f"the largest row bucket {self.branch_buckets[-1]} does not hold one answer of "
                             f"{self.max_branch_tokens} tokens (padded {longest}); add a larger bucket")
        odd = [size for size in self.branch_buckets if size % self.block]
        if odd:
            raise ValueError(f"row buckets {odd} are no multiples of the block of {self.block} tokens")
        unit = context.unit(self.block, self.parts)
        odd = [size for size in (*self.prefix_buckets, *self.branch_buckets) if self.parts > 1 and size % unit]
        if odd:
            raise ValueError(f"row buckets {odd} cannot be cut into {self.parts} parts; needed are multiples of {unit}, two "
                             f"blocks of {self.block} tokens for each")

    @property
    def window(self) -> int:
        """See RowShape."""
        return -(-self.max_branch_tokens // self.block) * self.block - self.block


@dataclasses.dataclass(frozen=True)
class _Row:
    """used: branch tokens, each branch padded to a block."""

    prompt: np.ndarray
    branches: list[Branch]
    used: int


@dataclasses.dataclass(frozen=True)
class _Microbatch:
    """Rows of one shape, with `branch_tokens` = T − S."""

    rows: Sequence[_Row]
    shape: RowShape
    branch_tokens: int


def pack(groups: Sequence[Prefixed], settings: PackSettings) -> list[Batch]:
    """Microbatches of `settings.rows` rows that hold every branch of every group exactly once.

    Rows are filled up to one of the buckets of T − S, sorted by length, and taken `settings.rows` at a time; a microbatch
    has the smallest bucket that holds its rows. Of all ways to fill, the one that computes the fewest tokens is taken.

    Raises:
      ValueError: a prompt is longer than the largest bucket, or a branch is empty or longer than the longest allowed.
    """
    _check(groups, settings)
    longest = max((_padded(len(b.ids), settings.block) for group in groups for b in group.branches), default=0)
    plans = [_plan(groups, settings, limit) for limit in settings.branch_buckets if limit >= longest]
    best = min(plans, key=lambda plan: sum(one.shape.S + one.branch_tokens for one in plan))
    return [_assemble(one, settings.rows) for one in best]


def _plan(groups: Sequence[Prefixed], settings: PackSettings, limit: int) -> list[_Microbatch]:
    """The microbatches when rows are filled up to `limit` branch tokens."""
    by_prefix: dict[int, list[_Row]] = {}
    for group in groups:
        S = _bucket(len(group.prompt) - 1, settings.prefix_buckets)
        by_prefix.setdefault(S, []).extend(_rows(group, settings.block, limit))
    plan = []
    for S in sorted(by_prefix):
        rows = sorted(by_prefix[S], key=lambda row: row.used)
        for start in range(0, len(rows), settings.rows):
            some = rows[start:start + settings.rows]
            size = _bucket(some[-1].used, settings.branch_buckets)
            is_whole = settings.parts == 1 and size <= WHOLE_ROW and all(len(row.branches) == 1 for row in some)
            block = size if is_whole else settings.block  # a block is the row, then
            shape = RowShape(S, block, max(0, min(settings.window, size - block)), settings.parts)
            plan.append(_Microbatch(some, shape, size))
    return plan


def padding_fraction(batches: Sequence[Batch]) -> float:
    """Share of the computed tokens that are padding."""
    return 1 - sum(int(b.is_valid.sum()) for b in batches) / max(1, sum(b.is_valid.size for b in batches))


def _padded(length: int, block: int) -> int:
    return -(-length // block) * block


def _check(groups: Sequence[Prefixed], settings: PackSettings) -> None:
    for branch in (branch for group in groups for branch in group.branches):
        if not 1 <= len(branch.ids) <= settings.max_branch_tokens:
            raise ValueError(f"a branch has {len(branch.ids)} tokens; rows take 1 to {settings.max_branch_tokens} "
                             "(max_branch_tokens): raise that limit, or leave the branch out")


def _bucket(size: int, buckets: Sequence[int]) -> int:
    for candidate in buckets:
        if size <= candidate:
            return candidate
    raise ValueError(f"{size} tokens do not fit the largest row bucket {buckets[-1]}; add a larger bucket")


def _rows(group: Prefixed, block: int, limit: int) -> list[_Row]:
    """First fit, longest first, so that few rows repeat the prefix."""
    rows: list[list[Branch]] = []
    room: list[int] = []
    for branch in sorted(group.branches, key=lambda b: -len(b.ids)):
        size = _padded(len(branch.ids), block)
        place = next((i for i, free in enumerate(room) if free >= size), None)
        if place is None:
            rows.append([])
            room.append(limit)
            place = len(rows) - 1
        rows[place].append(branch)
        room[place] -= size
    return [_Row(group.prompt, branches, limit - free) for branches, free in zip(rows, room, strict=True)]


def _assemble(microbatch: _Microbatch, count: int) -> Batch:
    shape, limit = microbatch.shape, microbatch.branch_tokens
    S, T = shape.S, shape.S + limit
    ids, position = np.zeros((count, T), np.int32), np.zeros((count, T), np.int32)
    is_valid = np.zeros((count, T), bool)
    branch_start = np.tile(np.arange(limit, dtype=np.int32), (count, 1))
    target = np.zeros((count, limit), np.int32)
    is_sampled = np.zeros((count, limit), bool)
    advantage, logp, weight = (np.zeros((count, limit), np.float32) for _ in range(3))
    for i, row in enumerate(microbatch.rows):
        prefix = len(row.prompt) - 1
        ids[i, :prefix], position[i, :prefix], is_valid[i, :prefix] = row.prompt[:-1], np.arange(prefix), True
        start = 0
        for branch in row.branches:
            n = len(branch.ids)
            here, inside = slice(start, start + n), slice(S + start, S + start + n)
            ids[i, inside] = np.concatenate([row.prompt[-1:], branch.ids[:-1]])
            position[i, inside] = prefix + np.arange(n)
            is_valid[i, inside] = True
            branch_start[i, here], target[i, here], is_sampled[i, here] = start, branch.ids, branch.is_sampled
            advantage[i, here] = np.where(branch.is_sampled, branch.advantage, 0)
            weight[i, here] = np.where(branch.is_sampled, branch.weight, 0)
            logp[i, here] = np.where(branch.is_sampled, branch.logp, 0)
            start += _padded(n, shape.block)
    whole = [context.dealt(x, S, shape.parts) for x in (ids, position, is_valid)]
    scored = [context.dealt(x, 0, shape.parts) for x in (branch_start, target, is_sampled, advantage, logp, weight)]
    return Batch(*whole, *scored, shape)
