"""Per-token losses: small pure functions of log-probabilities, picked by a literal dict.

Each takes float32 arrays of one shape and returns the loss of every token before weighting. The weights
(advantage.token_weights) turn them into one sum over the global batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """What is minimised.

    Attributes:
      kind: one of LOSSES.
      clip_low, clip_high: ε below and above a ratio of 1 (DAPO's decoupled clip; equal ones are PPO's).
      kl_coefficient: β of the k3 penalty against the reference policy; 0 needs no reference.
      temperature: the one that answers were sampled at; log-probabilities are of that distribution.
      importance_cap: above 0, the batch's log-probabilities are the sampler's, and the policy as it is now is the old one:
        tokens are weighed by importance.weight. Right only while the parameters are those that were sampled from.
    """

    kind: str = "clip"
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.0
    temperature: float = 1.0
    importance_cap: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in LOSSES:
            raise ValueError(f"unknown loss {self.kind!r}; choose one of {sorted(LOSSES)}")


def clip(logp: jax.Array, old: jax.Array, advantage: jax.Array, settings: LossSettings) -> jax.Array:
    """−min(ratio·A, clip(ratio, 1 − ε_low, 1 + ε_high)·A), the ratio taken a token.

    Source: PPO (arXiv 1707.06347), eq. 7; GRPO; DAPO (arXiv 2503.14476) for the two ε. SWE-RL writes the ratio for the
    whole output and does not say how it is applied; with one step a batch it is 1 either way.
    """
    ratio = jnp.exp(logp - old)
    clipped = jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def cispo(logp: jax.Array, old: jax.Array, advantage: jax.Array, settings: LossSettings) -> jax.Array:
    """−stop_gradient(clip(ratio))·A·log π: clipped tokens keep their gradient. Source: MiniMax-M1, arXiv 2506.13585."""
    ratio = jnp.clip(jnp.exp(logp - old), 1 - settings.clip_low, 1 + settings.clip_high)
    return -jax.lax.stop_gradient(ratio) * advantage * logp


def nll(logp: jax.Array, old: jax.Array, advantage: jax.Array, settings: LossSettings) -> jax.Array:
    """−A·log π: supervised fine-tuning when every advantage is 1."""
    del old, settings
    return -advantage * logp


LOSSES: dict[str, Callable[..., jax.Array]] = {"clip": clip, "cispo": cispo, "nll": nll}


def k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
    """exp(d) − d − 1 with d = log π_ref − log π: an unbiased, non-negative estimate of KL(π ‖ π_ref).

    Source: Schulman, "Approximating KL divergence" (2020); used by GRPO.
    """
    d = ref_logp - logp
    return jnp.expm1(d) - d  # exp(d) − 1 would round below d near 0


def clipped_fractions(logp: jax.Array, old: jax.Array, advantage: jax.Array, settings: LossSettings,
                      ) -> tuple[jax.Array, jax.Array]:
    """(low, high), bool: tokens whose gradient the clip removes, below and above."""
    ratio = jnp.exp(logp - old)
    low = (ratio < 1 - settings.clip_low) & (advantage < 0)
    high = (ratio > 1 + settings.clip_high) & (advantage > 0)
    return low, high
