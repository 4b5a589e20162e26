"""Checkpoints: the last arrow of the path, and the first of a resumed run.

A step is one directory: Orbax commits `arrays` (a plain {path: array} dict) and `host` (JSON) into it atomically and
in the background; a manifest of every file's size and checksum follows. Orbax alone restores flipped bytes without a
word, so a step counts only if its manifest verifies: no manifest, not good. Several processes write one checkpoint, each
its own shards, into a directory that all of them see, on a file system or in a bucket (`gs://…`); process 0 makes and removes
directories. In a bucket nothing can be renamed: Orbax writes in place and commits by a mark, a step goes manifest first.

    checkpoints/step_000040/{arrays/…, host/…, manifest.json}
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec
import jax
import orbax.checkpoint as ocp
from etils import epath

from swerl_jax.data import files
from swerl_jax.learn import manifest
from swerl_jax.learn.processes import ALONE, Processes

DIRECTORY_NAME = "checkpoints"  # inside a run directory
_STEP_NAME = re.compile(r"step_(\d{6,})")
_ORBAX_PARTIAL = ".orbax-checkpoint-tmp"  # Orbax's mark on a directory that was never committed, on a file system
_ORBAX_COMMITTED = "commit_success.txt"  # and in one that was

_log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names its path."""


def log_rejection(step: int, reason: str) -> None:
    """Says on the log that a checkpoint was passed over, and why."""
    _log.warning("checkpoint of step %d rejected: %s", step, reason)


