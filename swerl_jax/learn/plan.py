"""The planner: compiles the programs of a training step for TPUs that are not there, and works out bytes and seconds.

Nothing is allocated and no TPU is touched: the real TPU compiler runs on this machine's CPU. Two estimates of time stand
side by side. The roofline takes the larger of operations, bytes that must be moved and bytes between chips, each at its
published rate. The compiler's estimate adds up, without any overlap, its own cycles for the code that it made, kernels at
the rate of their matrix units, and collectives at the rate of the links that they use.
"""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from swerl_jax.learn import flop_count, hlo_count
from swerl_jax.learn.batch import Batch, Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner
from swerl_jax.policy import splash
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.chips import Topology
from swerl_jax.policy.engine_steps import EngineSteps

MARGIN = 0.10  # of the memory that should stay free
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class StepShape:
    """How much one RL step draws and learns, every prompt and answer as long as allowed.

    Attributes:
      prompts, samples: P and R. prompt_tokens, answer_tokens: of a prompt and of an answer. minibatches, epochs: optimiser
        steps an epoch, and passes over what was drawn.
    """

    prompts: int
    samples: int
    prompt_tokens: int
    answer_tokens: int
    minibatches: int = 1
    epochs: int = 1

    @property
    def updates(self) -> int:
        """Optimiser steps."""
        return self.minibatches * self.epochs

    def useful_flops(self, arch: Arch) -> float:
        """Of learning: three forward passes over every token that is needed, once; no padding, nothing computed again."""
        prefix, branch = self.prompts * self.prompt_tokens, self.prompts * self.samples * self.answer_tokens
        keys = (prefix * self.prompt_tokens / 2 + branch * (self.prompt_tokens + self.answer_tokens / 2)) / (prefix + branch)
        return 3 * self.epochs * arch.forward_flops(prefix + branch, keys, head_tokens=branch)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a plan is made of; see assemble.plan_parts. `steps` is None where nothing is sampled."""

    learner: Learner
    packing: PackSettings
    shape: StepShape
    steps: EngineSteps | None


@dataclasses.dataclass(frozen=True)
class Program:
    """One compiled function.

    Attributes:
      name, phase: phase is learn, prefill, decode or reshard. runs: how often it runs in an RL step.
      traced: jax.stages.Traced.
      minimum_bytes: that a chip must read or write in one run, whatever the code.
      live: kernel's name → share of its grid's blocks in which it computes.
    """

    name: str
    phase: str
    runs: float
    traced: Any
    minimum_bytes: float
    live: flop_count.Live = lambda name: 1.0


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of one program; all numbers are of one run and of one chip.

    Attributes:
      extra_bytes: HBM that it needs beside its arguments. fault: what the compiler refused it for, or "".
      flops, memory_bytes, sent_bytes: operations, bytes moved from and to HBM, bytes sent to other chips.
      roofline_s, roof: seconds by the binding roof, and which one: compute, memory or links.
      kernels_s: of kernels at the larger of their operations at the chip's peak and their bytes at its bandwidth.
      compiler_s: cycles_s + kernels_s + links_s, which do not overlap here.
    """

    name: str
    phase: str
    runs: float
    extra_bytes: float
    fault: str = ""
    flops: float = 0.0
    memory_bytes: float = 0.0
    sent_bytes: float = 0.0
    roofline_s: float = 0.0
    roof: str = ""
    cycles_s: float = 0.0
    kernels_s: float = 0.0
    links_s: float = 0.0
    compile_s: float = 0.0

    @property
    def compiler_s(self) -> float:
        """Seconds by the compiler's estimate, nothing overlapped."""
        return self.cycles_s + self.kernels_s + self.links_s


