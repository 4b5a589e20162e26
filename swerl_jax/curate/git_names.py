"""Where clones lie on disk, and what their repository is called."""

from __future__ import annotations

import os
import pathlib
import re

_MAX_DEPTH = 3  # DIR/owner/name.git is common
_URL_PATH = re.compile(r"^(?:[a-z][a-z0-9+.-]*://[^/]+/|[^/:]+:(?!//))(?P<path>.+?)/*$", re.IGNORECASE)


def find_repositories(path: str | os.PathLike[str]) -> list[str]:
    """Returns the clones at `path`: itself, or those in a directory of (bare) clones, sorted.

    What looks like a clone, or cannot be looked into, is listed, whole or not: opening it tells.

    Raises:
      ValueError: there is none.
    """
    found = _find(pathlib.Path(path), _MAX_DEPTH)
    if not found:
        raise ValueError(f"found no clone at {os.fspath(path)}; needed is a git clone, or a directory of (bare) clones")
    return sorted(map(str, found))


def git_directory(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the directory in which git keeps its own files: `path` of a bare clone, mostly `path`/.git of another."""
    path = pathlib.Path(path)
    inner = path / ".git"
    if not inner.is_file():
        return inner if inner.is_dir() else path
    target = inner.read_text("utf-8", "replace").strip().removeprefix("gitdir:").strip()  # a submodule or work tree
    return path / target


def name_from_url(url: str) -> str:
    """Returns "owner/name" of a remote's address, "" where that is no address of a host, or has no owner."""
    match = _URL_PATH.match(url.strip())
    if not match or url.startswith("file:"):
        return ""
    parts = [part for part in match["path"].removesuffix(".git").split("/") if part]
    return "/".join(parts[-2:]) if len(parts) >= 2 else ""


def name_from_remote(address: str) -> str:
    """Returns "owner/name" of a remote's address, the directory's name where it is one of this machine."""
    return name_from_url(address) or name_from_path(address.strip().removeprefix("file://"))


def name_from_path(path: str | os.PathLike[str]) -> str:
    """Returns the name of a clone's directory, without ".git"."""
    path = pathlib.Path(os.path.abspath(path))
    return (path.parent if path.name == ".git" else path).name.removesuffix(".git")


def _find(path: pathlib.Path, depth: int) -> list[pathlib.Path]:
    try:
        if _is_clone(path):
            return [path]
        if not depth or not path.is_dir() or path.is_symlink() and depth < _MAX_DEPTH:
            return []
        inner = sorted(entry for entry in path.iterdir() if entry.is_dir())
    except PermissionError:
        return [path]
    return [clone for entry in inner for clone in _find(entry, depth - 1)]


def _is_clone(path: pathlib.Path) -> bool:
    if (path / ".git").exists():
        return True
    signs = sum(((path / "HEAD").is_file(), (path / "objects").is_dir(), (path / "refs").is_dir()))
    return path.is_dir() and (signs >= 2 or path.name.endswith(".git"))
