"""The planner: compiles the programs of a training step for TPUs that are not there, and works out bytes and seconds.

Nothing is allocated and no TPU is touched: the real TPU compiler runs on this machine's CPU. Two estimates of time stand
side by side. The roofline takes the larger of operations, bytes that must be moved and bytes between chips, each at its
published rate. The compiler's estimate adds up, without any overlap, its own cycles for the code that it made, kernels at
the rate of their matrix units, and collectives at the rate of the links that they use.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from swerl_jax.learn import flop_count, hlo_count, plan_programs
from swerl_jax.learn.plan_programs import Copy, Parts, Program
from swerl_jax.policy.chips import GIB, Topology, valid_topologies

MARGIN = 0.10  # of the memory that should stay free
# Memory is short on one side or the other: what the engine holds is freed before learning, the gradient after it.
SIDES = {"learning": plan_programs.learning, "sampling": plan_programs.drawing}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


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
      copy: of the engine's weights. evaluation_cache: bytes of a chip that caches take while evaluating, instead of those of
        `sampling`.
    """

    topology: Topology
    mesh: Mapping[str, int]
    resident: Mapping[str, float]
    sampling: Mapping[str, float]
    gradient_bytes: float
    reports: Sequence[Report]
    useful_flops: float
    copy: Copy | None = None
    evaluation_cache: float = 0.0

    @property
    def peaks(self) -> dict[str, float]:
        """HBM of one chip while each program runs, in bytes; evaluation's are not compiled: taken to need as much as training's."""
        found = {r.name: self.held(side(r.phase)) + r.extra_bytes for r in self.reports}
        drawing = [found[r.name] for r in self.reports if r.phase in ("prefill", "decode")]
        if drawing and self.evaluation_cache:
            found["evaluation"] = max(drawing) + self.evaluation_cache - self.sampling["K/V cache"]
        return found

    def held(self, name: str) -> float:
        """HBM of one chip, in bytes, that one of SIDES needs beside what its programs do."""
        return sum(self.resident.values()) + (self.gradient_bytes if name == "learning" else sum(self.sampling.values()))

    @property
    def short(self) -> list[str]:
        """The SIDES on which it does not fit."""
        hbm, peaks = self.topology.chip.hbm_bytes, self.peaks
        found = {side(r.phase) for r in self.reports if r.fault or peaks[r.name] > hbm}
        found |= {"sampling"} if peaks.get("evaluation", 0.0) > hbm else set()
        return [name for name in SIDES if name in found]

    @property
    def spare_bytes(self) -> float:
        """HBM that is left at the worst moment; negative: by how much it does not fit."""
        return self.topology.chip.hbm_bytes - max(self.peaks.values())

    @property
    def fits(self) -> bool:
        """Every program compiled, and they and what stays fit together."""
        return not self.short

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
    # The compiler is not to ask what machine this is, nor to complain that it is none; another process may hold its lock.
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_WORKER_HOSTNAMES", "localhost"),
                        ("TPU_ACCELERATOR_TYPE", "v5litepod-4"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")):
        os.environ.setdefault(name, value)
    options = {"chips_per_host_bounds": (*topology.host, 1)[:3]}
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        return list(topologies.get_topology_desc(topology.name, "tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"the TPU compiler refuses the topology {topology}: {str(error).splitlines()[0]}; there are\n"
                         f"{valid_topologies()}") from error


def make(parts: Parts, topology: Topology, say: Callable[[str], None] = lambda text: None,
         sides: Sequence[str] = tuple(SIDES)) -> Plan:
    """Compiles every program and adds up.

    Args:
      say: is told what is being compiled. sides: which of SIDES are planned.
    """
    learner, mesh = parts.learner, parts.learner.mesh
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    plan = Plan(topology, sizes, plan_programs.resident(parts), plan_programs.sampling(parts),
                plan_programs.held(learner.summed), [], parts.shape.useful_flops(learner.arch),
                plan_programs.copy(parts, topology), plan_programs.cache_bytes(parts.evaluation))
    reports, done = [], {}
    for name in sides:
        over = plan.held(name) - topology.chip.hbm_bytes
        for program in SIDES[name](parts):
            if over > 0:
                fault = f"what is held while it runs is {over / GIB:.2f} GiB more than a chip has"
                reports.append(Report(program.name, program.phase, program.runs, 0.0, fault=fault))
                continue
            if program.traced not in done:
                say(f"compiling {program.name}")
                done[program.traced] = compiled(program.traced)
            reports.append(report(program, done[program.traced], topology, mesh))
    return dataclasses.replace(plan, reports=reports)


def side(phase: str) -> str:
    """The one of SIDES that a phase belongs to."""
    return "learning" if phase == "learn" else "sampling"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler made of a program.

    Attributes:
      temporary_bytes, output_bytes: HBM of one chip beside the arguments: temporaries and code; results that are not written
        over arguments. work: None where the compiler refused, for `fault`. seconds: that compiling took.
    """

    temporary_bytes: float
    output_bytes: float
    work: hlo_count.Work | None
    fault: str
    seconds: float


def compiled(traced: Any) -> Compiled:
    """Compiles; what does not fit is a fault, anything else that fails a ValueError."""
    started = time.perf_counter()
    try:
        program = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        return Compiled(needed_bytes(text), 0.0, None, text.splitlines()[0], time.perf_counter() - started)
    memory, work = program.memory_analysis(), hlo_count.count(program.as_text())
    return Compiled(memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
                    memory.output_size_in_bytes - memory.alias_size_in_bytes, work, "", time.perf_counter() - started)


def report(program: Program, made: Compiled, topology: Topology, mesh: Mesh) -> Report:
    """Estimates a compiled program; one that the compiler refused becomes a report with a fault."""
    chip, work = topology.chip, made.work
    # What a reshard puts out is counted with what stays.
    extra = made.temporary_bytes + (made.output_bytes if program.phase != "reshard" else 0.0)
    if work is None:
        return Report(program.name, program.phase, program.runs, extra, fault=made.fault, compile_s=made.seconds)
    flops = _run(program.flops * (1 / topology.chips), work.kernels)
    kernels = flops.kernels.values()
    kernels_s = sum(max(one.flops / chip.peak_flops, one.bytes / chip.hbm_bandwidth) for one in kernels)
    links = sum(sent / bandwidth(transfer.group, topology, mesh) for transfer, sent in work.sent.items())
    roofs = {"compute": flops.total / chip.peak_flops, "memory": program.minimum_bytes / chip.hbm_bandwidth, "links": links}
    roof = max(roofs, key=roofs.get)
    return Report(program.name, program.phase, program.runs, extra, "", flops.total,
                  work.memory_bytes + sum(one.bytes for one in kernels), work.sent_bytes, roofs[roof], roof,
                  work.cycles / chip.clock_hz, kernels_s, links, made.seconds)


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

