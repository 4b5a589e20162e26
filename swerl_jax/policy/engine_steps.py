"""What an engine runs on its devices, with where everything lives: one jitted function a step, and its caches.

The engine calls these functions; the planner lowers the same ones on shapes, for devices that are not there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swerl_jax.policy import decode_kernel, engine_weights, gpu_attention, sampler, splash
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.llama import Llama, parameter_name

# Of keys, values and, where they are rounded, their scales.
PREFIX_AXES = ("P K H S", "P K S H", "P K S", "P K S")
BRANCH_AXES = ("P R K H C", "P R K C H", "P R K C", "P R K C")
# Weight → the order of its axes in a TPU's memory, slowest first: as decoding multiplies by them. As they come, every tick
# would turn every one of them first. The last two change places where a device's part of the last one leaves lanes empty.
WEIGHT_LAYOUTS = {"qkv": (0, 2, 3, 1, 4), "gate_up": (0, 2, 1, 3)}


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """Shapes and sampling of an engine.

    Attributes:
      groups, samples: P slots of R lanes that decode together.
      prefix_buckets: sizes S that a padded prefix may take, ascending.
      branch_buckets: sizes C that a branch's cache may take, ascending.
      ticks: tokens a chunk; the host looks between chunks only.
      extend_tokens: ids fed in one call when a branch is given ids it did not draw.
      stop_ids: ids that end a turn.
      temperature: of the distribution that is sampled and whose log-probabilities are reported; 0 is greedy.
      seed, purpose: of the random numbers.
      dtype: of weights, caches and matrix products.
      cache: of keys and values: "model", in dtype, or "int8", rounded, with a scale for each token and key head.
      weights: one of engine_weights.WEIGHTS; int8 rounds the layers' matrices and what they are multiplied by.
      is_unrolled: layers as separate arrays in an unrolled loop (fast on CPU) instead of a scan.
      attention: "plain"; "kernel", the TPU's of decoding and prefilling, for layers that are not unrolled; "auto": by the
        devices, which is on a GPU cuDNN's for prefilling (see gpu_attention).

    Raises ValueError for a kernel with unrolled layers.
    """

    groups: int
    samples: int
    prefix_buckets: tuple[int, ...]
    branch_buckets: tuple[int, ...]
    stop_ids: tuple[int, ...]
    ticks: int = 32
    extend_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0
    purpose: str = "train"
    dtype: Any = jnp.float32
    is_unrolled: bool = True
    attention: str = "auto"
    weights: str = "model"
    cache: str = "model"

    def __post_init__(self) -> None:
        if self.attention == "kernel" and self.is_unrolled:
            raise ValueError("engine.attention is kernel and the layers are unrolled: the kernel reads the caches of all layers "
                             "from one array; set engine.unroll_layers=false")

    @property
    def spare_columns(self) -> int:
        """Columns of a branch's cache beyond its bucket: a chunk, or what is fed in one call, may reach past its end."""
        return max(self.ticks, self.extend_tokens)


