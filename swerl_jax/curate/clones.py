"""The clones of a run: looked at once, found by their repository's name, opened one at a time.

On the path: a directory of clones → **what each is** → items of work; pull request of an archive → **its clone** → candidate.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from swerl_jax.curate import git_names
from swerl_jax.curate.contamination import normal_name
from swerl_jax.curate.repository import Repository, RepositoryError


@dataclasses.dataclass(frozen=True)
class Clone:
    """One clone.

    Attributes:
      path: on this machine.
      name: "owner/name" of its remote, else its directory's name.
      roots: its root commits, none where history is cut off.
      count: commits of its main line.
      head: the last of them.
      state: identifies what the clone holds.
      fault: why it cannot be read, else "".
      remotes: what all its remotes are called.
    """

    path: str
    name: str
    roots: tuple[str, ...] = ()
    count: int = 0
    head: str = ""
    state: str = ""
    fault: str = ""
    remotes: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """What forks of a repository have in common."""
        return self.roots[0] if self.roots else self.name.lower()

    @property
    def names(self) -> tuple[str, ...]:
        """What the clone is found by: its name, and what its place on disk says."""
        path = pathlib.Path(os.path.abspath(self.path))
        path = path.parent if path.name == ".git" else path
        return tuple(dict.fromkeys((self.name, f"{path.parent.name}/{path.name.removesuffix('.git')}")))

    @property
    def all_names(self) -> tuple[str, ...]:
        """All that the clone may be known by: a fork names here what it was made from."""
        return tuple(dict.fromkeys((*self.names, *self.remotes)))


def look_at(shared: None, path: str, out: str) -> dict[str, Any]:
    """Says what a clone is, as the fields of `Clone`; a stage's function."""
    del shared, out
    try:
        with Repository(path) as repository:
            clone = Clone(path, repository.name(), tuple(repository.root_commits()), repository.count(), repository.head(),
                          _state(repository), remotes=tuple(repository.remote_names()))
    except (RepositoryError, OSError) as error:  # the second of what may not be looked into
        clone = Clone(path, git_names.name_from_path(path), fault=str(error))
    return dataclasses.asdict(clone)


def from_json(value: dict[str, Any]) -> Clone:
    """Reads what `look_at` returned."""
    return Clone(**{**value, "roots": tuple(value["roots"]), "remotes": tuple(value["remotes"])})


class Clones:
    """Finds clones by the names of their repositories, and keeps the last one open. A context manager."""

    def __init__(self, clones: Iterable[Clone]):
        """Of several clones of one name the first by path counts."""
        self._by_name: dict[str, Clone] = {}
        short: dict[str, list[Clone]] = collections.defaultdict(list)
        for clone in sorted(clones, key=lambda clone: clone.path):
            for name in map(normal_name, clone.names):
                if "/" in name:
                    self._by_name.setdefault(name, clone)
            if "/" not in clone.name:
                short[normal_name(clone.name)].append(clone)
        self._by_short_name = {name: found[0] for name, found in short.items() if len(found) == 1}
        self._open: tuple[str, Repository] | None = None
        self._faults: dict[str, str] = {}

    def __enter__(self) -> Clones:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._open[1].close()

    def find(self, names: Iterable[str]) -> Clone | None:
        """The clone of the first of these names that has one; a clone without a remote counts for its directory's name."""
        normal = list(map(normal_name, names))
        for name in normal:
            if found := self._by_name.get(name):
                return found
        return next((self._by_short_name[short] for name in normal if (short := name.rpartition("/")[2]) in self._by_short_name),
                    None)

    def repository(self, clone: Clone) -> Repository:
        """The open clone.

        Raises:
          RepositoryError: it cannot be read, or could not be read before.
        """
        if fault := clone.fault or self._faults.get(clone.path, ""):
            raise RepositoryError(fault)
        if not self._open or self._open[0] != clone.path:
            self.__exit__()
            self._open = None
            self._open = clone.path, Repository(clone.path)
        return self._open[1]

    def give_up(self, clone: Clone, fault: str) -> None:
        """Remembers that a clone cannot be read, so that it is not tried again for every change."""
        self._faults[clone.path] = fault


def _state(repository: Repository) -> str:
    """Changes where objects were added or lost: the packs with their sizes, what is loose, where history is cut off."""
    objects, shallow = repository.object_directory, repository.shallow_file
    packs = [(name, os.stat(objects / "pack" / name).st_size) for name in _names(objects / "pack")]
    loose = [(name, len(_names(objects / name))) for name in _names(objects) if len(name) == 2]
    depth = shallow.read_text("utf-8", "replace") if shallow.is_file() else ""
    return hashlib.sha256(repr((repository.head(), packs, loose, depth)).encode()).hexdigest()[:24]


def _names(directory: pathlib.Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.is_dir() else []
