"""Where two lines of history parted: the merge base, from as few commits as it takes.

On the path: base and head → **merge base** → the tree before the change.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Mapping, Sequence

_FROM_A, _FROM_B, _BELOW_A_BASE = 1, 2, 4
_BOTH = _FROM_A | _FROM_B


@dataclasses.dataclass(frozen=True)
class Node:
    """What the search needs of a commit: its parents, and the committer's time to look at late ones first."""

    parents: tuple[str, ...]
    time_s: int


@dataclasses.dataclass(frozen=True)
class Bases:
    """The outcome of a search.

    Attributes:
      ids: common ancestors; where there is more than one, some may be ancestors of others.
      is_complete: False where a missing commit leaves room for others.
    """

    ids: tuple[str, ...]
    is_complete: bool


def merge_bases(a: str, b: str, read: Callable[[Sequence[str]], Mapping[str, Node]], max_commits: int) -> Bases | None:
    """Finds the latest common ancestors of two commits.

    Args:
      a, b: their ids, both there.
      read: ids → nodes of those that are there.
      max_commits: where to give up.

    Returns:
      None where it gave up.

    Source: git's own algorithm (commit-reach.c, paint_down_to_common), which is exact whatever the clocks said, up to
    the redundant bases that `ids` tells of.
    """
    if a == b:
        return Bases((a,), True)
    walk = _Walk(read)
    walk.mark([a], _FROM_A)
    walk.mark([b], _FROM_B)
    bases: list[str] = []
    is_complete = True
    while walk.live:
        if len(walk.flags) > max_commits:
            return None
        id_ = walk.pop()
        flags = walk.flags[id_]
        if flags == _BOTH:
            bases.append(id_)
            flags |= _BELOW_A_BASE
        missing = walk.mark(walk.nodes[id_].parents, flags)
        is_complete &= not missing or bool(flags & _BELOW_A_BASE)
    ids = dict.fromkeys(id_ for id_ in bases if not walk.flags[id_] & _BELOW_A_BASE)
    return Bases(tuple(ids), is_complete)


class _Walk:
    """Commits on the way, latest first; `live` counts those waiting that may still lead to a base."""

    def __init__(self, read: Callable[[Sequence[str]], Mapping[str, Node]]):
        self._read = read
        self._heap: list[tuple[int, str]] = []
        self._waiting: set[str] = set()
        self.nodes: dict[str, Node] = {}
        self.flags: dict[str, int] = {}
        self.live = 0

    def mark(self, ids: Sequence[str], flags: int) -> list[str]:
        """Adds flags to commits, and looks at those again whose flags changed; returns the ids that are missing."""
        unknown = [id_ for id_ in ids if id_ not in self.nodes]
        if unknown:
            self.nodes |= self._read(unknown)
        for id_ in ids:
            if id_ in self.nodes:
                self._mark(id_, flags)
        return [id_ for id_ in unknown if id_ not in self.nodes]

    def pop(self) -> str:
        _, id_ = heapq.heappop(self._heap)
        self._waiting.remove(id_)
        self.live -= not self.flags[id_] & _BELOW_A_BASE
        return id_

    def _mark(self, id_: str, flags: int) -> None:
        old = self.flags.get(id_, 0)
        new = old | flags
        if new == old:
            return
        self.flags[id_] = new
        if id_ in self._waiting:
            self.live -= (new & _BELOW_A_BASE) > (old & _BELOW_A_BASE)
            return
        heapq.heappush(self._heap, (-self.nodes[id_].time_s, id_))
        self._waiting.add(id_)
        self.live += not new & _BELOW_A_BASE
