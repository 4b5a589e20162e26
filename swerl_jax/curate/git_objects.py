"""The objects of a clone by their ids, as plain records; objects that are damaged or not there are told, not fatal.

On the path: clone → **objects** → repository. They are read through an empty repository of ours that borrows the clone's
object directory: neither the clone's configuration, replacements and hooks nor a promise to fetch what is missing apply.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from swerl_jax.curate import git_process

MAX_META_BYTES = 16 << 20  # of a commit or tree; a larger one counts as missing
_MAX_REQUESTS = 200_000
_MAX_DIFFS = 1_000  # git keeps the trees of every comparison

_TREE_ENTRY = {size: re.compile(rb"([0-7]+) ([^\0]*)\0(.{%d})" % size, re.DOTALL) for size in (20, 32)}
_PERSON = re.compile(rb"(.*?) ?<[^<>\n]*> *(-?\d+)")


@dataclasses.dataclass(frozen=True)
class Commit:
    """One commit.

    Attributes:
      id, tree, parents: full ids; the parents are as recorded, whether the clone has them or not.
      author: name; "" where it cannot be read.
      created_at: the author's time, committed_at the committer's; ISO 8601 in UTC, "" where it cannot be read.
      committed_s: seconds since 1970, 0 where unknown.
      message: decoded as the commit says, else as UTF-8; what cannot be decoded is replaced by U+FFFD.
    """

    id: str
    tree: str
    parents: tuple[str, ...]
    author: str
    created_at: str
    committed_at: str
    committed_s: int
    message: str


class TreeEntry(NamedTuple):
    """A name in a directory: `mode` is git's in octal ("40000" for a directory), `id` of a blob, tree or commit."""

    mode: str
    name: bytes
    id: str


