"""Files that a reader sees whole or not at all; every module that leaves a file behind for a later run uses this.

A process may be killed at any moment; what it leaves must be the old file or the new one, never half of either.
"""

from __future__ import annotations

import os
import pathlib

PARTIAL_SUFFIX = ".partial"  # of a file that was being written; worthless after a kill


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Makes `text` (UTF-8) the whole content of `path`, durably, replacing what was there in one step.

    Raises:
      OSError: naming the path, if it cannot be written; the old content is then untouched.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # before the rename: otherwise a power cut can leave the new name on empty blocks
    os.replace(partial, path)
    fsync_directory(path.parent)


def fsync_directory(directory: pathlib.Path) -> None:
    """Makes the renames and deletions in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
