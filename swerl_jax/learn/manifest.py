"""What a checkpoint's files were when they were written: size and checksum of each, in one file beside them.

Orbax restores flipped bytes without a word. On a file system the checksum is the SHA-256 of the bytes, read for it; in a bucket
it is the CRC32C which the bucket computed of each object as it came and gives away with its name, so that nothing is downloaded
to tell whether it is still the same. A copied checkpoint is told by whichever it has. Several processes share the work: each
takes every n-th file.
"""

from __future__ import annotations

import base64
import concurrent.futures
import hashlib
import os
from collections.abc import Mapping
from typing import Any

import fsspec

from swerl_jax.data import files
from swerl_jax.data.remote import is_outage

try:
    import google_crc32c
except ImportError:
    google_crc32c = None  # it comes with gcsfs, which buckets need

NAME = "manifest.json"
_SHA256, _CRC32C = "sha256", "crc32c"  # the latter by the name and in the form that a bucket gives it
_SHOWN_FAULTS = 3


def write_part(directory: str | os.PathLike[str], index: int, count: int) -> None:
    """Fingerprints the share of one process and leaves it for `write`.

    Raises:
      OSError: a file cannot be read or the part cannot be written.
    """
    found = _files(directory)
    # One thread: this runs beside training and is in no hurry.
    files.write_json(_part(directory, index), {
        name: _fingerprint(f"{directory}/{name}", found[name]) for name in sorted(found)[index::count]})


def write(directory: str | os.PathLike[str], count: int) -> None:
    """Joins the parts of `count` processes into the manifest, atomically; what no part has is fingerprinted here.

    Raises:
      OSError: as `write_part`, or a part is missing.
    """
    told: dict[str, Any] = {}
    for index in range(count):
        told |= files.read_json(_part(directory, index))
    found = _files(directory)
    files.write_json(f"{directory}/{NAME}", {"files": {
        name: told.get(name) or _fingerprint(f"{directory}/{name}", found[name]) for name in sorted(found)}})
    for index in range(count):
        files.remove(_part(directory, index))


def find_fault(directory: str | os.PathLike[str], index: int = 0, count: int = 1) -> str | None:
    """Why a step is not good: no manifest, or files missing, cut or changed; None if it is good.

    Of `count` processes the one with `index` reads its share of the files only. An outage (see remote.is_outage) says nothing
    about the step and is raised.
    """
    try:
        manifest = files.read_json(f"{directory}/{NAME}")
        expected = {str(name): dict(entry) for name, entry in manifest["files"].items()}
    except FileNotFoundError:
        return "it has no manifest (the save was interrupted before it was complete)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if is_outage(error):
            raise
        return f"its manifest cannot be read ({error!r})"
    found, names = _files(directory), sorted(expected)[index::count]
    with concurrent.futures.ThreadPoolExecutor() as threads:  # hashing releases the interpreter lock
        faults = threads.map(lambda name: _file_fault(f"{directory}/{name}", found.get(name), expected[name]), names)
        named = [f"{name} {fault}" for name, fault in zip(names, faults, strict=True) if fault]
    if not expected:
        return "its manifest lists no files"
    if not named:
        return None
    more = f" and {len(named) - _SHOWN_FAULTS} more" if len(named) > _SHOWN_FAULTS else ""
    return "; ".join(named[:_SHOWN_FAULTS]) + more


def _part(directory: str | os.PathLike[str], index: int) -> str:
    return f"{directory}/{NAME}.{index}"


def _file_fault(path: str, about: Mapping[str, Any] | None, expected: Mapping[str, Any]) -> str | None:
    if about is None:
        return "is missing"
    if about["size"] != expected.get("size"):
        return f"has {about['size']} bytes, not the {expected.get('size')} that were written"
    try:
        found = _fingerprint(path, about, _CRC32C if _CRC32C in expected else _SHA256)
    except OSError as error:
        return f"cannot be read ({error})"
    return None if found == expected else "has changed since it was written (another checksum)"


def _fingerprint(path: str, about: Mapping[str, Any], kind: str = "") -> dict[str, Any]:
    """Size and checksum, of the kind that is cheapest there by default, of a file of which its file system says `about`."""
    kind = kind or (_CRC32C if _CRC32C in about else _SHA256)
    return {"size": about["size"], kind: about.get(kind) or _checksum(path, kind)}


def _checksum(path: str, kind: str) -> str:
    if kind == _CRC32C and google_crc32c is None:
        raise OSError("it was saved in a bucket, and to compare its CRC32C here google-crc32c is needed: pip install -e .[gcs]")
    digest = hashlib.sha256() if kind == _SHA256 else google_crc32c.Checksum()
    with fsspec.open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest() if kind == _SHA256 else base64.b64encode(digest.digest()).decode()


def _files(directory: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Those that a manifest lists, by their path in the directory, and what their file system says of them."""
    return {name: about for name, about in files.below(os.fspath(directory)).items() if not name.startswith(NAME)}
