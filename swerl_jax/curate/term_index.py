"""The terms of a tree's files, kept while the tree changes: where each term occurs, and how often.

On the path: files of a tree → **index** → ranking. From one commit to the next only the files that differ are read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from swerl_jax.curate import code_terms
from swerl_jax.curate.lru import Lru
from swerl_jax.curate.paths import has_words

_CACHED_TERMS = 6_000_000
_READ_AT_ONCE = 64
_MAX_COUNT = 255


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a ranker may see: a tree before the change.

    Attributes:
      files: path → blob, of every file that may be shown.
      read: blobs → texts, None for one that is no text.
    """

    files: Mapping[str, str]
    read: Callable[[Sequence[str]], Mapping[str, str | None]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file's terms: `terms` uint32 and `counts` uint8, both [number of terms]; the rest as in code_terms.Document."""

    terms: np.ndarray
    counts: np.ndarray
    words: int
    modules: tuple[int, ...]
    imports: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Postings:
    """Where terms occur, sorted by term.

    Attributes:
      which: int64 [M], index of the term asked for.
      slots: int32 [M], the file.
      counts: uint8 [M], how often it occurs there.
      files: int64 [terms asked for], in how many files it occurs.
    """

    which: np.ndarray
    slots: np.ndarray
    counts: np.ndarray
    files: np.ndarray


class TermIndex:
    """Terms of the files of one tree; a file has a slot, a small number, while it does not change.

    Attributes:
      paths: the path in every slot, "" in a free one.
      places: int64 [slots], the path's position in the order of names; a free slot's is behind all others.
      directories: int64 [slots], a number for each directory, −1 in a free slot.
      words: int64 [slots], the number of words of each file.
    """

    def __init__(self, max_files: int):
        """Of trees with more files the rest are known by their paths alone: those deepest down, then last by name.

        So is whatever `paths.has_words` does not hold for, however few there are.
        """
        self._max_files = max_files
        self._entries: Lru[tuple[str, str], Entry] = Lru(_CACHED_TERMS)
        self._files: dict[str, str] = {}
        self._slot_of: dict[str, int] = {}
        self._free: list[int] = []
        self._terms = np.zeros(0, np.uint32)
        self._slots = np.zeros(0, np.int32)
        self._counts = np.zeros(0, np.uint8)
        self._entry_at: list[Entry | None] = []
        self.paths: list[str] = []
        self.places = np.zeros(0, np.int64)
        self.directories = np.zeros(0, np.int64)
        self.words = np.zeros(0, np.int64)

    def update(self, snapshot: Snapshot) -> None:
        """Makes this the index of the snapshot."""
        files = self._bounded(snapshot.files)
        changed = sorted(path for path, _ in files.items() - self._files.items())
        gone = [path for path in self._files if path not in files]
        entries = self._read(changed, files, snapshot.read)
        self._remove_rows([self._slot_of[path] for path in (*changed, *gone) if path in self._slot_of])
        added = [path for path in changed if path not in self._slot_of]
        self._free += [self._slot_of.pop(path) for path in gone]
        self._slot_of |= zip(added, self._take(len(added)), strict=True)
        self._add_rows([self._slot_of[path] for path in changed], entries)
        self._files = files
        if added or gone:
            self._name_slots()

    @property
    def size(self) -> int:
        """The number of files."""
        return len(self._files)

    def slot(self, path: str) -> int | None:
        """Returns the file's slot, None where the tree has no such file."""
        return self._slot_of.get(path)

    def entry(self, slot: int) -> Entry:
        """Returns the terms of the file in a slot that is not free."""
        return self._entry_at[slot]

    def postings(self, terms: np.ndarray) -> Postings:
        """Returns where `terms` (uint32, distinct) occur."""
        start = np.searchsorted(self._terms, terms, "left")
        files = np.searchsorted(self._terms, terms, "right") - start
        which = np.repeat(np.arange(len(terms)), files)
        rows = np.arange(len(which)) + np.repeat(start - (np.cumsum(files) - files), files)
        return Postings(which, self._slots[rows], self._counts[rows], files)

    def _bounded(self, files: Mapping[str, str]) -> dict[str, str]:
        read = [path for path in files if has_words(path)]
        if len(read) > self._max_files:
            read = sorted(read, key=lambda path: (path.count("/"), path))[:self._max_files]
        return dict.fromkeys(files, "") | {path: files[path] for path in read}

    def _read(self, paths: Sequence[str], files: Mapping[str, str], read) -> list[Entry]:
        found: dict[str, Entry] = {}
        for start in range(0, len(paths), _READ_AT_ONCE):
            chunk = paths[start:start + _READ_AT_ONCE]
            found |= {path: entry for path in chunk if (entry := self._entries.get((path, files[path])))}
            texts = read([files[path] for path in chunk if path not in found and files[path]])
            for path in chunk:
                if path not in found:
                    found[path] = _entry(path, texts.get(files[path]))
                    self._entries.put((path, files[path]), found[path], weight=len(found[path].terms) + 100)
        return [found[path] for path in paths]

    def _remove_rows(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        is_kept = np.ones(len(self.words), bool)
        is_kept[slots] = False
        rows = is_kept[self._slots]
        self._terms, self._slots, self._counts = self._terms[rows], self._slots[rows], self._counts[rows]
        self.words[slots] = 0
        for slot in slots:
            self._entry_at[slot] = None

    def _add_rows(self, slots: Sequence[int], entries: Sequence[Entry]) -> None:
        if not slots:
            return
        for slot, entry in zip(slots, entries, strict=True):
            self.words[slot] = entry.words
            self._entry_at[slot] = entry
        terms = np.concatenate([entry.terms for entry in entries])
        order = np.argsort(terms, kind="stable")
        terms = terms[order]
        places = np.searchsorted(self._terms, terms)
        lengths = [len(entry.terms) for entry in entries]
        self._terms = np.insert(self._terms, places, terms)
        self._slots = np.insert(self._slots, places, np.repeat(np.asarray(slots, np.int32), lengths)[order])
        self._counts = np.insert(self._counts, places, np.concatenate([entry.counts for entry in entries])[order])

    def _name_slots(self) -> None:
        """Writes down what is where, after files came or went."""
        self.paths = [""] * len(self.words)
        self.places = np.full(len(self.words), len(self.words))
        self.directories = np.full(len(self.words), -1)
        directories: dict[str, int] = {}
        for place, path in enumerate(sorted(self._slot_of)):
            slot = self._slot_of[path]
            self.paths[slot] = path
            self.places[slot] = place
            self.directories[slot] = directories.setdefault(path.rpartition("/")[0], len(directories))

    def _take(self, count: int) -> list[int]:
        missing = count - len(self._free)
        if missing > 0:
            taken = len(self.words)
            room = max(missing, taken // 4)
            self._free += range(taken + room - 1, taken - 1, -1)
            self._entry_at += [None] * room
            self.words = np.concatenate([self.words, np.zeros(room, np.int64)])
        return [self._free.pop() for _ in range(count)]


def _entry(path: str, text: str | None) -> Entry:
    made = code_terms.document(path, text)
    counts = np.fromiter(made.counts.values(), np.int64, len(made.counts))
    return Entry(
        terms=np.fromiter(made.counts.keys(), np.uint32, len(made.counts)),
        counts=np.minimum(counts, _MAX_COUNT).astype(np.uint8),
        words=made.words,
        modules=made.modules,
        imports=made.imports,
    )


def distinct(terms: Iterable[int]) -> np.ndarray:
    """Returns uint32 terms, sorted, each once."""
    return np.unique(np.fromiter(terms, np.uint32))
