"""Eight-bit integers: matrix products of weights rounded once and activations as they come; keys and values that are kept.

A weight is rounded to 127 steps of the largest size that goes into its output, an activation to as many of the largest in its
row; their products are summed as integers and scaled afterwards. Source: LLM.int8(), arXiv 2208.07339, §2.2 (vector-wise), without its outliers in 16
bits. We differ in that inputs which several devices share are rounded in as many blocks, each with scales of its own, so that no
device waits for another's largest size.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

_LARGEST = 127


def quantise(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """(int8 values, the largest size among `axes`, which stay with size 1, float32).

    x ≈ values · largest / 127, off by half of largest / 127 at most.
    """
    # The reduction begins at the least number instead of being compared with it afterwards: one operation less on a device.
    least = jnp.finfo(x.dtype).tiny
    largest = jnp.expand_dims(jax.lax.reduce(jnp.abs(x), least, jax.lax.max, axes), axes).astype(jnp.float32)
    return jnp.round(x.astype(jnp.float32) / largest * _LARGEST).astype(jnp.int8), largest


def quantise_columns(k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Keys and values, each column of a key head by itself; a column of zeros has a scale that is next to none.

    Args:
      k: [.. H C]. v: [.. C H].

    Returns:
      (int8 [.. H C], int8 [.. C H], their scales, float32 [.. C] each), so that k ≈ int8 · scale.
    """
    values, largest = zip(quantise(k, (k.ndim - 2,)), quantise(v, (v.ndim - 1,)))
    return *values, largest[0][..., 0, :] / _LARGEST, largest[1][..., 0] / _LARGEST


def quantise_matrix(w: jax.Array, axes: int, blocks: int) -> tuple[jax.Array, jax.Array]:
    """One matrix in the form that `product` takes.

    Args:
      w: [i.. o..]. axes: how many of its axes are of input. blocks: a divisor of the first one.

    Returns:
      (int8 [i.. o..], float32 [n o..]: for every block n of the first axis the largest size there over 127²)
    """
    values, largest = quantise(w.reshape(blocks, -1, *w.shape[1:]), tuple(range(1, 1 + axes)))
    return values.reshape(w.shape), largest.reshape(blocks, *w.shape[axes:]) / _LARGEST**2


def product(x: jax.Array, w: jax.Array, scale: jax.Array, axes: int, dtype: Any, factor: jax.Array | float = 1.0) -> jax.Array:
    """x [.. i..] times the matrix w [i.. o..] with scale [n o..], over the last `axes` axes of x: [.. o..].

    Args:
      dtype: of the result. factor: float32 [..], by which every row of it is multiplied; scales of x may be left to it.
    """
    n, rows, outputs = scale.shape[0], x.shape[:x.ndim - axes], w.shape[axes:]
    inputs = (n, w.shape[0] // n, *w.shape[1:axes])
    block = len(rows)  # the axis of blocks in x
    values, largest = quantise(x.reshape(*rows, *inputs), tuple(range(block + 1, block + 1 + axes)))
    contracted = tuple(range(block + 1, block + 1 + axes)), tuple(range(1, 1 + axes))
    y = jax.lax.dot_general(values, w.reshape(*inputs, *outputs), (contracted, ((block,), (0,))), preferred_element_type=jnp.int32)
    largest = jnp.moveaxis(largest, block, 0).reshape(n, *rows, *(1 for _ in outputs))
    largest *= jnp.reshape(factor, (*jnp.shape(factor), *(1 for _ in outputs)))
    y = (y * largest * scale.reshape(n, *(1 for _ in rows), *outputs)).astype(dtype)
    return y[0] if n == 1 else jax.lax.reduce(y, jnp.zeros((), y.dtype), jax.lax.add, (0,))
