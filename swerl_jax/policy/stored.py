"""Tensors in safetensors files, read by byte range and written one after the other: no file is ever whole in memory.

A file is eight bytes of length, a JSON header {name: dtype, shape, data_offsets}, and the data. Directories hold one file,
or several with an index that says which tensor is where.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import fsspec
import ml_dtypes
import numpy as np

SINGLE_NAME, INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "I64": np.dtype(np.int64), "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8), "U8": np.dtype(np.uint8), "BOOL": np.dtype(bool),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file: where its bytes lie."""

    url: str
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor; of a local file a view, of which only what is used is read.

        Raises:
          ValueError: the file cannot be read, naming it and the tensor.
        """
        return self.rows()(0, self.shape[0]) if self.shape else self._read(self.offset, ())

    def rows(self) -> Callable[[int, int], np.ndarray]:
        """A function (start, stop) → this range of the first axis; both raise as `read`."""
        if is_local(self.url):
            whole = self._read(self.offset, self.shape)
            return lambda start, stop: whole[start:stop]
        row_bytes = self.nbytes // max(1, self.shape[0])
        return lambda start, stop: self._read(self.offset + start * row_bytes, (stop - start, *self.shape[1:]))

    def _read(self, offset: int, shape: tuple[int, ...]) -> np.ndarray:
        try:
            if is_local(self.url):
                return np.asarray(np.memmap(self.url, self.dtype, "r", offset, shape or (1,))).reshape(shape)
            with fsspec.open(self.url, "rb") as file:
                file.seek(offset)
                data = file.read(math.prod(shape) * self.dtype.itemsize)
            return np.frombuffer(data, self.dtype).reshape(shape)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.url}: {self.name} cannot be read ({error})") from error


def is_local(url: str) -> bool:
    """Whether `url` is a path of this machine."""
    return "://" not in url


def join(directory: str, name: str) -> str:
    """The path of a file in a local or remote directory."""
    return str(pathlib.Path(directory) / name) if is_local(directory) else f"{directory.rstrip('/')}/{name}"


def read_text(url: str) -> str:
    """A text file, local or remote; raises OSError."""
    with fsspec.open(url, "r", encoding="utf-8") as file:
        return file.read()


def find(directory: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """All tensors of the files in `directory`, local or remote (gs://…), by name.

    Returns:
      (the tensors, those that cannot be read → why).

    Raises:
      ValueError: there is no such file, one is missing or no safetensors; or there are two versions.
    """
    index_url, single_url = join(directory, INDEX_NAME), join(directory, SINGLE_NAME)
    try:
        files = json.loads(read_text(index_url))["weight_map"]
        if not all(isinstance(name, str) for name in files.values()):
            raise TypeError("weight_map holds something else than names of files")
    except FileNotFoundError:
        _require_single(directory, single_url)
        return _header(single_url)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index_url} cannot be read: {error!r}") from error
    names = sorted(set(files.values()))
    if SINGLE_NAME not in names and _exists(single_url):
        raise ValueError(f"{directory} holds {SINGLE_NAME} and an index of other files; delete the ones that are not the model")
    found, faults = {}, {}
    for file in names:
        try:
            tensors, wrong = _header(join(directory, file))
        except ValueError as error:
            faults |= {name: f"{name} is in a file that cannot be used: {error}" for name, place in files.items() if place == file}
            continue
        lost = {name: f"{name} is not in {file}, where the index has it" for name, place in files.items()
                if place == file and name not in tensors | wrong}
        extra = {name: f"{name} is in {file} and not so in the index" for name in tensors if files.get(name) != file}
        found |= {name: tensor for name, tensor in tensors.items() if name not in extra}
        faults |= wrong | lost | extra
    return found, faults


def _exists(url: str) -> bool:
    system, path = fsspec.core.url_to_fs(url)
    return system.exists(path)


def _require_single(directory: str, single_url: str) -> None:
    if not _exists(single_url):
        system, path = fsspec.core.url_to_fs(directory)
        names = sorted(pathlib.PurePath(name).name for name in system.ls(path, detail=False)) if system.isdir(path) else []
        raise ValueError(f"{directory} holds neither {SINGLE_NAME} nor {INDEX_NAME} but {', '.join(names[:20]) or 'nothing'}; needed "
                         "is a model saved as safetensors, its index with it where it is in several files")


def _header(url: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """(the tensors of a file, those that cannot be read → why)."""
    try:
        with fsspec.open(url, "rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            entries = json.loads(file.read(length))
            size = file.seek(0, 2) - 8 - length
        if not isinstance(entries, dict):
            raise ValueError(f"its header is {str(entries)[:60]!r} and not a table of tensors")
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} cannot be read as safetensors: {error}") from error
    entries.pop("__metadata__", None)
    found, faults, last = {}, {}, 0
    for name, entry in sorted(entries.items(), key=_offsets):
        fault = _fault(entry, last, size)
        if fault is not None:
            faults[name] = f"{url}: {name} {fault}"
            continue
        start, last = entry["data_offsets"]
        found[name] = Stored(url, name, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + start)
    return found, faults


def _offsets(item: tuple[str, Any]) -> list[int]:
    try:
        return [int(x) for x in item[1]["data_offsets"]]
    except (KeyError, TypeError, ValueError):
        return []


def _fault(entry: Any, last: int, size: int) -> str | None:
    """What is wrong with a tensor's entry in a header, or None. last: where the one before it ends; size: of all data."""
    try:
        kind, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        is_number = [isinstance(x, int) and x >= 0 for x in (*shape, start, end)]
    except (KeyError, TypeError, ValueError):
        is_number = [False]
    if not all(is_number) or not isinstance(kind, str):
        return f"has the entry {str(entry)[:200]}; needed are dtype, shape and data_offsets, of numbers from 0"
    if kind not in DTYPES:
        return f"is of dtype {kind}; supported are {', '.join(DTYPES)}"
    if end - start != math.prod(shape) * DTYPES[kind].itemsize:
        return f"has {end - start} bytes for {kind} {shape}"
    if start < last:
        return f"begins at byte {start:,} of the data, where another tensor lies"
    if end > size:
        return f"ends at byte {end:,} of the data, and that at {size:,}: it is cut off"
    return None


@dataclasses.dataclass(frozen=True)
class Part:
    """A tensor to write: its shape and a function that gives it in `dtype`, called when its turn comes."""

    name: str
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


def write(directory: pathlib.Path, parts: Iterable[Part], dtype: np.dtype, max_file_bytes: int) -> list[pathlib.Path]:
    """Writes the tensors in their order, in as many files as needed, with an index if there are several.

    Args:
      directory: exists. dtype: of all of them. max_file_bytes: of a file's data; one tensor alone may exceed it.

    Returns:
      The files with data.
    """
    files: list[list[Part]] = [[]]
    for part in parts:
        if files[-1] and sum(map(_bytes(dtype), files[-1])) + _bytes(dtype)(part) > max_file_bytes:
            files.append([])
        files[-1].append(part)
    count = len(files)
    names = [SINGLE_NAME] if count == 1 else [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name, held in zip(names, files, strict=True):
        _write_file(directory / name, held, dtype)
    if count > 1:
        weights = {part.name: name for name, held in zip(names, files, strict=True) for part in held}
        total = sum(map(_bytes(dtype), (part for held in files for part in held)))
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (directory / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [directory / name for name in names]


def _bytes(dtype: np.dtype) -> Callable[[Part], int]:
    return lambda part: math.prod(part.shape) * dtype.itemsize


def _write_file(path: pathlib.Path, parts: list[Part], dtype: np.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        start, end = end, end + _bytes(dtype)(part)
        header[part.name] = {"dtype": _NAMES[dtype], "shape": list(part.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for part in parts:
            file.write(np.ascontiguousarray(part.make(), dtype).view(np.uint8).data)
