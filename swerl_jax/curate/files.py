"""Files of a run, on this machine or wherever fsspec reaches (`gs://…`): they appear whole or not at all.

On the path: every stage writes its results through here, so that a killed run leaves nothing half done behind.
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


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine."""
    return isinstance(fsspec.core.url_to_fs(url)[0], LocalFileSystem)


def absolute(url: str) -> str:
    """The same file, however the working directory changes."""
    return os.path.abspath(fsspec.core.url_to_fs(url)[1]) if is_local(url) else url.rstrip("/")


def exists(url: str) -> bool:
    """Whether there is such a file or directory."""
    file_system, path = fsspec.core.url_to_fs(url)
    return file_system.exists(path)


def size_bytes(url: str) -> int:
    """The size of a file, −1 where there is none."""
    file_system, path = fsspec.core.url_to_fs(url)
    return file_system.size(path) if file_system.exists(path) else -1


def names(url: str) -> list[str]:
    """The names in a directory, sorted; none where there is no such directory."""
    file_system, path = fsspec.core.url_to_fs(url)
    if not file_system.isdir(path):
        return []
    file_system.invalidate_cache(path)
    return sorted(name.rstrip("/").rpartition("/")[2] for name in file_system.ls(path, detail=False))


def remove(url: str) -> None:
    """Deletes a file if there is one."""
    file_system, path = fsspec.core.url_to_fs(url)
    if file_system.exists(path):
        file_system.rm_file(path)


def state(url: str) -> str:
    """Identifies what a file holds now, by its place, size and time: another content is another text."""
    file_system, path = fsspec.core.url_to_fs(url)
    if isinstance(file_system, LocalFileSystem):
        about = os.stat(path)
        return f"{path} {about.st_size} {about.st_mtime_ns}"
    return str(file_system.ukey(path))


def read_bytes(url: str, start: int = 0, end: int | None = None) -> bytes:
    """The bytes from `start` up to (without) `end`."""
    file_system, path = fsspec.core.url_to_fs(url)
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
    file_system, path = fsspec.core.url_to_fs(url)
    if isinstance(file_system, LocalFileSystem):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        partial = f"{path}.{os.getpid()}.partial"
        try:
            yield partial
            _fsync(partial)
            os.replace(partial, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
        return
    with tempfile.TemporaryDirectory() as directory:
        local = os.path.join(directory, path.rpartition("/")[2])
        yield local
        file_system.put_file(local, path)


def append_to(file: Any, url: str) -> None:
    """Copies a whole file to the end of an open one, a piece at a time."""
    with fsspec.open(url, "rb") as source:
        shutil.copyfileobj(source, file, 1 << 20)


def _fsync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # before the rename: otherwise a power cut can leave the new name on empty blocks
    finally:
        os.close(descriptor)
