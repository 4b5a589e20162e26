"""An engine on the devices of one or a few processes, a *team*, fed from a learner that spans all teams.

On the path: learner's parameters → here → engine's weights. Every team holds whole weights, cut over its own devices alone,
so that it prefills and decodes without waiting for other teams; only taking new weights is done by all at once, over the
devices of all, in the form and the layout in which they are kept. What runs on devices of several processes must be started by
each of them: the leader of a team tells the others what it is about to run, and they run the same.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from swerl_jax.policy import engine_weights
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.engine import Engine, T, Team
from swerl_jax.policy.engine_steps import EngineSettings
from swerl_jax.policy.llama import Llama

_END = pickle.dumps(None)


class Channel(Protocol):
    """From a team's leader to its followers."""

    def tell(self, words: bytes) -> None:
        """The leader's: every follower will hear it, in order."""

    def hear(self) -> bytes:
        """A follower's: what was told next; waits for it."""

    def forget(self) -> None:
        """The leader's: all that was told so far has been heard by all."""


class TeamEngine(Engine):
    """See the module's text. All processes call `load`, `unload` and `serve` together; the leader alone calls the rest.

    Args:
      mesh: of this team's devices; of the same shape in every team.
      devices: all devices of the run, in the learner's mesh's order: team by team, process by process.
      team: which one this is, and whether this process leads it.
      channel: within this team; None where it is one process.
    """

    def __init__(self, arch: Arch, settings: EngineSettings, mesh: Mesh, devices: np.ndarray, team: Team,
                 channel: Channel | None = None):
        super().__init__(arch, settings, mesh)
        self.team, self._channel = team, channel
        shape = -1, *mesh.devices.shape
        self._all = Mesh(devices.reshape(shape), ("team", *mesh.axis_names), axis_types=(AxisType.Auto,) * len(shape))

    def _loaded(self, params: Llama) -> Llama:
        """This team's copy of what all teams load together, as arrays of its own mesh; nothing is copied."""
        def take(path: Any, x: jax.Array) -> jax.Array:
            axes = engine_weights.axes(path, x.ndim)
            held = {shard.device: shard.data for shard in x.addressable_shards}
            return jax.make_array_from_single_device_arrays(
                x.shape, mesh_lib.sharding(self.mesh, axes, mesh_lib.ENGINE_RULES),
                [held[d] for d in self.mesh.devices.flat if d in held])

        return jax.tree_util.tree_map_with_path(take, self._steps.load(params, self._all))

    def serve(self, work: Callable[[], T]) -> T | None:
        """See Engine. A follower runs what its leader runs until that is done, and returns None."""
        if self._channel is None:
            return work()
        if self.team.leads:
            try:
                return work()
            finally:
                self._channel.tell(_END)
        while (told := pickle.loads(self._channel.hear())) is not None:
            name, arguments = told
            super()._do(name, **arguments)
        return None

    def _do(self, name: str, **arguments: Any) -> Any:
        if self._channel is None:
            return super()._do(name, **arguments)
        self._channel.tell(pickle.dumps((name, arguments)))
        done = super()._do(name, **arguments)
        if done is not None:  # it came from all devices of the team
            self._channel.forget()
        return done
