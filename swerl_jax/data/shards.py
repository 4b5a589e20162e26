"""Examples at rest: JSON lines and ArrayRecord files, read by position and checked row by row.

On the path: first of all; the loader draws from what is opened here.
"""

from __future__ import annotations

import array
import bisect
import collections.abc
import contextlib
import dataclasses
import glob
import gzip
import itertools
import json
import mmap
import operator
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from array_record.python import array_record_module

from swerl_jax.data import remote, swebench
from swerl_jax.data.records import Example

SUFFIXES = (".jsonl", ".jsonl.gz", ".array_record")

# A compressed file has no random access, so it is held decompressed; beyond this one of the other forms is right.
GZIP_LIMIT_BYTES = 2 << 30

_REQUIRED = ("id", "repo", "commit", "issue", "files", "oracle")
_OPTIONAL = ("tests", "image", "flags", "meta")


class MalformedRow(ValueError):
    """A row that is no example.

    Attributes:
      path: the file.
      row: 1-based; for JSON lines the line number, empty lines counted.
      problem: what was got and what is needed.
    """

    def __init__(self, path: str, row: int, problem: str):
        super().__init__(f"{path}, row {row}: {problem}")
        self.path = path
        self.row = row
        self.problem = problem


def example_to_json(example: Example) -> dict[str, Any]:
    """Returns the example as plain JSON values, all fields present, in the record's order."""
    fields = {field.name: getattr(example, field.name) for field in dataclasses.fields(Example)}
    for name in ("files", "oracle", "tests", "meta"):
        fields[name] = dict(fields[name])
    fields["flags"] = list(example.flags)
    return fields


def example_from_json(value: object) -> Example:
    """Builds an example from decoded JSON, refusing whatever the record does not promise.

    Args:
      value: an object with `id`, `repo`, `commit`, `issue`, `files`, `oracle`, and perhaps `tests`, `image`, `flags`
        and `meta`; anything else is unknown and refused.

    Raises:
      ValueError: saying what was got and what is needed.
    """
    row = _need(value, dict, "the row", "an object")
    if missing := [key for key in _REQUIRED if key not in row]:
        raise ValueError(f"missing {missing}; needed are {list(_REQUIRED)}")
    if unknown := sorted(set(row) - set(_REQUIRED) - set(_OPTIONAL)):
        raise ValueError(f"unknown keys {unknown}; needed are {list(_REQUIRED)}, allowed {list(_OPTIONAL)}")
    for key in ("id", "issue"):
        if not _text(row[key], key).strip():
            raise ValueError(f"{key} is empty; needed is a text")
    flags = _need(row.get("flags", []), list, "flags", "a list of strings")
    example = Example(
        id=row["id"],
        repo=_text(row["repo"], "repo"),
        commit=_text(row["commit"], "commit"),
        issue=row["issue"],
        files=_contents(row["files"], "files"),
        oracle=_contents(row["oracle"], "oracle"),
        tests=_need(row.get("tests", {}), dict, "tests", "an object"),
        image=_text(row.get("image", ""), "image"),
        flags=tuple(_text(flag, "a flag") for flag in flags),
        meta=_need(row.get("meta", {}), dict, "meta", "an object"),
    )
    if all(example.files.get(path, "") == text for path, text in example.oracle.items()):
        raise ValueError("oracle equals files, so there is nothing to fix; needed is at least one changed file")
    return example


def write_examples(path: str | os.PathLike[str], examples: Iterable[Example]) -> int:
    """Writes examples to one file whose suffix names the form, whole or not at all.

    Args:
      path: ends in one of SUFFIXES; its directory is made where missing, an existing file is replaced.
      examples: each is checked as on reading.

    Returns:
      The number of rows written.
    """
    path = os.fspath(path)
    suffix = _suffix(path)
    if not suffix:
        raise ValueError(f"{path} has an unknown form; needed is a name ending in one of {SUFFIXES}")
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = f"{path}.{os.getpid()}.part"
    rows = _encoded(path, examples)
    try:
        if suffix == ".array_record":
            count = _write_records(scratch, rows)
        else:
            count = _write_lines(scratch, rows, is_compressed=suffix == ".jsonl.gz")
        os.replace(scratch, path)
    finally:
        pathlib.Path(scratch).unlink(missing_ok=True)
    return count