class Checkpoints:
    """The checkpoints of one run, newest K kept.

    Only one run may write to a directory at a time; all its processes call the methods, in the same order. One thread of each
    calls them; commits run in the background.

    Attributes:
      directory: where the steps lie.
      newest: the step that the last `latest_good` found (and verified), None before or if there was none.
    """

    def __init__(self, directory: str | os.PathLike[str], keep: int, asynchronous: bool = True,
                 processes: Processes = ALONE, before_good: Callable[[], None] = lambda: None) -> None:
        """Opens `directory` for writing, makes it if needed and clears what a killed save or deletion left there.

        Args:
          directory: the checkpoint directory itself.
          keep: how many good steps stay on disk, ≥ 1.
          asynchronous: True: `save` returns as soon as the arrays may be donated; False: after the manifest.
          before_good: process 0 calls it, in the background, when a step is committed and does not count yet.

        Raises:
          ValueError: for keep < 1.
          OSError: if the directory cannot be made or written.
        """
        if keep < 1:
            raise ValueError(f"keep must be at least 1 (the newest checkpoint), got {keep}")
        self._prepare(directory, keep, asynchronous, processes)
        self._before_good = before_good
        processes.first(f"making {self.directory}", self._make_directory)

    @classmethod
    def open(
        cls, directory: str | os.PathLike[str], on_reject: Callable[[int, str], None] = log_rejection,
        processes: Processes = ALONE,
    ) -> Checkpoints:
        """Opens the checkpoints of a finished or running run for reading; `newest` is the step to restore.

        Args:
          directory: a run directory (one that holds `checkpoints/`) or the checkpoint directory itself.
          on_reject: as in `latest_good`.

        Raises:
          ValueError: if there is no good checkpoint, saying what was found instead.
        """
        reader, root = cls.__new__(cls), os.fspath(directory).rstrip("/")
        inner = f"{root}/{DIRECTORY_NAME}"
        reader._prepare(inner if files.exists(inner) else root, keep=0, asynchronous=False, processes=processes)
        if not files.exists(root):
            raise ValueError(f"no checkpoint directory at {root}: give a run directory or its {DIRECTORY_NAME}/")
        if reader.latest_good(on_reject) is None:
            found = "".join(f"\n  step {step}: {reason}" for step, reason in reader._rejected.items())
            raise ValueError(f"no good checkpoint in {reader.directory}: {found or 'it holds no step_* directory'}")
        return reader

    def _prepare(self, directory: str | os.PathLike[str], keep: int, asynchronous: bool, processes: Processes) -> None:
        place = os.fspath(directory)
        fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False  # Orbax's file system, too: not only it writes there
        self.directory = pathlib.Path(place).absolute() if files.is_local(place) else epath.Path(place)  # as Orbax wants them
        self.newest: int | None = None
        self._keep = keep
        self._asynchronous, self._processes = asynchronous, processes
        self._saves = 0  # of this object: its barriers' names are used once
        self._rejected: dict[int, str] = {}
        self._verified: set[int] = set()
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(arrays=ocp.PyTreeCheckpointHandler(), host=ocp.JsonCheckpointHandler()),
            # In the background, a directory that cannot be made would be waited for for minutes.
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False,
                timeout_secs=int(processes.deadline_s) or ocp.AsyncOptions.timeout_secs),
        )
        self._finisher = concurrent.futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future[None] | None = None

    def save(self, step: int, arrays: Mapping[str, jax.Array], host: Mapping[str, Any]) -> None:
        """Starts to save one step; waits first for the one before it.

        A rejected or unfinished checkpoint of the same step is replaced, and the log says so.

        Args:
          step: optimiser step, ≥ 0.
          arrays: path → array of any dtype and sharding, none empty; may be donated as soon as this returns.
          host: JSON values only; copied before this returns.

        Raises:
          ValueError: an empty array, a host value that JSON cannot hold exactly, or a good checkpoint of this step.
          CheckpointError: this save could not start, or the one before it failed.
        """
        self.wait()
        if self._keep < 1:
            raise ValueError(f"{self.directory} was opened for reading; make Checkpoints(directory, keep) to save")
        empty = sorted(path for path, array in arrays.items() if array.size == 0)
        if empty or not arrays:
            raise ValueError(f"checkpoints hold non-empty arrays only, got empty ones at {empty or 'no path at all'}")
        arguments = ocp.args.Composite(
            arrays=ocp.args.PyTreeSave(dict(arrays)), host=ocp.args.JsonSave(_json_copy(host))
        )
        self._processes.first(f"making room for checkpoint {step}", lambda: self._make_room(step))
        self._saves += 1
        with _naming_path(self._path(step), "save"):
            self._checkpointer.save(self._path(step), args=arguments)
        self._pending = self._finisher.submit(self._finish, step, f"{self.directory.name}/{self._saves}/{step}")
        if not self._asynchronous:
            self.wait()

    def wait(self) -> None:
        """Returns when the last save is committed and has its manifest.

        Raises:
          CheckpointError: it failed, e.g. the disk is full; raised once.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Waits for the last save and ends the background threads; raises as `wait` does."""
        try:
            self.wait()
        finally:
            self._finisher.shutdown()
            self._checkpointer.close()

    def steps(self) -> list[int]:
        """Every committed step on disk, good or not, oldest first."""
        matches = map(_STEP_NAME.fullmatch, files.names(os.fspath(self.directory)))
        return sorted(int(match[1]) for match in matches if match)

    def latest_good(self, on_reject: Callable[[int, str], None] = log_rejection) -> int | None:
        """The newest step whose every file is as it was written, None if there is none.

        Args:
          on_reject: called with (step, reason) for every newer step that was passed over.
        """
        self.wait()
        self.newest = None
        for step in reversed(self._processes.first("listing checkpoints", self.steps)):
            reason = self._fault(step)
            if reason is None:
                self._rejected.pop(step, None)
                self._verified.add(step)
                self.newest = step
                break
            self._rejected[step] = reason
            on_reject(step, reason)
        return self.newest

    def restore(
        self, step: int, abstract: Mapping[str, jax.ShapeDtypeStruct], *, is_part: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """Reads one step onto the shardings of `abstract`, bit-equal to what was saved from whatever mesh.

        Args:
          step: a step on disk; verified here unless `latest_good` just did.
          abstract: path → shape, dtype and sharding of every array that was saved.
          is_part: what was saved beyond `abstract` is left unread.

        Returns:
          The arrays by path, and the host values.

        Raises:
          ValueError: the paths, shapes or dtypes differ from those saved, or a sharding is missing; lists all.
          CheckpointError: the step is absent, damaged or unreadable.
        """
        path = self._verified_path(step)
        with _naming_path(path, "restore"):
            saved = self._checkpointer.metadata(path).item_metadata["arrays"]
        if is_part:
            saved = {path: saved[path] for path in saved if path in abstract}
        differences = _differences(saved, abstract)
        if differences:
            listing = "".join(f"\n  {line}" for line in differences)
            raise ValueError(f"{path} does not hold what this run needs ({len(differences)} differences):{listing}")
        arrays = ocp.args.PyTreeRestore(
            dict(abstract), restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract)), partial_restore=is_part
        )
        arguments = ocp.args.Composite(arrays=arrays, host=ocp.args.JsonRestore())
        with _naming_path(path, "restore"):
            restored = self._checkpointer.restore(path, args=arguments)
        return dict(restored["arrays"]), restored["host"]

    def paths(self, step: int) -> list[str]:
        """The paths of the arrays of one step; raises CheckpointError as `restore` does."""
        path = self._verified_path(step)
        with _naming_path(path, "restore"):
            return list(self._checkpointer.metadata(path).item_metadata["arrays"])

    def host(self, step: int) -> dict[str, Any]:
        """The host values of one step, without its arrays; raises CheckpointError as `restore` does."""
        path = self._verified_path(step)
        with _naming_path(path, "restore"):
            return self._checkpointer.restore(path, args=ocp.args.Composite(host=ocp.args.JsonRestore()))["host"]

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"step_{step:06d}"

    def _verified_path(self, step: int) -> pathlib.Path:
        self.wait()
        path = self._path(step)
        if not files.exists(os.fspath(path)):
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}; it holds steps {self.steps()}")
        reason = None if step in self._verified else self._fault(step)
        if reason is not None:
            raise CheckpointError(f"{path} is not good: {reason}")
        self._verified.add(step)
        return path

    def _make_room(self, step: int) -> None:
        path = self._path(step)
        if not files.exists(os.fspath(path)):
            return
        reason = self._rejected.get(step)
        if reason is None and self._has(path.name, manifest.NAME):
            raise ValueError(f"step {step} is already saved in {self.directory}: resume from it or save elsewhere")
        _log.warning("replacing the checkpoint of step %d: %s", step, reason or "it has no manifest")
        self._discard(path)

    def _fault(self, step: int) -> str | None:
        """As manifest.find_fault; the processes share the reading."""
        here = self._processes
        found = here.exchange(f"verifying checkpoint {step}",
                              lambda: manifest.find_fault(self._path(step), here.index, here.count))
        return next((fault for fault in found if fault is not None), None)

    def _finish(self, step: int, name: str) -> None:
        """Runs in the background: commit, manifest, and only then the deletion of what is no longer kept."""
        here = self._processes
        with _naming_path(self._path(step), "save"):
            self._checkpointer.wait_until_finished()
            manifest.write_part(self._path(step), here.index, here.count)
            here.barrier(f"{name}/parts")
            if here.index == 0:
                self._before_good()
                manifest.write(self._path(step), here.count)
            here.barrier(f"{name}/manifest")
            self._rejected.pop(step, None)
            if here.index == 0:
                self._discard_old(step)

    def _discard_old(self, saved: int) -> None:
        others = (step for step in reversed(self.steps()) if step != saved and step not in self._rejected)
        with_manifest = [step for step in others if self._has(self._path(step).name, manifest.NAME)]
        for step in set(self.steps()) - {saved, *with_manifest[: self._keep - 1]}:
            self._discard(self._path(step))

    def _discard(self, path: pathlib.Path) -> None:
        for mark in (manifest.NAME, _ORBAX_COMMITTED):  # first: a kill in mid-deletion leaves nothing that looks like a step
            files.remove(f"{path}/{mark}")
        files.remove_directory(os.fspath(path))

    def _make_directory(self) -> None:
        files.make_directory(os.fspath(self.directory))
        for name in files.names(os.fspath(self.directory)):
            is_whole = any(self._has(name, mark) for mark in (_ORBAX_COMMITTED, manifest.NAME))
            if _ORBAX_PARTIAL in name or (_STEP_NAME.fullmatch(name) and not is_whole):
                _log.info("removing what an interrupted save or deletion left: %s/%s", self.directory, name)
                files.remove_directory(f"{self.directory}/{name}")

    def _has(self, name: str, mark: str) -> bool:
        return files.exists(f"{self.directory}/{name}/{mark}")


