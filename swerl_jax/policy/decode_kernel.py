"""Decoding's attention to what is cached, as a Pallas kernel for TPU: all layers' caches stay where they are.

A scan over layers that is given the caches copies a layer's part of them before it is used. The kernel is given the whole
arrays and the layer's number instead, and fetches the columns that hold something, nothing else. It knows neither prefixes
nor branches: a unit is something with a cache of its own, a prefix that all its branches' queries read together or one
branch. A branch's queries go on from what they found in their prefix, and begin with what the chunk has drawn so far, which
is not cached yet: softmax is one running sum over all three, and no parts are left to merge outside. Caches of eight bits come
with scales, one a column, by which scores and softmax's weights are multiplied.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh

from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.attention import HIDDEN

# Of a tile, in which a TPU keeps the last two axes. Those of narrow numbers are higher only where that pads no more.
LANES, SUBLANES = 128, 8
COLUMNS = 2048  # of a block, at most
BLOCK_BYTES = 1 << 20  # of a block of keys, about: what hides the cost of a step, and fits four times

Cache = tuple[jax.Array, ...]  # keys and values; where they are rounded, their scales too


def attend_cached(q: jax.Array, layer: jax.Array, prefix: Cache, branch: Cache, fresh: Cache, prefix_length: jax.Array,
                  length: jax.Array, count: jax.Array, *, columns: int, mesh: Mesh, is_interpreted: bool) -> jax.Array:
    """`attention.attend` of one layer's queries to prefix, branch and what is not cached yet.

    Args:
      q: [P R 1 K G H], not yet scaled. layer: int32 scalar.
      prefix: k [L P K H S], v [L P K S H]. branch: k [L P R K H C], v [L P R K C H]. fresh: k [P R K H t], v [P R K t H].
        Where prefix and branch are int8, scales follow, float32 [L P K S] and [L P R K C] for k and for v.
      prefix_length: int32 [P]. length: int32 [P R], at most `columns`. count: int32 scalar. Live columns, the first ones.
      mesh: slots are dealt over its data axes, key heads over `tensor`. is_interpreted: run on whatever device there is.

    Returns:
      [P R 1 K G H] in q's dtype.
    """
    def one(q, layer, prefix, branch, fresh, prefix_length, length, count):
        P, R, _, K, G, H = q.shape
        scaled = q[:, :, 0] * jnp.asarray(H**-0.5, q.dtype)
        found = attend_units(jnp.einsum("prkgh->pkrgh", scaled).reshape(P, K, R * G, H), layer, prefix, prefix_length,
                             columns=prefix[1].shape[-2], is_interpreted=is_interpreted)
        found = tuple(jnp.einsum("pkrgx->prkgx", x.reshape(P, K, R, G, -1)).reshape(P * R, K, G, -1) for x in found)
        branches = tuple(x.reshape(x.shape[0], P * R, *x.shape[3:]) for x in branch)
        fresh = Fresh(*(x.reshape(P * R, *x.shape[2:]) for x in fresh), count)
        o, _ = attend_units(scaled.reshape(P * R, K, G, H), layer, branches, length.reshape(-1), columns=columns,
                            found=found, fresh=fresh, is_interpreted=is_interpreted)
        return o.reshape(q.shape)

    caches = (("L P K H S", "L P K S H", "L P K S", "L P K S")[:len(prefix)],
              ("L P R K H C", "L P R K C H", "L P R K C", "L P R K C")[:len(branch)])
    axes = ("P R T K G H", "", *caches, ("P R K H C", "P R K C H"), "P", "P R", "")
    specs = jax.tree.map(partial(mesh_lib.spec, rules=mesh_lib.ENGINE_RULES), axes)
    return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(
        q, layer, prefix, branch, fresh, prefix_length, length, count)


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Columns of every unit that are not in its cache yet: k [U K H t], v [U K t H], the first `count` of them, int32 scalar."""

    k: jax.Array
    v: jax.Array
    count: jax.Array


