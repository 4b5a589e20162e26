"""A clone on disk: its history, and the texts on both sides of a change, without a checkout and within bounded memory.

On the path: clone → **repository** → Change, Candidate.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence

from swerl_jax.curate import ancestry, change, file_changes, git_message, git_names, git_process
from swerl_jax.curate.file_changes import Blob, Difference
from swerl_jax.curate.git_objects import Commit, Objects
from swerl_jax.curate.git_process import RepositoryError
from swerl_jax.curate.lru import Lru

_BRANCHES = ("refs/remotes/origin/HEAD", *(f"{where}/{name}" for name in ("main", "master", "trunk", "develop")
                                           for where in ("refs/heads", "refs/remotes/origin")))
_DIRECTORY_MODE = "40000"
_CACHED_TEXT_BYTES = 32 << 20
_CACHED_TREE_ENTRIES = 500_000
_CACHED_COMMIT_BYTES = 8 << 20
_CACHED_NODES = 50_000


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is read at most.

    Attributes:
      blob_bytes: of one file; a larger one is of kind TOO_LARGE, and is never read.
      change_files: paths of one change.
      change_bytes: of all files of one change, both sides.
      tree_files: paths of one tree.
      walk_commits: looked at here in search of a merge base; beyond that git itself is asked.
      timeout_s: for one answer of git.
      history_timeout_s: for walking the whole history.
    """

    blob_bytes: int = 1 << 20
    change_files: int = 300
    change_bytes: int = 16 << 20
    tree_files: int = 500_000
    walk_commits: int = 5_000
    timeout_s: float = 60.0
    history_timeout_s: float = 900.0


