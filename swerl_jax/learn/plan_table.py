"""A plan as a table to read, and as JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from swerl_jax.learn import calibration
from swerl_jax.learn.plan import MARGIN, Plan
from swerl_jax.policy.chips import GIB

PHASES = ("reshard", "prefill", "decode", "learn")
KINDS = ("roofline_s", "compiler_s")
_NAMING = ("shapes", "largest_cubes", "lone_host")  # of a chip: how its slices are called


def table(plan: Plan) -> str:
    """Memory, work and seconds of one RL step, and what they add up to."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "1 chip"
    chip = plan.topology.chip
    head = (f"plan     {plan.topology}: {plan.topology.chips} {chip.name} chips, {plan.topology.chips_per_host} on a host, "
            f"mesh {mesh}\n"
            f"chip     {chip.peak_flops / 1e12:.0f} TFLOP/s bfloat16, {chip.hbm_bandwidth / 1e9:,.0f} GB/s HBM, "
            f"{chip.link_bandwidth / 1e9:.0f} GB/s a link and direction, {chip.clock_hz / 1e9:.2f} GHz (derived)")
    if plan.copy is not None:
        head += f"\nengine   one copy of its weights, {_copied(plan)}, lies on {_place(plan)}"
    return "\n\n".join([head, _memory(plan), *([_work(plan), _seconds(plan)] if _is_timed(plan) else [_unknown(plan)])])


def _copied(plan: Plan) -> str:
    return f"{plan.copy.chips * plan.sampling['engine weights'] / GIB:.4g} GiB in {plan.copy.weights}"


def _place(plan: Plan) -> str:
    chips, hbm = plan.copy.chips, plan.copy.chips * plan.topology.chip.hbm_bytes
    return f"{chips} chip{'s' * (chips > 1)} of {_hosts(plan.copy.hosts)} with {hbm / GIB:.4g} GiB of HBM"


def _hosts(count: int) -> str:
    return "one host" if count == 1 else f"{count} hosts"


