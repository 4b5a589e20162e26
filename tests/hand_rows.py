"""Prefix/branch rows from a few numbers, for tests of attention."""

import numpy as np


def row(shape, T, real, lengths):
    """(branch_start [T], is_valid [S + T]) of `real` prefix tokens and branches of these lengths."""
    is_valid, branch_start = np.arange(shape.S + T) < real, np.arange(T, dtype=np.int32)
    start = 0
    for length in lengths:
        is_valid[shape.S + start:shape.S + start + length] = True
        branch_start[start:start + length] = start
        start += -(-length // shape.block) * shape.block
    assert start <= T
    return branch_start, is_valid
