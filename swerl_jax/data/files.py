"""Files of a run, on this machine or wherever fsspec reaches (`gs://…`): they appear whole or not at all.

Every stage of curation, and a run whose directory is in a bucket, write through here, so that a kill leaves nothing half done.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from swerl_jax.data import atomic_file


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine."""
    return isinstance(_reach(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """The same file, however the working directory changes."""
    return os.path.abspath(_reach(url)[1]) if is_local(url) else url.rstrip("/")


def exists(url: str) -> bool:
    """Whether there is such a file or directory."""
    file_system, path = _reach(url)
    return file_system.exists(path)


def size_bytes(url: str) -> int:
    """The size of a file, −1 where there is none."""
    file_system, path = _reach(url)
    return file_system.size(path) if file_system.exists(path) else -1


def names(url: str) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory."""
    file_system, path = _reach(url)
    try:
        found = [name.rstrip("/") for name in file_system.ls(path, detail=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.rpartition("/")[2] for name in found if name != path.rstrip("/"))


def below(url: str) -> dict[str, dict[str, Any]]:
    """All files below a directory, by their path in it, and what its file system says of each: size and more.

    A file is itself below itself, as "".
    """
    file_system, path = _reach(url)
    path = path.rstrip("/")
    return {name.removeprefix(path).removeprefix("/"): about for name, about in file_system.find(path, detail=True).items()}


def make_directory(url: str) -> None:
    """Makes a directory and those above it where they are missing; a bucket needs none."""
    file_system, path = _reach(url)
    if isinstance(file_system, LocalFileSystem):
        file_system.makedirs(path, exist_ok=True)


def remove(url: str) -> None:
    """Deletes a file if there is one."""
    file_system, path = _reach(url)
    if file_system.exists(path):
        file_system.rm_file(path)


def remove_directory(url: str) -> None:
    """Deletes a directory, if there is one, with all that is in it."""
    file_system, path = _reach(url)
    if file_system.exists(path):
        file_system.rm(path, recursive=True)


def state(url: str) -> str:
    """Identifies what a file holds now, by its place, size and time: another content is another text."""
    file_system, path = _reach(url)
    if isinstance(file_system, LocalFileSystem):
        about = os.stat(path)
        return f"{path} {about.st_size} {about.st_mtime_ns}"
    return str(file_system.ukey(path))


def read_bytes(url: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes from `start` up to (without) `end`."""
    file_system, path = _reach(url)
    return file_system.cat_file(path, start, end)


def read_json(url: str) -> Any:
    """The decoded content of a file of JSON."""
    return json.loads(read_bytes(url))


def write_json(url: str, value: Any) -> None:
    """Writes a value as JSON; see `written`."""
    with written(url) as path:
        pathlib.Path(path).write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def written(url: str) -> Iterator[str]:
    """Gives a local path to write to; on leaving without an exception that file becomes `url`, replacing what was there.

    For what can write to local paths only, too: a remote file is uploaded once it is whole.
    """
    file_system, path = _reach(url)
    if isinstance(file_system, LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}{atomic_file.PARTIAL_SUFFIX}"
        try:
            yield partial
            _fsync(partial)
            os.replace(partial, path)
            atomic_file.fsync_directory(pathlib.Path(path).parent)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
        return
    with tempfile.TemporaryDirectory() as directory:
        local = os.path.join(directory, path.rpartition("/")[2])
        yield local
        file_system.put_file(local, path)


def fetch(url: str, path: pathlib.Path) -> None:
    """Copies a file to a local path, whole or not at all."""
    file_system, source = _reach(url)
    with written(str(path)) as partial:
        file_system.get_file(source, partial)


def append_to(file: Any, url: str) -> None:
    """Copies a whole file to the end of an open one, a piece at a time."""
    with fsspec.open(url, "rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)


def _reach(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url`, which remembers no listings (others write there, too), and the path there."""
    return fsspec.core.url_to_fs(url, use_listings_cache=False)


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # before the rename: otherwise a power cut can leave the new name on empty blocks
    finally:
        os.close(descriptor)
