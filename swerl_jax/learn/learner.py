"""The learner: its state, the gradient of one microbatch, and the optimiser step.

The loss of a step is one weighted sum over all its tokens. Microbatches add their parts of the gradient, in any number
and order, and one update follows; so accumulation, packing and sharding change nothing but rounding. The sum is float32,
however narrow the parameters: 4 bytes for each that learns.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import nnx
from jax.sharding import Mesh

from swerl_jax.learn import importance
from swerl_jax.learn.batch import Batch
from swerl_jax.learn.loss import LOSSES, LossSettings, clipped_fractions, k3
from swerl_jax.policy import gpu_attention, mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.llama import Llama, Lora, is_low_rank
from swerl_jax.policy.rows import row_attention, row_logp


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (arXiv 1711.05101) or Muon with warm-up. SWE-RL discloses no value but "Adam": all of these are ours.

    Muon (K. Jordan, 2024; optax.contrib.muon) updates the layers' matrices by their momentum made orthogonal, at
    `muon_learning_rate` with AdamW's schedule, and the rest by Adam. A small model learns from scratch faster with it.

    Attributes:
      learning_rate: the peak. schedule: "constant" or "cosine" (to 0 at `total_steps`). warmup_steps: linear from 0.
      beta1, beta2, epsilon, weight_decay: AdamW's. max_grad_norm: the global norm is clipped to it.
      muon_learning_rate: the peak for matrices; 0: AdamW for all parameters.
      moments_dtype: of the moments between updates, each of which is computed in float32; None: as the parameters.
        bfloat16 holds a moving average while its beta is below about 0.99: nearer to 1 what is new is rounded away.
    """

    learning_rate: float
    schedule: str
    warmup_steps: int
    total_steps: int
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    muon_learning_rate: float = 0.0
    moments_dtype: Any = None

    def rate(self) -> optax.Schedule:
        """Update count → learning rate; the first update of a warm-up of n steps takes 1/n of the peak."""
        def schedule(count: jax.Array) -> jax.Array:
            step = jnp.asarray(count, jnp.float32) + 1
            warm = jnp.minimum(step / max(self.warmup_steps, 1), 1.0)
            span = max(self.total_steps - self.warmup_steps, 1)
            done = jnp.clip((step - self.warmup_steps) / span, 0.0, 1.0)
            fall = 0.5 * (1 + jnp.cos(jnp.pi * done)) if self.schedule == "cosine" else 1.0
            return self.learning_rate * warm * fall

        if self.schedule not in ("constant", "cosine"):
            raise ValueError(f"unknown schedule {self.schedule!r}; choose constant or cosine")
        return schedule

    def build(self, dtype: Any = jnp.float32) -> optax.GradientTransformation:
        """The optax transformation for parameters of `dtype`; clipping happens in Learner.update, which knows the norm."""
        kept = self.moments_dtype or dtype
        is_exact = jnp.dtype(kept) == jnp.dtype(dtype) == jnp.float32
        return self._exact() if is_exact else _kept_in(self._exact(), kept)

    def _exact(self) -> optax.GradientTransformation:
        if not self.muon_learning_rate:
            return optax.adamw(self.rate(), b1=self.beta1, b2=self.beta2, eps=self.epsilon, weight_decay=self.weight_decay)
        rate, scale = self.rate(), self.muon_learning_rate / self.learning_rate
        return optax.contrib.muon(
            lambda count: rate(count) * scale, adam_learning_rate=rate, adam_b1=self.beta1, adam_b2=self.beta2,
            weight_decay=self.weight_decay, adam_weight_decay=self.weight_decay, muon_weight_dimension_numbers=_matrices)


def _kept_in(inner: optax.GradientTransformation, dtype: Any) -> optax.GradientTransformation:
    """`inner`, its state rounded to dtype between updates; counts stay as they are."""
    def cast(state: Any, to: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(to) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)

    def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = inner.update(gradient, cast(state, jnp.float32), params)
        return updates, cast(state, dtype)

    return optax.GradientTransformation(lambda params: cast(inner.init(params), dtype), update)


def _matrices(params: Llama) -> Any:
    """For optax.contrib.muon: which axes of a parameter are summed over and which it gives; None: no matrix."""
    axes = {"qkv": ((1,), (2, 3, 4)), "out": ((1, 2, 3), (4,)), "gate_up": ((1,), (2, 3)), "down": ((1,), (2,))}
    found = {f"layers/{name}": optax.contrib.MuonDimensionNumbers(*pair) for name, pair in axes.items()}
    return jax.tree_util.tree_map_with_path(lambda path, _: found.get(_name(path)), params)