def open_examples(path: str | os.PathLike[str]) -> Examples:
    """Opens one file, a directory of such files, or a glob pattern, for access by position.

    Args:
      path: local or remote (`gs://…`, see `remote.local_copy`); files end in one of SUFFIXES; several are joined in the
        order of their names. Rows are examples as `write_examples` leaves them, or rows in SWE-bench's format
        (`problem_statement` and `patch`).

    Raises:
      ValueError: nothing to open, or a file that is not what its name says. Rows are checked when they are read.
    """
    path = os.fspath(path)
    return Examples(path, [_open_file(name) for name in find_files(path)])


def find_files(path: str | os.PathLike[str]) -> list[str]:
    """The files that `open_examples` would open, which are not looked into.

    Raises:
      ValueError: there is none, or a remote place cannot be reached.
    """
    path = os.fspath(path)
    found = [path]
    if remote.is_remote(path):
        found = [url for url in remote.find(path) if _suffix(url)]
    elif os.path.isdir(path):
        found = sorted(os.path.join(path, name) for name in os.listdir(path) if _suffix(name))
    elif not os.path.exists(path):
        found = sorted(name for name in glob.glob(path, recursive=True) if _suffix(name))
    if not found:
        raise ValueError(f"found no examples at {path}; needed is a file, directory or pattern of {SUFFIXES}")
    return found


class Examples(collections.abc.Sequence):
    """Rows of one or several files by position; `[i]` reads and checks row i.

    `[i]` raises MalformedRow for a row that is no example. Safe to use from one thread at a time.
    """

    def __init__(self, path: str, files: list[_Lines | _Records]):
        self.path = path
        self._files = files
        self._ends = list(itertools.accumulate(len(file) for file in files))

    def __len__(self) -> int:
        return self._ends[-1]

    def sizes(self) -> list[tuple[str, int, int]]:
        """(name without its directory, rows, bytes as decompressed) of each file: by these a later reader knows it again."""
        return [(file.name.rpartition("/")[2], len(file), file.size_bytes) for file in self._files]

    def __getitem__(self, index: int) -> Example:
        index = operator.index(index)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self.path}, which has {len(self)} rows")
        number = bisect.bisect_right(self._ends, index)
        file = self._files[number]
        row, data = file.read(index - (self._ends[number] - len(file)))
        try:
            return _parse(data)
        except (ValueError, RecursionError) as error:
            raise MalformedRow(file.name, row, str(error)) from error


class _Lines:
    """Lines of a file mapped into memory (or decompressed there) with the offset of each that is not empty.

    `name` is what messages call it: where it was asked for, which for a copy is not where it lies.
    """

    def __init__(self, path: str, name: str):
        self.name = name
        self._data = _decompress(path) if path.endswith(".gz") else _map(path)
        self._starts, self._ends, self._rows = array.array("Q"), array.array("Q"), array.array("Q")
        self.size_bytes = size = len(self._data)
        start = 0
        for row in itertools.count(1):
            if start >= size:
                break
            end = self._data.find(b"\n", start)
            end = size if end < 0 else end
            if self._data[start:end].strip():
                self._starts.append(start)
                self._ends.append(end)
                self._rows.append(row)
            start = end + 1

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, index: int) -> tuple[int, bytes]:
        return self._rows[index], self._data[self._starts[index]:self._ends[index]]


