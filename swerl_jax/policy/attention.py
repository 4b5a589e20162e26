"""The one mask rule of prefix/branch rows, on plain XLA operations.

A group is one prefix with R branches. A token sees the prefix and its own branch up to itself, nothing else. Learning,
prefilling and decoding all call `attend`, which takes one softmax over several segments of keys: the shared prefix, the
branch's past, the tokens of this call. Because the prefix segment has no R axis, its keys are read once for all
branches: a matrix product instead of R matrix-vector products.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

ATTENTION_NAME = "attention"  # of what a checkpoint policy may keep so that no attention is computed twice
HIDDEN = -1e30  # a score that no softmax notices; finite, so that a query with no key gives an average, not NaN


@partial(jax.tree_util.register_dataclass, data_fields=["k", "v", "is_visible", "k_scale", "v_scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Segment:
    """Keys that a query may see.

    Attributes:
      k: [P K H S] when shared by all R branches of a prefix, [P R K H C] when each branch has its own. The head axis
        comes before the columns, so that scores are a plain matrix product.
      v: [P K S H] or [P R K C H].
      is_visible: bool, broadcastable to [P R T S] or [P R T C]; True where the query may look.
      k_scale, v_scale: float32 [P K S] or [P R K C], by which the columns of k and v are to be multiplied; None: by 1.
    """

    k: jax.Array
    v: jax.Array
    is_visible: jax.Array
    k_scale: jax.Array | None = None
    v_scale: jax.Array | None = None

    @property
    def is_shared(self) -> bool:
        """True when the keys have no R axis."""
        return self.k.ndim == 4


@jax.custom_vjp
def attend(q: jax.Array, segments: list[Segment]) -> jax.Array:
    """Softmax attention of every query over all of its segments' keys together.

    Scores and the softmax are float32. The segments are never concatenated: their maxima and sums are merged. A shared
    segment works on [P K R T G] so that its R branches are the rows of one matrix, the others on [P R K T G]. The
    gradient keeps the output and the softmax's log-sum-exp and makes the scores again, as in FlashAttention
    (arXiv 2205.14135, §B.4); it is of first order only, and of segments without scales.

    Scales multiply scores and softmax's weights, so that keys and values stay as they are stored.

    Args:
      q: [P R T K G H], not yet scaled.
      segments: at least one.

    Returns:
      [P R T K G H] in q's dtype.
    """
    return _attend(q, segments)[0]


def _attend(q: jax.Array, segments: list[Segment]) -> tuple[jax.Array, jax.Array]:
    """(`attend`, the float32 log-sum-exp of each query's scores [P R K T G]), without a gradient of its own."""
    q, segments = _unhoisted(_scaled(q), segments)
    scores = [_scores(q, segment) for segment in segments]
    peak = functools.reduce(jnp.maximum, [_own(segment, jnp.max(s, axis=-1)) for s, segment in zip(scores, segments)])
    weights = [jnp.exp(s - _shared(segment, peak)[..., None]) for s, segment in zip(scores, segments)]
    total = sum(_own(segment, jnp.sum(w, axis=-1)) for w, segment in zip(weights, segments))
    values = sum(_own(segment, _values(w, segment, q.dtype)) for w, segment in zip(weights, segments))
    return jnp.einsum("prktgh->prtkgh", values / total[..., None].astype(q.dtype)), peak + jnp.log(total)


def _attend_forward(q: jax.Array, segments: list[Segment]) -> tuple[jax.Array, Any]:
    if any(segment.k_scale is not None for segment in segments):
        raise ValueError("keys and values with scales are rounded and have no gradient; attend to those that were rounded instead")
    o, total = (checkpoint_name(x, ATTENTION_NAME) for x in _attend(q, segments))
    return o, (q, segments, o, total)


def _attend_backward(saved: Any, do: jax.Array) -> tuple[jax.Array, list[Segment]]:
    """(gradient of q, of the segments). Large operands stand on the right, where no product copies them transposed."""
    q, segments, o, total = saved
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    (q, segments), do = _unhoisted(_scaled(q), segments), jnp.einsum("prtkgh->prktgh", do)
    slope = jnp.einsum("prktgh,prtkgh->prktg", do, o, preferred_element_type=jnp.float32)
    dq, gradients = 0.0, []
    for segment in segments:
        axes = "pkrtg" if segment.is_shared else "prktg"
        keys = "pk" if segment.is_shared else "prk"
        own_q, own_do = _shared(segment, q), _shared(segment, do)
        weights = jnp.exp(_scores(q, segment) - _shared(segment, total)[..., None])
        dweights = jnp.einsum(f"{axes}h,{keys}sh->{axes}s", own_do, segment.v, preferred_element_type=jnp.float32)
        dscores = (weights * (dweights - _shared(segment, slope)[..., None])).astype(dtype)
        dv = jnp.einsum(f"{axes}h,{axes}s->{keys}hs", own_do, weights.astype(dtype))
        dk = jnp.einsum(f"{axes}h,{axes}s->{keys}hs", own_q, dscores)
        dq = dq + _own(segment, jnp.einsum(f"{axes}s,{keys}hs->{axes}h", dscores, segment.k))
        gradients.append(Segment(dk, jnp.swapaxes(dv, -1, -2), None))
    return jnp.einsum("prktgh->prtkgh", dq * jnp.asarray(scale, dtype)), gradients


attend.defvjp(_attend_forward, _attend_backward)


def _scaled(q: jax.Array) -> jax.Array:
    """[P R K T G H] from [P R T K G H], divided by the square root of H."""
    return jnp.einsum("prtkgh->prktgh", q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype))


