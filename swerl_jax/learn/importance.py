"""Truncated importance sampling: the weight of tokens that a slightly different policy has sampled.

On the path: rollouts → packed rows → here → updates. Where the sampler computes in another way than the learner (narrow
numbers, other kernels), its log-probabilities are not those of the policy that learns. A step of one update meets the
learner's own in the pass that makes the gradient; before several updates, they are asked for in a pass of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from swerl_jax.learn.batch import Batch


def weight(logp: jax.Array, sampled_logp: jax.Array, cap: float) -> jax.Array:
    """min(π / μ, cap) of every token, in the shape of log π and log μ.

    Source: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025).
    """
    return jnp.exp(jnp.minimum(logp - sampled_logp, np.log(cap)))


def corrected(batch: Batch, logp: np.ndarray, cap: float) -> Batch:
    """The batch as if the learner had sampled it: advantages times `weight`, and π as the old policy.

    The clip of the loss then looks only at what the updates of the step change.

    Args:
      batch: its logp is the sampler's, log μ.
      logp: the learner's before the first update of the step, log π, float32 [B T−S].
      cap: the largest weight, at least 1.
    """
    logp = np.where(batch.is_sampled, logp, 0.0).astype(np.float32)
    return dataclasses.replace(batch, logp=logp, advantage=batch.advantage * np.asarray(weight(logp, batch.logp, cap)))


def differences(batches: Sequence[Batch], logps: Sequence[np.ndarray], cap: float) -> dict[str, float]:
    """Over the sampled tokens of `batches`: the learner's sums (see learner.ZERO_SUMS) and how many weights were cut."""
    every = np.concatenate([(logp - batch.logp)[batch.is_sampled] for batch, logp in zip(batches, logps, strict=True)])
    return {"tokens": every.size, "logp_diff": float(np.abs(every).sum(dtype=np.float64)),
            "logp_diff_max": float(np.abs(every).max(initial=0.0)), "capped": int((every > np.log(cap)).sum())}
