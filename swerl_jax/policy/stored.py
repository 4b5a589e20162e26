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

    def read(self) -> np.ndarray:
        """The tensor; of a local file a view, of which only what is used is read.

        Raises:
          ValueError: the file cannot be read, naming it and the tensor.
        """
        try:
            if is_local(self.url):
                return np.memmap(self.url, self.dtype, "r", self.offset, self.shape or (1,)).reshape(self.shape)
            with fsspec.open(self.url, "rb") as file:
                file.seek(self.offset)
                data = file.read(math.prod(self.shape) * self.dtype.itemsize)
            return np.frombuffer(data, self.dtype).reshape(self.shape)
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


def find(directory: str) -> dict[str, Stored]:
    """All tensors of the files in `directory`, local or remote (gs://…), by name.

    Raises:
      ValueError: there is no such file, one is missing, cut off or no safetensors; or index and files disagree.
    """
    try:
        index = json.loads(read_text(join(directory, INDEX_NAME)))["weight_map"]
    except FileNotFoundError:
        return _header(join(directory, SINGLE_NAME))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{join(directory, INDEX_NAME)} cannot be read: {error!r}") from error
    found = {name: _header(join(directory, name)) for name in sorted(set(index.values()))}
    lost = [f"{name} in {file}" for name, file in index.items() if name not in found[file]]
    if lost:
        raise ValueError(f"{join(directory, INDEX_NAME)} names tensors that the files lack: {', '.join(lost)}")
    return {name: found[file][name] for name, file in index.items()}


def _header(url: str) -> dict[str, Stored]:
    try:
        with fsspec.open(url, "rb") as file:
            first = file.read(8)
            length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            entries = json.loads(file.read(length))
            size = file.seek(0, 2)
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} cannot be read as safetensors: {error}") from error
    entries.pop("__metadata__", None)
    found, faults = {}, []
    for name, entry in entries.items():
        dtype, shape, (start, end) = DTYPES.get(entry["dtype"]), tuple(entry["shape"]), entry["data_offsets"]
        if dtype is None:
            faults.append(f"{name} is of dtype {entry['dtype']}; supported are {', '.join(DTYPES)}")
        elif end - start != math.prod(shape) * dtype.itemsize:
            faults.append(f"{name} has {end - start} bytes for {entry['dtype']} {list(shape)}")
        elif 8 + length + end > size:
            faults.append(f"{name} ends at byte {8 + length + end:,}, the file at {size:,}: it is cut off")
        else:
            found[name] = Stored(url, name, dtype, shape, 8 + length + start)
    if faults:
        raise ValueError(f"{url} is damaged or not supported:\n  " + "\n  ".join(faults))
    return found


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
