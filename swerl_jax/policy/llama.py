"""Llama 3 and its kin (Qwen2.5, Qwen3) in Flax NNX: one set of layers that learns, prefills and decodes.

The model is a pytree: `jax.jit`, `jax.grad` and optax take it as it is. Its layers are stacked along a leading axis L
and scanned, so that eighty layers trace as one; an engine may unstack them. What differs between learning, prefilling
and decoding is only the `attend` function that the caller passes in: it sees a layer's queries, keys and values and
the layer's share of a cache, and nothing else about the model.

Source: "The Llama 3 Herd of Models", arXiv 2407.21783; grouped-query attention, arXiv 2305.13245; SwiGLU,
arXiv 2002.05202; RoPE, arXiv 2104.09864 (the half-split form). We differ only in layout: the q, k and v matrices are
one array whose key-head axis comes first, gate and up are one array, so that each is one matrix product.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from swerl_jax.policy import int8
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch, Llama3Scaling, YarnScaling
from swerl_jax.policy.attention import ATTENTION_NAME
from swerl_jax.policy.mesh import Place

# Parameter → the letters of its axes (x: 2 for gate/up; y: G + 2, the query heads of a key head, its key, its value).
LAYER_AXES = {
    "attention_norm": "L D", "qkv": "L D K y H", "out": "L K G H D",
    "mlp_norm": "L D", "gate_up": "L D x F", "down": "L F D",
    "qkv_bias": "L K y H", "query_norm": "L H", "key_norm": "L H",  # where the arch has them
    # Low-rank changes of the matrices, where a Lora asks for them (r: its rank).
    "qkv_a": "L D r", "qkv_b": "L r K y H", "out_a": "L K G H r", "out_b": "L r D",
    "gate_up_a": "L D r", "gate_up_b": "L r x F", "down_a": "L F r", "down_b": "L r D",
    # What rounded matrices of an engine are multiplied by (see int8; n, N: blocks of the input, N those of the devices).
    "qkv_scale": "L n K y H", "out_scale": "L N D", "gate_up_scale": "L n x F", "down_scale": "L N D",
}
TOP_AXES = {"embed": "V D", "final_norm": "D", "head": "V D"}
MATRICES: Mapping[str, int] = {"qkv": 1, "out": 3, "gate_up": 1, "down": 1}  # how many axes of input each has

# attend(q [.. T K G H], k [.. T K H], v [.. T K H], cache of this layer) → (o [.. T K G H], new cache of this layer)
Attend = Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]

# Of what a layer begins with, of queries, keys and values before they turn, of the residual stream after attention.
RESIDUAL_NAME, QKV_NAME, MIDDLE_NAME = "residual", "qkv", "middle"
# What the backward pass keeps of a layer: all; what it begins with ("layer"; "offload": in the host's memory); also what
# attention was given and gave and the residual stream after it, so that only the feed-forward part is computed twice
# ("attention"); what attention gave and the matrix products ("dots").
REMAT: dict[str, Callable[[Callable], Callable]] = {
    "none": lambda body: body,
    "layer": lambda body: jax.checkpoint(body),
    "dots": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(ATTENTION_NAME))),
    "attention": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(
        ATTENTION_NAME, QKV_NAME, MIDDLE_NAME)),
    "offload": lambda body: jax.checkpoint(body, policy=jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[RESIDUAL_NAME],
        offload_src="device", offload_dst="pinned_host")),
}


def parameter_name(path: Any) -> str:
    """The name in LAYER_AXES or TOP_AXES of the leaf at a path of the model's tree."""
    return next(key.name for key in reversed(path) if getattr(key, "name", None) in LAYER_AXES | TOP_AXES)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A low-rank change of some matrices W of every layer: W + alpha / rank · A B, with B zero at first.

    Only A and B learn, in float32. Source: "LoRA", arXiv 2106.09685, §4.1. We differ in that q, k and v (and gate and up),
    which are one matrix here, share one A.

    Raises ValueError for a rank below 1, no target or an unknown one.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = tuple(MATRICES)

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.targets or set(self.targets) - set(MATRICES):
            raise ValueError(f"got {self}; needed are a rank of at least 1 and targets out of {', '.join(MATRICES)}")


def is_low_rank(name: str) -> bool:
    """Whether the parameter of this name belongs to a Lora."""
    return name.rpartition("/")[2] in {f"{matrix}_{part}" for matrix in MATRICES for part in "ab"}