@partial(jax.tree_util.register_dataclass, data_fields=["step", "params", "opt"], meta_fields=[])
@dataclasses.dataclass
class State:
    """All that training changes on the devices: int32 count of updates, parameters, optimiser moments.

    With a Lora only its parameters change, and the optimiser keeps nothing for the others.
    """

    step: jax.Array
    params: Llama
    opt: Any


# Sums over the loss tokens of a batch (max for *_max); divide by "tokens" for means.
ZERO_SUMS = {"loss": 0.0, "tokens": 0.0, "entropy": 0.0, "kl": 0.0, "clip_low": 0.0, "clip_high": 0.0,
             "logp_diff": 0.0, "logp_diff_max": 0.0, "capped": 0.0}


class Learner:
    """Initialises, differentiates and updates a model on a mesh.

    Args:
      dtype: of activations and matrix products; parameters stay in param_dtype.
      lora: what learns in place of the parameters, which are then frozen; None: all of them.
      vocabulary_chunk, remat: see rows.row_logp. attention: see rows.row_attention.

    Raises ValueError when the mesh does not divide the model's sizes.
    """

    def __init__(self, arch: Arch, mesh: Mesh, optimizer: OptimizerSettings, loss: LossSettings, *,
                 dtype: Any = jnp.float32, param_dtype: Any = jnp.float32, vocabulary_chunk: int = 1024,
                 remat: str = "dots", lora: Lora | None = None, attention: str = "auto"):
        self.arch, self.mesh, self.optimizer, self.loss, self.lora = arch, mesh, optimizer, loss, lora
        self.param_dtype = param_dtype
        causal = gpu_attention.causal(mesh, dtype, arch.H)
        self._forward = partial(row_logp, arch=arch, temperature=loss.temperature, dtype=dtype, remat=remat,
                                vocabulary_chunk=vocabulary_chunk, attention=row_attention(attention, mesh, causal),
                                place=mesh_lib.placer(mesh, mesh_lib.ACTIVATION_RULES))
        self._rate = optimizer.rate()
        self._transformation = optimizer.build(jnp.float32 if lora else param_dtype)
        self.abstract = self._abstract_state()
        # Every output says where it lives: what comes back fits the function that was compiled for what went in.
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
        everywhere = mesh_lib.sharding(mesh, "", mesh_lib.LEARNER_RULES)
        accumulator = self._learned(shardings.params), {name: everywhere for name in ZERO_SUMS}
        self._make_low_rank = jax.jit(lambda key: self._learned(Llama(arch, key, param_dtype, lora)),
                                      out_shardings=self._learned(shardings.params))
        self._init = jax.jit(self._make_state, out_shardings=shardings)
        self._begin = jax.jit(self._fresh, donate_argnums=0, out_shardings=shardings)
        self._zeros = jax.jit(self._make_accumulator, out_shardings=accumulator)
        self._add = jax.jit(self._accumulate, donate_argnames="gradient", out_shardings=accumulator)
        self._apply = jax.jit(self._update, donate_argnames="state", out_shardings=(shardings, everywhere))
        self._logp = jax.jit(lambda params, batch: self._forward(params, rows=batch)[0], out_shardings=everywhere)

    @property
    def compilations(self) -> int:
        """How many times the gradient, the update and the plain forward pass were compiled."""
        return sum(function._cache_size() for function in (self._add, self._apply, self._logp))

    def init(self, seed: int) -> State:
        """A fresh state, sharded over the mesh."""
        with jax.set_mesh(self.mesh):
            return self._init(jax.random.key(seed))

    def begin(self, params: Llama) -> State:
        """A state of a new phase: these parameters, a fresh optimiser. `params` is consumed.

        With a Lora that `params` lack (see `base`), fresh low-rank parts join them.
        """
        with jax.set_mesh(self.mesh):
            if jax.tree.structure(params) != jax.tree.structure(self.abstract.params):
                arrays = params_to_arrays(self._make_low_rank(jax.random.key(0))) | params_to_arrays(params)
                params = jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], self.abstract.params)
            return self._begin(params)

    @property
    def base(self) -> Llama:
        """The shapes and shardings of the parameters without those of the Lora."""
        return jax.tree_util.tree_map_with_path(lambda path, x: None if is_low_rank(_name(path)) else x, self.abstract.params)

    @property
    def summed(self) -> Llama:
        """The shapes and shardings of the gradient: float32, of the parameters that learn."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding),
                            self._learned(self.abstract.params))

    def place(self, batch: Batch) -> Batch:
        """The batch's rows on the mesh."""
        with_rows = mesh_lib.sharding(self.mesh, "B T", mesh_lib.LEARNER_RULES)
        if with_rows.is_fully_addressable:
            return jax.tree.map(lambda x: jax.device_put(x, with_rows), batch)
        # Every process has all rows and places its own.
        return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, with_rows, lambda index: x[index]), batch)

    def logp(self, params: Llama, batch: Batch) -> np.ndarray:
        """float32 [B T−S]: log-probability of every target under `params`, from ids alone."""
        return np.asarray(self._logp(params, self.place(batch)))

    def gradient(self, params: Llama, batches: Sequence[Batch], ref_logp: Sequence[np.ndarray] | None = None,
                 ) -> tuple[Any, dict[str, float]]:
        """The gradient of the loss over all `batches`, and sums over their tokens (see ZERO_SUMS).

        Args:
          ref_logp: of the reference policy on each batch; needed when loss.kl_coefficient is not 0.

        Raises:
          ValueError: the reference's log-probabilities are missing.
        """
        if self.loss.kl_coefficient and ref_logp is None:
            raise ValueError("kl_coefficient is not 0: pass the reference policy's log-probabilities")
        gradient, sums = self._zeros(params)
        for i, batch in enumerate(batches):
            ref = batch.logp if ref_logp is None else ref_logp[i]
            batch, ref = self.place(batch), self.place(ref)
            gradient, sums = self._add(params, gradient=gradient, sums=sums, batch=batch, ref_logp=ref)
        return gradient, {name: float(value) for name, value in jax.device_get(sums).items()}

    def update(self, state: State, gradient: Any) -> tuple[State, dict[str, float]]:
        """One AdamW step with the gradient clipped by its global norm; `state` is consumed.

        Returns:
          (state, {"grad_norm", "lr", "skipped"}): a non-finite gradient changes nothing but is reported as skipped 1.
        """
        state, report = self._apply(state=state, gradient=gradient)
        return state, {name: float(value) for name, value in jax.device_get(report).items()}

    def trace(self, batch: Batch) -> dict[str, Any]:
        """{"gradient", "update"}: what `gradient` runs on a microbatch and what `update` runs, traced on shapes alone.

        Nothing is allocated, so the mesh may be of devices that are not there: `jax.stages.Traced`, to count or compile.

        Args:
          batch: of arrays or anything else with shape and dtype.
        """
        everywhere = mesh_lib.sharding(self.mesh, "", mesh_lib.LEARNER_RULES)
        batch = self._shapes(batch)
        sums = {name: jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere) for name in ZERO_SUMS}
        gradient = self._add.trace(self.abstract.params, gradient=self.summed, sums=sums, batch=batch, ref_logp=batch.logp)
        return {"gradient": gradient, "update": self._apply.trace(state=self.abstract, gradient=self.summed)}

    def trace_logp(self, batch: Batch) -> Any:
        """What `logp` runs on a microbatch, as `trace`."""
        return self._logp.trace(self.abstract.params, self._shapes(batch))

    def _shapes(self, batch: Batch) -> Batch:
        rows = mesh_lib.sharding(self.mesh, "B T", mesh_lib.LEARNER_RULES)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), batch)

    def _make_state(self, key: jax.Array) -> State:
        return self._fresh(Llama(self.arch, key, self.param_dtype, self.lora))

    def _fresh(self, params: Llama) -> State:
        return State(jnp.zeros((), jnp.int32), params, self._transformation.init(self._learned(params)))

    def _learned(self, params: Llama) -> Llama:
        """The tree without the leaves that are frozen."""
        if self.lora is None:
            return params
        return jax.tree_util.tree_map_with_path(lambda path, x: x if is_low_rank(_name(path)) else None, params)

    def _make_accumulator(self, params: Llama) -> tuple[Any, dict[str, jax.Array]]:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), self._learned(params))
        return zeros, {name: jnp.float32(value) for name, value in ZERO_SUMS.items()}

    def _abstract_state(self) -> State:
        with jax.set_mesh(self.mesh):
            shapes = jax.eval_shape(lambda: self._make_state(jax.random.key(0)))  # the key, too, on no device
            # By path: where an optimiser keeps nothing for a parameter, the one tree has no leaf and the other has.
            shardings = dict(jax.tree_util.tree_leaves_with_path(nnx.get_named_sharding(shapes, self.mesh)))
        for path, x in jax.tree_util.tree_leaves_with_path(shapes):
            if any(cut and size % mesh_lib.extent(self.mesh, cut) for size, cut in zip(x.shape, shardings[path].spec)):
                raise ValueError(f"{_name(path)} is {list(x.shape)} and cannot be cut as {shardings[path].spec} over the mesh "
                                 f"{dict(self.mesh.shape)}; needed are mesh sizes that divide the model's")
        return jax.tree_util.tree_map_with_path(
            lambda path, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[path]), shapes)

    def _loss(self, params: Llama, batch: Batch, ref_logp: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        settings = self.loss
        logp, entropy = self._forward(params, rows=batch)
        logp = jnp.where(batch.is_sampled, logp, 0.0)
        old, advantage, cap = batch.logp, batch.advantage, settings.importance_cap
        if cap:
            old = jax.lax.stop_gradient(logp)
            advantage = advantage * importance.weight(old, batch.logp, cap)
        token_loss = LOSSES[settings.kind](logp, old, advantage, settings)
        kl = k3(logp, jnp.where(batch.is_sampled, ref_logp, 0.0))
        if settings.kl_coefficient:
            token_loss = token_loss + settings.kl_coefficient * kl
        loss = jnp.sum(jnp.where(batch.is_sampled, batch.weight * token_loss, 0.0))
        low, high = clipped_fractions(logp, old, advantage, settings)
        difference = logp - batch.logp
        per_token = {"tokens": 1.0, "entropy": entropy, "kl": kl, "clip_low": low, "clip_high": high,
                     "logp_diff": jnp.abs(difference), "capped": difference > math.log(cap) if cap else 0.0}
        sums = {name: jnp.sum(jnp.where(batch.is_sampled, value, 0.0)) for name, value in per_token.items()}
        return loss, {**sums, "loss": loss, "logp_diff_max": jnp.max(jnp.where(batch.is_sampled, jnp.abs(difference), 0.0))}

    def _accumulate(self, params: Llama, gradient: Any, sums: dict[str, jax.Array], batch: Batch, ref_logp: jax.Array):
        part, new = jax.grad(lambda learned: self._loss(_joined(learned, params), batch, ref_logp), has_aux=True)(
            self._learned(params))
        added = {name: jnp.maximum(value, new[name]) if name.endswith("_max") else value + new[name]
                 for name, value in sums.items()}
        return jax.tree.map(jnp.add, gradient, part), added

    def _update(self, state: State, gradient: Any) -> tuple[State, dict[str, jax.Array]]:
        norm = optax.tree.norm(gradient)
        is_finite = jnp.isfinite(norm)
        scale = jnp.minimum(1.0, self.optimizer.max_grad_norm / jnp.maximum(norm, 1e-30))
        gradient = jax.tree.map(lambda g: g * scale, gradient)
        learned = self._learned(state.params)
        updates, opt = self._transformation.update(gradient, state.opt, learned)
        new = State(state.step + 1, _joined(_added(learned, updates, state.step), state.params), opt)
        new = jax.tree.map(lambda a, b: jnp.where(is_finite, a, b), new, state)
        return new, {"grad_norm": norm, "lr": self._rate(state.step), "skipped": 1.0 - is_finite}


def _added(params: Llama, updates: Llama, step: jax.Array) -> Llama:
    """Parameters after an update; those in bfloat16 are rounded at random, or all small updates would be rounded away."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(leaves))
    return tree.unflatten([rounded(p.astype(jnp.float32) + u, key) if p.dtype == jnp.bfloat16 else (p + u).astype(p.dtype)
                           for p, u, key in zip(leaves, jax.tree.leaves(updates), keys, strict=True)])


def rounded(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 → one of the two bfloat16 neighbours, whose mean over keys is x (stochastic rounding; x finite)."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def _joined(learned: Llama, params: Llama) -> Llama:
    """`params` with the leaves that `learned` has."""
    return jax.tree.map(lambda new, old: old if new is None else new, learned, params, is_leaf=lambda x: x is None)


def to_arrays(state: State) -> dict[str, jax.Array]:
    """The state as {path: array}, free of library internals: what a checkpoint holds."""
    return {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(state)}


def from_arrays(abstract: State, arrays: dict[str, jax.Array]) -> State:
    """The inverse of `to_arrays`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_name(path)], abstract)


def params_to_arrays(model: Llama) -> dict[str, jax.Array]:
    """The parameters by name: "embed", "layers/qkv", …"""
    return {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(model)}


def _name(path: Any) -> str:
    parts = [str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", key)))) for key in path]
    return "/".join(part for part in parts if part != "value")