def _unhoisted(q: jax.Array, segments: list[Segment]) -> tuple[jax.Array, list[Segment]]:
    """The same; the masks now seem to depend on q, or a scan over layers would keep them outside, one bit a score."""
    masks = [segment.is_visible for segment in segments]
    q, masks = jax.lax.optimization_barrier((q, masks))
    return q, [dataclasses.replace(segment, is_visible=one) for segment, one in zip(segments, masks)]


def _scores(q: jax.Array, segment: Segment) -> jax.Array:
    """float32 [P K R T G S] or [P R K T G C]; HIDDEN where the query may not look."""
    axes = "pkrtgh,pkhs->pkrtgs" if segment.is_shared else "prktgh,prkhs->prktgs"
    scores = jnp.einsum(axes, _shared(segment, q), segment.k.astype(q.dtype), preferred_element_type=jnp.float32)
    if segment.k_scale is not None:
        scores *= _by_column(segment, segment.k_scale)
    is_visible = jnp.expand_dims(segment.is_visible, (1, 4) if segment.is_shared else (2, 4))
    return jnp.where(is_visible, scores, HIDDEN)


def _values(weights: jax.Array, segment: Segment, dtype: Any) -> jax.Array:
    """[P K R T G H] or [P R K T G H] in `dtype`: the sum of the segment's values by float32 weights."""
    if segment.v_scale is not None:
        weights *= _by_column(segment, segment.v_scale)
    axes = "pkrtgs,pksh->pkrtgh" if segment.is_shared else "prktgs,prksh->prktgh"
    return jnp.einsum(axes, weights.astype(dtype), segment.v.astype(dtype))


def _by_column(segment: Segment, scale: jax.Array) -> jax.Array:
    """Scales of a segment, to be multiplied with its scores."""
    return jnp.expand_dims(scale, (2, 3, 4) if segment.is_shared else (3, 4))


def _shared(segment: Segment, x: jax.Array) -> jax.Array:
    """From [P R K ..] to the segment's own order of axes."""
    return jnp.swapaxes(x, 1, 2) if segment.is_shared else x


_own = _shared  # the exchange is its own inverse


def causal(T: int) -> jax.Array:
    """bool [1 1 T T]: key k is visible to query q iff k ≤ q."""
    return jnp.tril(jnp.ones((T, T), bool))[None, None]


@dataclasses.dataclass(frozen=True)
class RowShape:
    """The static shape of a learner's row [prefix padded to S | branch 1 | branch 2 | …].

    Attributes:
      S: tokens of the padded prefix; 0 when rows have none.
      block: branches begin at multiples of it; queries are taken a block at a time.
      window: how far before its own block a query may have to look; a multiple of `block`, at least the longest
        branch rounded up to a block, less one block.
      parts: into so many parts, for as many devices, a row is cut; its tokens stand part by part (see context.py).
    """

    S: int
    block: int
    window: int
    parts: int = 1


SCORES_AT_ONCE = 1 << 26  # float32 scores (256 MiB) above which blocks of queries are taken in turns and recomputed


def attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, branch_start: jax.Array, is_valid: jax.Array,
                shape: RowShape, causal: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None) -> jax.Array:
    """The mask rule on whole rows: key k is visible to query q iff k ≤ q and (k < S or k ≥ start(q)), padding excluded.

    Never T × T: a block of branch queries is multiplied with the prefix and with a window of branch keys.

    Args:
      q: [B T K G H]. k, v: [B T K H].
      branch_start: int32 [B T−S], where the branch of each token begins, counted from S; padding points to itself.
      is_valid: bool [B T], False on padding.
      shape: T − S is a multiple of shape.block.
      causal: q, k, v of the prefixes → o, in place of `attend_prefix`.

    Returns:
      [B T K G H].
    """
    S, block = shape.S, shape.block
    rows = q, k, v
    k, v = jnp.einsum("btkh->bkht", k), jnp.einsum("btkh->bkth", v)
    blocks = (q.shape[1] - S) // block
    queries = q[:, S:].reshape(q.shape[0], blocks, block, *q.shape[2:])
    keys = _windows(k[..., S:], -1, blocks, shape), _windows(v[..., S:, :], -2, blocks, shape)
    is_visible = _window_rule(branch_start, blocks, shape)

    def some(queries, keys, values, is_visible):
        segments = [Segment(keys, values, is_visible)]
        if S:
            segments.append(Segment(k[..., :S], v[..., :S, :], is_valid[:, None, None, :S]))
        return attend(queries, segments)

    o = in_turns(some, (queries, *keys, is_visible), q.shape[2] * q.shape[3] * block * (S + shape.window + block))
    o = o.reshape(q.shape[0], -1, *q.shape[2:])
    if not S:
        return o
    of_prefix = attend_prefix(q[:, :S], k[..., :S], v[..., :S, :]) if causal is None else causal(*(x[:, :S] for x in rows))
    return jnp.concatenate([of_prefix, o], axis=1)


def attend_prefix(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention inside the prefix, at most eight blocks of queries, each with the keys up to its end.

    Args:
      q: [B S K G H]. k: [B K H S]. v: [B K S H].
    """
    S = q.shape[1]
    size = max(256, -(-S // 8))
    outs = []
    for start in range(0, S, size):
        end = min(start + size, S)
        visible = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        part = jax.checkpoint(lambda q, k, v, visible: attend(q, [Segment(k, v, visible)])) if S > size else (
            lambda q, k, v, visible: attend(q, [Segment(k, v, visible)]))
        outs.append(part(q[:, None, start:end], k[..., :end], v[..., :end, :], visible[None, None])[:, 0])
    return jnp.concatenate(outs, axis=1)


def _windows(x: jax.Array, axis: int, blocks: int, shape: RowShape) -> jax.Array:
    """[B R K .. window + block ..]: for each of the R blocks of x [B K .. T ..], itself and what precedes."""
    axis = x.ndim + axis
    padding = [(0, 0)] * x.ndim
    padding[axis] = (shape.window, 0)
    x = jnp.pad(x, padding)
    x = x.reshape(*x.shape[:axis], -1, shape.block, *x.shape[axis + 1:])
    shifts = [jax.lax.slice_in_dim(x, i, i + blocks, axis=axis) for i in range(shape.window // shape.block + 1)]
    return jnp.moveaxis(jnp.concatenate(shifts, axis=axis + 1), axis, 1)


def _window_rule(branch_start: jax.Array, blocks: int, shape: RowShape) -> jax.Array:
    """bool [B R block window + block]: the mask rule between a block of queries and its window of keys."""
    query = jnp.arange(blocks * shape.block).reshape(1, blocks, shape.block, 1)
    first = jnp.arange(blocks).reshape(1, blocks, 1, 1) * shape.block - shape.window
    key = first + jnp.arange(shape.window + shape.block)
    return (key <= query) & (key >= branch_start.reshape(-1, blocks, shape.block, 1))


def in_turns(function, blocked: tuple[jax.Array, ...], scores_a_block: int) -> jax.Array:
    """function(*blocked) on all blocks (axis 1) at once, or, when the scores would be too many, on some at a time."""
    rows, blocks = blocked[0].shape[:2]
    limit = max(1, SCORES_AT_ONCE // (rows * scores_a_block))
    at_once = max(n for n in range(1, blocks + 1) if blocks % n == 0 and n <= max(limit, 1))
    if at_once == blocks:
        return function(*blocked)
    turns = [jnp.moveaxis(x.reshape(rows, blocks // at_once, at_once, *x.shape[2:]), 1, 0) for x in blocked]
    o = jax.lax.map(lambda one: jax.checkpoint(function)(*one), tuple(turns))
    return jnp.moveaxis(o, 0, 1).reshape(rows, blocks, *o.shape[3:])