def _normal(key: jax.Array, axes: str, shape: tuple[int, ...], scale: float, dtype: Any) -> nnx.Param:
    return nnx.Param(scale * jax.random.normal(key, shape, dtype), out_sharding=_partition(axes))


def _ones(axes: str, shape: tuple[int, ...], dtype: Any) -> nnx.Param:
    return nnx.Param(jnp.ones(shape, dtype), out_sharding=_partition(axes))


def _zeros(axes: str, shape: tuple[int, ...], dtype: Any) -> nnx.Param:
    return nnx.Param(jnp.zeros(shape, dtype), out_sharding=_partition(axes))


def _partition(axes: str) -> tuple[Any, ...]:
    return tuple(mesh_lib.spec(axes, mesh_lib.LEARNER_RULES))


class Layers(nnx.Module):
    """The parameters of all layers, stacked; one layer after `jax.lax.scan` or `unstack` has cut it out."""

    def __init__(self, arch: Arch, key: jax.Array, dtype: Any, lora: Lora | None = None):
        L, D, K, G, H, F = arch.L, arch.D, arch.K, arch.G, arch.H, arch.F
        keys = jax.random.split(key, 4)
        narrow = 1 / math.sqrt(2 * L)  # the residual stream sums 2L branches (GPT-2's initialisation)
        self.attention_norm = _ones("L D", (L, D), dtype)
        self.qkv = _normal(keys[0], LAYER_AXES["qkv"], (L, D, K, G + 2, H), D**-0.5, dtype)
        self.out = _normal(keys[1], LAYER_AXES["out"], (L, K, G, H, D), narrow * (K * G * H) ** -0.5, dtype)
        self.mlp_norm = _ones("L D", (L, D), dtype)
        self.gate_up = _normal(keys[2], LAYER_AXES["gate_up"], (L, D, 2, F), D**-0.5, dtype)
        self.down = _normal(keys[3], LAYER_AXES["down"], (L, F, D), narrow * F**-0.5, dtype)
        self.qkv_bias = _zeros(LAYER_AXES["qkv_bias"], (L, K, G + 2, H), dtype) if arch.has_qkv_bias else None
        self.query_norm = _ones(LAYER_AXES["query_norm"], (L, H), dtype) if arch.has_qk_norm else None
        self.key_norm = _ones(LAYER_AXES["key_norm"], (L, H), dtype) if arch.has_qk_norm else None
        self.lora_scale = 0.0 if lora is None else lora.alpha / lora.rank
        for i, (name, axes) in enumerate(MATRICES.items()):
            is_changed = lora is not None and name in lora.targets
            _, *shape = getattr(self, name).shape
            a, b = ((L, *shape[:axes], lora.rank), (L, lora.rank, *shape[axes:])) if is_changed else (None, None)
            scale = math.prod(shape[:axes]) ** -0.5
            low_rank = jnp.float32  # also beside a bfloat16 base: it is what learns
            key = jax.random.fold_in(keys[0], i)
            setattr(self, f"{name}_a", _normal(key, LAYER_AXES[f"{name}_a"], a, scale, low_rank) if is_changed else None)
            setattr(self, f"{name}_b", _zeros(LAYER_AXES[f"{name}_b"], b, low_rank) if is_changed else None)
            setattr(self, f"{name}_scale", nnx.data(None))


class Llama(nnx.Module):
    """A randomly initialised model in `dtype`; construct it under `jax.set_mesh` (or an abstract mesh).

    Attributes:
      embed: [V D]. head: [V D], or None when tied. final_norm: [D]. layers: Layers, stacked on L.
    """

    def __init__(self, arch: Arch, key: jax.Array, dtype: Any = jnp.float32, lora: Lora | None = None):
        keys = jax.random.split(key, 3)
        scale = arch.D**-0.5
        self.embed = _normal(keys[0], TOP_AXES["embed"], (arch.V, arch.D), scale, dtype)
        self.layers = Layers(arch, keys[1], dtype, lora)
        self.final_norm = _ones(TOP_AXES["final_norm"], (arch.D,), dtype)
        self.head = None if arch.is_tied else _normal(keys[2], TOP_AXES["head"], (arch.V, arch.D), scale, dtype)

    @property
    def unembed(self) -> jax.Array:
        """The output matrix [V D]: the head, or the embedding when tied."""
        return (self.embed if self.head is None else self.head)[...]


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float) -> jax.Array:
    """x / rms(x) · scale over the last axis, in float32, returned in x's dtype."""
    return (x.astype(jnp.float32) * _inverse_rms(x, epsilon)[..., None]).astype(x.dtype) * scale.astype(x.dtype)