def _advice(plan: Plan) -> list[str]:
    """Why what is drawn with does not fit on the hosts that share it, and what would."""
    copy = plan.copy
    if copy is None or "sampling" not in plan.short:
        return []
    cache, others = (copy.chips * value / GIB for value in (plan.sampling["K/V cache"], sum(plan.resident.values())))
    are_weights_large = plan.sampling["engine weights"] >= plan.sampling["K/V cache"]
    remedies = [] if are_weights_large else ["a smaller --config.engine.groups has a smaller cache"]
    if are_weights_large and copy.weights != "int8":
        remedies.append("--config.engine.weights=int8 halves the weights")
    if are_weights_large and copy.wider:
        hosts = _hosts(-(-copy.wider // plan.topology.chips_per_host))
        remedies.append(f"--config.engine.devices={copy.wider} lays them over {hosts}")
    return [f"{_place(plan)} cannot hold {_copied(plan)}, of the engine's weights, {cache:.4g} GiB of K/V cache, {others:.4g} GiB "
            "of the learner's parameters and optimiser, and what is computed with them" + (": " + ", ".join(remedies) if remedies else "")]


def _is_timed(plan: Plan) -> bool:
    return not any(report.fault for report in plan.reports)


def _memory(plan: Plan) -> str:
    lines = [f"{'memory of a chip':42}{'GiB':>10}"]
    lines += [f"  {name:40}{value / GIB:10.4g}" for name, value in plan.resident.items()]
    lines += [f"  {name + ' (while sampling)':40}{value / GIB:10.4g}" for name, value in plan.sampling.items()]
    if plan.evaluation_cache:
        lines.append(f"  {'K/V cache (while evaluating)':40}{plan.evaluation_cache / GIB:10.4g}")
    lines.append(f"  {'gradient (while learning)':40}{plan.gradient_bytes / GIB:10.4g}")
    lines += [f"  {'temporaries: ' + r.name:40}{r.extra_bytes / GIB:10.4g}" + ("   DOES NOT COMPILE" if r.fault else "")
              for r in plan.reports]
    worst = max(plan.peaks, key=plan.peaks.get)
    hbm = plan.topology.chip.hbm_bytes
    lines.append(f"  {'at the worst moment':40}{plan.peaks[worst] / GIB:10.4g}   of {hbm / GIB:.2f}, in {worst}")
    share = plan.spare_bytes / hbm
    if not plan.fits:
        verdict = f"DOES NOT FIT: {-plan.spare_bytes / GIB:.2f} GiB too much"
    elif share < MARGIN:
        verdict = f"fits, but only {share:.0%} is spare ({MARGIN:.0%} is wise)"
    else:
        verdict = f"fits, {plan.spare_bytes / GIB:.2f} GiB ({share:.0%}) to spare"
    return "\n".join([*lines, verdict, *_advice(plan)])


def _work(plan: Plan) -> str:
    lines = [f"{'work of a chip in one RL step':42}{'runs':>8}{'TFLOP':>11}{'HBM GB':>11}{'sent GB':>10}"]
    lines += [f"  {r.name:40}{r.runs:8.4g}{r.runs * r.flops / 1e12:11.4g}{r.runs * r.memory_bytes / 1e9:11.4g}"
              f"{r.runs * r.sent_bytes / 1e9:10.4g}" for r in plan.reports]
    return "\n".join(lines)


def _seconds(plan: Plan) -> str:
    lines = [f"{'seconds of one RL step':42}{'roofline':>10}{'by roof':>10}{'compiler':>11} = "
             f"{'code':>9}{'kernels':>9}{'links':>9}"]
    for r in plan.reports:
        lines.append(f"  {r.name:40}{r.runs * r.roofline_s:10.3g}{r.roof:>10}{r.runs * r.compiler_s:11.3g}   "
                     f"{r.runs * r.cycles_s:9.3g}{r.runs * r.kernels_s:9.3g}{r.runs * r.links_s:9.3g}")
    lines.append(f"{'by phase':42}{'roofline':>10}{'':10}{'compiler':>11}")
    phases = _phases(plan)
    step = "one RL step, nothing overlapped"
    for name, seconds in [*phases.items(), (step, _step(phases))]:
        lines.append(f"  {name:40}{seconds['roofline_s']:10.3g}{'':10}{seconds['compiler_s']:11.3g}")
    lines.append(f"learner's MFU {plan.mfu:.1%} of useful operations by the compiler's cycles (no padding, nothing twice)")
    lines.append(calibration.line())
    return "\n".join(lines)


def _phases(plan: Plan) -> dict[str, dict[str, float]]:
    """Phase → the kind of estimate → seconds."""
    return {phase: {kind: plan.seconds(phase, kind) for kind in KINDS} for phase in PHASES if plan.seconds(phase)}


def _step(phases: dict[str, dict[str, float]]) -> dict[str, float]:
    return {kind: sum(one[kind] for one in phases.values()) for kind in KINDS}


def _unknown(plan: Plan) -> str:
    faults = "\n".join(f"  {r.name}: {r.fault}" for r in plan.reports if r.fault)
    return f"no seconds: a program that does not compile has none\n{faults}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything in the table, in bytes, operations and seconds of one chip."""
    is_timed = _is_timed(plan)
    phases = _phases(plan) if is_timed else {}
    return {
        "topology": str(plan.topology), "chips": plan.topology.chips, "hosts": plan.topology.hosts, "mesh": dict(plan.mesh),
        "chip": {key: value for key, value in dataclasses.asdict(plan.topology.chip).items() if key not in _NAMING},
        "engine": plan.copy and dataclasses.asdict(plan.copy), "advice": _advice(plan),
        "fits": plan.fits, "hbm_bytes": plan.topology.chip.hbm_bytes, "spare_bytes": plan.spare_bytes,
        "resident_bytes": dict(plan.resident), "sampling_bytes": dict(plan.sampling),
        "evaluation_cache_bytes": plan.evaluation_cache, "gradient_bytes": plan.gradient_bytes, "peak_bytes": plan.peaks,
        "programs": [{**dataclasses.asdict(r), "compiler_s": r.compiler_s} for r in plan.reports],
        "phases": phases,
        "step_s": _step(phases) if phases else None,
        "calibration": calibration.as_json(),
        "useful_flops": plan.useful_flops, "mfu": None if not is_timed or math.isnan(plan.mfu) else plan.mfu,
    }
