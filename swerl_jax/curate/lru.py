"""A cache with a bound on what it holds altogether; what was not used for longest goes first."""

from __future__ import annotations

import collections
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Values by key, whose weights sum up to at most `max_weight`."""

    def __init__(self, max_weight: int):
        self._max_weight = max_weight
        self._weight = 0
        self._entries: collections.OrderedDict[K, tuple[V, int]] = collections.OrderedDict()

    def get(self, key: K) -> V | None:
        """Returns the value, None where there is none (any more)."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, weight: int = 1) -> None:
        """Keeps a value; one heavier than the whole cache is not kept."""
        if key in self._entries:
            self._weight -= self._entries.pop(key)[1]
        if weight > self._max_weight:
            return
        self._entries[key] = (value, weight)
        self._weight += weight
        while self._weight > self._max_weight:
            self._weight -= self._entries.popitem(last=False)[1][1]