class Objects:
    """Reads objects through long-lived processes. A context manager; ids are full, in lower case.

    Every method raises RepositoryError where git does not answer in time.
    """

    def __init__(self, directory: str, object_format: str, shallow: pathlib.Path, timeout_s: float):
        """`directory` holds the clone's objects, `shallow` (if it exists) the commits its history was cut at."""
        self._view = tempfile.TemporaryDirectory(prefix="git_objects_")
        view = pathlib.Path(self._view.name)
        for name in ("objects", "refs"):
            (view / name).mkdir()
        (view / "HEAD").write_text("ref: refs/heads/none\n")
        version = {"sha1": 0, "sha256": 1}.get(object_format, 1)
        extension = f"[extensions]\n\tobjectformat = {object_format}\n" if version else ""
        (view / "config").write_text(f"[core]\n\trepositoryformatversion = {version}\n\tbare = true\n{extension}")
        if shallow.is_file():
            shutil.copyfile(shallow, view / "shallow")
        self._variables = git_process.environment(GIT_OBJECT_DIRECTORY=directory)
        self._timeout_s = timeout_s
        self._id_bytes = 32 if object_format == "sha256" else 20
        self._contents = self._dialogue("cat-file", "--batch", max_requests=_MAX_REQUESTS)
        self._headers = self._dialogue("cat-file", "--batch-check", max_requests=_MAX_REQUESTS)
        self._diffs = self._dialogue("diff-tree", "--stdin", "-r", "-z", "--raw", "-M", "-l400", max_requests=_MAX_DIFFS)
        self._plain_diffs = self._dialogue(
            "diff-tree", "--stdin", "-r", "-z", "--raw", "--no-renames", max_requests=_MAX_DIFFS)

    def restart(self) -> None:
        """Ends the processes; the next request starts new ones, of which no answer is half read."""
        for dialogue in (self._contents, self._headers, self._diffs, self._plain_diffs):
            dialogue.close()

    def close(self) -> None:
        """Ends the processes and removes what was made."""
        self.restart()
        self._view.cleanup()

    def is_id(self, text: str) -> bool:
        """Whether `text` is a full object id of this clone's format."""
        return re.fullmatch("[0-9a-f]{%d}" % (2 * self._id_bytes), text) is not None

    def run(self, *arguments: str, timeout_s: float | None = None, data: bytes = b"") -> tuple[int, bytes, str]:
        """Runs one git command on the objects; see git_process.run."""
        return git_process.run(self._command(*arguments), self._variables, timeout_s or self._timeout_s, data)

    def headers(self, ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Returns id → (type, bytes) of those that are there."""
        found = {}
        for chunk in self._chunks(ids):
            found |= {id_: (kind, size) for id_, kind, size, _ in self._answers(self._headers, chunk, 0)}
        return found

    def read(self, ids: Sequence[str], kind: str, max_bytes: int = MAX_META_BYTES) -> Iterator[tuple[str, bytes]]:
        """Yields (id, content) of those that are there, of this kind ("commit", "tree", "blob") and not too large."""
        for chunk in self._chunks(ids):
            for id_, found_kind, _, content in self._answers(self._contents, chunk, max_bytes):
                if found_kind == kind and content is not None:
                    yield id_, content

    def commits(self, ids: Sequence[str]) -> Iterator[Commit]:
        """Yields those that are there and can be understood, in order."""
        for id_, content in self.read(ids, "commit"):
            if commit := parse_commit(id_, content):
                yield commit

    def trees(self, ids: Sequence[str]) -> Iterator[tuple[str, list[TreeEntry]]]:
        """Yields (id, entries) of those that are there."""
        for id_, content in self.read(ids, "tree"):
            yield id_, parse_tree(content, self._id_bytes)

    def diff(self, before: str, after: str) -> list[tuple[bytes, ...]] | None:
        """Compares two trees: per path git's raw record (":modes ids status") and the path, twice for renames.

        Returns:
          None where a tree is missing or damaged.
        """
        for dialogue in (self._diffs, self._plain_diffs):  # renames are told by content, which may be missing
            try:
                return _diff(dialogue, f"{before} {after}\n".encode())
            except git_process.GitDied:
                continue
        return None

    def _dialogue(self, *arguments: str, max_requests: int) -> git_process.Dialogue:
        return git_process.Dialogue(self._command(*arguments), self._variables, self._timeout_s, max_requests)

    def _command(self, *arguments: str) -> list[str]:
        return git_process.command(self._view.name, *arguments)

    def _chunks(self, ids: Sequence[str]) -> Iterator[Sequence[str]]:
        size = git_process.PIPE_BYTES // (2 * self._id_bytes + 1)
        return (ids[start:start + size] for start in range(0, len(ids), size))

    def _answers(self, dialogue, ids, max_bytes) -> list[tuple[str, str, int, bytes | None]]:
        """Returns (id, type, size, content) of those that are there; where git dies of one, it goes on behind it."""
        found = []
        while ids:
            answered = 0
            try:
                dialogue.ask("".join(f"{id_}\n" for id_ in ids).encode())
                for id_ in ids:
                    answer = _answer(dialogue, max_bytes)
                    answered += 1
                    if answer:
                        found.append((id_, *answer))
            except git_process.GitDied:
                answered += 1
            ids = ids[answered:]
        return found


def _answer(dialogue: git_process.Dialogue, max_bytes: int) -> tuple[str, int, bytes | None] | None:
    words = dialogue.until(b"\n").decode("ascii", "replace").split()
    if len(words) != 3 or not words[2].isdigit():
        return None  # "<id> missing"
    kind, size = words[1], int(words[2])
    if not max_bytes:
        return kind, size, None
    if size > max_bytes:
        dialogue.skip(size + 1)
        return kind, size, None
    content = dialogue.exactly(size)
    dialogue.skip(1)
    return kind, size, content


def _diff(dialogue: git_process.Dialogue, trees: bytes) -> list[tuple[bytes, ...]]:
    dialogue.ask(trees + b"end\n")  # a line that is no id is given back, at once
    if dialogue.until(b"\n") + b"\n" != trees:
        dialogue.close()
        raise git_process.GitDied("a comparison that nobody asked for")
    records = []
    while dialogue.peek() == b":":
        record = dialogue.until(b"\0")
        is_pair = record.rsplit(b" ", 1)[-1][:1] in (b"R", b"C")
        records.append((record, *(dialogue.until(b"\0") for _ in range(2 if is_pair else 1))))
    dialogue.until(b"\n")
    return records


def parse_commit(id_: str, content: bytes) -> Commit | None:
    """Returns the commit that `content` describes, None where it names no tree."""
    head, _, message = content.partition(b"\n\n")
    fields: dict[bytes, list[bytes]] = {}
    for line in head.split(b"\n"):
        name, _, value = line.partition(b" ")  # lines that go on with a field begin with a blank: an empty name
        fields.setdefault(name, []).append(value)
    if b"tree" not in fields:
        return None
    encoding = fields.get(b"encoding", [b"utf-8"])[0]
    author, created_s = _person(fields.get(b"author", [b""])[0], encoding)
    _, committed_s = _person(fields.get(b"committer", [b""])[0], encoding)
    return Commit(
        id=id_,
        tree=fields[b"tree"][0].decode("ascii", "replace"),
        parents=tuple(parent.decode("ascii", "replace") for parent in fields.get(b"parent", ())),
        author=author,
        created_at=_iso(created_s),
        committed_at=_iso(committed_s),
        committed_s=committed_s,
        message=_decode(message, encoding),
    )


def parse_tree(content: bytes, id_bytes: int) -> list[TreeEntry]:
    """Returns the entries of a tree object, in its order; reading ends where it is damaged."""
    return [
        TreeEntry(mode.lstrip(b"0").decode(), name, id_.hex())
        for mode, name, id_ in _TREE_ENTRY[id_bytes].findall(content)
    ]


def _person(value: bytes, encoding: bytes) -> tuple[str, int]:
    match = _PERSON.match(value)
    return (_decode(match[1], encoding).strip(), int(match[2][:19])) if match else ("", 0)


def _iso(seconds: int) -> str:
    if not 0 < seconds < 253402300800:  # the year 10000; 0 is what tools write that do not know
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _decode(data: bytes, encoding: bytes) -> str:
    try:
        text = data.decode(encoding.decode("ascii"), "replace")
    except (LookupError, UnicodeError, ValueError):
        text = data.decode("utf-8", "replace")
    return text.encode("utf-8", "replace").decode("utf-8")  # some encodings can name half a character

