"""The endless stream of training examples, whose whole position is one integer.

On the path: shards → here → prompts. Grain gives the order (shuffle, repeat, mix); what is drawn is checked here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain

from swerl_jax.data.records import Example
from swerl_jax.data.shards import MalformedRow, open_examples

STOP = "stop"  # a malformed row ends the run
SKIP = "skip"  # it is counted as dropped and the next one drawn

POSITION = "position"
DROPPED = "dropped/"  # prefix of the counters' names

# Epochs of nothing but refusals before giving up: two hold one whole epoch wherever they begin, the third covers
# weights that are kept only nearly.
_PATIENCE = 3
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """Where examples come from and how often relative to the other sources.

    Attributes:
      examples: a path for `open_examples`, or the examples themselves.
      weight: share of the draws before any is dropped, relative to the sum of all weights; kept to within 1 %.
    """

    examples: str | os.PathLike[str] | Sequence[Example]
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An accepted draw.

    Attributes:
      index: of the draw, unique in the endless stream and the same whoever reads it. encoded: what was made of `example`.
    """

    index: int
    example: Example
    encoded: Any


class Readers(Protocol):
    """Those who read one stream together: number `index` of `count` (see learn.processes.Processes)."""

    index: int
    count: int

    def exchange(self, name: str, work: Callable[[], Any]) -> list[Any]:
        """What `work` returns with each of them, in their order."""


class OneReader:
    """Readers, where there is nobody else."""

    index, count = 0, 1

    def exchange(self, name: str, work: Callable[[], Any]) -> list[Any]:
        """What `work` returns."""
        del name
        return [work()]


def accept_all(example: Example) -> None:
    """Refuses nothing."""
    del example


def readable(rows: Sequence[Example], numbers: Iterable[int], on_malformed: str) -> Iterator[Example]:
    """The examples of these numbers; a row that is none is named and left out.

    Raises:
      MalformedRow: there is one and `on_malformed` is STOP.
    """
    for number in numbers:
        try:
            example = rows[number]
        except MalformedRow as error:
            if on_malformed == STOP:
                raise
            _log.warning("skipped %s", error)
        else:
            yield example


