"""A plan as a table to read, and as JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from swerl_jax.learn import calibration
from swerl_jax.learn.plan import MARGIN, Plan
from swerl_jax.policy.chips import GIB

PHASES = ("reshard", "prefill", "decode", "learn")


def table(plan: Plan) -> str:
    """Memory, work and seconds of one RL step, and what they add up to."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items()) or "1 chip"
    chip = plan.topology.chip
    head = (f"plan     {plan.topology}: {plan.topology.chips} {chip.name} chips, mesh {mesh}\n"
            f"chip     {chip.peak_flops / 1e12:.0f} TFLOP/s bfloat16, {chip.hbm_bandwidth / 1e9:,.0f} GB/s HBM, "
            f"{chip.link_bandwidth / 1e9:.0f} GB/s a link and direction, {chip.clock_hz / 1e9:.2f} GHz (derived)")
    return "\n\n".join([head, _memory(plan), *([_work(plan), _seconds(plan)] if _is_timed(plan) else [_unknown(plan)])])


def _is_timed(plan: Plan) -> bool:
    return not any(report.fault for report in plan.reports)


def _memory(plan: Plan) -> str:
    lines = [f"{'memory of a chip':42}{'GiB':>10}"]
    lines += [f"  {name:40}{value / GIB:10.4g}" for name, value in plan.resident.items()]
    lines += [f"  {name + ' (while sampling)':40}{value / GIB:10.4g}" for name, value in plan.sampling.items()]
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
    return "\n".join([*lines, verdict])


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
    phases = [phase for phase in PHASES if plan.seconds(phase)]
    totals = {kind: sum(plan.seconds(phase, kind) for phase in phases) for kind in ("roofline_s", "compiler_s")}
    lines.append(f"  {'one RL step, nothing overlapped':40}{totals['roofline_s']:10.3g}{'':10}{totals['compiler_s']:11.3g}")
    shares = ", ".join(f"{phase} {plan.seconds(phase):.3g}" for phase in phases)
    lines.append(f"by the compiler's cycles: {shares} s; learner's MFU {plan.mfu:.1%} of useful operations (no padding, "
                 "nothing twice)")
    lines.append(calibration.line())
    return "\n".join(lines)


def _unknown(plan: Plan) -> str:
    faults = "\n".join(f"  {r.name}: {r.fault}" for r in plan.reports if r.fault)
    return f"no seconds: a program that does not compile has none\n{faults}"


def as_json(plan: Plan) -> dict[str, Any]:
    """Everything in the table, in bytes, operations and seconds of one chip."""
    is_timed = _is_timed(plan)
    phases = {phase: {kind: plan.seconds(phase, kind) for kind in ("roofline_s", "compiler_s")}
              for phase in PHASES if is_timed and plan.seconds(phase)}
    return {
        "topology": str(plan.topology), "chips": plan.topology.chips, "mesh": dict(plan.mesh),
        "chip": {key: value for key, value in dataclasses.asdict(plan.topology.chip).items() if key != "shapes"},
        "fits": plan.fits, "hbm_bytes": plan.topology.chip.hbm_bytes, "spare_bytes": plan.spare_bytes,
        "resident_bytes": dict(plan.resident), "sampling_bytes": dict(plan.sampling),
        "gradient_bytes": plan.gradient_bytes, "peak_bytes": plan.peaks,
        "programs": [{**dataclasses.asdict(r), "compiler_s": r.compiler_s} for r in plan.reports],
        "phases": phases,
        "step_s": {kind: sum(one[kind] for one in phases.values()) for kind in ("roofline_s", "compiler_s") if phases} or None,
        "calibration": calibration.as_json(),
        "useful_flops": plan.useful_flops, "mfu": None if not is_timed or math.isnan(plan.mfu) else plan.mfu,
    }
