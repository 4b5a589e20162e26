"""A run's directory of results: what is there already is not done again, so a killed run goes on where it was.

On the path: items of a stage → **engine → files** → items of the next. A result's name is a hash of what it was made from:
the stage, the settings, the item, the state of the files that it read, and the version of this package.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from swerl_jax import __version__
from swerl_jax.curate.engine import Engine
from swerl_jax.data import files
from swerl_jax.env.progress import Progress

FORMAT = 2  # of the results; another number makes all of them anew
_RESULT, _FAULT = ".json", ".fault.json"


@dataclasses.dataclass(frozen=True)
class Item:
    """One piece of work.

    Attributes:
      name: for people.
      arguments: of the stage's function; strings, numbers, tuples and frozen dataclasses of such.
      state: of the files that it reads, beside what the arguments tell.
      changes: how many it stands for, as far as is known.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: str = ""
    changes: int = 1


@dataclasses.dataclass(frozen=True)
class Result:
    """What became of an item.

    Attributes:
      item: which.
      out: the beginning of the names of the item's own files.
      value: what the function returned, None where it failed.
      fault: why it failed, else "".
    """

    item: Item
    out: str
    value: Any
    fault: str = ""


class AllFailed(RuntimeError):
    """Every item of a stage failed: no fault of single inputs."""


@dataclasses.dataclass(frozen=True)
class _Task:
    """What an engine moves: everything that one call needs."""

    function: Callable[..., Any]
    shared: Any
    arguments: tuple[Any, ...]
    out: str


class Work:
    """Runs stages in a directory."""

    def __init__(self, directory: str, engine: Engine):
        """`directory`: a local path or a URL; `engine` does the work."""
        self._directory = directory
        self._engine = engine

    def run(self, stage: str, function: Callable[..., Any], shared: Any, items: Sequence[Item], *,
            is_kept: bool = True, is_whole: Callable[[Any], bool] | None = None) -> list[Result]:
        """Calls `function(shared, *item.arguments, out)` for every item whose result is not there yet.

        Args:
          stage: name of the stage and its directory.
          function: of a module, so that it can be pickled; returns JSON values, and may write files whose names begin
            with `out`. They count once it has returned.
          shared: what all items need; as an item's arguments.
          items: different ones.
          is_kept: False: done anew every time, for what is quick and depends on more than can be named.
          is_whole: whether what a result tells of is still there.

        Returns:
          The results in the order of the items, failed ones among them.

        Raises:
          AllFailed: every item failed.
        """
        said = _plain(shared)
        outs = [f"{self._directory}/{stage}/{_digest([FORMAT, __version__, stage, said, _plain(item.arguments), item.state])}"
                for item in items]
        there = set(files.names(f"{self._directory}/{stage}")) if is_kept else set()
        missing = [number for number, out in enumerate(outs)
                   if out.rpartition("/")[2] + _RESULT not in there or (is_whole and not is_whole(files.read_json(out + _RESULT)))]
        tasks = [_Task(function, shared, items[number].arguments, outs[number]) for number in missing]
        faults = {}
        with Progress(len(tasks), stage) as bar:
            for index, fault in self._engine.run(_perform, tasks) if tasks else ():
                faults |= {missing[index]: fault} if fault else {}
                bar.advance(1, items[missing[index]].name[-40:])
        results = [_result(item, out, faults.get(number, "")) for number, (item, out) in enumerate(zip(items, outs, strict=True))]
        if results and all(result.fault for result in results):
            raise AllFailed(f"stage {stage}: all {len(results)} items failed; the first, {results[0].item.name}: "
                            f"{results[0].fault}")
        return results


def _perform(task: _Task) -> None:
    """Does one piece of work; what it throws is written down, for one odd input must not end a run of days."""
    try:
        value = task.function(task.shared, *task.arguments, task.out)
    except Exception:  # whatever it is: the item is rejected by name, with this as the reason
        files.remove(task.out + _RESULT)
        files.write_json(task.out + _FAULT, {"fault": traceback.format_exc(limit=-8)})
        return
    files.write_json(task.out + _RESULT, value)


def _result(item: Item, out: str, fault: str) -> Result:
    if fault:
        return Result(item, out, None, fault)
    if files.exists(out + _RESULT):
        return Result(item, out, files.read_json(out + _RESULT))
    if files.exists(out + _FAULT):
        return Result(item, out, None, files.read_json(out + _FAULT)["fault"])
    return Result(item, out, None, "its worker left no result")


def _plain(value: Any) -> Any:
    """The value as JSON values that say the same in every process."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in sorted(value.items())}
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:24]
