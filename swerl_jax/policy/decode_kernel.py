"""Decoding's attention to what is cached, as a Pallas kernel for TPU: all layers' caches stay where they are.

A scan over layers that is given the caches copies a layer's part of them before it is used. The kernel is given the whole
arrays and the layer's number instead, and fetches the columns that hold something, nothing else. It knows neither prefixes
nor branches: a unit is something with a cache of its own, a prefix that all its branches' queries read together or one
branch. What a chunk has drawn so far is not cached yet; `sampler.decode` adds it by the log-sum-exp.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.attention import HIDDEN

LANES, SUBLANES = 128, 8  # of a tile, in which a TPU keeps the last two axes
COLUMNS = 2048  # of a block, at most
BLOCK_BYTES = 1 << 20  # of a block of keys, about: what hides the cost of a step, and fits four times

Cache = tuple[jax.Array, jax.Array]


def attend_cached(q: jax.Array, layer: jax.Array, prefix: Cache, branch: Cache, prefix_length: jax.Array, length: jax.Array,
                  *, columns: int, mesh: Mesh, is_interpreted: bool) -> list[tuple[jax.Array, jax.Array]]:
    """What one layer's queries find in the caches, as `attention.attend_part` gives it: for the prefix and the branch.

    Args:
      q: [P R 1 K G H], not yet scaled. layer: int32 scalar.
      prefix: k [L P K H S], v [L P K S H]. branch: k [L P R K H C], v [L P R K C H].
      prefix_length: int32 [P]. length: int32 [P R], at most `columns`: live columns, the first ones.
      mesh: slots are dealt over its data axes, key heads over `tensor`. is_interpreted: run on whatever device there is.

    Returns:
      [(o [P R 1 K G H] in q's dtype, log-sum-exp float32 [P R K 1 G]), ...]; without a live column (0, HIDDEN). The branch's
      part is left out when `columns` is 0.
    """
    def one(q, layer, prefix, branch, prefix_length, length):
        P, R, _, K, G, H = q.shape
        scaled = q[:, :, 0] * jnp.asarray(H**-0.5, q.dtype)
        o, total = attend_units(jnp.einsum("prkgh->pkrgh", scaled).reshape(P, K, R * G, H), layer, *prefix, prefix_length,
                                columns=prefix[1].shape[-2], is_interpreted=is_interpreted)
        found = [(jnp.einsum("pkrgh->prkgh", o.reshape(P, K, R, G, H))[:, :, None],
                  jnp.einsum("pkrg->prkg", total.reshape(P, K, R, G))[:, :, :, None])]
        if columns:
            k, v = (x.reshape(x.shape[0], P * R, *x.shape[3:]) for x in branch)
            o, total = attend_units(scaled.reshape(P * R, K, G, H), layer, k, v, length.reshape(-1), columns=columns,
                                    is_interpreted=is_interpreted)
            found.append((o.reshape(q.shape), total.reshape(P, R, K, 1, G)))
        return found

    axes = ("P R T K G H", "", ("L P K H S", "L P K S H"), ("L P R K H C", "L P R K C H"), "P", "P R")
    specs = jax.tree.map(partial(mesh_lib.spec, rules=mesh_lib.ENGINE_RULES), axes)
    part = specs[0], mesh_lib.spec("P R K T G", mesh_lib.ENGINE_RULES)
    parts = [part, part] if columns else [part]
    return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=parts, check_vma=False)(
        q, layer, prefix, branch, prefix_length, length)


def attend_units(q: jax.Array, layer: jax.Array, k: jax.Array, v: jax.Array, length: jax.Array, *, columns: int,
                 is_interpreted: bool) -> tuple[jax.Array, jax.Array]:
    """Attention of every unit's queries to the first `length` columns of its cache.

    Args:
      q: [U K M H], scaled; M queries of one key head. layer: int32 scalar.
      k: [L U K H C]. v: [L U K C H]. length: int32 [U], at most `columns`.

    Returns:
      (o [U K M H] in q's dtype, log-sum-exp float32 [U K M]).
    """
    U, K, M, H = q.shape
    size = min(-(-columns // LANES) * LANES, COLUMNS)
    units = next(n for n in range(max(1, BLOCK_BYTES // (K * H * size * k.dtype.itemsize)), 0, -1) if U % n == 0)
    blocks = -(-jnp.max(length.reshape(-1, units), axis=1) // size)

    def place(unit, block, layer, blocks, length):
        """Past the last live block the same place again, so that nothing is fetched."""
        return layer[0], unit, jnp.minimum(block, jnp.maximum(blocks[unit] - 1, 0))

    def in_columns(*numbers):
        layer, unit, block = place(*numbers)
        return layer, unit, 0, 0, block

    def in_rows(*numbers):
        layer, unit, block = place(*numbers)
        return layer, unit, 0, block, 0

    per_unit = pl.BlockSpec((units, K, M, H), lambda unit, *_: (unit, 0, 0, 0))
    per_query = pl.BlockSpec((units, K, M, LANES), lambda unit, *_: (unit, 0, 0, 0))
    is_key_turned, is_value_turned = map(_lies_turned, (k, v))
    rows, in_lanes = pl.BlockSpec((None, units, K, size, H), in_rows), pl.BlockSpec((None, units, K, H, size), in_columns)
    keys, values = rows if is_key_turned else in_lanes, in_lanes if is_value_turned else rows
    grid = (U // units, -(-columns // size))
    o, total = pl.pallas_call(
        partial(_kernel, size=size, steps=grid[1], key_axis=int(is_key_turned), value_axis=int(is_value_turned)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3, grid=grid, in_specs=[per_unit, keys, values], out_specs=[per_unit, per_query],
            scratch_shapes=[pltpu.VMEM((units, K, M, n), jnp.float32) for n in (LANES, LANES, H)]),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((U, K, M, LANES), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(flops=4 * U * K * M * H * columns, transcendentals=U * K * M * columns,
                                      bytes_accessed=2 * U * K * H * columns * k.dtype.itemsize),
        interpret=is_interpreted, name="decode_attention",
    )(layer.reshape(1), blocks, length, q, *(jnp.swapaxes(x, -1, -2) if _lies_turned(x) else x for x in (k, v)))
    return o, total[..., 0]


def _lies_turned(x: jax.Array) -> bool:
    """Whether a TPU keeps the last axis but one along its lanes, as it does where that pads less.

    Such an array costs nothing to turn, and would be copied to be read as it is.
    """
    def padded(rows: int, lanes: int) -> int:
        return -(-rows // SUBLANES) * SUBLANES * -(-lanes // LANES) * LANES

    rows, lanes = x.shape[-2:]
    return padded(lanes, rows) < padded(rows, lanes)


def _kernel(layer, blocks, length, q, k, v, o, total, peak, weight_sum, value_sum, *, size: int, steps: int,
            key_axis: int, value_axis: int) -> None:
    """One block of columns of some units; softmax's running maximum, sum and weighted values wait in scratch memory.

    key_axis: of k's last two, that of H. value_axis: of v's last two, that of the columns.
    """
    unit, block = pl.program_id(0), pl.program_id(1)
    units, K, M, _ = q.shape

    @pl.when(block == 0)
    def _begin():
        peak[...] = jnp.full_like(peak, HIDDEN)
        weight_sum[...] = jnp.zeros_like(weight_sum)
        value_sum[...] = jnp.zeros_like(value_sum)

    @pl.when(block < blocks[unit])
    def _add():
        for u in range(units):
            left = length[unit * units + u] - block * size
            is_live = jax.lax.broadcasted_iota(jnp.int32, (M, size), 1) < left
            is_value = jax.lax.broadcasted_iota(jnp.int32, v.shape[-2:], value_axis) < left  # what lies beyond may be no number
            for h in range(K):
                scores = jax.lax.dot_general(q[u, h], k[u, h], (((1,), (key_axis,)), ((), ())),
                                             preferred_element_type=jnp.float32)
                scores = jnp.where(is_live, scores, HIDDEN)
                old = peak[u, h]
                new = jnp.maximum(old, jnp.max(scores, axis=1, keepdims=True))
                weight = jnp.where(is_live, jnp.exp(scores - new[:, :1]), 0.0)
                keep = jnp.exp(old - new)
                peak[u, h] = new
                weight_sum[u, h] = keep * weight_sum[u, h] + jnp.sum(weight, axis=1, keepdims=True)
                values = jnp.where(is_value, v[u, h], jnp.zeros_like(v[u, h]))
                found = jax.lax.dot_general(weight.astype(values.dtype), values, (((1,), (value_axis,)), ((), ())),
                                            preferred_element_type=jnp.float32)
                value_sum[u, h] = keep[:, :1] * value_sum[u, h] + found

    @pl.when(block == steps - 1)
    def _end():
        is_some = weight_sum[...] > 0
        safe = jnp.where(is_some, weight_sum[...], 1.0)
        o[...] = (value_sum[...] / safe[..., :1]).astype(o.dtype)
        total[...] = jnp.where(is_some, peak[...] + jnp.log(safe), HIDDEN)
