"""The learner's forward pass: log-probabilities of the targets of prefix/branch rows."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape, attend_rows
from swerl_jax.policy.llama import Llama, trunk


def row_logp(model: Llama, arch: Arch, rows: Any, *, temperature: float, vocabulary_chunk: int, dtype: Any, remat: str,
             ) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every target, and the entropy of the distribution it was drawn from.

    Args:
      rows: a learn.batch.Batch or anything with its `ids`, `position`, `is_valid`, `branch_start`, `target`, `shape`.
      temperature: the logits are divided by it.
      vocabulary_chunk: branch tokens of each row whose logits [B, chunk, V] exist at one time.
      dtype, remat: see llama.trunk.

    Returns:
      (logp, entropy), float32 [B T−S]; entropy in nats, without gradient. Padding gives numbers of no meaning.
    """
    shape: RowShape = rows.shape

    def attend(q, k, v, cache):
        return attend_rows(q, k, v, rows.branch_start, rows.is_valid, shape), cache

    hidden, _ = trunk(model, arch, rows.ids, rows.position, attend, dtype=dtype, remat=remat)
    return target_logp(hidden[:, shape.S:], model.unembed, rows.target, temperature, vocabulary_chunk)


def target_logp(hidden: jax.Array, unembed: jax.Array, target: jax.Array, temperature: float, chunk: int,
                ) -> tuple[jax.Array, jax.Array]:
    """(logp, entropy), float32 [B T], of target int32 [B T] under softmax(hidden · unembedᵀ / temperature).

    Logits are made for `chunk` tokens of every row at a time and made again for the gradient: [B T V] never exists.

    Args:
      hidden: [B T D]. unembed: [V D].
    """
    T = hidden.shape[1]
    chunk = min(chunk, T)
    padding = -T % chunk

    def some(hidden: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.einsum("btd,vd->btv", hidden, unembed.astype(hidden.dtype), preferred_element_type=jnp.float32)
        logits = logits / temperature
        total = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        still = jax.lax.stop_gradient(logits)
        entropy = jax.lax.stop_gradient(total) - jnp.sum(jnp.exp(still - jax.lax.stop_gradient(total)[..., None]) * still, -1)
        return chosen - total, entropy

    def chunks(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(x.shape[0], -1, chunk, *x.shape[2:]), 1, 0)

    outs = jax.lax.map(lambda pair: jax.checkpoint(some)(*pair), (chunks(hidden), chunks(target)))
    logp, entropy = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1)[:, :T] for x in outs)
    return logp, entropy
