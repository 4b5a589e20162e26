"""Which files of a tree an issue is about: the interface of rankers, and one that reads words, names and imports.

On the path: issue + the tree before the change → **ranking** → context. No ranker sees what the fix wrote.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from swerl_jax.curate import code_terms
from swerl_jax.curate.term_index import Snapshot, TermIndex, distinct

_MAX_ISSUE_CHARS = 40_000
# Simple on purpose: on long runs of letters, such as encoded files, nothing is tried twice.
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*")
_HUMP_OR_LINE = re.compile(r"[a-z0-9][A-Z]|\w_\w|^_|^[A-Z][A-Z0-9]{3}|^[A-Z]+[a-z]+[A-Z]")
_PATH_CHARS = re.compile(r"[\w./\\@+-]+")
_FILE_NAME = re.compile(r"\w\.[A-Za-z]\w{0,4}$")
_MAX_NAME_CHARS, _MAX_PATH_CHARS = 80, 300
_MODULE = re.compile(r"\b[A-Za-z_]\w*(?:(?:\.|::|/)[A-Za-z_]\w*){1,8}")
_TITLE_FACTOR = 2.0
_SATURATION, _LENGTH_SHARE = 1.2, 0.75  # BM25's k1 and b


class Ranker(Protocol):
    """Orders the files of a tree by how likely one has to see them to fix an issue."""

    def rank(self, issue: str, snapshot: Snapshot, seeds: Collection[str] = ()) -> list[str]:
        """Returns all paths of `snapshot.files`, most relevant first, ties by name; the same input, the same order.

        Args:
          issue: the problem's text.
          snapshot: the tree before the change.
          seeds: files known to be shown (those that change), whose surroundings matter too; none where the question is
            what can be found from the issue alone.
        """


@dataclasses.dataclass(frozen=True)
class Weights:
    """How much each sign counts; all but `mention` are relative to the best file's.

    Attributes:
      words: BM25 of the issue's words.
      definitions: the file defines names that the issue uses.
      path: words of the issue in the file's path.
      mention: the issue names the path (1 for the file's name alone, more for every directory), or the module.
      imports: it imports or is imported by one of the best files, or by a seed.
      directory: it lies beside a seed.
      sources: how many of the best files' imports are followed.
    """

    words: float = 1.0
    definitions: float = 0.6
    path: float = 0.6
    mention: float = 1.0
    imports: float = 0.25
    directory: float = 0.15
    sources: int = 5


class StaticRanker:
    """Ranks by BM25 over words, by definitions, paths and imports; no model, no network.

    Keeps the index of the last snapshot: quick where one snapshot is much like the next. For one thread at a time.
    """

    def __init__(self, weights: Weights = Weights(), max_files: int = 20_000):
        """Of trees with more than `max_files` files the others are known by their paths alone."""
        self._weights = weights
        self._index = TermIndex(max_files)
        self._last: tuple[str, Snapshot | None, np.ndarray] = ("", None, np.zeros(0))

    def rank(self, issue: str, snapshot: Snapshot, seeds: Collection[str] = ()) -> list[str]:
        last_issue, last_snapshot, scores = self._last
        if last_issue != issue or last_snapshot is not snapshot:  # asked with and without seeds, one after the other
            self._index.update(snapshot)
            scores = self._scores(issue[:_MAX_ISSUE_CHARS])
            self._last = (issue, snapshot, scores)
        slots = self._ordered(scores + self._neighbour_scores(scores, seeds))
        return [self._index.paths[slot] for slot in slots]

    def _ordered(self, scores: np.ndarray) -> list[int]:
        """Returns the slots of all files, best first, ties by name."""
        is_free = self._index.directories < 0
        return np.lexsort((self._index.places, -scores, is_free))[:self._index.size].tolist()

    def _scores(self, issue: str) -> np.ndarray:
        weights = self._weights
        words = _issue_words(issue)
        names = code_names(issue)
        return (
            weights.words * _relative(self._word_scores(words))
            + weights.definitions * _relative(self._matches(code_terms.DEFINES, names))
            + weights.path * _relative(self._matches(code_terms.IN_PATH, words))
            + weights.mention * self._mentions(issue)
        )

    def _word_scores(self, words: Mapping[bytes, float]) -> np.ndarray:
        """BM25. Source: Robertson and Zaragoza, The Probabilistic Relevance Framework (2009), with Lucene's idf."""
        weight_of = {code_terms.term(code_terms.WORD, word): weight for word, weight in words.items()}
        terms = distinct(weight_of)
        found = self._index.postings(terms)
        weight = self._rarity(found.files) * np.array([weight_of[term] for term in terms.tolist()])
        lengths = self._index.words[found.slots] / max(1.0, self._index.words.sum() / max(1, self._index.size))
        counts = found.counts.astype(np.float64)
        share = counts / (counts + _SATURATION * (1 - _LENGTH_SHARE + _LENGTH_SHARE * lengths))
        return self._sum(found.slots, weight[found.which] * share)

    def _matches(self, kind: int, names: Iterable[bytes]) -> np.ndarray:
        """Sums up how rare those names are that a file has."""
        found = self._index.postings(distinct(code_terms.term(kind, name) for name in names))
        return self._sum(found.slots, self._rarity(found.files)[found.which])

    def _mentions(self, issue: str) -> np.ndarray:
        scores = np.zeros(len(self._index.paths))
        for mentioned in sorted(_paths(issue)):
            parts = mentioned.replace("\\", "/").split("/")
            stem = code_terms.module_names(parts[-1])[-1]
            terms = distinct([code_terms.term(code_terms.IS_MODULE, stem)])
            for slot in self._index.postings(terms).slots.tolist():
                if self._index.paths[slot].rpartition("/")[2] != parts[-1]:
                    continue
                shared = _shared_end(self._index.paths[slot].split("/"), parts)
                scores[slot] = max(scores[slot], float(min(shared, 3)))
        modules = (_last_names(match) for match in set(_MODULE.findall(issue)))
        is_named = self._matches(code_terms.IS_MODULE, {name for names in modules for name in names})
        return np.maximum(scores, is_named > 0)

    def _neighbour_scores(self, scores: np.ndarray, seeds: Collection[str]) -> np.ndarray:
        top = max(float(scores.max(initial=0.0)), 1e-9)
        best = self._ordered(scores)[:self._weights.sources]
        strength = {slot: float(scores[slot]) / top for slot in best if scores[slot] > 0}
        found_seeds = {slot: 1.0 for path in sorted(seeds) if (slot := self._index.slot(path)) is not None}
        total = np.zeros(len(scores))
        for slot, weight in (strength | found_seeds).items():
            entry = self._index.entry(slot)
            terms = [code_terms.of_kind(code_terms.IMPORTS, number) for number in entry.modules]
            terms += [code_terms.of_kind(code_terms.IS_MODULE, number) for number in entry.imports]
            found = self._index.postings(distinct(terms))
            rarity = self._rarity(found.files) / np.log(2.0 + self._index.size)
            total = np.maximum(total, weight * self._weights.imports * self._largest(found.slots, rarity[found.which]))
        is_beside = np.isin(self._index.directories, self._index.directories[list(found_seeds)])
        return total + self._weights.directory * is_beside

    def _rarity(self, files: np.ndarray) -> np.ndarray:
        """The weight of terms that occur in so many files."""
        return np.log(1.0 + (self._index.size - files + 0.5) / (files + 0.5))

    def _sum(self, slots: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.bincount(slots, values, minlength=len(self._index.paths))

    def _largest(self, slots: np.ndarray, values: np.ndarray) -> np.ndarray:
        largest = np.zeros(len(self._index.paths))
        np.maximum.at(largest, slots, values)
        return largest


def code_names(issue: str) -> set[bytes]:
    """Returns the identifiers that look like code: in_parts, withHumps, CAPITALS, called(), or behind a dot or backtick."""
    names = set()
    for match in _IDENTIFIER.finditer(issue):
        name = match[0]
        is_marked = issue[match.end():match.end() + 1] == "(" or issue[max(0, match.start() - 1):match.start()] in (".", "`")
        if len(name) <= _MAX_NAME_CHARS and (is_marked or _HUMP_OR_LINE.search(name)):
            names.add(name.encode("utf-8", "replace"))
    return names


def _paths(issue: str) -> set[str]:
    """Returns what looks like the name of a file, perhaps with directories before it."""
    found = (text.strip("./\\@+-") for text in _PATH_CHARS.findall(issue) if len(text) <= _MAX_PATH_CHARS)
    return {text for text in found if _FILE_NAME.search(text)}


def _issue_words(issue: str) -> dict[bytes, float]:
    """Returns the words with their weights: repeated ones and those of the title count more."""
    title, _, body = issue.partition("\n")
    weights = {word: 1.0 + float(np.log(count)) for word, count in code_terms.words_of(body.encode("utf-8", "replace")).items()}
    for word in code_terms.words_of(title.encode("utf-8", "replace")):
        weights[word] = weights.get(word, 0.0) + _TITLE_FACTOR
    return weights


def _relative(scores: np.ndarray) -> np.ndarray:
    return scores / max(float(scores.max(initial=0.0)), 1e-9)


def _shared_end(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns how many parts two paths share at their ends."""
    shortest = min(len(a), len(b))
    return next((i for i in range(shortest) if a[-1 - i] != b[-1 - i]), shortest)


def _last_names(dotted: str) -> list[bytes]:
    """Returns the names of modules that `a.b.c` may be: `b/c`, and `a/b` where c is something in it."""
    parts = [part.encode("utf-8", "replace") for part in re.split(r"\.|::|/", dotted)]
    return [b"/".join(parts[i:i + 2]) for i in range(len(parts) - 1)]