class _Records:
    """Records of one ArrayRecord file; `name` as for lines."""

    def __init__(self, path: str, name: str):
        self.name, self.size_bytes = name, os.path.getsize(path)
        # No read-ahead and no threads: rows are drawn in random order.
        self._reader = array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
        if not self._reader.ok():
            raise ValueError(f"{name} is no ArrayRecord file, or is damaged; write it anew")

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, index: int) -> tuple[int, bytes]:
        try:
            return index + 1, self._reader.read([index])[0]
        except RuntimeError as error:  # what the reader raises for a damaged chunk
            raise MalformedRow(self.name, index + 1, f"the record cannot be read ({error})") from error


def _open_file(name: str) -> _Lines | _Records:
    path = remote.local_copy(name) if remote.is_remote(name) else name
    suffix = _suffix(path)
    if not suffix or not os.path.isfile(path):
        raise ValueError(f"{name} is no example file; needed is a file ending in one of {SUFFIXES}")
    return _Records(path, name) if suffix == ".array_record" else _Lines(path, name)


def _map(path: str) -> mmap.mmap | bytes:
    if not os.path.getsize(path):  # an empty file cannot be mapped
        return b""
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _decompress(path: str) -> bytes:
    try:
        with gzip.open(path, "rb") as file:
            data = file.read(GZIP_LIMIT_BYTES + 1)
    except (EOFError, OSError) as error:
        raise ValueError(f"{path} is no gzip file, or is damaged ({error}); write it anew") from error
    if len(data) > GZIP_LIMIT_BYTES:
        raise ValueError(
            f"{path} holds more than {GZIP_LIMIT_BYTES} bytes decompressed, which is kept in memory; "
            "write it as .jsonl or .array_record"
        )
    return data


def _suffix(path: str) -> str:
    return next((suffix for suffix in SUFFIXES if path.endswith(suffix)), "")


def _encoded(path: str, examples: Iterable[Example]) -> Iterable[bytes]:
    for row, example in enumerate(examples, start=1):
        try:
            value = example_to_json(example)
            example_from_json(value)
            yield json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError) as error:
            raise MalformedRow(path, row, f"{error} (while writing)") from error


def _write_lines(path: str, rows: Iterable[bytes], *, is_compressed: bool) -> int:
    count = 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        if is_compressed:  # without a time stamp and name in its header the same rows give the same bytes
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        for count, row in enumerate(rows, start=1):
            file.write(row + b"\n")
    return count


def _write_records(path: str, rows: Iterable[bytes]) -> int:
    # One record a group: any row is read without its neighbours.
    writer = array_record_module.ArrayRecordWriter(path, "group_size:1")
    count = 0
    try:
        for count, row in enumerate(rows, start=1):
            writer.write(row)
    finally:
        writer.close()
    return count


def _parse(data: bytes) -> Example:
    value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if isinstance(value, dict) and "problem_statement" in value and "patch" in value:
        value = example_to_json(swebench.example_from_swebench(value))
    return example_from_json(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError(f"a key is given twice among {[key for key, _ in pairs]}; needed are distinct keys")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"got the number {name}, which is not JSON; needed is a finite number or null")


def _need(value: Any, kind: type, name: str, needed: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {type(value).__name__} {value!r:.60}; needed is {needed}")
    return value


def _text(value: Any, name: str) -> str:
    text = _need(value, str, name, "a string")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} holds a lone surrogate at character {error.start}; needed is Unicode") from error
    return text


def _contents(value: Any, name: str) -> Mapping[str, str]:
    contents = _need(value, dict, name, "an object of path: text")
    if not contents:
        raise ValueError(f"{name} is empty; needed is at least one path: text")
    for path, text in contents.items():
        _path(path, name)
        _text(text, f"{name}[{path!r}]")
    return contents


def _path(path: Any, name: str) -> None:
    text = _text(path, f"a path of {name}")
    parts = text.split("/")
    if not text.isprintable() or text != text.strip() or ".." in parts or "" in parts:
        raise ValueError(f"{name} holds the path {text!r}; needed is a relative path below the repository's root")
