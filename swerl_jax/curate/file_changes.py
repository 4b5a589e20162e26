"""One path of a comparison of two trees as a record: what kind of change it is, and its text where it has one.

On the path: git's comparison and the blobs → **file changes** → Candidate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from swerl_jax.curate import change
from swerl_jax.curate.change import FileChange

_SYMLINK_MODE, _SUBMODULE_MODE = "120000", "160000"
_NOTHING = "0"  # an id of zeros alone: there is nothing on this side


@dataclasses.dataclass(frozen=True)
class Blob:
    """A file's text, or the reason (one of change.KINDS) why it has none."""

    text: str | None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Difference:
    """One path that differs between two trees.

    Attributes:
      old_mode, new_mode: git's in octal; "000000" on the side where the path does not exist.
      old_id, new_id: of the blobs (or of a submodule's commit); "" on the side where the path does not exist.
      status: git's letter: A, D, M, R, T …
      old_path, path: as git has them; equal except for renames.
    """

    old_mode: str
    new_mode: str
    old_id: str
    new_id: str
    status: str
    old_path: bytes
    path: bytes

    @property
    def is_text_possible(self) -> bool:
        """Both sides are ordinary files, where they exist."""
        return not {self.old_mode, self.new_mode} & {_SYMLINK_MODE, _SUBMODULE_MODE}

    def blob_ids(self) -> tuple[str, ...]:
        """Returns the blobs whose text is wanted."""
        return tuple(id_ for id_ in (self.old_id, self.new_id) if id_) if self.is_text_possible else ()


def parse_difference(parts: Sequence[bytes]) -> Difference:
    """Reads one record as `git_objects.Objects.diff` returns it."""
    old_mode, new_mode, old_id, new_id, status = parts[0].decode("ascii").lstrip(":").split(" ")
    return Difference(old_mode, new_mode, _id(old_id), _id(new_id), status[:1], parts[1], parts[-1])


def file_change(difference: Difference, blobs: Mapping[str, Blob]) -> FileChange:
    """Returns the change of one path.

    Args:
      difference: what git found.
      blobs: of each id of `difference.blob_ids()`.

    Returns:
      Of several kinds that apply the first of: a submodule, a symbolic link, a name that no example can hold; gone,
      renamed, only its mode; then what hinders reading its text; then new or edited. `before` and `after` are texts
      wherever the side exists and is one.
    """
    before, after = blobs.get(difference.old_id), blobs.get(difference.new_id)
    kind = _structural_kind(difference)
    if not kind:
        faults = {blob.fault for blob in (before, after) if blob}
        kind = next((fault for fault in change.KINDS if fault in faults), "")
    return FileChange(
        path=shown_path(difference.path),
        kind=kind or (change.EDIT if difference.old_id else change.NEW),
        before=before.text if before else None,
        after=after.text if after else None,
        old_path=shown_path(difference.old_path) if difference.status == "R" else "",
    )


def _structural_kind(difference: Difference) -> str:
    modes = {difference.old_mode, difference.new_mode}
    if _SUBMODULE_MODE in modes:
        return change.SUBMODULE
    if _SYMLINK_MODE in modes:
        return change.SYMLINK
    if usable_path(difference.path) is None or usable_path(difference.old_path) is None:
        return change.ODD_PATH
    if difference.status == "R":
        return change.RENAME
    if not difference.new_id:
        return change.DELETE
    return change.MODE if difference.old_id == difference.new_id else ""


def as_blob(content: bytes) -> Blob:
    """Returns a blob's text, if it is one: UTF-8 without NUL characters, to be encoded to the same bytes again."""
    if b"\0" in content:
        return Blob(None, change.BINARY)
    try:
        return Blob(content.decode("utf-8"))
    except UnicodeDecodeError:
        return Blob(None, change.NOT_UTF8)


def usable_path(path: bytes) -> str | None:
    """Returns the path as text if an example can hold it, else None.

    Needed is UTF-8 without characters that cannot be seen, without a blank at either end or an empty or climbing part:
    what `data.shards` asks of every path.
    """
    names = [usable_name(name) for name in path.split(b"/")]
    if None in names:
        return None
    text = "/".join(names)
    return text if text == text.strip() else None


def usable_name(name: bytes) -> str | None:
    """Returns one part of a path as text if an example can hold it, blanks at the ends of the whole path apart."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() and text not in ("", "..") and "/" not in text else None


def shown_path(path: bytes) -> str:
    """Returns the path as text; one that no example can hold with escapes, for people to read."""
    text = usable_path(path)
    return repr(path)[2:-1] if text is None else text


def _id(text: str) -> str:
    return text if text.strip(_NOTHING) else ""