def save_arrays(directory: pathlib.Path, arrays: Mapping[str, jax.Array]) -> None:
    """Writes arrays by path as a plain Orbax directory, without host values and manifest; raises CheckpointError."""
    with _naming_path(directory, "save"), ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute(), dict(arrays))


def load_arrays(directory: pathlib.Path, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
    """Reads what `save_arrays` wrote onto the shardings of `abstract`, cast to its dtypes.

    Raises:
      ValueError: the paths or shapes differ from those saved; lists all.
      CheckpointError: the directory is damaged or unreadable.
    """
    with _naming_path(directory, "read"), ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory.absolute()).item_metadata.tree
        stored = {path: jax.ShapeDtypeStruct(x.shape, saved[path].dtype if path in saved else x.dtype, sharding=x.sharding)
                  for path, x in abstract.items()}
        if not (differences := _differences(saved, stored)):
            return checkpointer.restore(directory.absolute(),
                                        restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract)))
    raise ValueError(f"{directory} does not hold this model ({len(differences)} differences):"
                     + "".join(f"\n  {line}" for line in differences))


def _json_copy(host: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy as JSON will give it back; what would come back changed (a tuple, an int key, NaN) is refused."""
    try:
        copy = json.loads(json.dumps(dict(host), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the host part of a checkpoint takes JSON values only: {error}") from error
    changed = sorted(str(key) for key in host if copy.get(key) != host[key])
    if changed:
        raise ValueError(f"JSON would change the host values {changed}; use str keys, lists, finite numbers")
    return copy


def _differences(saved: Mapping[str, Any], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    lines = [f"{path}: needed, but not in the checkpoint" for path in wanted if path not in saved]
    lines += [f"{path}: in the checkpoint, but not needed" for path in saved if path not in wanted]
    for path in sorted(set(saved) & set(wanted)):
        have, need = saved[path], wanted[path]
        if tuple(have.shape) != tuple(need.shape):
            lines.append(f"{path}: saved with shape {tuple(have.shape)}, needed {tuple(need.shape)}")
        if have.dtype != need.dtype:
            lines.append(f"{path}: saved as {have.dtype}, needed {need.dtype}")
        if need.sharding is None:  # Orbax would silently restore onto the mesh that saved it
            lines.append(f"{path}: given without a sharding")
    return sorted(lines)


@contextlib.contextmanager
def _naming_path(path: pathlib.Path, deed: str) -> Iterator[None]:
    # Orbax and TensorStore raise almost any type, often without the path: all of them end the save or the restore.
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"could not {deed} {path}: {type(error).__name__}: {error}") from error
