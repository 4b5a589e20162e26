"""What the engine runs on the devices: prefill a prefix, extend a branch, decode a chunk of tokens.

The state is two caches and a table of slots. A slot is one group: a prefix with R branches. The prefix's keys and
values are stored once a slot; each branch has its own columns, one column a token. A chunk of `ticks` tokens is decoded
in one call: meanwhile the caches are only read, the new keys wait in a small staging buffer (one column a tick, the same
for every branch), and at the end of the chunk they are merged at each branch's own length. A branch therefore meets
the same arithmetic whatever slot it is in, whenever it came and whoever is beside it: its tokens do not depend on the
schedule as long as the shapes are the same (the columns that are read are one of them: another count of columns changes
log-probabilities by rounding).

Caches may be rounded to eight bits. What a call computes it attends to as it is, the prefix to itself and a chunk to its own
columns; what is kept is rounded, and later calls attend to that. A turn begins with a chunk, so which columns a token meets
rounded does not depend on the schedule either, unless its branch is fed again after an eviction: then it was in other pieces.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from swerl_jax.policy import int8
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import Segment, attend, attend_prefix, causal
from swerl_jax.policy.llama import Llama, trunk
from swerl_jax.policy.mesh import Place, anywhere

NO_ID = -1
COLUMN_AXES = (-1, -2, -1, -1)  # of keys [.. H C], values [.. C H] and, where those are rounded, their scales [.. C]


@partial(jax.tree_util.register_dataclass, data_fields=["prefix", "branch"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Caches:
    """Keys and values of every slot, per layer (a tuple of L pairs, or one pair with a leading axis L).

    Where they are int8, scales follow them, so that pairs are fours: float32, one a column (see int8.quantise_columns).

    Attributes:
      prefix: k [P K H S] and v [P K S H], scales [P K S]; column s is the prompt's token s.
      branch: k [P R K H C] and v [P R K C H], scales [P R K C]; column c is the branch's token c.
    """

    prefix: Any
    branch: Any


@partial(jax.tree_util.register_dataclass, meta_fields=[],
         data_fields=["prefix_length", "length", "next_id", "budget", "drawn", "key", "temperature"])
@dataclasses.dataclass(frozen=True)
class Slots:
    """Where every branch stands when a chunk begins.

    Attributes:
      prefix_length: int32 [P], real tokens of the prefix.
      length: int32 [P R], tokens of the branch that are in the cache.
      next_id: int32 [P R], the id to feed next: the last one of the branch, not in the cache yet.
      budget: int32 [P R], tokens that may still be drawn in this turn; 0 when the branch is not drawing.
      drawn: int32 [P R], tokens drawn in this turn; random numbers are folded from it.
      key: uint32 [P R 2], the turn's random key.
      temperature: float32 [P R]; 0 takes the most likely id.
    """

    prefix_length: jax.Array
    length: jax.Array
    next_id: jax.Array
    budget: jax.Array
    drawn: jax.Array
    key: jax.Array
    temperature: jax.Array


def in_blocks(logits: jax.Array) -> jax.Array:
    """[.. V] → [.. b w]: the vocabulary in about √V blocks, filled up with −∞; see `draw`.

    Where V has a suitable odd factor w is a multiple of it, so that there is a block for every device of a power of two.
    """
    V = logits.shape[-1]
    root = math.isqrt(V - 1) + 1
    odd = V // (V & -V)
    width = odd if odd <= 4 * root else 1
    while width < root:
        width *= 2
    padded = jnp.pad(logits, [(0, 0)] * (logits.ndim - 1) + [(0, -V % width)], constant_values=-jnp.inf)
    return padded.reshape(*logits.shape[:-1], -1, width)


def draw(logits: jax.Array, key: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One id from softmax(logits / temperature), and its log-probability.

    The inverse of the distribution function in two exact steps: a block of the vocabulary, then an id in the block. So
    an id costs two random numbers instead of V, and probabilities far below float32's resolution of 1 keep their share.

    Args:
      logits: float32 [b w], see `in_blocks`. key: a random key. temperature: float32 scalar; 0 takes the most likely id.

    Returns:
      (id int32, log-probability float32 under the unfiltered distribution at that temperature; at 0, at temperature 1).
    """
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    peak = jnp.max(scaled)
    weight = jnp.exp(scaled - peak)
    uniform = jax.random.uniform(key, (2,))
    totals = weight.sum(axis=1)
    block = _pick(totals, uniform[0])
    most = jnp.argmax(jnp.max(scaled, axis=1))
    block = jnp.where(temperature > 0, block, most)
    place = jnp.where(temperature > 0, _pick(weight[block], uniform[1]), jnp.argmax(scaled[block]))
    return (block * logits.shape[1] + place).astype(jnp.int32), scaled[block, place] - peak - jnp.log(totals.sum())


