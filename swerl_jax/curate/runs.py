"""An external sort on plain files: rows in order of their key, parted into buckets, more of them than memory holds.

On the path: facts of an hour → **a run** → merged with other runs, bucket by bucket → the facts of one repository.

A run is one file: blocks of JSON lines, each sorted and compressed, of one bucket; then an index of the blocks; then where
the index begins. It appears under its name whole or not at all, on a local disk or wherever fsspec can write.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec

from swerl_jax.data import files

KEY_COLUMNS = 6  # of a row; numbers or texts, each column of one type, by which rows are sorted and told apart
FAN_IN = 256  # runs read at once
SEGMENT_BYTES = 64 << 20  # of rows held in memory while writing

_READ_BYTES = 1 << 16  # compressed
_PIECE_BYTES = 1 << 17  # decompressed
_ROW_OVERHEAD_BYTES = 400  # of a row held in memory beside its text
_FOOTER = struct.Struct(">Q8s")
_MAGIC = b"swerlrun"

Row = Sequence[Any]
_Encoded = tuple[tuple[Any, ...], bytes]  # key and JSON: sorts alike wherever it comes from


def bucket_of(key: int | str, buckets: int) -> int:
    """Returns which of `buckets` a key belongs to, the same in every process."""
    if isinstance(key, str):
        key = zlib.crc32(key.encode())
    return key % buckets


def write_run(url: str, rows: Iterable[tuple[int, Row]], buckets: int,
              meta: Callable[[], Mapping[str, Any]] = dict) -> int:
    """Writes rows in any order as one run.

    Args:
      url: a local path or a URL; an existing file is replaced.
      rows: (bucket, row), each row a list of JSON values that begins with its key.
      buckets: how many there are.
      meta: called after the last row; what it returns is kept in the index.

    Returns:
      How many rows were written.
    """
    with _Writer(url, buckets) as writer:
        held: dict[int, list[_Encoded]] = collections.defaultdict(list)
        size = 0
        for bucket, row in rows:
            encoded = _encode(row)
            held[bucket].append(encoded)
            size += len(encoded[1]) + _ROW_OVERHEAD_BYTES
            if size >= SEGMENT_BYTES:
                writer.write_segment(held)
                size = 0
        writer.write_segment(held)
        writer.meta = dict(meta())
    return writer.count


def merge_runs(urls: Sequence[str], url: str) -> int:
    """Writes one run with all rows of up to FAN_IN others, equal keys once; memory does not grow with them.

    Returns:
      How many rows were written.
    """
    runs = _open_all(urls)
    with _Writer(url, runs[0].buckets) as writer:
        for bucket in range(writer.buckets):
            writer.write_block(bucket, _merged(runs, bucket))
        writer.meta = {"merged": len(urls)}
    return writer.count


def read_bucket(urls: Sequence[str], bucket: int) -> Iterator[list[Any]]:
    """Yields the rows of one bucket of up to FAN_IN runs in order of their keys, equal keys once.

    Which of two different rows of equal key is kept does not depend on the order of `urls`. Memory grows with the number
    of runs, not with their rows.

    Raises:
      ValueError: too many runs, runs of different numbers of buckets, or a file that is no whole run.
    """
    for _, line in _merged(_open_all(urls), bucket):
        yield json.loads(line)


def read_meta(url: str) -> Mapping[str, Any]:
    """Returns what was kept with a run.

    Raises:
      ValueError: for a file that is no whole run.
      FileNotFoundError: for no file.
    """
    return _Run(url).meta


class _Run:
    """One run's index, and its blocks as streams."""

    def __init__(self, url: str):
        self._url = url
        self._files, self._path = fsspec.core.url_to_fs(url)
        size = self._files.size(self._path)
        end = size - _FOOTER.size
        tail_start = max(0, size - _READ_BYTES)
        tail = self._files.cat_file(self._path, tail_start, size)  # mostly holds the whole index
        try:
            start, magic = _FOOTER.unpack(tail[-_FOOTER.size:])
            if magic != _MAGIC or start > end:
                raise ValueError(f"it ends with {magic!r}")
            is_held = start >= tail_start
            text = tail[start - tail_start:-_FOOTER.size] if is_held else self._files.cat_file(self._path, start, end)
            index = json.loads(text)
        except (struct.error, ValueError) as error:
            raise ValueError(f"{url} is no whole run ({error}); delete it and write it anew") from error
        self.buckets: int = index["buckets"]
        self.meta: Mapping[str, Any] = index["meta"]
        self._blocks: list[list[int]] = index["blocks"]

    def segments(self, bucket: int) -> list[Iterator[_Encoded]]:
        """The sorted rows of the bucket, a stream for each block."""
        return [self._rows(start, length) for number, start, length in self._blocks if number == bucket]

    def _rows(self, start: int, length: int) -> Iterator[_Encoded]:
        decompressor, rest = zlib.decompressobj(), b""
        for data in self._pieces(start, start + length):
            while data:
                try:
                    lines = (rest + decompressor.decompress(data, _PIECE_BYTES)).split(b"\n")
                except zlib.error as error:
                    raise ValueError(f"{self._url} is damaged ({error}); delete it and write it anew") from error
                data = decompressor.unconsumed_tail
                rest = lines.pop()
                for line in lines:
                    yield _key(json.loads(line)), line
        for line in (rest + decompressor.flush()).split(b"\n")[:-1]:
            yield _key(json.loads(line)), line
        if not decompressor.eof:
            raise ValueError(f"{self._url} is damaged (a block is cut short); delete it and write it anew")

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        for position in range(start, end, _READ_BYTES):
            yield self._files.cat_file(self._path, position, min(end, position + _READ_BYTES))