@dataclasses.dataclass(frozen=True)
class Plan:
    """All programs of a step on a topology.

    Attributes:
      resident: HBM of one chip, in bytes, by part, that is held all through a step.
      sampling: the same of what the engine holds; it frees it before learning. gradient_bytes: only while learning.
      useful_flops: see StepShape.useful_flops; of all chips.
    """

    topology: Topology
    mesh: Mapping[str, int]
    resident: Mapping[str, float]
    sampling: Mapping[str, float]
    gradient_bytes: float
    reports: Sequence[Report]
    useful_flops: float

    @property
    def peaks(self) -> dict[str, float]:
        """HBM of one chip while each program runs, in bytes."""
        held, sampling = sum(self.resident.values()), sum(self.sampling.values())
        return {r.name: held + r.extra_bytes + (self.gradient_bytes if r.phase == "learn" else sampling) for r in self.reports}

    @property
    def spare_bytes(self) -> float:
        """HBM that is left at the worst moment; negative: by how much it does not fit."""
        return self.topology.chip.hbm_bytes - max(self.peaks.values())

    @property
    def fits(self) -> bool:
        """Every program compiled, and they and what stays fit together."""
        return self.spare_bytes >= 0 and not any(r.fault for r in self.reports)

    def seconds(self, phase: str, kind: str = "compiler_s") -> float:
        """Of one RL step's phase; kind: compiler_s or roofline_s."""
        return sum(r.runs * getattr(r, kind) for r in self.reports if r.phase == phase)

    @property
    def mfu(self) -> float:
        """Of learning by the compiler's estimate: useful operations over what the chips could have done."""
        seconds = self.seconds("learn")
        return self.useful_flops / (seconds * self.topology.chips * self.topology.chip.peak_flops) if seconds else math.nan


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, slice by slice, for compiling only.

    Raises:
      ValueError: the TPU compiler is not installed, or refuses the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("--plan needs the TPU compiler, which is not installed here (no TPU is needed to run it): "
                         'pip install -e ".[tpu]"')
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # ask no metadata server which machine this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # another process may hold the lock; no device is used
    options = {"num_slices": topology.slices} if topology.slices > 1 else {}
    try:
        return list(topologies.get_topology_desc(topology.name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler knows no topology {topology}: {str(error).splitlines()[0]}") from error


def make(parts: Parts, topology: Topology, say: Callable[[str], None] = lambda text: None) -> Plan:
    """Compiles every program and adds up.

    Args:
      say: is told what is being compiled.
    """
    learner, mesh, reports = parts.learner, parts.learner.mesh, []
    for program in programs(parts):
        say(f"compiling {program.name}")
        reports.append(report(program, topology, mesh))
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    return Plan(topology, sizes, resident(parts), sampling(parts), _held(learner.summed), reports,
                parts.shape.useful_flops(learner.arch))


def resident(parts: Parts) -> dict[str, float]:
    """Bytes of one chip's HBM that are held all through a step, by part."""
    state = parts.learner.abstract
    return {"parameters": _held(state.params), "optimiser": _held((state.opt, state.step))}


def sampling(parts: Parts) -> dict[str, float]:
    """The same, of what the engine holds."""
    if parts.steps is None:
        return {}
    settings = parts.steps.settings
    caches = parts.steps.caches(settings.prefix_buckets[-1], settings.branch_buckets[-1])
    return {"engine weights": _held(parts.steps.weights(parts.learner.base)), "K/V cache": _held(caches)}


def programs(parts: Parts) -> list[Program]:
    """Everything that an RL step runs, with how often."""
    found = []
    shape, learner = parts.shape, parts.learner
    state, update = _held(learner.abstract), None
    for batch, times in full_batches(shape, parts.packing):
        traced = learner.trace(batch)
        rows, tokens = batch.ids.shape
        name, read = f"gradient {rows} × {tokens:,}", _held(learner.abstract.params)
        found.append(Program(name, "learn", times, traced["gradient"], read, live_blocks(batch)))
        update = update or Program("update", "learn", shape.updates, traced["update"], 2 * state)
    found.append(update)
    return found + (_engine_programs(parts) if parts.steps is not None else [])


def _engine_programs(parts: Parts) -> list[Program]:
    """The reshard, the prefill of one prompt after the other, and chunks of decoding at two lengths of the branches.

    What a chunk costs grows linearly with the columns that it reads, so two lengths stand for all chunks of an answer.
    """
    steps, shape, model = parts.steps, parts.shape, parts.learner.base
    settings, data = steps.settings, steps.data_shards
    S, C = settings.prefix_buckets[-1], settings.branch_buckets[-1]
    dealt = shape.prompts * -(-shape.samples // settings.samples)  # shares of groups, each with its prefix
    waves = -(-dealt // settings.groups)
    chunks = [steps.live_columns(start, C) for start in range(0, shape.answer_tokens, settings.ticks)]
    few, many = min(chunks[1:] or chunks), max(chunks)
    share = [(columns - few) / (many - few) if many > few else 1.0 for columns in chunks]
    weights = _held(steps.weights(model))
    at_many = steps.trace(model, S, C, many)
    causal = splash.plan(np.zeros((1, 0), np.int32), np.ones((1, S), bool), RowShape(S, splash.LANES, 0))
    found = [Program("reshard", "reshard", 1, at_many["reshard"], weights + _held(model)),
             Program(f"prefill {data} × {S:,}", "prefill", -(-dealt // data), at_many["prefill"], weights,
                     partial(splash.live_share, causal))]
    for columns, runs in ((few, len(chunks) - sum(share)), (many, sum(share))):
        if runs:
            traced = at_many["decode"] if columns == many else steps.trace(model, S, C, columns)["decode"]
            read = weights + _held(steps.caches(S, columns - settings.spare_columns))
            found.append(Program(f"decode {settings.ticks} tokens at {columns:,}", "decode", waves * runs, traced,
                                 settings.ticks * read))
    return found


def gradient_flops(parts: Parts) -> flop_count.Flops:
    """Operations of all gradients of an RL step, of all devices together; nothing is compiled."""
    counts = ((flop_count.count(parts.learner.trace(batch)["gradient"].jaxpr, live_blocks(batch)), times)
              for batch, times in full_batches(parts.shape, parts.packing))
    return sum((count * times for count, times in counts), flop_count.Flops())


def live_blocks(batch: Batch) -> flop_count.Live:
    """The shares of their grids in which attention's kernels compute on a batch."""
    return partial(splash.live_share, splash.plan(batch.branch_start, batch.is_valid, batch.shape))


def full_batches(shape: StepShape, packing: PackSettings) -> list[tuple[Batch, int]]:
    """(microbatch, how many such an RL step has), of groups that are as long as allowed."""
    n = shape.answer_tokens
    branch = Branch(np.zeros(n, np.int32), np.ones(n, bool), np.zeros(n, np.float32), 1.0, 1.0)
    group = Prefixed(np.zeros(shape.prompt_tokens, np.int32), [branch] * shape.samples)
    batches = pack([group] * (shape.prompts // shape.minibatches), packing)
    counts = collections.Counter((batch.ids.shape, batch.shape) for batch in batches)
    first = {(batch.ids.shape, batch.shape): batch for batch in reversed(batches)}
    return [(first[key], times * shape.updates) for key, times in counts.items()]


def report(program: Program, topology: Topology, mesh: Mesh) -> Report:
    """Compiles a program and estimates it; one that does not fit becomes a report with a fault."""
    started = time.perf_counter()
    try:
        compiled = program.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        return Report(program.name, program.phase, program.runs, needed_bytes(str(error)), fault=str(error).splitlines()[0])
    chip = topology.chip
    memory, work = compiled.memory_analysis(), hlo_count.count(compiled.as_text())
    flops = _run(flop_count.count(program.traced.jaxpr, program.live) * (1 / topology.chips), work.kernels)
    kernels = flops.kernels.values()
    kernels_s = sum(max(one.flops / chip.peak_flops, one.bytes / chip.hbm_bandwidth) for one in kernels)
    links = sum(sent / bandwidth(transfer.group, topology, mesh) for transfer, sent in work.sent.items())
    roofs = {"compute": flops.total / chip.peak_flops, "memory": program.minimum_bytes / chip.hbm_bandwidth, "links": links}
    roof = max(roofs, key=roofs.get)
    extra = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    if program.phase != "reshard":  # whose output is counted with what stays
        extra += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Report(program.name, program.phase, program.runs, extra, "", flops.total,
                  work.memory_bytes + sum(one.bytes for one in kernels), work.sent_bytes, roofs[roof], roof,
                  work.cycles / chip.clock_hz, kernels_s, links, time.perf_counter() - started)


def _run(flops: flop_count.Flops, calls: Mapping[str, float]) -> flop_count.Flops:
    """The same, kernels as often as the compiled program calls them: it leaves out what nothing needs."""
    return flop_count.Flops(flops.products, {
        name: one * (calls[name] / one.calls) if calls.get(name) else one for name, one in flops.kernels.items()})


def needed_bytes(message: str) -> float:
    """Bytes beside its arguments that a program asks for which the compiler refuses; what else it says is raised.

    Raises:
      ValueError: the compiler failed for another reason than memory.
    """
    found = re.search(r"temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    used = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    if found is None and used is None:
        raise ValueError(f"the TPU compiler failed, not for want of memory: {message[:2000]}")
    number, unit = (found or used).groups()
    return float(number) * _UNITS[unit]


def bandwidth(group: Sequence[int], topology: Topology, mesh: Mesh) -> float:
    """Bytes a second at which each chip of a group sends to the others: over all axes of the torus along which they differ."""
    members = [mesh.devices.flat[number] for number in group]
    if len({getattr(device, "slice_index", None) for device in members}) > 1:
        return topology.chip.slice_bandwidth
    places = np.array([device.coords[:len(topology.shape)] for device in members])
    axes = [axis for axis in range(places.shape[1]) if len(set(places[:, axis].tolist())) > 1]
    if not axes:
        return math.inf
    is_whole = {axis: len(set(places[:, axis].tolist())) == topology.shape[axis] for axis in axes}
    return sum(topology.axis_bandwidth(axis) if is_whole[axis] else topology.chip.link_bandwidth for axis in axes)


def _held(tree: Any) -> float:
    """Bytes of one chip's part of a tree of sharded shapes."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