def _pick(weight: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index with a weight whose running sum passes `uniform`, in [0, 1), of the total.

    Asks for a weight because a running sum that is made in parallel may rise by its rounding where the weight is 0.
    """
    running = jnp.where(weight > 0, jnp.cumsum(weight), 0.0)
    return jnp.min(jnp.where(running > uniform * jnp.max(running), jnp.arange(weight.shape[0]), weight.shape[0] - 1))


def _logits(model: Llama, hidden: jax.Array) -> jax.Array:
    return jnp.einsum("...d,vd->...v", hidden, model.unembed.astype(hidden.dtype), preferred_element_type=jnp.float32)


def prefill(model: Llama, arch: Arch, caches: Caches, slot: jax.Array, ids: jax.Array, is_new: jax.Array, dtype: Any,
            attention: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None, place: Place = anywhere) -> Caches:
    """Writes the keys and values of prefixes into one slot of each data shard; the P slots are dealt over n of them.

    Args:
      slot: int32 scalar, which slot of every shard.
      ids: int32 [n S'], the prefixes padded at their end to a bucket of at most S; padding is never visible to anyone.
      is_new: bool [n], False where the slot stays as it is.
      attention: q, k, v of whole rows → o, causal; None: plain operations. place: see llama.trunk.
    """
    def write(q, k, v, cache):
        columns = jnp.einsum("btkh->bkht", k), jnp.einsum("btkh->bkth", v)
        o = attend_prefix(q, *columns) if attention is None else attention(q, k, v)
        return o, tuple(_put(old, new, slot, is_new) for old, new in zip(cache, _kept(columns, cache), strict=True))

    position = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    _, prefix = trunk(model, arch, place(ids, "B t"), position, write, caches.prefix, dtype=dtype, place=place)
    return dataclasses.replace(caches, prefix=prefix)


def _put(old: jax.Array, new: jax.Array, slot: jax.Array, is_new: jax.Array) -> jax.Array:
    """old [P ..] with new [n ..] in one slot of each of n equal parts of P, where it is new."""
    parts = old.reshape(new.shape[0], -1, *old.shape[1:])
    start = (0, slot, *(0 for _ in new.shape[1:]))
    there = jax.lax.dynamic_slice(parts, start, (new.shape[0], 1, *new.shape[1:]))
    new = jnp.where(is_new.reshape(-1, *(1 for _ in new.shape)), new[:, None], there)
    return jax.lax.dynamic_update_slice(parts, new, start).reshape(old.shape)


def extend(model: Llama, arch: Arch, caches: Caches, slot: jax.Array, lane: jax.Array, prefix_length: jax.Array,
           start: jax.Array, ids: jax.Array, dtype: Any) -> Caches:
    """Feeds ids that are known already (an observation, or a history that was evicted) to one branch.

    Args:
      slot, lane: int32 scalars, which branch.
      prefix_length: int32 scalar, real tokens of its prefix. start: int32 scalar, tokens of the branch in the cache.
      ids: int32 [T], padded at its end; the padding's columns are written, and hidden by the branch's length.
    """
    def append(q, k, v, cache):
        prefix, branch = cache
        new = jnp.einsum("prtkh->prkht", k), jnp.einsum("prtkh->prkth", v)
        shared = [jax.lax.dynamic_slice_in_dim(x, slot, 1) for x in prefix]
        past = [jax.lax.dynamic_slice(x, (slot, lane, *(0 for _ in x.shape[2:])), (1, 1, *x.shape[2:])) for x in branch]
        o = attend(q, [_segment(shared, _before(_columns(prefix), prefix_length)),
                       _segment(past, _before(_columns(branch), start)), _segment(new, causal(ids.shape[0]))])
        return o, (prefix, _updated(branch, _kept(new, branch), start, (slot, lane)))

    position = (prefix_length + start + jnp.arange(ids.shape[0], dtype=jnp.int32))[None, None]
    _, entries = trunk(model, arch, ids[None, None], position, append, _joined(caches.prefix, caches.branch), dtype=dtype)
    return Caches(*_separated(entries))


def decode(model: Llama, arch: Arch, caches: Caches, slots: Slots, *, stop_ids: tuple[int, ...], ticks: int,
           columns: int, dtype: Any, kernel: Callable | None = None, place: Place = anywhere) -> tuple[Caches, dict[str, jax.Array]]:
    """Draws up to `ticks` ids for every branch with a budget.

    Args:
      stop_ids: ids that end a turn.
      columns: how many columns of the branch caches to read: no drawing branch may be longer than this now.
      kernel: decode_kernel.attend_cached on this mesh, for stacked layers; None: plain operations.
      place: of logits; see llama.trunk.

    Returns:
      (caches, drawn): drawn["ids"] int32 and drawn["logp"] float32 [ticks P R], ids NO_ID where nothing was drawn;
      drawn["is_stopped"] bool [P R], True where the last id drawn is a stop id.
    """
    P, R = slots.length.shape
    entries, look = _plain_look(caches, slots, columns) if kernel is None else _kernel_look(caches, slots, columns, kernel)
    staging = _by_layer(lambda layer: _empty(layer, ticks, dtype), caches.branch)
    out = {"ids": jnp.full((ticks, P, R), NO_ID, jnp.int32), "logp": jnp.zeros((ticks, P, R), jnp.float32)}

    def tick(carry):
        t, slots, is_stopped, staging, out = carry

        def step(q, k, v, cache):
            *cached, staged = cache
            new = jnp.einsum("prtkh->prkht", k), jnp.einsum("prtkh->prkth", v)
            staged = _updated(staged, _kept(new, staged), t)
            return look(q, cached, staged, t + 1), staged

        position = (slots.prefix_length[:, None] + slots.length + t)[..., None]
        hidden, staging = trunk(model, arch, slots.next_id[..., None], position, step,
                                _joined(*entries, staging), dtype=dtype)
        keys = jax.vmap(jax.vmap(jax.random.fold_in))(jax.random.wrap_key_data(slots.key, impl="threefry2x32"), slots.drawn)
        # Gathered once, before all else is done with them, along the first axis: pieces side by side need no sorting.
        logits = jnp.einsum("prbw->bprw", in_blocks(place(_logits(model, hidden[:, :, 0]), "P R V")))
        logits = place(place(logits, "V P R w"), "v P R w")
        ids, logp = jax.vmap(jax.vmap(draw, (1, 0, 0)), (1, 0, 0))(logits, keys, slots.temperature)
        is_drawing = slots.budget > 0
        out = {"ids": out["ids"].at[t].set(jnp.where(is_drawing, ids, NO_ID)),
               "logp": out["logp"].at[t].set(jnp.where(is_drawing, logp, 0.0))}
        stops = is_drawing & jnp.isin(ids, jnp.array(stop_ids, jnp.int32)) if stop_ids else jnp.zeros_like(is_drawing)
        slots = dataclasses.replace(
            slots, next_id=jnp.where(is_drawing, ids, slots.next_id), drawn=slots.drawn + is_drawing,
            budget=jnp.where(stops, 0, slots.budget - is_drawing))
        return t + 1, slots, is_stopped | stops, staging, out

    start = (jnp.int32(0), slots, jnp.zeros((P, R), bool), staging, out)
    _, _, is_stopped, staging, out = jax.lax.while_loop(
        lambda carry: (carry[0] < ticks) & jnp.any(carry[1].budget > 0), tick, start)
    branch = _by_layer(lambda layer, staged: _merged(layer, staged, slots.length), caches.branch, staging)
    return dataclasses.replace(caches, branch=branch), {**out, "is_stopped": is_stopped}


# A look: (q [P R 1 K G H], a layer's part of the entries, its staged columns, how many of them are there) → o [P R 1 K G H].
Look = Callable[[jax.Array, Any, tuple[jax.Array, jax.Array], jax.Array], jax.Array]


def _plain_look(caches: Caches, slots: Slots, columns: int) -> tuple[tuple[Any, ...], Look]:
    """(what the loop over layers goes through, how a layer's queries look at it and at what is staged)."""
    past = _by_layer(lambda layer: tuple(jax.lax.slice_in_dim(x, 0, columns, axis=axis) for x, axis in zip(layer, COLUMN_AXES)),
                     caches.branch)
    sees_prefix = _before(_columns(caches.prefix), slots.prefix_length[:, None, None, None])
    sees_past = _before(columns, slots.length[:, :, None, None])

    def look(q, cached, staged, count):
        segments = [_segment(layer, sees) for layer, sees in zip(cached, (sees_prefix, sees_past))]
        return attend(q, [*(segments if columns else segments[:1]), _segment(staged, _before(_columns(staged), count))])

    return (caches.prefix, past), look


def _kernel_look(caches: Caches, slots: Slots, columns: int, kernel: Callable) -> tuple[tuple[Any, ...], Look]:
    """As `_plain_look`; the loop goes through the layers' numbers and the kernel fetches their parts of the caches."""
    length = jnp.minimum(slots.length, columns)  # those that do not draw may be longer

    def look(q, cached, staged, count):
        return kernel(q, cached[0], caches.prefix, caches.branch, staged, slots.prefix_length, length, count, columns=columns)

    return (jnp.arange(caches.branch[0].shape[0], dtype=jnp.int32),), look


def _before(count: int, limit: jax.Array) -> jax.Array:
    """bool [.. count]: True for the columns below `limit`, which has four axes or none."""
    columns = jnp.arange(count)
    return columns < limit if jnp.ndim(limit) else (columns < limit)[None, None, None]


def _columns(cache: Any) -> int:
    return jax.tree.leaves(cache)[1].shape[-2]


def _segment(layer: Any, is_visible: jax.Array) -> Segment:
    """A layer's part of a cache, with scales or without."""
    k, v, *scales = layer
    return Segment(k, v, is_visible, *scales)


def _by_layer(function: Callable[..., Any], *caches: Any) -> Any:
    """function(a layer's part of each of `caches`), layer by layer; of stacked layers all at once."""
    return tuple(map(function, *caches)) if isinstance(caches[0][0], tuple) else function(*caches)


def _empty(layer: Any, count: int, dtype: Any) -> tuple[jax.Array, ...]:
    """Keys and values as those of a layer, but with `count` columns of zeros and without scales."""
    k, v = layer[:2]
    return (jnp.zeros_like(k, dtype, shape=(*k.shape[:-1], count)),
            jnp.zeros_like(v, dtype, shape=(*v.shape[:-2], count, v.shape[-1])))


def _kept(new: tuple[jax.Array, jax.Array], layer: Any) -> tuple[jax.Array, ...]:
    """New keys and values in the form of a layer's part of a cache: rounded, with their scales, where that has scales."""
    return int8.quantise_columns(*new) if len(layer) > 2 else tuple(x.astype(old.dtype) for x, old in zip(new, layer))


def _updated(layer: Any, new: Any, start: jax.Array, first: tuple[jax.Array, ...] = ()) -> tuple[jax.Array, ...]:
    """A layer's part of a cache with new columns from `start` on, at the indices `first` of its first axes."""
    def write(old, one, axis):
        place = [*first, *(0 for _ in old.shape[len(first):])]
        place[axis] = start
        return jax.lax.dynamic_update_slice(old, one, place)

    return tuple(map(write, layer, new, COLUMN_AXES))


def _merged(layer: Any, staged: Any, length: jax.Array) -> tuple[jax.Array, ...]:
    """A layer's part of the branches' cache, or all layers' stacked, with the staged columns at each branch's own length."""
    write = jax.vmap(jax.vmap(_updated))
    write = jax.vmap(write, (0, 0, None)) if layer[0].ndim == 6 else write
    return write(tuple(layer), _kept(staged, layer), length)


def _joined(*caches: Any) -> Any:
    """One pytree for `trunk`: a tuple of caches per layer, or of stacked caches."""
    return tuple(zip(*caches, strict=True)) if isinstance(caches[0][0], tuple) else caches


def _separated(entries: Any) -> Any:
    """The inverse of `_joined`."""
    return tuple(zip(*entries, strict=True)) if isinstance(entries[0][0], tuple) else entries
