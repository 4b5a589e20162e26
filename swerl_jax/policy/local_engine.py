"""An engine on the devices of one process, fed from a learner that spans all of them.

On the path: learner's parameters → here → engine's weights. Every process holds whole weights, cut over its own devices
alone, so that it prefills and decodes without waiting for anyone; only taking new weights is done by all at once.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.engine import Engine
from swerl_jax.policy.engine_steps import EngineSettings
from swerl_jax.policy.llama import LAYER_AXES, TOP_AXES, Llama, parameter_name


class LocalEngine(Engine):
    """See the module's text. All processes call `load` together, and everything else when they like.

    Args:
      mesh: of this process's devices; of the same shape on every process.
      devices: all devices of the run, in the learner's mesh's order: process by process.
    """

    def __init__(self, arch: Arch, settings: EngineSettings, mesh: Mesh, devices: np.ndarray):
        super().__init__(arch, settings, mesh)
        shape = -1, *mesh.devices.shape
        self._all = Mesh(devices.reshape(shape), ("process", *mesh.axis_names), axis_types=(AxisType.Auto,) * len(shape))
        self._spread = jax.jit(self._to_every_process)
        # What comes from the spread is this engine's alone, so stacked weights, which keep their shapes, may stay in place.
        convert = jax.jit(self._steps.convert, donate_argnums=() if settings.is_unrolled else 0)
        self._steps.load = lambda model: convert(self._own(model))

    def _to_every_process(self, model: Llama) -> Llama:
        """Cast and cut as an engine keeps it, once on every process; layer by layer, so that no more than one is in flight."""
        def place(path: Any, x: jax.Array) -> jax.Array:
            axes = {**LAYER_AXES, **TOP_AXES}[parameter_name(path)]
            one = NamedSharding(self._all, mesh_lib.spec(axes.removeprefix("L "), mesh_lib.ENGINE_RULES))

            def cast(y: jax.Array) -> jax.Array:
                return jax.lax.with_sharding_constraint(y.astype(self.settings.dtype), one)

            return jax.lax.map(cast, x) if axes.startswith("L ") else cast(x)

        return jax.tree_util.tree_map_with_path(place, model)

    def _own(self, model: Llama) -> Llama:
        """This process's copy as arrays of its own mesh; nothing is copied."""
        def take(path: Any, x: jax.Array) -> jax.Array:
            axes = {**LAYER_AXES, **TOP_AXES}[parameter_name(path)]
            held = {shard.device: shard.data for shard in x.addressable_shards}
            return jax.make_array_from_single_device_arrays(
                x.shape, mesh_lib.sharding(self.mesh, axes, mesh_lib.ENGINE_RULES), [held[d] for d in self.mesh.devices.flat])

        return jax.tree_util.tree_map_with_path(take, self._spread(model))
