"""The directory of a run in a bucket (`gs://BUCKET/RUN`): its checkpoints lie there alone, its other files here, too.

Logs are appended to and tasks read by position, which a bucket cannot do: they are files of this machine. Process 0 sends what
changed with every checkpoint, before that counts, and at the end; a run that goes on takes its logs back to a checkpoint, so it
finds all that it needs. The copy here begins empty and goes with the process. A directory on a file system is its own copy.
"""

from __future__ import annotations

import concurrent.futures
import functools
import importlib.util
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import TypeVar

from swerl_jax.data import files, remote
from swerl_jax.data.atomic_file import PARTIAL_SUFFIX

T = TypeVar("T")
SCHEME = "gs://"
CONFIG_NAME = "config.json"
MODEL_NAME = "model"  # what a run keeps of the model that it began with, see `origin`
TASKS_NAME = "tasks"
TOKENIZER_PATH = pathlib.Path("tokenizer", "sentencepiece.model")  # in a run that trained it
WHAT_IT_IS = (MODEL_NAME, TASKS_NAME, TOKENIZER_PATH.parts[0])  # what, beside its settings, whoever uses a run must have
_REPLACED = ("evaluations/", "rollouts/")
_UPLOADS = 8  # at a time


class Mirror:
    """One run's directory, for one process.

    Attributes:
      place: the directory as it was named. local: where its files are read and written.
    """

    def __init__(self, place: str):
        """Reads nothing yet; raises ValueError as `check`."""
        check(place)
        self.place, self.is_remote = place.rstrip("/") or place, remote.is_remote(place)
        self._sent: dict[str, tuple[int, int]] = {}  # what is there, too: size and time of modification here
        if self.is_remote:
            cache = remote.cache() / "runs"
            cache.mkdir(parents=True, exist_ok=True)
            self._copy = tempfile.TemporaryDirectory(dir=cache)  # a killed process leaves its own; no other one reads that
        self.local = pathlib.Path(self._copy.name if self.is_remote else place)

    def at(self, name: str) -> str:
        """The place of what lies in the directory itself."""
        return f"{self.place}/{name}"

    def named(self, text: str) -> str:
        """The text with the directory's own name in place of the copy's."""
        return text.replace(str(self.local), self.place) if self.is_remote else text

    def pull_run(self, more: Sequence[str] = ()) -> None:
        """Fetches what the run says of itself, and the files and directories of the names in `more`; nothing of one not begun.

        Raises as `pull`.
        """
        self.pull((CONFIG_NAME,))
        if (self.local / CONFIG_NAME).exists():
            self.pull((*WHAT_IT_IS, *more))

    def pull(self, names: Sequence[str]) -> None:
        """Fetches the files and directories of these names, as far as they are there and not here.

        Raises:
          ValueError: the place cannot be read; an outage (see remote.is_outage) as it came.
        """
        if not self.is_remote:
            return
        try:
            for name in names:
                for below in files.below(self.at(name)):
                    path = self.local / name / below
                    if not path.exists():
                        files.fetch(self.at(f"{name}/{below}".rstrip("/")), path)
                        self._sent[path.relative_to(self.local).as_posix()] = _state(path)
        except Exception as error:  # every file system has errors of its own
            if remote.is_outage(error):
                raise
            raise ValueError(f"{self.place} cannot be read: {type(error).__name__}: {error}") from error

    def push(self) -> None:
        """Sends what is new or changed here, and deletes there the answers that were deleted here; files may grow meanwhile.

        Raises:
          OSError: the place cannot be written.
        """
        if not self.is_remote:
            return
        here = {path.relative_to(self.local).as_posix(): _state(path) for path in self.local.rglob("*")
                if path.is_file() and path.suffix != PARTIAL_SUFFIX}
        changed = sorted(name for name in here if self._sent.get(name) != here[name])

        def send(name: str) -> None:
            with files.written(self.at(name)) as snapshot:
                shutil.copyfile(self.local / name, snapshot)
            self._sent[name] = here[name]

        with concurrent.futures.ThreadPoolExecutor(_UPLOADS) as pool:
            list(pool.map(send, (name for name in changed if "/" in name)))
        # What others wait for last: the settings, which say that a run has begun, and at its end the table.
        for name in (name for name in changed if "/" not in name):
            send(name)
        for name in self._sent.keys() - here.keys():
            if name.startswith(_REPLACED):  # of steps that are done again; else someone cleared the copy, and the run stays
                files.remove(self.at(name))
                del self._sent[name]

    def hand_over(self, work: Callable[[], T], *, is_first: bool) -> T:
        """What `work` returns; process 0 does it and sends what it made, the others then fetch that before they do it."""
        if not is_first:
            self.pull((TASKS_NAME, TOKENIZER_PATH.parts[0]))
        made = work()
        if is_first:
            self.push()
        return made


def check(place: str) -> None:
    """Sees that a run's directory may be there.

    Raises:
      ValueError: it is at a place that checkpoints cannot be written to, or what is needed for it is not installed.
    """
    if remote.is_remote(place) and not place.startswith(SCHEME):
        raise ValueError(f"{place}: a run's directory is one on a file system, or {SCHEME}BUCKET/PATH in Google Cloud Storage; "
                         "checkpoints are written nowhere else")
    if remote.is_remote(place) and importlib.util.find_spec("gcsfs") is None:
        raise ValueError(f"{place}: gcsfs is needed for a bucket and not installed: pip install -e .[gcs]")


@functools.cache
def of_run(place: str) -> Mirror:
    """What the run says of itself whose directory `place` in a bucket is or lies in, fetched once a process.

    Raises:
      ValueError: as `check` and Mirror.pull.
    """
    mirror = Mirror(place)
    mirror.pull_run()
    is_run = (mirror.local / CONFIG_NAME).exists() or "/" not in mirror.place.removeprefix(SCHEME)
    return mirror if is_run else of_run(mirror.place.rpartition("/")[0])


def _state(path: pathlib.Path) -> tuple[int, int]:
    about = os.stat(path)
    return about.st_size, about.st_mtime_ns