def _inverse_rms(x: jax.Array, epsilon: float) -> jax.Array:
    """float32 [..] of x [.. D]."""
    return jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1) + epsilon)


def inverse_frequencies(H: int, theta: float, scaling: Llama3Scaling | YarnScaling | None) -> jax.Array:
    """Radians per position of each of the H/2 rotated pairs, float32 [H/2] (see Llama3Scaling, YarnScaling)."""
    frequency = theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
    match scaling:
        case None:
            return frequency
        case Llama3Scaling():
            turns = scaling.original_context * frequency / (2 * math.pi)
            keep = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
        case YarnScaling():
            first, last = (_pair_that_turns(turns, H, theta, scaling) for turns in (scaling.fast, scaling.slow))
            first, last = max(math.floor(first), 0), min(math.ceil(last), H - 1)
            keep = 1 - jnp.clip((jnp.arange(H // 2) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return frequency * keep + frequency / scaling.factor * (1 - keep)


def _pair_that_turns(turns: float, H: int, theta: float, scaling: YarnScaling) -> float:
    """The pair, as a fraction, that turns so many times in the original context."""
    return H * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))


def rotary(position: jax.Array, arch: Arch) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32 [.. H/2], for int32 positions [..]; with YaRN, times its factor."""
    angle = position[..., None].astype(jnp.float32) * inverse_frequencies(arch.H, arch.rope_theta, arch.rope_scaling)
    if isinstance(arch.rope_scaling, YarnScaling):
        size = 0.1 * math.log(arch.rope_scaling.factor) + 1
        return size * jnp.cos(angle), size * jnp.sin(angle)
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns the pairs (x[i], x[i + H/2]) of the last axis; cos and sin must broadcast against [.. H/2]."""
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(x: jax.Array, w: jax.Array, axes: int = 1) -> jax.Array:
    """Activations times weights over the last `axes` axes of x and the first of w: `jnp.tensordot`.

    Only the gradient of w is written by hand: the narrower operand stands on the left, because XLA on CPU copies the
    left one transposed. The barrier keeps it from moving the transposition of the result into the operands.
    """
    return _product(x, w, axes)


def _product(x: jax.Array, w: jax.Array, axes: int) -> jax.Array:
    return jax.lax.dot_general(x, w, ((tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))), ((), ())))