class EngineSteps:
    """The jitted functions of an engine.

    Attributes:
      arch: as the devices hold it; see engine_weights.with_key_heads.
      has_kernel: decoding attends with the TPU's kernel.
      prefill, extend, decode: see sampler; the caches are donated and come back as they went in, so that each function
        is compiled once a shape.
    """

    def __init__(self, arch: Arch, settings: EngineSettings, mesh: Mesh):
        self.arch = arch = engine_weights.with_key_heads(arch, mesh.shape["tensor"])
        self.settings, self.mesh = settings, mesh
        common = {"arch": arch, "dtype": settings.dtype}
        caches = self._caches(lambda axes, dtype: self._cache_sharding(axes))
        self._is_tpu = is_tpu = mesh.devices.flat[0].platform == "tpu"
        self.has_kernel = has_kernel = settings.attention == "kernel" or (settings.attention == "auto" and is_tpu and not settings.is_unrolled)
        kernel = partial(decode_kernel.attend_cached, mesh=mesh, is_interpreted=not is_tpu) if has_kernel else None
        place = mesh_lib.placer(mesh, mesh_lib.ACTIVATION_RULES)
        causal = gpu_attention.causal(mesh, settings.dtype, arch.H) if settings.attention == "auto" else None
        prefill = partial(sampler.prefill, attention=self._causal if has_kernel else causal, place=place, **common)
        self._loads: dict[Any, Any] = {}
        self.prefill = jax.jit(prefill, donate_argnames="caches", out_shardings=caches)
        self.extend = jax.jit(partial(sampler.extend, **common), donate_argnames="caches", out_shardings=caches)
        decode = partial(sampler.decode, stop_ids=settings.stop_ids, ticks=settings.ticks, kernel=kernel,
                         place=mesh_lib.placer(mesh, mesh_lib.ENGINE_RULES), **common)
        everywhere = NamedSharding(mesh, PartitionSpec())  # every process of a team reads what was drawn
        self.decode = jax.jit(decode, donate_argnames="caches", static_argnames="columns", out_shardings=(caches, everywhere))

    @property
    def compilations(self) -> int:
        """How many times prefill, extend and decode were compiled."""
        return sum(function._cache_size() for function in (self.prefill, self.extend, self.decode))

    def caches(self, S: int, C: int) -> sampler.Caches:
        """The shapes and shardings of the caches for prefixes of S and branches of C tokens."""
        arch, settings = self.arch, self.settings
        sizes = {"P": settings.groups, "R": settings.samples, "K": arch.K, "H": arch.H, "S": S,
                 "C": C + settings.spare_columns, "L": arch.L}

        def shape(axes: str, dtype: Any) -> jax.ShapeDtypeStruct:
            letters = axes if settings.is_unrolled else "L " + axes
            return jax.ShapeDtypeStruct(tuple(sizes[letter] for letter in letters.split()), dtype,
                                        sharding=self._cache_sharding(axes))

        return self._caches(shape)

    def live_columns(self, length: int, C: int) -> int:
        """A power of two of chunks that covers `length`, so that short branches are not charged for long ones."""
        columns = 0 if length == 0 else self.settings.ticks
        while columns < length:
            columns *= 2
        return min(columns, C + self.settings.spare_columns)

    def load(self, model: Llama, mesh: Mesh | None = None) -> Llama:
        """The learner's model → the engine's (see engine_weights.convert), on `mesh`: of several engines, or None, its own."""
        return self.loading(model, mesh or self.mesh)(model)

    def weights(self, model: Llama, mesh: Mesh | None = None) -> Llama:
        """The shapes, shardings and, on a TPU, layouts of what `load` makes of a model of such shapes."""
        mesh = mesh or self.mesh
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._weight_format(path, x.shape, mesh)),
            jax.eval_shape(self._convert(mesh), model))

    def _convert(self, mesh: Mesh) -> Any:
        return partial(engine_weights.convert, K=self.arch.K, dtype=self.settings.dtype, weights=self.settings.weights, mesh=mesh,
                       is_unrolled=self.settings.is_unrolled)

    def loading(self, model: Llama, mesh: Mesh) -> Any:
        """`load` for models of this structure, jitted: it may be lowered on shapes."""
        key = jax.tree.structure(model), mesh
        if key not in self._loads:
            formats = jax.tree.map(lambda x: x.format if self._is_tpu else x.sharding, self.weights(model, mesh))
            self._loads[key] = jax.jit(self._convert(mesh), out_shardings=formats)
        return self._loads[key]

    def trace(self, model: Llama, S: int, C: int, columns: int) -> dict[str, Any]:
        """{"reshard", "prefill", "decode"}: what `load`, `prefill` and `decode` run, traced on shapes (see Learner.trace).

        Args:
          model: shapes and shardings of the learner's parameters.
          S, C: sizes of the caches; prefixes as long are filled, one in every data shard. columns: of the branch caches that
          decoding reads.
        """
        settings, weights, caches, n = self.settings, self.weights(model), self.caches(S, C), self.data_shards
        P, R = settings.groups, settings.samples
        prefix_length, (length, next_id, budget, drawn) = _ints(P), (_ints(P, R) for _ in range(4))
        slots = sampler.Slots(prefix_length, length, next_id, budget, drawn, jax.ShapeDtypeStruct((P, R, 2), jnp.uint32),
                              jax.ShapeDtypeStruct((P, R), jnp.float32))
        is_new = jax.ShapeDtypeStruct((n,), bool)
        return {"reshard": self.loading(model, self.mesh).trace(model),
                "prefill": self.prefill.trace(model=weights, caches=caches, slot=_ints(), ids=_ints(n, S), is_new=is_new),
                "decode": self.decode.trace(model=weights, caches=caches, slots=slots, columns=columns)}

    @property
    def data_shards(self) -> int:
        """How many parts the slots are dealt over."""
        return self.mesh.shape["slice"] * self.mesh.shape["fsdp"]

    def _causal(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """The TPU's kernel on rows that are all prefix."""
        n, S = q.shape[:2]
        visits = splash.plan(jnp.zeros((n, 0), jnp.int32), jnp.ones((n, S), bool), RowShape(S, splash.LANES, 0))
        return splash.attend_rows(q, k, v, visits, mesh=self.mesh, is_interpreted=not self._is_tpu)

    def _caches(self, make: Callable[[str, Any], Any]) -> sampler.Caches:
        """make(axes of one layer, dtype) for each array of the caches."""
        settings = self.settings
        dtypes = {"model": (settings.dtype,) * 2, "int8": (jnp.int8, jnp.int8, jnp.float32, jnp.float32)}[settings.cache]

        def cache(axes: tuple[str, ...]) -> Any:
            layer = tuple(map(make, axes, dtypes))
            return (layer,) * self.arch.L if settings.is_unrolled else layer

        return sampler.Caches(cache(PREFIX_AXES), cache(BRANCH_AXES))

    def _weight_format(self, path: Any, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding | Format:
        order = WEIGHT_LAYOUTS.get(parameter_name(path))
        sharding = mesh_lib.sharding(mesh, engine_weights.axes(path, len(shape)), mesh_lib.ENGINE_RULES)
        if not self._is_tpu or not order or len(shape) != len(order):
            return sharding
        if sharding.shard_shape(shape)[order[-1]] % splash.LANES:
            order = (*order[:-2], order[-1], order[-2])
        return Format(Layout(order), sharding)

    def _cache_sharding(self, axes: str) -> NamedSharding:
        letters = axes if self.settings.is_unrolled else "L " + axes
        return mesh_lib.sharding(self.mesh, letters, mesh_lib.ENGINE_RULES)


def _ints(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
