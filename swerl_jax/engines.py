"""The engines of a run: which processes draw together, what each of them is given, and its shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from swerl_jax.learn import deal
from swerl_jax.learn.processes import ALONE, Processes
from swerl_jax.policy import mesh as mesh_lib
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.engine import Engine, Team
from swerl_jax.policy.engine_steps import EngineSettings, EngineSteps
from swerl_jax.policy.team_engine import TeamEngine

UNROLLED_LAYERS = 16  # above it, tracing every layer costs more than the scan


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the devices of a run are cut for drawing.

    Attributes:
      processes: of the run. team: of them, draw together. tensor: devices that hold one copy of the weights.
      shards: copies within a team.
    """

    processes: int
    team: int
    tensor: int
    shards: int

    @property
    def teams(self) -> int:
        """How many engines there are."""
        return self.processes // self.team


def layout(config: ml_collections.ConfigDict, devices: Sequence[jax.Device]) -> Layout:
    """Of a run on these devices.

    Raises:
      ValueError: engine.devices does not divide them.
    """
    processes = len({device.process_index for device in devices})
    own = len(devices) // processes
    tensor = config.engine.devices or min(config.mesh.tensor, own)
    team = max(1, tensor // own)
    if tensor <= own and own % tensor or tensor > own and tensor % own or processes % team:
        raise ValueError(f"engine.devices is {tensor}; needed is a divisor of the {own} devices of a process, or a multiple of "
                         f"them that divides all {len(devices)}")
    return Layout(processes, team, tensor, team * own // tensor)


def engine(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, stop_ids: tuple[int, ...], *, prompts: int, samples: int,
           groups: int, temperature: float, purpose: str, processes: Processes = ALONE) -> Engine:
    """This process's engine: its team's share of `prompts` × `samples` answers at a time.

    Args:
      mesh: the learner's. groups: slots of all engines together, for whole groups.

    Raises:
      ValueError: as `layout`, and as engine_weights.with_key_heads.
    """
    devices = mesh.devices.flatten()
    cut = layout(config, devices)
    index, place = divmod(processes.index, cut.team)
    own = devices.reshape(cut.teams, -1)[index]
    own_mesh = mesh_lib.make_mesh({"fsdp": cut.shards, "tensor": cut.tensor}, list(own))
    lanes, slots = share(cut, prompts, samples, groups)
    settings = _settings(config, arch, own_mesh, stop_ids, slots, lanes, temperature, purpose)
    if cut.processes == 1:
        return Engine(arch, settings, own_mesh)
    channel = processes.channel(f"{purpose}/{index}") if cut.team > 1 else None
    return TeamEngine(arch, settings, own_mesh, devices, Team(index, cut.teams, place == 0), channel)


def evaluation_groups(config: ml_collections.ConfigDict, prompts: int) -> int:
    """Slots of all engines together for `prompts` held out: as many as take the memory of training's, no more than there are."""
    branch = config.answer.max_tokens + max(config.engine.ticks, EngineSettings.extend_tokens)
    training, evaluation = (prefix_buckets(config)[-1] + samples * branch for samples in (config.rl.samples, config.eval.samples))
    return max(1, min(prompts, config.engine.groups * training // evaluation))


def planned(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, prompts: int, samples: int, groups: int) -> EngineSteps:
    """What all engines of a run run, as one on the learner's devices: each of these does the same as in its own engine.

    Args:
      prompts, samples, groups: as of `engine`.
    """
    devices = mesh.devices.flatten()
    cut = layout(config, devices)
    lanes, slots = share(cut, prompts, samples, groups)
    whole = mesh_lib.make_mesh({"fsdp": cut.teams * cut.shards, "tensor": cut.tensor}, list(devices))
    settings = _settings(config, arch, whole, (0,), cut.teams * slots, lanes, config.engine.temperature, "plan")
    return EngineSteps(arch, settings, whole)


def share(cut: Layout, prompts: int, samples: int, groups: int) -> tuple[int, int]:
    """(lanes of a slot, slots of an engine), as deal.answer deals `prompts` of `samples`; slots divide among its shards."""
    parts = deal.parts(prompts, samples, cut.teams)
    slots = -(-groups * parts // cut.teams)
    return samples // parts, -(-slots // cut.shards) * cut.shards


def prefix_buckets(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """As configured, or a quarter, a half and the whole of the prompt budget."""
    whole = config.prompt.max_tokens
    return tuple(sorted(config.engine.prefix_buckets or {-(-whole // 4), -(-whole // 2), whole}))


def _settings(config: ml_collections.ConfigDict, arch: Arch, mesh: Mesh, stop_ids: tuple[int, ...], slots: int, lanes: int,
              temperature: float, purpose: str) -> EngineSettings:
    e = config.engine
    is_cpu = mesh.devices.flat[0].platform == "cpu"
    unroll = {"true": True, "false": False, "auto": is_cpu and arch.L <= UNROLLED_LAYERS}[str(e.unroll_layers).lower()]
    return EngineSettings(
        groups=slots, samples=lanes, prefix_buckets=prefix_buckets(config),
        branch_buckets=(config.answer.max_tokens,), stop_ids=stop_ids, ticks=e.ticks, temperature=temperature,
        seed=config.seed, purpose=purpose, dtype=jnp.dtype(config.model.dtype), is_unrolled=unroll, attention=e.attention,
        weights=e.weights, cache=e.cache)
