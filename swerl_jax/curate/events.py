"""One hour of GH Archive, read in one pass: its facts, what was counted, and what is wrong with the file.

On the path: `2024-01-31-12.json.gz` → **facts** → runs, sorted by repository → pull requests with their issues.

Most lines are of types that tell nothing here; they are recognised by their first bytes and never parsed.
"""

from __future__ import annotations

import collections
import json
import re
import zlib
from collections.abc import Collection, Iterator

import fsspec

from swerl_jax.curate.facts import WANTED, Fact, Incomplete, IssueSeen, facts_of

READ_BYTES = 1 << 18  # compressed, at a time
PIECE_BYTES = 1 << 20  # decompressed, at a time
LINE_LIMIT_BYTES = 64 << 20  # what is longer is no event
_SEEN_LIMIT = 100_000  # issues whose last text is remembered to leave out repetitions

_GZIP = 31  # zlib's number for a gzip header and window
# A line's first bytes are JSON up to here, so no text inside a payload can look like them.
_TYPE = re.compile(rb'\s*\{\s*"id"\s*:\s*"?\d+"?\s*,\s*"type"\s*:\s*"(\w+)"')


def read_hour(path: str, wanted: Collection[str] = ()) -> Hour:
    """Opens one file of events, to be iterated once.

    Args:
      path: gzip-compressed JSON lines; a local path or a URL that fsspec knows.
      wanted: event types to take facts from, all of WANTED by default.
    """
    return Hour(path, wanted or WANTED)


class Hour:
    """The facts of one file, in its order; memory does not grow with the file.

    Attributes:
      counts: of "lines", "bytes" (decompressed), "facts", "bad_lines" (no JSON object), "incomplete" (wanted, but
        without repository, number or time) and of each type; complete after the iteration.
      fault: what is wrong with the file, "" where nothing is; known after the iteration. What was read before a fault
        is as good as without it.
    """

    def __init__(self, path: str, wanted: Collection[str]):
        if unknown := sorted(set(wanted) - set(WANTED)):
            raise ValueError(f"got the event types {unknown}; facts are taken from {sorted(WANTED)}")
        self.path = path
        self.counts: collections.Counter[str] = collections.Counter()
        self.fault = ""
        self._wanted = {name.encode() for name in wanted}
        self._seen: dict[tuple[int, int], tuple[str, int]] = {}  # issue → when its last text was seen, hash of it

    def __iter__(self) -> Iterator[Fact]:
        types: collections.Counter[bytes] = collections.Counter()
        for lines in self._lines():
            self.counts["lines"] += len(lines)
            for line in lines:
                match = _TYPE.match(line)
                if match:
                    types[match[1]] += 1
                    if match[1] not in self._wanted:
                        continue
                yield from self._facts(line, types, is_counted=bool(match))
        self.counts.update({name.decode(): count for name, count in types.items()})
        if bad := self.counts["bad_lines"]:
            self._add_fault(f"{bad} of {self.counts['lines']} lines are no events")

    def _facts(self, line: bytes, types: collections.Counter[bytes], *, is_counted: bool) -> Iterator[Fact]:
        try:
            event = json.loads(line.decode())
            kind = event["type"]
        except (ValueError, RecursionError, KeyError, TypeError):
            self.counts["bad_lines"] += bool(line.strip())
            return
        name = kind.encode("utf-8", "replace") if isinstance(kind, str) else b""
        if not is_counted:
            types[name] += 1
        if name not in self._wanted:
            return
        try:
            facts = facts_of(event)
        except Incomplete:
            self.counts["incomplete"] += 1
            return
        for fact in facts:
            if fact.kind != "issue" or self._is_new(fact):
                self.counts["facts"] += 1
                yield fact

    def _is_new(self, fact: IssueSeen) -> bool:
        """Whether the text differs from the last one seen of this issue, or was seen earlier than that."""
        at, text = self._seen.get(fact[:2], ("~", 0))
        now = hash((fact.title, fact.body))
        if text == now and at <= fact.at:
            return False
        if len(self._seen) >= _SEEN_LIMIT:
            self._seen.clear()
        self._seen[fact[:2]] = (fact.at, now)
        return True

    def _lines(self) -> Iterator[list[bytes]]:
        """Yields whole lines, many at once; the last one only where the file is whole or it is."""
        rest = b""
        for piece in self._pieces():
            self.counts["bytes"] += len(piece)
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            if len(rest) > LINE_LIMIT_BYTES:
                self._add_fault(f"a line has more than {LINE_LIMIT_BYTES} bytes; what follows was not read")
                yield lines
                return
            yield lines
        if rest and not self.fault:
            yield [rest]

    def _pieces(self) -> Iterator[bytes]:
        """Yields the decompressed bytes of all members; a fault ends them."""
        decompressor, taken = zlib.decompressobj(_GZIP), 0
        try:
            with fsspec.open(self.path, "rb") as file:
                while data := file.read(READ_BYTES):
                    taken += len(data)
                    while data:
                        if decompressor.eof:
                            if not data.strip(b"\0"):
                                break  # padding
                            decompressor = zlib.decompressobj(_GZIP)
                        yield decompressor.decompress(data, PIECE_BYTES)
                        data = decompressor.unconsumed_tail or decompressor.unused_data
                yield decompressor.flush()
        except zlib.error as error:
            self._add_fault(f"damaged within its first {taken} bytes ({error})")
        except FileNotFoundError:
            raise
        except OSError as error:
            self._add_fault(f"unreadable after {taken} bytes ({error})")
        else:
            if not decompressor.eof:
                self._add_fault(f"torn: it ends after {taken} bytes, within its compressed data")

    def _add_fault(self, fault: str) -> None:
        self.fault = f"{self.fault}; {fault}" if self.fault else fault
