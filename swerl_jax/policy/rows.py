"""The learner's forward pass: log-probabilities of the targets of prefix/branch rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from swerl_jax.policy import context, splash
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape, attend_rows
from swerl_jax.policy.gpu_attention import Causal
from swerl_jax.policy.llama import TOP_AXES, Llama, trunk
from swerl_jax.policy.mesh import Place, anywhere

# (branch_start, is_valid, shape) of a batch → (q, k, v) of a layer → o: the mask rule of attention.attend_rows
RowAttention = Callable[[jax.Array, jax.Array, RowShape], Callable[[jax.Array, jax.Array, jax.Array], jax.Array]]


def plain(branch_start: jax.Array, is_valid: jax.Array, shape: RowShape) -> Callable[..., jax.Array]:
    """The RowAttention that runs everywhere."""
    return partial(attend_rows, branch_start=branch_start, is_valid=is_valid, shape=shape)


def row_attention(kind: str, mesh: Mesh, causal: Causal | None = None) -> RowAttention:
    """What attends on a mesh.

    Args:
      kind: "plain"; "splash", the TPU's kernel, interpreted (slowly) elsewhere; "auto": the one that suits the devices.
      causal: what "auto" gives the prefix's own queries to where the rest is plain; see gpu_attention.causal.

    The RowAttention raises ValueError for rows of other parts than the mesh's context axis has.
    """
    is_tpu, parts = mesh.devices.flat[0].platform == "tpu", mesh.shape[context.AXIS]
    is_plain = kind == "plain" or (kind == "auto" and not is_tpu)

    def attention(branch_start: jax.Array, is_valid: jax.Array, shape: RowShape) -> Callable[..., jax.Array]:
        if shape.parts != parts:
            raise ValueError(f"the rows have {shape.parts} parts and the mesh's context axis {parts}; needed is the same "
                             "(PackSettings.parts)")
        if is_plain and parts == 1:
            return partial(plain(branch_start, is_valid, shape), causal=causal if kind == "auto" else None)
        if is_plain:
            return partial(context.attend_rows, branch_start=branch_start, is_valid=is_valid, shape=shape, mesh=mesh)
        visits = splash.plan(branch_start, is_valid, shape)
        return partial(splash.attend_rows, visits=visits, mesh=mesh, is_interpreted=not is_tpu)

    return attention


def row_logp(model: Llama, arch: Arch, rows: Any, *, temperature: float, vocabulary_chunk: int, dtype: Any, remat: str,
             attention: RowAttention = plain, place: Place = anywhere) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every target, and the entropy of the distribution it was drawn from.

    Args:
      rows: a learn.batch.Batch or anything with its `ids`, `position`, `is_valid`, `branch_start`, `target`, `shape`.
      temperature: the logits are divided by it.
      vocabulary_chunk: branch tokens of each part of a row whose logits [B, chunk, V] exist at one time.
      dtype, remat, place: see llama.trunk. attention: see row_attention.

    Returns:
      (logp, entropy), float32 [B T−S]; entropy in nats, without gradient. Padding gives numbers of no meaning.
    """
    shape: RowShape = rows.shape
    attend_layer = attention(rows.branch_start, rows.is_valid, shape)

    def attend(q, k, v, cache):
        return attend_layer(q, k, v), cache

    hidden, _ = trunk(model, arch, rows.ids, rows.position, attend, dtype=dtype, remat=remat, place=place)
    unembed = place(model.unembed.astype(dtype), TOP_AXES["head"])
    hidden = context.branches(place(hidden, "B t D", "B T D"), shape.S, shape.parts)
    return target_logp(hidden, unembed, rows.target, temperature, vocabulary_chunk, shape.parts)


def target_logp(hidden: jax.Array, unembed: jax.Array, target: jax.Array, temperature: float, chunk: int, parts: int = 1,
                ) -> tuple[jax.Array, jax.Array]:
    """(logp, entropy), float32 [B T], of target int32 [B T] under softmax(hidden · unembedᵀ / temperature).

    Logits are made for `chunk` tokens of every part of every row at a time and made again for the gradient: [B T V] never
    exists.

    Args:
      hidden: [B T D]. unembed: [V D].
    """
    T, split = hidden.shape[1] // parts, (parts,) if parts > 1 else ()
    chunk = min(chunk, T)
    padding = -T % chunk
    unembed = unembed.astype(hidden.dtype)
    # Made once: left to itself XLA multiplies by the transposed matrix on a slow path, once a chunk.
    turned = jax.lax.optimization_barrier(jax.lax.stop_gradient(unembed).T)

    def chunks(x: jax.Array) -> jax.Array:
        B, _, *rest = x.shape
        before = [(0, 0)] * len((B, *split))
        x = jnp.pad(x.reshape(B, *split, T, *rest), before + [(0, padding)] + [(0, 0)] * len(rest))
        x = x.reshape(B, *split, -1, chunk, *rest)
        return jnp.moveaxis(x, len(before), 0).reshape(-1, B, parts * chunk, *rest)

    def joined(x: jax.Array) -> jax.Array:
        n, B, _ = x.shape
        x = jnp.moveaxis(x.reshape(n, B, *split, chunk), 0, -2).reshape(B, *split, n * chunk)
        return x[..., :T].reshape(B, parts * T)

    outs = jax.lax.map(lambda pair: _chunk_logp(pair[0], unembed, turned, pair[1], temperature),
                       (chunks(hidden), chunks(target)))
    return joined(outs[0]), joined(outs[1])


def _logits(hidden: jax.Array, unembed: jax.Array, temperature: float) -> jax.Array:
    """float32 [V B T]: the vocabulary comes first, so that the gradient of `unembed` [V D] is a plain product."""
    return jnp.einsum("vd,btd->vbt", unembed, hidden, preferred_element_type=jnp.float32) / temperature


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunk_logp(hidden: jax.Array, unembed: jax.Array, turned: jax.Array, target: jax.Array, temperature: float,
                ) -> tuple[jax.Array, jax.Array]:
    """`target_logp` on few tokens; `turned` is unembedᵀ [D V]. The entropy has no gradient."""
    return _chunk_forward(hidden, unembed, turned, target, temperature)[0]


def _chunk_forward(hidden: jax.Array, unembed: jax.Array, turned: jax.Array, target: jax.Array, temperature: float):
    logits = _logits(hidden, unembed, temperature)
    peak = jnp.max(logits, axis=0)
    weights = jnp.exp(logits - peak)
    sum_weights = jnp.sum(weights, axis=0)
    total = peak + jnp.log(sum_weights)
    chosen = jnp.take_along_axis(logits, target[None], axis=0)[0]
    # A product, not a sum of products: XLA would exponentiate a second time inside that sum.
    entropy = total - jnp.einsum("vbt,vbt->bt", weights, logits) / sum_weights
    return (chosen - total, entropy), (hidden, unembed, turned, target, total)


def _chunk_backward(temperature: float, saved: Any, gradients: tuple[jax.Array, jax.Array]):
    hidden, unembed, turned, target, total = saved
    scale = gradients[0] / temperature
    is_target = jnp.arange(unembed.shape[0])[:, None, None] == target
    dlogits = jnp.where(is_target, scale, 0.0) - jnp.exp(_logits(hidden, unembed, temperature) - total) * scale
    dlogits = dlogits.astype(hidden.dtype)
    dhidden = jnp.einsum("dv,vbt->dbt", turned, dlogits)
    return jnp.einsum("dbt->btd", dhidden), jnp.einsum("vbt,btd->vd", dlogits, hidden), None, None


_chunk_logp.defvjp(_chunk_forward, _chunk_backward)