def attend_units(q: jax.Array, layer: jax.Array, cache: Cache, length: jax.Array, *, columns: int,
                 is_interpreted: bool, found: Cache | None = None, fresh: Fresh | None = None) -> tuple[jax.Array, jax.Array]:
    """Attention of every unit's queries to the first `length` columns of its cache.

    Args:
      q: [U K M H], scaled; M queries of one key head. layer: int32 scalar.
      cache: k [L U K H C], v [L U K C H]; where they are int8, their scales, float32 [L U K C] each.
      length: int32 [U], at most `columns`.
      found: what the queries found elsewhere, as this function returns it, to go on from. fresh: to look at as well; both or none.

    Returns:
      (o [U K M H] in q's dtype, log-sum-exp float32 [U K M LANES], every lane the same); without a live column (0, HIDDEN).
    """
    (U, K, M, H), (k, v, *scales) = q.shape, cache
    size = min(max(1, -(-columns // LANES)) * LANES, COLUMNS)
    units = next(n for n in range(max(1, BLOCK_BYTES // (K * H * size * k.dtype.itemsize)), 0, -1) if U % n == 0)
    blocks = -(-jnp.max(length.reshape(-1, units), axis=1) // size)

    def place(unit, block, layer, blocks, *_):
        """Past the last live block the same place again, so that nothing is fetched."""
        return layer[0], unit, jnp.minimum(block, jnp.maximum(blocks[unit] - 1, 0))

    def in_columns(*numbers):
        layer, unit, block = place(*numbers)
        return layer, unit, 0, 0, block

    def in_rows(*numbers):
        layer, unit, block = place(*numbers)
        return layer, unit, 0, block, 0

    def of_scales(*numbers):
        layer, unit, block = place(*numbers)
        return layer, unit, 0, block

    def per_unit(x):
        return pl.BlockSpec((units, *x.shape[1:]), lambda unit, *_: (unit, 0, 0, 0))

    turned = [_lies_turned(x) for x in (k, v)]
    rows, in_lanes = pl.BlockSpec((None, units, K, size, H), in_rows), pl.BlockSpec((None, units, K, H, size), in_columns)
    total = jax.ShapeDtypeStruct((U, K, M, LANES), jnp.float32)
    arrays = [q, *map(_as_it_lies, (k, v)), *scales]
    specs = [per_unit(q), rows if turned[0] else in_lanes, in_lanes if turned[1] else rows,
             *(pl.BlockSpec((None, units, K, size), of_scales) for _ in scales)]
    count, fresh_columns = jnp.zeros(1, jnp.int32), 0
    if found is not None and fresh is not None:
        more = [*map(_as_it_lies, (fresh.k, fresh.v)), *found]
        arrays, specs = arrays + more, specs + [per_unit(x) for x in more]
        turned += [_lies_turned(x) for x in (fresh.k, fresh.v)]
        count, fresh_columns = fresh.count.reshape(1), fresh.v.shape[-2]
    grid = (U // units, max(1, -(-columns // size)))
    seen, column = columns + fresh_columns, 2 * H * k.dtype.itemsize + sum(x.dtype.itemsize for x in scales)
    return pl.pallas_call(
        partial(_kernel, size=size, steps=grid[1], turned=tuple(turned), is_rounded=bool(scales)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=4, grid=grid, in_specs=specs, out_specs=[per_unit(q), per_unit(total)],
            scratch_shapes=[pltpu.VMEM((units, K, M, n), jnp.float32) for n in (LANES, LANES, H)]),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), total],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(flops=4 * U * K * M * H * seen, transcendentals=U * K * M * seen,
                                      bytes_accessed=U * K * (columns * column + fresh_columns * 2 * H * q.dtype.itemsize)),
        interpret=is_interpreted, name="decode_attention",
    )(layer.reshape(1), blocks, length, count, *arrays)


def _lies_turned(x: jax.Array) -> bool:
    """Whether a TPU keeps the last axis but one along its lanes, as it does where that pads less.

    Such an array costs nothing to turn, and would be copied to be read as it is.
    """
    def padded(rows: int, lanes: int) -> int:
        return -(-rows // SUBLANES) * SUBLANES * -(-lanes // LANES) * LANES

    rows, lanes = x.shape[-2:]
    return padded(lanes, rows) < padded(rows, lanes)


def _as_it_lies(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2) if _lies_turned(x) else x


def _kernel(layer, blocks, length, count, q, k, v, *refs, size: int, steps: int, turned: tuple[bool, ...],
            is_rounded: bool) -> None:
    """One block of columns of some units; softmax's running maximum, sum and weighted values wait in scratch memory.

    refs: scales of k and v, where these are rounded; fresh keys and values, what was found and its log-sum-exp, where there are
    such; outputs; scratch. turned: for k and v, then for the fresh ones, whether their last two axes are.
    """
    scales, refs = (refs[:2], refs[2:]) if is_rounded else ((), refs)
    *before, o, total, peak, weight_sum, value_sum = refs
    unit, block = pl.program_id(0), pl.program_id(1)
    units, K, M, _ = q.shape

    def add(u, h, keys, values, left, is_key_turned, is_value_turned, key_scale=None, value_scale=None):
        """The first `left` columns of keys and values, and their scales [1 columns]; what lies beyond may be no number."""
        key_axis, value_axis = int(is_key_turned), int(is_value_turned)  # that of H, that of the columns
        shape = (M, values.shape[value_axis])
        is_live = jax.lax.broadcasted_iota(jnp.int32, shape, 1) < left
        is_value = jax.lax.broadcasted_iota(jnp.int32, values.shape, value_axis) < left
        scores = jax.lax.dot_general(q[u, h], keys, (((1,), (key_axis,)), ((), ())), preferred_element_type=jnp.float32)
        scores = jnp.where(is_live, scores if key_scale is None else scores * key_scale, HIDDEN)
        old = peak[u, h]
        new = jnp.maximum(old, jnp.max(scores, axis=1, keepdims=True))
        weight = jnp.where(is_live, jnp.exp(scores - new[:, :1]), 0.0)
        keep = jnp.exp(old - new)
        peak[u, h] = new
        weight_sum[u, h] = keep * weight_sum[u, h] + jnp.sum(weight, axis=1, keepdims=True)
        if value_scale is None:
            values = jnp.where(is_value, values, jnp.zeros_like(values))
        else:  # rounded ones are numbers, whatever they are; scales need not be
            weight = jnp.where(is_live, weight * value_scale, 0.0)
        found = jax.lax.dot_general(weight.astype(q.dtype), values, (((1,), (value_axis,)), ((), ())),
                                    preferred_element_type=jnp.float32)
        value_sum[u, h] = keep[:, :1] * value_sum[u, h] + found

    @pl.when(block == 0)
    def _begin():
        if not before:
            peak[...] = jnp.full_like(peak, HIDDEN)
            weight_sum[...] = jnp.zeros_like(weight_sum)
            value_sum[...] = jnp.zeros_like(value_sum)
            return
        fresh_k, fresh_v, found, found_total = before
        peak[...] = found_total[...]
        weight_sum[...] = jnp.where(found_total[...] > HIDDEN, 1.0, 0.0)
        value_sum[...] = found[...].astype(jnp.float32)
        for u in range(units):
            for h in range(K):
                add(u, h, fresh_k[u, h], fresh_v[u, h], count[0], *turned[2:])

    @pl.when(block < blocks[unit])
    def _add():
        for u in range(units):
            left = length[unit * units + u] - block * size
            for h in range(K):
                keys, values = k[u, h].astype(q.dtype), v[u, h].astype(q.dtype)
                add(u, h, keys, values, left, *turned[:2], *(scale[u, h:h + 1] for scale in scales))

    @pl.when(block == steps - 1)
    def _end():
        is_some = weight_sum[...] > 0
        safe = jnp.where(is_some, weight_sum[...], 1.0)
        o[...] = (value_sum[...] / safe[..., :1]).astype(o.dtype)
        total[...] = jnp.where(is_some, peak[...] + jnp.log(safe), HIDDEN)
