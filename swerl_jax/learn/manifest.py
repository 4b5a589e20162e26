"""What a checkpoint's files were when they were written: size and SHA-256 of each, in one file beside them.

Orbax restores flipped bytes without a word. Several processes share the work: each takes every n-th file.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from swerl_jax.data import atomic_file

NAME = "manifest.json"
_SHOWN_FAULTS = 3


def write_part(directory: pathlib.Path, index: int, count: int) -> None:
    """Fingerprints the share of one process and leaves it for `write`.

    Raises:
      OSError: a file cannot be read or the part cannot be written.
    """
    # One thread: this runs beside training and is in no hurry.
    part = {name: _fingerprint(directory / name) for name in _file_names(directory)[index::count]}
    atomic_file.write_atomically(_part(directory, index), json.dumps(part))


def write(directory: pathlib.Path, count: int) -> None:
    """Joins the parts of `count` processes into the manifest, atomically; what no part has is fingerprinted here.

    Raises:
      OSError: as `write_part`, or a part is missing.
    """
    found: dict[str, Any] = {}
    for index in range(count):
        found |= json.loads(_part(directory, index).read_bytes())
    files = {name: found.get(name) or _fingerprint(directory / name) for name in _file_names(directory)}
    atomic_file.write_atomically(directory / NAME, json.dumps({"files": files}, indent=1, sort_keys=True))
    for index in range(count):
        _part(directory, index).unlink()


def find_fault(directory: pathlib.Path, index: int = 0, count: int = 1) -> str | None:
    """Why a step is not good: no manifest, or files missing, cut or changed; None if it is good.

    Of `count` processes the one with `index` reads its share of the files only.
    """
    try:
        manifest = json.loads((directory / NAME).read_bytes())
        expected = {str(name): dict(entry) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return "it has no manifest (the save was interrupted before it was complete)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"its manifest cannot be read ({error!r})"
    names = sorted(expected)[index::count]
    with concurrent.futures.ThreadPoolExecutor() as threads:  # hashing releases the interpreter lock
        faults = threads.map(lambda name: _file_fault(directory / name, expected[name]), names)
        named = [f"{name} {fault}" for name, fault in zip(names, faults, strict=True) if fault]
    if not expected:
        return "its manifest lists no files"
    if not named:
        return None
    more = f" and {len(named) - _SHOWN_FAULTS} more" if len(named) > _SHOWN_FAULTS else ""
    return "; ".join(named[:_SHOWN_FAULTS]) + more


def _part(directory: pathlib.Path, index: int) -> pathlib.Path:
    return directory / f"{NAME}.{index}"


def _file_fault(path: pathlib.Path, expected: Mapping[str, Any]) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected.get("size"):
            return f"has {size} bytes, not the {expected.get('size')} that were written"
        found = _fingerprint(path)
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError) as error:  # ValueError: a damaged manifest may hold any name, even one with a NUL
        return f"cannot be read ({error})"
    return None if found == expected else "has changed since it was written (SHA-256 differs)"


def _fingerprint(path: pathlib.Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": digest}


def _file_names(directory: pathlib.Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    names = sorted(path.relative_to(directory).as_posix() for path in paths)
    return [name for name in names if not name.startswith(NAME)]