class Repository:
    """Reads one clone. A context manager, for one thread at a time.

    Bare or not, partial, shallow (`is_shallow`), with or without branches. Any method raises RepositoryError where the clone as
    a whole is damaged or git gives no answer in time; a single missing object is told as a value instead.
    """

    def __init__(self, path: str | os.PathLike[str], limits: Limits = Limits()):
        """Opens the clone at `path`.

        Raises:
          RepositoryError: it is none.
        """
        self.path = os.fspath(path)
        self.limits = limits
        self._directory = os.path.abspath(git_names.git_directory(path))
        self._git("rev-parse", "--git-dir")
        object_format = self._git("rev-parse", "--show-object-format").decode().strip()
        objects, shallow = (self._git("rev-parse", "--git-path", name).decode("utf-8", "surrogateescape").strip("\n")
                            for name in ("objects", "shallow"))
        self.timeouts = 0  # so far
        self.object_directory, self.shallow_file = pathlib.Path(os.path.abspath(objects)), pathlib.Path(os.path.abspath(shallow))
        self.is_shallow = self.shallow_file.exists()
        self.objects = Objects(str(self.object_directory), object_format, self.shallow_file, limits.timeout_s)
        self._texts: Lru[str, Blob] = Lru(_CACHED_TEXT_BYTES)
        self._trees: Lru[str, list[tuple[str, str, str]]] = Lru(_CACHED_TREE_ENTRIES)
        self._nodes: Lru[str, ancestry.Node] = Lru(_CACHED_NODES)
        self._commits: Lru[str, Commit] = Lru(_CACHED_COMMIT_BYTES)
        self._head: str | None = None
        self._heads: list[str] | None = None
        self._history: bytes | None = None

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends git's processes."""
        self.objects.close()

    def restart(self) -> None:
        """Forgets what git is busy with, after something went wrong in the middle of it."""
        self.objects.restart()

    def name(self) -> str:
        """Returns "owner/name" of the remote it was cloned from (origin first), else its directory's name."""
        names = map(git_names.name_from_url, self._remotes())
        return next((name for name in names if name), "") or git_names.name_from_path(self.path)

    def remote_names(self) -> list[str]:
        """Returns what all its remotes are called, those that are directories by the directory's name; origin first."""
        return list(dict.fromkeys(map(git_names.name_from_remote, self._remotes())))

    def head(self) -> str:
        """Returns the commit that HEAD names, else the head of the most likely branch; "" where there is no commit."""
        if self._head is None:
            self._head = self._find_head()
        return self._head

    @functools.cached_property
    def owner(self) -> str:
        """What stands before the slash in its name, "" where there is none."""
        return self.name().rpartition("/")[0]

    def count(self) -> int:
        """Returns the number of commits of the history."""
        return self._lines().count(b"\n")

    def commits(self, first: int = 0, last: int | None = None) -> Iterator[Commit]:
        """Yields the history, oldest first, from position `first` up to (without) `last`.

        It is the first-parent history of `head()`, and that of every main or release line that was merged into it.
        """
        lines = self._lines()
        last = self.count() if last is None else min(last, self.count())
        for start in range(first, last, 512):
            ids = [self._id_at(lines, index) for index in range(start, min(start + 512, last))]
            found = self._commits_of(ids)
            if missing := [id_ for id_ in ids if id_ not in found]:
                raise RepositoryError(f"{self.path}: commit {missing[0]} cannot be read; clone it anew")
            yield from (found[id_] for id_ in ids)

    def commit(self, id_: str) -> Commit | None:
        """Returns one commit, None where it is not there."""
        return self._commits_of([id_]).get(id_)

    def matching(self, patterns: Sequence[str]) -> Iterator[Commit]:
        """Yields the commits of the history, latest first, a line of whose message matches a pattern.

        Args:
          patterns: extended regular expressions as git knows them.
        """
        yield from self.objects.commits(self._matching(patterns, self._lines_heads()))

    def root_commits(self) -> list[str]:
        """Returns the commits without parents that `head()` goes back to, sorted; none where history is cut off."""
        head = self.head()
        ids = self._walk([head], "--max-parents=0").decode().split() if head else []
        return sorted(commit.id for commit in self.objects.commits(ids) if not commit.parents)

    def merge_bases(self, a: str, b: str) -> ancestry.Bases:
        """Returns the best common ancestors of two commits that are there, none of which is an ancestor of another."""
        nodes = self._nodes_of([a, b])
        if a in nodes[b].parents:
            return ancestry.Bases((a,), True)
        found = ancestry.merge_bases(a, b, self._nodes_of, self.limits.walk_commits)
        if found and len(found.ids) < 2:
            return found
        status, output, _ = self.objects.run("merge-base", "--all", a, b, timeout_s=self.limits.history_timeout_s)
        return ancestry.Bases(tuple(output.decode().split()), status in (0, 1) and (not found or found.is_complete))

    def differences(self, before: Commit, after: Commit) -> list[Difference] | None:
        """Returns the paths that differ between the trees of two commits, None where a tree is missing."""
        records = self.objects.diff(before.tree, after.tree)
        return None if records is None else [file_changes.parse_difference(record) for record in records]

    def tree(self, commit: str) -> dict[str, tuple[str, str]] | None:
        """Returns path → (git's mode in octal, id) of everything in a commit's tree but directories.

        Paths that no example can hold are left out.

        Returns:
          None where the commit or one of its directories is missing, or there are more paths than the limit.
        """
        found = self.commit(commit)
        files: dict[str, tuple[str, str]] = {}
        level = [("", found.tree)] if found else None
        while level:
            directories = self._directories([id_ for _, id_ in level])
            below = []
            if directories is None:
                return None
            for prefix, id_ in level:
                for mode, name, child in directories[id_]:
                    if mode == _DIRECTORY_MODE:
                        below.append((f"{prefix}{name}/", child))
                    else:
                        files[prefix + name] = (mode, child)
                if len(files) + len(below) > self.limits.tree_files:
                    return None
            level = below
        return None if level is None else {path: entry for path, entry in files.items() if path == path.strip()}

    def root_files(self, commit: Commit) -> dict[str, str]:
        """Returns name → blob of the ordinary files at the root of a commit's tree; empty where the tree is missing."""
        entries = (self._directories([commit.tree]) or {}).get(commit.tree, ())
        return {name: id_ for mode, name, id_ in entries if mode.startswith("100")}

    def blobs(self, ids: Iterable[str], max_bytes: int | None = None) -> dict[str, Blob] | None:
        """Returns every blob's text, or why it has none; sizes are looked at before anything is read.

        Args:
          ids: of blobs.
          max_bytes: None is returned where what would be read is larger altogether.
        """
        ids = list(dict.fromkeys(ids))
        found = {id_: blob for id_ in ids if (blob := self._texts.get(id_))}
        unknown = [id_ for id_ in ids if id_ not in found]
        headers = self.objects.headers(unknown)
        small = [id_ for id_, (kind, size) in headers.items() if kind == "blob" and size <= self.limits.blob_bytes]
        if max_bytes is not None and sum(headers[id_][1] for id_ in small) > max_bytes:
            return None
        for id_, content in self.objects.read(small, "blob", max(1, self.limits.blob_bytes)):
            found[id_] = file_changes.as_blob(content)
            self._texts.put(id_, found[id_], weight=len(content) + 200)
        for id_ in unknown:
            if id_ not in found:
                is_large = headers.get(id_, ("", 0))[0] == "blob" and headers[id_][1] > self.limits.blob_bytes
                found[id_] = Blob(None, change.TOO_LARGE if is_large else change.MISSING)
        return found

    def texts(self, ids: Iterable[str]) -> dict[str, str | None]:
        """Returns every blob's text, None where it has none."""
        return {id_: blob.text for id_, blob in self.blobs(ids).items()}

    def _directories(self, ids: Sequence[str]) -> dict[str, list[tuple[str, str, str]]] | None:
        """Returns id → (mode, name, id) of what has a name that an example can hold; None where one is missing."""
        found = {id_: entries for id_ in ids if (entries := self._trees.get(id_)) is not None}
        unknown = list(dict.fromkeys(id_ for id_ in ids if id_ not in found))
        for id_, entries in self.objects.trees(unknown):
            named = ((mode, file_changes.usable_name(name), child) for mode, name, child in entries)
            found[id_] = [(mode, name, child) for mode, name, child in named if name is not None]
            self._trees.put(id_, found[id_], weight=len(entries) + 1)
        return found if all(id_ in found for id_ in ids) else None

    def _commits_of(self, ids: Sequence[str]) -> dict[str, Commit]:
        found = {id_: commit for id_ in ids if (commit := self._commits.get(id_))}
        unknown = [id_ for id_ in ids if id_ not in found and self.objects.is_id(id_)]
        for commit in self.objects.commits(unknown):
            found[commit.id] = commit
            self._commits.put(commit.id, commit, weight=len(commit.message) + 1000)
        return found

    def _nodes_of(self, ids: Sequence[str]) -> dict[str, ancestry.Node]:
        found = {id_: node for id_ in ids if (node := self._nodes.get(id_))}
        for commit in self._commits_of([id_ for id_ in ids if id_ not in found]).values():
            found[commit.id] = ancestry.Node(commit.parents, commit.committed_s)
            self._nodes.put(commit.id, found[commit.id])
        return found

    def _remotes(self) -> list[str]:
        _, output, _ = self._run("config", "-z", "--get-regexp", r"^remote\..*\.url$")
        pairs = [entry.partition("\n")[::2] for entry in output.decode("utf-8", "replace").split("\0") if entry]
        return [address for _, address in sorted(pairs, key=lambda pair: (pair[0] != "remote.origin.url", pair[0])) if address]

    def _find_head(self) -> str:
        _, output, _ = self._run("rev-parse", "--verify", "--quiet", "HEAD")
        head = output.decode().strip()
        if head and self.objects.headers([head]):
            return head
        refs = self._refs()
        heads = [*(refs[name] for name in _BRANCHES if name in refs), *refs.values()]
        found = next((id_ for id_, _ in self.objects.read(list(dict.fromkeys(heads)), "commit")), "")
        if (head or heads) and not found:
            raise RepositoryError(f"{self.path} lacks the commits that HEAD and its branches name; clone it anew")
        return found

    def _refs(self) -> dict[str, str]:
        """Returns name → commit of branches, then of tags, each latest first."""
        form = "--format=%(refname) %(objectname) %(*objectname)"
        found = {}
        for where in (("refs/heads", "refs/remotes"), ("refs/tags",)):
            lines = self._git("for-each-ref", "--sort=-creatordate", form, *where).decode("utf-8", "replace").splitlines()
            found |= {name: ids.split()[-1] for name, _, ids in (line.partition(" ") for line in lines) if ids.split()}
        return found

    def _lines(self) -> bytes:
        """Returns lines of ids, latest first: as bytes, for there may be millions."""
        if self._history is None:
            self._history = self._walk(self._lines_heads(), "--first-parent")
        return self._history

    def _lines_heads(self) -> list[str]:
        """Returns the commits whose first-parent histories are together the history; none where there is no commit."""
        if self._heads is None:
            patterns, seen = git_message.upstream_patterns(self.owner), set()
            heads = found = dict.fromkeys(filter(None, [self.head()]))
            while found:
                ids = [id_ for id_ in self._matching(patterns, list(found), "-i", "--min-parents=2") if id_ not in seen]
                seen.update(ids)
                merges = (commit for commit in self.objects.commits(ids) if len(commit.parents) == 2)
                merged = [commit.parents[1] for commit in merges if git_message.brings_in_upstream(commit.message, self.owner)]
                there = self._commits_of(merged)
                found = {id_: None for id_ in merged if id_ in there and id_ not in heads}
                heads = heads | found
            self._heads = list(heads)
        return self._heads

    def _matching(self, patterns: Sequence[str], heads: Sequence[str], *options: str) -> list[str]:
        greps = (f"--grep={pattern}" for pattern in patterns)
        return self._walk(heads, "-E", *greps, "--first-parent", *options).decode().split()

    def _id_at(self, lines: bytes, position: int) -> str:
        width = len(self.head()) + 1
        start = len(lines) - (position + 1) * width
        return lines[start:start + width - 1].decode()

    def _walk(self, heads: Sequence[str], *options: str) -> bytes:
        if not heads:
            return b""
        status, output, complaint = self.objects.run("rev-list", *options, "--stdin", data="\n".join(heads).encode(),
                                                     timeout_s=self.limits.history_timeout_s)
        if status:
            raise RepositoryError(f"{self.path}: its history cannot be walked ({complaint}); clone it anew")
        return output

    def _git(self, *arguments: str) -> bytes:
        status, output, complaint = self._run(*arguments)
        if status:
            raise RepositoryError(f"{self.path} cannot be read ({complaint}); needed is a git clone that is whole")
        return output

    def _run(self, *arguments: str) -> tuple[int, bytes, str]:
        line = git_process.command(self._directory, *arguments)
        return git_process.run(line, git_process.environment(), self.limits.timeout_s)