class Loader:
    """Draws examples from a mixture of sources, reshuffled every epoch, the same everywhere for the same seed.

    There is one endless stream of draws; each has an index. Draws that are refused drop out. Of n readers the p-th
    reads, judges and encodes the draws p, p + n, p + 2n …, and all tell each other what they found: so they agree on the
    position, which is one integer, and it can be restored under another number of readers: nothing is skipped and nothing is
    drawn twice.

    Args:
      sources: at least one; none empty.
      seed: decides the order.
      shuffle: if False, every source is read in its own order, again and again.
      accept: returns None, or why the example is dropped, e.g. "over_budget"; must depend on the example alone.
      on_malformed: STOP or SKIP, which names each row once.
      readers: take the same draws in the same order.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        seed: int,
        *,
        shuffle: bool = True,
        accept: Callable[[Example], str | None] = accept_all,
        on_malformed: str = STOP,
        readers: Readers = OneReader(),
    ):
        if on_malformed not in (STOP, SKIP):
            raise ValueError(f"on_malformed is {on_malformed!r}; needed is {STOP!r} or {SKIP!r}")
        self._names, rows = _open(sources)
        self._stream = _mix(rows, [source.weight for source in sources], seed, shuffle)
        total = sum(source.weight for source in sources)
        self._epoch_draws = max(
            math.ceil(len(part) * (total / source.weight)) for part, source in zip(rows, sources, strict=True)
        )
        self._readers = readers
        self._accept, self._on_malformed = accept, on_malformed
        self._state = {POSITION: 0}
        self._named: set[tuple[str, int]] = set()  # malformed rows

    @property
    def epoch(self) -> int:
        """Full passes made: one ends when every source has been drawn through at least once."""
        return self._state[POSITION] // self._epoch_draws

    @property
    def epoch_draws(self) -> int:
        """Draws of the global stream in one epoch; with one source, its number of rows."""
        return self._epoch_draws

    @property
    def counters(self) -> dict[str, int]:
        """Draws of the global stream dropped so far, as "dropped/REASON" → count."""
        return {name: count for name, count in self._state.items() if name != POSITION}

    def state(self) -> dict[str, int]:
        """Returns the position and the counters: what `restore` needs."""
        return dict(self._state)

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on where `state` was taken, under any number of readers.

        Raises:
          ValueError: the position is missing or negative.
        """
        position = state.get(POSITION)
        if position is None or operator.index(position) < 0:
            raise ValueError(f"the loader's state is {dict(state)}; needed is a {POSITION!r} of at least 0")
        self._state = {name: operator.index(value) for name, value in state.items()}

    def take(self, count: int, encode: Callable[[Example], Any] = lambda example: None) -> list[Drawn]:
        """The next `count` accepted draws, all of them with every reader.

        Args:
          encode: what is wanted of an example; must depend on it alone.

        Raises:
          MalformedRow: a row is no example and `on_malformed` is STOP.
          ValueError: a whole epoch held nothing acceptable.
          As readers.exchange, where there are several.
        """
        # A copy, put back in one assignment: an error or another thread's `state()` never sees half of it.
        state, taken, refusals = dict(self._state), [], []
        while len(taken) < count:
            window = range(state[POSITION], state[POSITION] + count - len(taken))
            for index, (drawn, reason) in zip(window, self._look(window, encode), strict=True):
                state[POSITION] = index + 1
                if reason is None:
                    taken.append(drawn)
                    refusals.clear()
                    continue
                state[DROPPED + reason] = state.get(DROPPED + reason, 0) + 1
                refusals.append(reason)
                if len(refusals) == _PATIENCE * self._epoch_draws:
                    raise ValueError(
                        f"{len(refusals)} draws in a row, all of {', '.join(self._names)}, were dropped as "
                        f"{sorted(set(refusals))}; needed is at least one acceptable example: raise the limit or change the data")
        self._state = state
        return taken

    def _look(self, window: range, encode: Callable[[Example], Any]) -> Iterator[tuple[Drawn | None, str | None]]:
        """(what was drawn, None) or (None, why it drops out), of every draw in `window`; each reader reads its shard."""
        readers = self._readers
        shards = readers.exchange(f"reading draws {window.start} to {window.stop}", lambda: [
            self._judged(index, encode) for index in window if index % readers.count == readers.index])
        found = [iter(shard) for shard in shards]
        return (next(found[index % readers.count]) for index in window)

    def _judged(self, index: int, encode: Callable[[Example], Any]) -> tuple[Drawn | None, str | None]:
        example, reason = self._read(index)
        return (Drawn(index, example, encode(example)), None) if reason is None else (None, reason)

    def _read(self, index: int) -> tuple[Example | None, str | None]:
        try:
            example = self._stream[index]
        except MalformedRow as error:
            if self._on_malformed == STOP:
                raise
            if (error.path, error.row) not in self._named:
                self._named.add((error.path, error.row))
                _log.warning("skipped %s", error)
            return None, "malformed"
        return example, self._accept(example)


def _open(sources: Sequence[Source]) -> tuple[list[str], list[Sequence[Example]]]:
    if not sources:
        raise ValueError("got no source; needed is at least one")
    names, opened = [], []
    for number, source in enumerate(sources):
        is_path = isinstance(source.examples, (str, os.PathLike))
        name = os.fspath(source.examples) if is_path else f"source {number}"
        rows = open_examples(source.examples) if is_path else source.examples
        if not len(rows):
            raise ValueError(f"{name} holds no examples; needed is at least one")
        if not (source.weight > 0 and math.isfinite(source.weight)):
            raise ValueError(f"{name} has the weight {source.weight}; needed is a number above 0, or leave it out")
        names.append(name)
        opened.append(rows)
    return names, opened


def _mix(
    rows: Sequence[Sequence[Example]], weights: Sequence[float], seed: int, shuffle: bool
) -> grain.MapDataset[Example]:
    parts = []
    for number, part in enumerate(rows):
        dataset = grain.MapDataset.source(part)
        if shuffle:
            dataset = dataset.shuffle(seed=_shuffle_seed(seed, number))
        parts.append(dataset.repeat())
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def _shuffle_seed(seed: int, number: int) -> int:
    # Grain adds the epoch to the seed: hashed, or seed 1 would begin with what seed 0 draws in its second epoch.
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")