def _product_backward(axes: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    rows = tuple(range(x.ndim - axes))
    dx = jax.lax.dot_general(dy, w, ((tuple(range(len(rows), dy.ndim)), tuple(range(axes, w.ndim))), ((), ())))
    if x.size <= dy.size:
        return dx, jax.lax.dot_general(x, dy, ((rows, rows), ((), ())))
    dw = jax.lax.dot_general(dy, x, ((rows, rows), ((), ())))
    return dx, jnp.moveaxis(jax.lax.optimization_barrier(dw), range(-axes, 0), range(axes))


product.defvjp(lambda x, w, axes: (_product(x, w, axes), (x, w)), _product_backward)


def _linear(x: jax.Array, layer: Layers, name: str, place: Place) -> jax.Array:
    """One of MATRICES applied to x, with its low-rank change."""
    axes, letters = MATRICES[name], LAYER_AXES[name].removeprefix("L ")
    w, scale = getattr(layer, name)[...], getattr(layer, f"{name}_scale")
    if scale is None:
        y = product(x, place(w.astype(x.dtype), letters), axes)
    else:
        y = int8.product(x, place(w, letters), scale[...], axes, x.dtype)
    a, b = getattr(layer, f"{name}_a"), getattr(layer, f"{name}_b")
    if a is None:
        return y
    return y + layer.lora_scale * product(product(x, a[...].astype(x.dtype), axes), b[...].astype(x.dtype))


def _normed_linear(x: jax.Array, norm: jax.Array, layer: Layers, name: str, arch: Arch, place: Place) -> jax.Array:
    """One of MATRICES applied to what `rms_norm` makes of x, the residual stream."""
    w, scale = getattr(layer, name)[...], getattr(layer, f"{name}_scale")
    if scale is None or getattr(layer, f"{name}_a") is not None:
        return _linear(place(rms_norm(x, norm, arch.norm_epsilon), "B t D", "B T D"), layer, name, place)
    # What is rounded to eight bits is divided by its largest number, so a row's root mean square may follow afterwards: nothing
    # has to wait for it, and both reductions are one.
    x = place(x, "B t D", "B T D")
    w = place(w, LAYER_AXES[name].removeprefix("L "))
    wide = x.astype(jnp.float32) * norm.astype(jnp.float32)
    return int8.product(wide, w, scale[...], MATRICES[name], x.dtype, _inverse_rms(x, arch.norm_epsilon))


def merged(layers: Layers, name: str, i: int) -> jax.Array:
    """A parameter of layer i; a matrix that has a low-rank change with it added, in float32."""
    w, a, b = (getattr(layers, part, None) for part in (name, f"{name}_a", f"{name}_b"))
    if a is None:
        return w[...][i]
    change = jnp.tensordot(a[...][i], b[...][i], axes=1, precision=jax.lax.Precision.HIGHEST)
    return w[...][i].astype(jnp.float32) + layers.lora_scale * change


def _layer(layer: Layers, x: jax.Array, cos: jax.Array, sin: jax.Array, arch: Arch, attend: Attend, cache: Any, place: Place):
    x = checkpoint_name(x, RESIDUAL_NAME)
    qkv = _normed_linear(x, layer.attention_norm[...], layer, "qkv", arch, place)
    qkv = checkpoint_name(place(qkv, "B t K y H"), QKV_NAME)
    if layer.qkv_bias is not None:
        qkv = qkv + layer.qkv_bias[...].astype(x.dtype)
    # Queries and key turn together: y is [G queries | key | value]. The gradient of a split is one concatenation.
    turning, v = jax.lax.split(qkv, (arch.G + 1, 1), axis=qkv.ndim - 2)
    if layer.query_norm is not None:
        scale = jnp.stack([layer.query_norm[...]] * arch.G + [layer.key_norm[...]])
        turning = rms_norm(turning, scale, arch.norm_epsilon)
    turned = rotate(turning, cos[..., None, None, :], sin[..., None, None, :])
    q, k = jax.lax.split(turned, (arch.G, 1), axis=qkv.ndim - 2)
    o, cache = attend(q, k[..., 0, :], v[..., 0, :], cache)
    x = checkpoint_name(x + place(_linear(o, layer, "out", place), "B T D", "B t D"), MIDDLE_NAME)
    gate_up = place(_normed_linear(x, layer.mlp_norm[...], layer, "gate_up", arch, place), "B t x F")
    gate, up = jax.lax.split(gate_up, (1, 1), axis=gate_up.ndim - 2)
    hidden = (jax.nn.silu(gate) * up)[..., 0, :]
    return x + place(_linear(place(hidden, "B t F"), layer, "down", place), "B T D", "B t D"), cache


def trunk(model: Llama, arch: Arch, ids: jax.Array, position: jax.Array, attend: Attend, caches: Any = None, *,
          dtype: Any = jnp.float32, remat: str = "none", place: Place = mesh_lib.anywhere) -> tuple[jax.Array, Any]:
    """Embeds `ids` and runs all layers and the final norm.

    Args:
      model: its layers stacked on L, or a tuple of single layers (then the loop is unrolled).
      ids, position: int32 [..]; positions count from 0 at the first prompt token.
      attend: see Attend.
      caches: a pytree with a leading axis L, or a tuple with one entry a layer when the layers are a tuple.
      dtype: of the activations and of the matrix products.
      remat: one of REMAT; what the backward pass keeps instead of computing it again.
      place: where parameters and, of ids [B T], activations are wanted (see mesh.ACTIVATION_RULES).

    Returns:
      (hidden [.. D], the caches that `attend` returned, in the form they came in).
    """
    x = place(place(model.embed[...].astype(dtype), TOP_AXES["embed"])[ids], "B T D")
    cos, sin = rotary(position, arch)

    def body(x: jax.Array, layer_and_cache: tuple[Layers, Any]) -> tuple[jax.Array, Any]:
        layer, cache = layer_and_cache
        return _layer(layer, x, cos, sin, arch, attend, cache, place)

    body = REMAT[remat](body)
    if isinstance(model.layers, tuple):
        entries = []
        for layer_and_cache in zip(model.layers, caches if caches is not None else (None,) * arch.L, strict=True):
            x, entry = body(x, layer_and_cache)
            entries.append(entry)
        caches = tuple(entries)
    else:
        x, caches = jax.lax.scan(body, x, (model.layers, caches))
    return rms_norm(x, model.final_norm[...], arch.norm_epsilon), caches