class _Writer:
    """Writes blocks, and on leaving the index; after an exception no file is left."""

    def __init__(self, url: str, buckets: int):
        self.buckets = buckets
        self.meta: Mapping[str, Any] = {}
        self.count = 0
        self._blocks: list[tuple[int, int, int]] = []
        self._position = 0
        self._url, self._open = url, contextlib.ExitStack()

    def __enter__(self) -> _Writer:
        self._file = self._open.enter_context(open(self._open.enter_context(files.written(self._url)), "wb"))
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            index = {"buckets": self.buckets, "meta": self.meta, "blocks": self._blocks}
            self._file.write(json.dumps(index).encode() + _FOOTER.pack(self._position, _MAGIC))
        self._open.__exit__(kind, *rest)

    def write_segment(self, held: dict[int, list[_Encoded]]) -> None:
        """Writes what is held as one block for each bucket, and empties it."""
        for bucket in sorted(held):
            held[bucket].sort()
            self.write_block(bucket, _distinct(held[bucket]))
        held.clear()

    def write_block(self, bucket: int, rows: Iterable[_Encoded]) -> None:
        if not 0 <= bucket < self.buckets:
            raise ValueError(f"got bucket {bucket}; needed is one of 0 … {self.buckets - 1}")
        compressor, start = zlib.compressobj(1), self._position
        for _, line in rows:
            self._write(compressor.compress(line + b"\n"))
            self.count += 1
        self._write(compressor.flush())
        self._blocks.append((bucket, start, self._position - start))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._position += len(data)


def _open_all(urls: Sequence[str]) -> list[_Run]:
    if not 0 < len(urls) <= FAN_IN:
        raise ValueError(f"got {len(urls)} runs; needed are 1 to {FAN_IN}: merge some first")
    runs = [_Run(url) for url in urls]
    if len(sizes := {run.buckets for run in runs}) > 1:
        raise ValueError(f"got runs of {sorted(sizes)} buckets; needed is one number: write some anew")
    return runs


def _merged(runs: Sequence[_Run], bucket: int) -> Iterator[_Encoded]:
    return _distinct(heapq.merge(*itertools.chain.from_iterable(run.segments(bucket) for run in runs)))


def _distinct(rows: Iterable[_Encoded]) -> Iterator[_Encoded]:
    """Yields the first of each key."""
    last = None
    for row in rows:
        if row[0] != last:
            last = row[0]
            yield row


def _encode(row: Row) -> _Encoded:
    return _key(row), json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[:KEY_COLUMNS])
