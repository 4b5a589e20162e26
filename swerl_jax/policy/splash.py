"""The mask rule of whole rows as one splash-attention call a row: the learner's attention on a TPU.

The kernel that ships with jax visits blocks of scores. Which blocks it visits, and which queries see which keys, is read
from arrays, and both are made here from where a row's branches begin: the mask is computed inside the kernel, and blocks
that no query of the row can see are not visited. The number of visits is static, the most that a RowShape allows.

A block of branch keys is seen by few blocks of queries, one of prefix keys by all. The gradient of the keys visits equally
many blocks of queries for every block of keys, so it is given the prefix several times over, each copy for a part of the
queries, and the copies' gradients are added: else most of its visits would be to nothing.

Where rows are cut over devices (see context.py), each device is given its own queries, all keys of the row, and the visits of its
queries. A query's place in the row comes with it, so that the mask does not depend on where it is computed.
Source: `splash_attention` in jax.experimental.pallas.ops.tpu; the lists of visits are ours.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jax.sharding import Mesh

from swerl_jax.policy import context
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.attention import ATTENTION_NAME, RowShape

# Pass → (queries, keys) of a block, and the keys that are multiplied at one time: upper limits, powers of two. A smaller
# block skips more of the mask; a larger one costs fewer visits and loads keys fewer times.
BLOCKS: dict[str, tuple[int, int, int]] = {
    "forward": (1024, 1024, 512), "gradient_of_queries": (1024, 1024, 1024), "gradient_of_keys": (1024, 1024, 512)}
LANES = 128  # no block is smaller
CODE_BITS = 31  # of an int32 that holds a query's index and where its branch begins


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static numbers of padded rows.

    Attributes:
      S, branch: tokens of the prefix and of the branches, padded to LANES.
      row: the RowShape before padding.
    """

    S: int
    branch: int
    row: RowShape

    def blocks(self, name: str) -> tuple[int, int, int]:
        """A row of BLOCKS, halved until each divides the prefix and the branches, and what devices hold of each side by side."""
        pieces = 1 if self.row.parts == 1 else 2 * self.row.parts

        def fitting(limit: int) -> int:
            return next(size for size in (limit >> i for i in range(limit.bit_length()))
                        if not self.S % (pieces * size) and not self.branch % (pieces * size))
        return tuple(fitting(limit) for limit in BLOCKS[name])

    def reach(self, block: int, other: int) -> int:
        """How many blocks of `other` branch tokens may be live for a block of `block` branch tokens, at most."""
        return min(self.branch // other, -(-(block + self.row.window + self.row.block) // other) + 1)

    def width(self, name: str) -> int:
        """How many blocks of keys are visited for one of queries, in the passes over queries."""
        queries, keys, _ = self.blocks(name)
        return self.S // keys + self.reach(queries, keys)

    def held(self, name: str) -> tuple[int, int]:
        """How many blocks of queries of the prefix, and of the branches, a device holds."""
        queries = self.blocks(name)[0] * self.row.parts
        return self.S // queries, self.branch // queries

    @property
    def height(self) -> int:
        """How many blocks of queries are visited for one of keys, in the gradient of the keys."""
        queries, keys, _ = self.blocks("gradient_of_keys")
        own, branches = self.held("gradient_of_keys")
        return max(own, min(branches, self.reach(keys, queries)))

    @property
    def copies(self) -> int:
        """How often the prefix is there: once for its own queries, and for every `height` blocks of branch queries."""
        return 1 + -(-self.held("gradient_of_keys")[1] // self.height) if self.S else 1

    @property
    def unit(self) -> int:
        """Branches begin at multiples of it."""
        return (self.row.block & -self.row.block) if self.branch > self.row.block else LANES

    @property
    def start_bits(self) -> int:
        """Bits of the place where a branch begins."""
        return ((self.S + self.branch) // self.unit).bit_length()


@partial(jax.tree_util.register_dataclass, meta_fields=["layout"],
         data_fields=["forward", "gradient_of_queries", "gradient_of_keys", "is_valid", "is_key"])
@dataclasses.dataclass(frozen=True)
class Visits:
    """What the kernel is told about a batch of rows: a MaskInfo for each pass, and which tokens are none of padding.

    Attributes:
      forward, gradient_of_queries, gradient_of_keys: of rows in parts, side by side along the axis of queries or visits.
      is_valid: bool [B T], of padded rows, part by part. is_key: the same in row order.
    """

    forward: MaskInfo
    gradient_of_queries: MaskInfo
    gradient_of_keys: MaskInfo
    is_valid: jax.Array
    is_key: jax.Array
    layout: Layout

    @property
    def specs(self) -> Visits:
        """How the arrays are dealt over a learner's mesh."""
        letters = {4: "B h T v", 2: "B T"}
        specs = jax.tree.map(lambda x: mesh_lib.spec(letters[x.ndim], mesh_lib.LEARNER_RULES), self)
        return dataclasses.replace(specs, is_key=mesh_lib.spec("B t", mesh_lib.LEARNER_RULES))


def plan(branch_start: jax.Array, is_valid: jax.Array, shape: RowShape) -> Visits:
    """The visits of every row; arguments as for `attention.attend_rows`.

    Raises:
      ValueError: the row is so long that a query's index and the start of its branch do not share an int32, or it is cut
        into parts that hold no whole blocks.
    """
    layout, parts = _layout(shape, is_valid.shape[1]), shape.parts
    S, T = layout.S, layout.S + layout.branch
    if T.bit_length() + layout.start_bits > CODE_BITS:
        raise ValueError(f"a row of {T} tokens whose branches begin at multiples of {layout.unit} is too long for the TPU's "
                         f"attention; make the block (learner.block) a multiple of {LANES}, or the row shorter")
    branch_start = context.in_row_order(branch_start, 0, parts)
    start = jnp.pad(branch_start, ((0, 0), (0, layout.branch - branch_start.shape[1])))
    start = jnp.where(jnp.arange(layout.branch) < branch_start.shape[1], start, jnp.arange(layout.branch))
    start = jnp.pad(start + S, ((0, 0), (S, 0)))
    is_key = context.in_row_order(_padded(is_valid, layout), S, parts)
    code = (jnp.arange(T, dtype=jnp.int32) << layout.start_bits) | (start // layout.unit)
    code = context.dealt(code, S, parts)
    live = {name: context.dealt(_live(start, is_key, S, layout.blocks(name)), S // layout.blocks(name)[0], parts)
            for name in BLOCKS}

    def over_queries(name: str) -> MaskInfo:
        index, is_live = _listed(live[name], layout.width(name))
        return _info(index + (layout.copies - 1) * S // layout.blocks(name)[1], is_live, code)

    over_keys = _info(*(jnp.swapaxes(x, 2, 3).reshape(x.shape[0], -1, x.shape[2])
                        for x in _listed(_by_copies(live["gradient_of_keys"], layout), layout.height)), code)
    over = over_queries("forward"), over_queries("gradient_of_queries"), over_keys
    return Visits(*over, _padded(is_valid, layout), is_key, layout)


def live_share(visits: Visits, kernel: str) -> float:
    """Share of a kernel's grid in which it computes, by the name that jax gives the kernel; 1 for any other."""
    found = {"splash_mha_fwd": visits.forward, "splash_mha_dq": visits.gradient_of_queries,
             "splash_mha_dkv": visits.gradient_of_keys}
    return next((float(np.asarray(info.block_mask).mean()) for name, info in found.items() if kernel.startswith(name)), 1.0)


def _layout(shape: RowShape, T: int) -> Layout:
    if shape.parts > 1 and (shape.S % (unit := 2 * shape.parts * LANES) or (T - shape.S) % unit):
        raise ValueError(f"rows of {shape.S} + {T - shape.S} tokens are to be cut into {shape.parts} parts; the TPU's attention "
                         f"needs multiples of {unit}: make the block (learner.block) a multiple of {LANES}")
    return Layout(-(-shape.S // LANES) * LANES, -(-(T - shape.S) // LANES) * LANES, shape)


def _padded(x: jax.Array, layout: Layout) -> jax.Array:
    """[B S+branch ..] from [B T ..]: zeros after the prefix and after the branches; rows in parts have no room to fill."""
    if x.shape[1] == layout.S + layout.branch:
        return x
    parts = [(x[:, :layout.row.S], layout.S), (x[:, layout.row.S:], layout.branch)]
    return jnp.concatenate([jnp.pad(part, [(0, 0), (0, size - part.shape[1])] + [(0, 0)] * (x.ndim - 2))
                            for part, size in parts], axis=1)


def _live(start: jax.Array, is_valid: jax.Array, S: int, blocks: tuple[int, int, int]) -> jax.Array:
    """bool [B queries keys]: the blocks of scores in which some query sees some key; and those of a query and itself.

    Args:
      start: int32 [B T], where the token's branch begins. is_valid: bool [B T].
    """
    queries, keys, _ = blocks
    first_query, first_key = (jnp.arange(0, start.shape[1], size) for size in (queries, keys))
    first_query = first_query[:, None]
    is_past = first_key < first_query + queries
    is_own = is_past & (first_key + keys > first_query)
    has_query, has_key = (is_valid.reshape(is_valid.shape[0], -1, size).any(-1) for size in (queries, keys))
    earliest = start.reshape(start.shape[0], -1, queries).min(-1)
    is_seen = (first_key < S) | (first_key + keys > earliest[..., None])
    return is_own | (is_past & is_seen & has_query[..., None] & has_key[:, None])


def _listed(live: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """(int32 indices of the live entries along the last axis, ascending; bool: which of the `width` places are used).

    The places that are left repeat the last index, so that the kernel need not load another block for them.
    """
    count = live.sum(axis=-1, keepdims=True)
    order = jnp.argsort(~live, axis=-1, stable=True)
    place = jnp.arange(width)
    return jnp.take_along_axis(order, jnp.minimum(place, jnp.maximum(count - 1, 0)), axis=-1), place < count


def _by_copies(live: jax.Array, layout: Layout) -> jax.Array:
    """bool [B parts keys' queries]: keys' are those of all copies of the prefix, then of the branches; queries are a part's.

    The last copy belongs to the prefix's own queries: `_rule` takes the other copies' keys for visible to everyone.
    """
    keys, (own, branches) = layout.blocks("gradient_of_keys")[1], layout.held("gradient_of_keys")
    live = jnp.swapaxes(live.reshape(live.shape[0], -1, own + branches, live.shape[2]), 2, 3)
    index = jnp.arange(own + branches)
    owner = jnp.where(index < own, layout.copies - 1, (index - own) // layout.height)
    prefix, branch = live[:, :, :layout.S // keys], live[:, :, layout.S // keys:]
    copies = [prefix & (owner == copy) for copy in range(layout.copies)] if layout.copies > 1 else [prefix]
    return jnp.concatenate([*copies, branch], axis=2)


def _info(index: jax.Array, is_live: jax.Array, code: jax.Array) -> MaskInfo:
    """The kernel's own format; one mask for all heads."""
    return MaskInfo(data_next=index[:, None].astype(jnp.int32), mask_next=None, partial_mask_blocks=None,
                    block_mask=is_live[:, None].astype(jnp.int32), q_sequence=code)


@functools.cache  # the same function each time: the kernel compiles it in
def _rule(layout: Layout) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def is_visible(code: jax.Array, key: jax.Array) -> jax.Array:
        key = key - (layout.copies - 1) * layout.S
        start = (code & ((1 << layout.start_bits) - 1)) * layout.unit
        return (key <= code >> layout.start_bits) & ((key < layout.S) | (key >= start))
    return is_visible


def attend_rows(q: jax.Array, k: jax.Array, v: jax.Array, visits: Visits, *, mesh: Mesh, is_interpreted: bool) -> jax.Array:
    """`attention.attend_rows`, each row and each device's key heads by themselves.

    Args:
      q: [B T K G H]. k, v: [B T K H]. mesh: rows are dealt over its data axes, their tokens over `context`, key heads over
        `tensor`.
      is_interpreted: run the kernel's source on whatever device there is.
    """
    row = visits.layout.row

    def kernel(q: jax.Array, k: jax.Array, v: jax.Array, visits: Visits) -> jax.Array:
        k, v = (context.gathered(x, row) if row.parts > 1 else x for x in (k, v))
        return jax.vmap(partial(_attend_row, is_interpreted=is_interpreted))(q, k, v, visits)

    heads, S, T = mesh_lib.spec("B T K", mesh_lib.LEARNER_RULES), row.S, q.shape[1]
    padded = [_padded(x, visits.layout) for x in (q, k, v)]
    o = jax.shard_map(kernel, mesh=mesh, check_vma=False, in_specs=(heads, heads, heads, visits.specs), out_specs=heads)(
        *padded, visits)
    return o if o.shape[1] == T else jnp.concatenate([o[:, :S], o[:, visits.layout.S:visits.layout.S + T - S]], axis=1)


def _attend_row(q: jax.Array, k: jax.Array, v: jax.Array, visits: Visits, is_interpreted: bool) -> jax.Array:
    """[T K G H] of one padded row's queries here; keys and values are the whole row's."""
    layout = visits.layout
    T, K, G, H = q.shape
    q = jnp.einsum("tkgh->kgth", q * jnp.asarray(H**-0.5, q.dtype)).reshape(K * G, T, H)

    def with_copies(x: jax.Array, axis: int = 0) -> jax.Array:
        prefix, branch = jnp.split(x, [layout.S], axis=axis)
        return jnp.concatenate([prefix] * layout.copies + [branch], axis=axis)

    forward, for_queries, for_keys = (layout.blocks(name) for name in BLOCKS)
    kernel = splash.SplashAttentionKernel(
        visits.forward, visits.gradient_of_queries, visits.gradient_of_keys,
        block_sizes=splash.BlockSizes(*forward, *for_keys, *for_queries[:2]), is_mqa=False, save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE, attn_logits_soft_cap=None, residual_checkpoint_name=ATTENTION_NAME,
        mask_function=_rule(layout), interpret=is_interpreted)
    is_valid, is_key = visits.is_valid.astype(jnp.int32), visits.is_key.astype(jnp.int32)
    k, v = (with_copies(jnp.einsum("tkh->kth", x), axis=1) for x in (k, v))
    o = kernel(q, k, v, segment_ids=splash.SegmentIds(is_valid, with_copies(is_key)))
    return jnp.einsum("kgth->tkgh", o.reshape(K, G, T, H))
