"""Rows cut along their tokens over the mesh's context axis, for rows that are too long for one device.

Queries stay where they are; every layer gathers the keys and values of whole rows, and each device computes its own queries'
attention. The prefix is cut into 2C blocks, and so are the branches; of both, part c holds blocks c and 2C − 1 − c, so that all
parts have about equally much to look back at. In arrays [B T ..] the parts stand one after the other, each with its tokens
of the prefix first. Only attention needs to know: the rest works on tokens one by one.
Source: "The Llama 3 Herd of Models", arXiv 2407.21783, §3.3.2 ("Context parallelism for long sequences").
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.attention import RowShape, Segment, attend, in_turns

AXIS = "context"
Array = TypeVar("Array", np.ndarray, jax.Array)


def unit(block: int, parts: int) -> int:
    """Tokens of which the prefix and the branches of a row that is cut must be multiples: two blocks for every part."""
    return block if parts == 1 else 2 * parts * block


def order(n: int, parts: int) -> np.ndarray:
    """int [parts, n / parts]: which of n tokens, or blocks, of a prefix or of branches each part holds, ascending."""
    blocks = np.arange(n).reshape(2 * parts, n // (2 * parts))
    return np.concatenate([blocks[:parts], blocks[:parts - 1:-1]], axis=1)


def dealt(x: Array, S: int, parts: int) -> Array:
    """[B T ..] part by part, from row order.

    Args:
      S: how many of T belong to the prefix; S and T − S are multiples of 2 · parts.
    """
    if parts == 1:
        return x
    return x[:, np.concatenate([order(S, parts), S + order(x.shape[1] - S, parts)], axis=1).ravel()]


def in_row_order(x: jax.Array, S: int, parts: int) -> jax.Array:
    """The inverse of `dealt`."""
    if parts == 1:
        return x

    def whole(some: jax.Array) -> list[jax.Array]:
        first, second = jnp.split(some, 2, axis=2)
        return [one.reshape(x.shape[0], -1, *x.shape[2:]) for one in (first, second[:, ::-1])]

    prefix, branches = jnp.split(_by_part(x, parts), [S // parts], axis=2)
    return jnp.concatenate([*whole(prefix), *whole(branches)], axis=1)


def branches(x: jax.Array, S: int, parts: int) -> jax.Array:
    """[B T−S ..] of [B T ..], both part by part: without the prefix, each part by itself."""
    if parts == 1:
        return x[:, S:]
    return _by_part(x, parts)[:, :, S // parts:].reshape(x.shape[0], -1, *x.shape[2:])


def _by_part(x: jax.Array, parts: int) -> jax.Array:
    return x.reshape(x.shape[0], parts, -1, *x.shape[2:])


def gathered(x: jax.Array, shape: RowShape) -> jax.Array:
    """Whole rows [B T ..] in row order from each device's part [B T/parts ..]; inside a `jax.shard_map`."""
    return in_row_order(jax.lax.all_gather(x, AXIS, axis=1, tiled=True), shape.S, shape.parts)


def attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, branch_start: jax.Array, is_valid: jax.Array, shape: RowShape, *,
                mesh: Mesh) -> jax.Array:
    """`attention.attend_rows` of rows that are cut over a mesh: arguments and result stand part by part.

    Args:
      shape: S and T − S are multiples of 2 · shape.parts · shape.block.
    """
    queries, heads, tokens = (mesh_lib.fitting(mesh, x.shape, letters, mesh_lib.LEARNER_RULES)
                              for x, letters in ((q, "B T K G H"), (k, "B T K H"), (is_valid, "B T")))
    run = jax.shard_map(partial(_attend_part, shape=shape), mesh=mesh, check_vma=False,
                        in_specs=(queries, heads, heads, tokens, tokens), out_specs=queries)
    return run(q, k, v, branch_start, is_valid)


def _attend_part(q: jax.Array, k: jax.Array, v: jax.Array, branch_start: jax.Array, is_valid: jax.Array,
                 shape: RowShape) -> jax.Array:
    """One device's share of `attend_rows`."""
    S, block, parts = shape.S, shape.block, shape.parts
    k, v, is_valid = (gathered(x, shape) for x in (k, v, is_valid))
    k, v = jnp.einsum("btkh->bkht", k), jnp.einsum("btkh->bkth", v)
    B, _, K, G, H = q.shape
    blocks = q.reshape(B, -1, block, K, G, H)
    part = jax.lax.axis_index(AXIS)
    in_prefix, in_branches = (jnp.broadcast_to(jnp.asarray(order(n // block, parts))[part], (B, n // block // parts))
                              for n in (S, k.shape[3] - S))
    prefix = Segment(k[..., :S], v[..., :S, :], is_valid[:, None, None, :S])
    keys, values = (jnp.pad(x, [(0, 0), (0, 0), *padding]) for x, padding in (
        (k[..., S:], [(0, 0), (shape.window, 0)]), (v[..., S:, :], [(shape.window, 0), (0, 0)])))

    def of_prefix(queries: jax.Array, number: jax.Array) -> jax.Array:
        query = number[..., None] * block + jnp.arange(block)
        return attend(queries, [Segment(prefix.k, prefix.v, jnp.arange(S) <= query[..., None])])

    def of_branches(queries: jax.Array, number: jax.Array, start: jax.Array) -> jax.Array:
        first = number[0] * block  # the same for all rows
        window = [jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(x, i, shape.window + block, axis), out_axes=1)(first)
                  for x, axis in ((keys, 3), (values, 2))]
        key = (first - shape.window)[:, None, None] + jnp.arange(shape.window + block)
        query = first[:, None, None] + jnp.arange(block)[:, None]
        segments = [Segment(*window, (key <= query) & (key >= start[..., None]))]
        return attend(queries, segments + ([prefix] if S else []))

    split = in_prefix.shape[1]
    start = branch_start.reshape(B, -1, block)
    o = [in_turns(of_branches, (blocks[:, split:], in_branches, start), K * G * block * (S + shape.window + block))]
    if S:
        o.insert(0, in_turns(of_prefix, (blocks[:, :split], in_prefix), K * G * block * S))
    return jnp.concatenate(o, axis=1).reshape(q.shape)
