"""The learner's parameters as engines keep them: cast or rounded, whole in every copy, key heads repeated where they must be."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from swerl_jax.policy import int8
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.llama import LAYER_AXES, MATRICES, TOP_AXES, Layers, Llama, parameter_name

WEIGHTS = ("model", "int8")  # in the dtype of activations; the layers' matrices as eight-bit integers (see int8)


def with_key_heads(arch: Arch, tensor: int) -> Arch:
    """The same model for `tensor` devices: where they are more than its key heads, a key head stands several times.

    Each copy serves a part of the query heads that shared it; nothing else changes, and neither does what is computed.

    Raises:
      ValueError: the heads cannot be dealt so.
    """
    if arch.K % tensor == 0:
        return arch
    if tensor % arch.K or arch.G % (tensor // arch.K):
        raise ValueError(f"{tensor} devices are to draw together (engine.devices, or mesh.tensor) and the model has {arch.K} key "
                         f"heads, each for {arch.G} query heads; needed is a divisor of {arch.K}, or {arch.K} times a divisor of "
                         f"{arch.G}")
    return dataclasses.replace(arch, K=tensor)


def repeat_key_heads(x: jax.Array, axes: str, K: int) -> jax.Array:
    """A parameter with the axes `axes` (letters of LAYER_AXES) for K key heads, of which it has K or a divisor of K.

    Keys and values are repeated, y: [G queries | key | value]; query heads are dealt in their order. See with_key_heads.
    """
    letters = axes.split()
    if "K" not in letters or x.shape[letters.index("K")] == K:
        return x
    axis = letters.index("K")
    times, (before, after) = K // x.shape[axis], (x.shape[:axis], x.shape[axis + 2:])
    if "y" not in letters:  # G, query heads alone: they are dealt
        return x.reshape(*before, K, x.shape[axis + 1] // times, *after)
    queries, shared = jnp.split(x, [x.shape[axis + 1] - 2], axis=axis + 1)
    queries = queries.reshape(*before, K, queries.shape[axis + 1] // times, *after)
    return jnp.concatenate([queries, jnp.repeat(shared, times, axis=axis)], axis=axis + 1)


def convert(model: Llama, K: int, dtype: Any, weights: str, mesh: Mesh, *, is_unrolled: bool = False) -> Llama:
    """The learner's stacked model as the engines on `mesh` keep it; one that is so already stays as it is.

    Layers go one by one, so that only one of them is on its way between the chips at a time, and in the form that is kept.

    Args:
      K: key heads that the engine has. dtype: of what is not rounded. weights: one of WEIGHTS.
      mesh: with the axis names of ENGINE_RULES, and perhaps others, over which everything is repeated.
      is_unrolled: each layer by itself instead of stacked.
    """
    blocks = mesh.shape["tensor"]
    # On the way each device has a part of its own: straight to copies, the compiler may let every device hold the whole.
    spread = mesh_lib.ENGINE_RULES | {"D": tuple(axis for axis in mesh.axis_names if axis != "tensor")}

    def cast(path: Any, x: jax.Array) -> jax.Array:
        if parameter_name(path) in _KEPT or x.dtype == jnp.int8:
            return x
        return repeat_key_heads(x.astype(dtype), axes(path, x.ndim), K)

    def place(path: Any, x: jax.Array) -> jax.Array:
        letters = axes(path, x.ndim)
        for cut in (mesh_lib.fitting(mesh, x.shape, letters, spread), mesh_lib.spec(letters, mesh_lib.ENGINE_RULES)):
            x = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, cut))
        return x

    def keep(part: Any) -> Any:
        part = jax.tree_util.tree_map_with_path(cast, part)
        if weights == "int8" and isinstance(part, Layers):
            _quantise(part, blocks)
        return jax.tree_util.tree_map_with_path(place, part)

    model = jax.tree.map(lambda x: x, model)
    layers, model.layers = model.layers, None
    model = keep(model)
    if is_unrolled:
        count = jax.tree.leaves(layers)[0].shape[0]
        model.layers = nnx.data(tuple(keep(jax.tree.map(lambda x: x[i], layers)) for i in range(count)))
    else:
        model.layers = nnx.data(jax.lax.map(keep, layers))
    return model


def axes(path: Any, ndim: int) -> str:
    """The letters of the axes of the parameter at a path of the model's tree; without L where it is of one layer."""
    letters = {**LAYER_AXES, **TOP_AXES}[parameter_name(path)]
    return letters if ndim == len(letters.split()) else letters.removeprefix("L ")


_KEPT = {f"{name}_scale" for name in MATRICES}  # in float32


def _quantise(layer: Layers, blocks: int) -> None:
    """Rounds the matrices of one layer that are not rounded yet. What devices share of an input is a block of its own."""
    for name, inputs in MATRICES.items():
        w = getattr(layer, name)[...]
        if w.dtype != jnp.int8:
            is_shared = LAYER_AXES[f"{name}_scale"].split()[1] == "N"
            values, scale = int8.quantise_matrix(w, inputs, blocks if is_shared else 1)
            setattr(layer, name, nnx.Param(values))
            setattr(layer, f"{name}_scale", nnx.Param(scale))
