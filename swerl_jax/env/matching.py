"""The matching behind diffs and similarities: difflib's very blocks, at C++ speed, within a bounded amount of work.

On the path: edits → contents → **diff texts → similarity** → reward. difflib's algorithm is quadratic as a rule and
cubic at worst (8,000 characters "aaaa…" against "abab…" take minutes even in C++), and one side of it is written by
the policy. So every step pays from a `Work` account before it runs. The account counts character pairs, not seconds:
the same answer gets the same reward on a slow machine.
"""

from __future__ import annotations

import collections
import difflib
import itertools
from collections.abc import Sequence

import cydifflib

CALL_PAIRS = 1_000  # fixed price of one search for a longest block, in pairs
ROW_SHARE = 8  # a search also clears one number per item of b for every item of a; eight of them cost about one pair
ITEM_PAIRS = 500  # price of reading one item in (splitting, hashing, indexing), in pairs
GRAM_CHARS = (12, 4, 1)  # lengths of the runs tried one after the other; the last must be 1
AUTOJUNK_MIN_LINES = 200  # difflib's own threshold: from here on, popular lines do not start a match


class Work:
    """An account of matching work, in compared pairs; what cannot be paid is not done."""

    def __init__(self, limit: int):
        """Opens an account of `limit` pairs."""
        self.limit = limit
        self.spent = 0
        self.is_exhausted = False

    def pay(self, pairs: int) -> bool:
        """Books `pairs` and returns True, or returns False, once and for all, where the account does not cover them."""
        if self.is_exhausted or self.spent + pairs > self.limit:
            self.is_exhausted = True
            return False
        self.spent += pairs
        return True


class _Finder:
    """Longest common blocks of two sequences, each search paid before it starts."""

    def __init__(self, a: Sequence[str], b: Sequence[str], autojunk: bool, work: Work):
        self._work = work
        if not work.pay(ITEM_PAIRS * (len(a) + len(b))):
            a = b = ()
        self._matcher = cydifflib.SequenceMatcher(None, a, b, autojunk=autojunk)
        counts = collections.Counter(b)
        if autojunk and len(b) >= AUTOJUNK_MIN_LINES:
            popular = len(b) // 100 + 1
            counts = {item: count for item, count in counts.items() if count <= popular}
        # pairs[i]: how many pairs the first i items of a form with all of b; bounds a search over any range of a.
        self._pairs = [0, *itertools.accumulate(counts.get(item, 0) for item in a)]

    def find(self, a_start: int, a_end: int, b_start: int, b_end: int) -> tuple[int, int, int] | None:
        """The longest block (start in a, start in b, length) of the two ranges, or None where it cannot be paid."""
        if self._work.is_exhausted:
            return None
        pairs = self._pairs[a_end] - self._pairs[a_start]
        if not self._work.pay(pairs + (a_end - a_start) * (b_end - b_start) // ROW_SHARE + CALL_PAIRS):
            return None
        return self._matcher.find_longest_match(a_start, a_end, b_start, b_end)


class LineMatcher(difflib.SequenceMatcher):
    """difflib's SequenceMatcher for lines, searching in C++ and within an account.

    Where the account runs dry the remaining ranges count as different: a correct diff, but not difflib's;
    `work.is_exhausted` tells.
    """

    def __init__(self, a: Sequence[str], b: Sequence[str], autojunk: bool, work: Work):
        """Compares the lines `a` with the lines `b`; `autojunk` as in difflib."""
        super().__init__(None, a, b, autojunk=autojunk)
        self._finder = _Finder(a, b, autojunk, work)

    def find_longest_match(self, alo: int = 0, ahi: int | None = None, blo: int = 0, bhi: int | None = None):
        """As in difflib; an empty block where the account does not cover the search."""
        ahi = len(self.a) if ahi is None else ahi
        bhi = len(self.b) if bhi is None else bhi
        found = self._finder.find(alo, ahi, blo, bhi)
        return difflib.Match(*found) if found else difflib.Match(alo, blo, 0)


class _GramFinder:
    """Longest common blocks of two texts by way of runs of characters ("grams"), with the result of single ones.

    A block of k ≥ q characters is a block of k − q + 1 grams of q characters at the same place, so the longest block,
    and the first among equals, is the same. Long grams form few pairs; where no long one is common, shorter ones
    decide. Exact, and several times faster on code, where single characters repeat and runs do not.
    """

    def __init__(self, a: str, b: str, work: Work):
        self._texts = a, b
        self._work = work
        self._finders: dict[int, _Finder] = {}

    def find(self, level: int, a_start: int, a_end: int, b_start: int, b_end: int) -> tuple[int, int, int, int] | None:
        """The level that decided and the longest block of two ranges that share none longer than at `level`."""
        for level in range(level, len(GRAM_CHARS)):
            cut = GRAM_CHARS[level] - 1
            if a_end - a_start <= cut or b_end - b_start <= cut:
                continue
            found = self._finder(cut + 1).find(a_start, a_end - cut, b_start, b_end - cut)
            if not found:
                return None
            i, j, size = found
            if size:
                return level, i, j, size + cut
        return level, a_start, b_start, 0

    def _finder(self, chars: int) -> _Finder:
        if chars not in self._finders:
            a, b = (_grams(text, chars) for text in self._texts)
            self._finders[chars] = _Finder(a, b, False, self._work)
        return self._finders[chars]


def _grams(text: str, chars: int) -> Sequence[str]:
    return [text[i : i + chars] for i in range(len(text) - chars + 1)] if chars > 1 else text


def ratio(a: str, b: str, work: Work) -> float:
    """Character similarity of two texts, the number of `difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()`.

    Returns: in [0, 1]; 1 for two empty texts. Where `work` runs dry: twice the characters matched so far over all
      characters, a lower bound of difflib's number (blocks are only ever added).
    """
    if not a and not b:
        return 1.0
    finder = _GramFinder(a, b, work)
    matched = 0
    ranges = [(0, 0, len(a), 0, len(b))]
    while ranges:
        found = finder.find(*ranges[-1])
        if not found:
            break
        _, a_start, a_end, b_start, b_end = ranges.pop()
        level, i, j, size = found
        if not size:
            continue
        matched += size
        # What is left on either side has no longer block than this one: it starts at the level that found it.
        if a_start < i and b_start < j:
            ranges.append((level, a_start, i, b_start, j))
        if i + size < a_end and j + size < b_end:
            ranges.append((level, i + size, a_end, j + size, b_end))
    return 2.0 * matched / (len(a) + len(b))
