"""Files elsewhere (`gs://…`, whatever fsspec reaches), copied once to this machine, to be read by position here.

On the path: before all readers of shards; the processes of one machine share the copies.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile

import fsspec

CACHE = "SWERL_JAX_CACHE"  # environment variable: the directory of the copies
_REFUSALS = (400, 401, 403, 404)  # codes of HTTP


def is_remote(url: str) -> bool:
    """Whether `url` names a scheme (`gs://…`); a plain path is a file here."""
    return "://" in url


def is_outage(error: BaseException) -> bool:
    """Whether a network or a service failed, so that the same may succeed later, and not what was asked for is wrong."""
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    is_of_a_service = type(error).__module__.partition(".")[0] in ("aiohttp", "gcsfs", "google", "requests")
    return is_of_a_service and type(error).__name__ != "DefaultCredentialsError" and getattr(error, "code", 0) not in _REFUSALS


def cache() -> pathlib.Path:
    """Where this machine keeps copies: $SWERL_JAX_CACHE, by default `~/.cache/swerl_jax`."""
    return pathlib.Path(os.environ.get(CACHE) or pathlib.Path.home() / ".cache" / "swerl_jax")


def find(url: str) -> list[str]:
    """The URLs of the file, of the files in the directory, or of those that fit the pattern, sorted; none: [].

    Raises:
      ValueError: the place cannot be reached; an outage (see is_outage) as it came.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
        if files.isdir(path):
            found = [entry["name"] for entry in files.ls(path, detail=True) if entry["type"] == "file"]
        else:
            found = files.glob(path) if any(c in path for c in "*?[") else [path] * files.exists(path)
    except Exception as error:  # every file system has errors of its own
        if is_outage(error):
            raise
        raise ValueError(f"{url} cannot be reached: {error}") from error
    return sorted(files.unstrip_protocol(name) for name in found)


def local_copy(url: str) -> str:
    """The path of a copy of the file `url` on this machine, of the same name and made now where there is none yet.

    A remote file that changes gets another copy. Copies lie in `cache()`; what is no longer wanted there may be deleted.

    Raises:
      ValueError: the file cannot be read, or came shorter than it is; an outage (see is_outage) as it came.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
        digest = hashlib.sha256(f"{url} {files.ukey(path)}".encode()).hexdigest()[:16]
        copy = cache() / digest / path.rpartition("/")[2]
        if copy.exists():
            return str(copy)
        size = files.size(path)
        print(f"copying {url} ({size / 2**20:,.1f} MiB) to {copy}", flush=True)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache()) as scratch:  # others may be copying the same: the last one to end stays
            partial = os.path.join(scratch, copy.name)
            files.get_file(path, partial)
            if os.path.getsize(partial) != size:
                raise OSError(f"of its {size} bytes {os.path.getsize(partial)} came; try again")
            os.replace(partial, copy)
    except Exception as error:
        if is_outage(error):
            raise
        raise ValueError(f"{url} cannot be copied to this machine: {error}") from error
    return str(copy)
