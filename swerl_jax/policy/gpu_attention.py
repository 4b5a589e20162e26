"""cuDNN's flash attention on a GPU, where it can take the mask rule: tokens of a prefix, which see what precedes them.

cuDNN knows "causal", from the first query and the first key on, and how long rows are. That is the rule inside a prefix: in
the engine's prefill, and for a prefix's own queries in the learner's rows. The queries of branches see two stretches of keys.
To cuDNN these are a bias, whose gradient jax always has it compute, or whole rows [prefix | branch] of which the prefix's share
is thrown away, or two calls joined by their log-sum-exps, which jax rounds and gives no gradient: they keep to
`attention.attend`.
Source: `jax.nn.dot_product_attention`; FlashAttention-2, arXiv 2307.08691.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from swerl_jax.policy import mesh as mesh_lib

DTYPES = ("bfloat16", "float16")
LARGEST_HEAD = 128  # of which the gradient, too, is there on every generation from OLDEST on
OLDEST = 8  # major compute capability: Ampere

# q [B S K G H], k and v [B S K H] → o [B S K G H], causal
Causal = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def obstacle(mesh: Mesh, dtype: Any, H: int) -> str:
    """Why cuDNN does not attend on a mesh's devices, for people to read; "" where it does.

    Args:
      dtype: of queries, keys and values. H: numbers of a head.
    """
    device, parts, name = mesh.devices.flat[0], mesh.shape["context"], jnp.dtype(dtype).name
    if device.platform != "gpu":
        return f"the device is a {device.platform}, no GPU"
    major = str(device.compute_capability).partition(".")[0]  # AMD's are words
    if not (major.isdecimal() and int(major) >= OLDEST):
        return f"the GPU has compute capability {device.compute_capability}; needed is one of NVIDIA's from {OLDEST}.0 (Ampere) on"
    if name not in DTYPES:
        return f"model.dtype is {name}; needed is {' or '.join(DTYPES)}"
    if H % 8 or H > LARGEST_HEAD:
        return f"heads have {H} numbers; needed is a multiple of 8 up to {LARGEST_HEAD}"
    if parts > 1:
        return f"mesh.context is {parts}: a device's part of a prefix is no whole one; needed is 1"
    return ""


def causal(mesh: Mesh, dtype: Any, H: int) -> Causal | None:
    """`attend` on this mesh; None where there is an `obstacle`."""
    return None if obstacle(mesh, dtype, H) else partial(attend, mesh=mesh)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, mesh: Mesh, implementation: str = "cudnn") -> jax.Array:
    """Causal attention on rows that are all prefix, what `attention.attend_prefix` computes.

    A backward pass that makes layers again makes this again, too: what cuDNN keeps for its gradient has no name to save it by.

    Args:
      q: [B S K G H], not yet scaled. k, v: [B S K H]. mesh: rows are dealt over its data axes, key heads over `tensor`.
      implementation: of jax.nn.dot_product_attention: "cudnn", or "xla", the same on any device, with all S × S scores.

    Returns:
      [B S K G H] in q's dtype.
    """
    def local(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        heads = q.reshape(*q.shape[:2], -1, q.shape[-1])  # the G queries of a key head stand side by side
        return jax.nn.dot_product_attention(heads, k, v, is_causal=True, implementation=implementation).reshape(q.shape)

    queries, keys = (mesh_lib.fitting(mesh, x.shape, letters, mesh_lib.LEARNER_RULES)
                     for x, letters in ((q, "B T K G H"), (k, "B T K H")))
    return jax.shard_map(local, mesh=mesh, check_vma=False, in_specs=(queries, keys, keys), out_specs=queries)(q, k, v)
