"""Arrays in this machine's memory: such as a CPU device takes as they are, and a quick change of the order of axes."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

_ALIGNMENT = 64  # bytes; XLA copies what begins elsewhere


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An uninitialised array that `jax.device_put` takes as a CPU device's own, without a copy.

    Whoever fills it must be done before it is put there. A computation that it is donated to copies it first.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start:start + size].view(dtype).reshape(shape)


def in_rows(view: np.ndarray, device: jax.Device) -> np.ndarray:
    """The same numbers with a contiguous last axis; `view` itself where it is so.

    Args:
      view: at best a few MB, so that it stays in the processor's cache.
      device: one of a CPU. XLA moves blocks from register to register, twenty times faster than numpy moves numbers.
    """
    if view.shape[-1] < 2 or view.strides[-1] == view.itemsize:
        return view
    there = jax.make_array_from_callback(view.shape, SingleDeviceSharding(device), lambda _: bits(view))
    return np.asarray(there).view(view.dtype)


def copy(target: np.ndarray, source: np.ndarray) -> None:
    """Writes `source` to `target` of the same shape, in its dtype."""
    if source.dtype == target.dtype:
        target, source = bits(target), bits(source)
    target[...] = source


def bits(array: np.ndarray) -> np.ndarray:
    """The same memory as unsigned integers, which numpy and XLA move faster than bfloat16."""
    return array.view(f"uint{8 * array.itemsize}")
