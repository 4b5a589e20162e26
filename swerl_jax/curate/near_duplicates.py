"""Examples that say nearly the same: cherry-picks, backports, forks' copies. Of each cluster the first in the caller's order stays.

Two examples are compared by the runs of three words of their changed lines and of their issue. A signature of 128 minima
estimates how much two such sets share (Jaccard's index); pairs worth estimating agree in one of 32 bands of 4 minima, which
finds 0.5 with 87 % and 0.8 with more than 99.99 %.

Source: Broder 1997 (MinHash); Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, §3.3-3.4 (bands).
"""

from __future__ import annotations

import numpy as np

from swerl_jax.curate.shingles import example_change, shingles, visible_text
from swerl_jax.data.records import Example

HASHES = 128
BANDS = 32
THRESHOLD = 0.8
_ROWS = HASHES // BANDS
_RUN_WORDS = 3
_CHUNK = 4096  # runs handled at once: 4 MB
_READ_ROWS = 1 << 16  # signatures read at once
_MAX_LEADERS = 16  # of one bucket; more different texts in it than these is chance, and rare
_EMPTY = np.uint32(0xFFFFFFFF)
_SEED = 20250218

_generator = np.random.Generator(np.random.PCG64(_SEED))
_FACTORS = _generator.integers(0, 2**63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _generator.integers(0, 2**63, HASHES, dtype=np.uint64)
_BAND_FACTORS = _generator.integers(0, 2**63, _ROWS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def signature(example: Example) -> np.ndarray:
    """The minima of an example, uint32 [HASHES]; the same in every process."""
    change, issue = example_change(example), visible_text(example.issue)
    runs = [shingles(text, size, seed) for text, seed in ((change, 1), (issue, 2)) for size in (_RUN_WORDS, 1)]
    return _minima(np.concatenate([runs[0] if len(runs[0]) else runs[1], runs[2] if len(runs[2]) else runs[3]]))


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The estimated share of common runs, float [...]; `a` and `b` uint32 [..., HASHES]."""
    return np.mean(a == b, axis=-1)


def first_of(signatures: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Which example stands for each.

    Args:
      signatures: uint32 [N, HASHES]; earlier rows stand for later ones (a memory map will do: it is read band by band).
      threshold: estimated share from which two are the same.

    Returns:
      int64 [N]: the row that is kept in its place, its own where it is kept itself; never a later one.
    """
    first = np.arange(len(signatures), dtype=np.int64)
    for band in range(BANDS):
        keys = _band_keys(signatures, band)
        rows = np.argsort(keys, kind="stable")  # rows of a bucket stay in their order
        keys = keys[rows]
        for _ in range(_MAX_LEADERS):
            is_first = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(rows)]
            leaders = rows[np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))]
            is_alike = ~is_first
            is_alike[is_alike] = _are_alike(signatures, rows[~is_first], leaders[~is_first], threshold)
            first[rows[is_alike]] = np.minimum(first[rows[is_alike]], leaders[is_alike])
            rows, keys = rows[~is_first & ~is_alike], keys[~is_first & ~is_alike]  # the next of each bucket leads
    while not np.array_equal(further := first[first], first):  # of a chain the first stands for all
        first = further
    return first


def _are_alike(signatures: np.ndarray, rows: np.ndarray, others: np.ndarray, threshold: float) -> np.ndarray:
    """bool [n]: whether row rows[i] is like row others[i]."""
    parts = [np.zeros(0, bool)]
    for at in range(0, len(rows), _READ_ROWS):
        parts.append(similarity(signatures[rows[at : at + _READ_ROWS]], signatures[others[at : at + _READ_ROWS]]) >= threshold)
    return np.concatenate(parts)


def _band_keys(signatures: np.ndarray, band: int) -> np.ndarray:
    """uint64 [N]: equal where the band's minima are, else different but for chance."""
    keys = np.empty(len(signatures), np.uint64)
    for at in range(0, len(signatures), _READ_ROWS):
        part = np.asarray(signatures[at : at + _READ_ROWS, band * _ROWS : (band + 1) * _ROWS], np.uint64)
        keys[at : at + len(part)] = ((part + np.uint64(1)) * _BAND_FACTORS).sum(axis=1, dtype=np.uint64)
    return keys


def _minima(runs: np.ndarray) -> np.ndarray:
    minima = np.full(HASHES, _EMPTY, np.uint32)
    for at in range(0, len(runs), _CHUNK):
        values = (runs[at : at + _CHUNK, None] * _FACTORS + _OFFSETS) >> np.uint64(32)
        minima = np.minimum(minima, values.min(axis=0).astype(np.uint32))
    return minima
