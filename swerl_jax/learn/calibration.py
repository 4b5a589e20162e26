"""How far to trust the planner's seconds: its method on a run that others measured, beside what they published.

The run is pre-training of Llama 3.1 70B on 256 v6e chips by MaxText: 5 rows of 8,192 tokens on each chip, parameters cut
over all of them, layers' inputs, queries, keys and values kept in the host's memory. Ours differs in what is kept (layers'
inputs alone: queries, keys and values are made again), and no time is charged for what goes to the host and back. Nor does our
learner fit there: it needs 2.5 GiB more than a chip has, and the compiler makes things twice to come so near.
Source: recipe "Llama3.1-70B-MaxText/v6e-256" of AI-Hypercomputer/tpu-recipes, step time of its log, and MaxText's page
"Optimized models tiering" for the utilisation, which counts attention as if every token saw the whole row.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from swerl_jax.learn.batch import PackSettings
from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.learn.plan_programs import Parts, StepShape
from swerl_jax.policy.arch import ARCHS, Arch
from swerl_jax.policy.chips import parse_topology
from swerl_jax.policy.mesh import make_mesh

TOPOLOGY, MODEL, ROWS_A_CHIP, TOKENS = "v6e:16x16", "llama3.3-70b", 5, 8192
PUBLISHED_SECONDS, PUBLISHED_MFU = 42.656, 0.5033
# What tests/bench/calibration.py gave with these versions, by the compiler's cycles and by the roofline.
VERSIONS = {"jax": "0.10.2", "libtpu": "0.0.42.1"}
COMPILER_SECONDS, ROOFLINE_SECONDS = 50.525, 26.100


def parts(devices: Sequence[Any], arch: Arch = ARCHS[MODEL]) -> Parts:
    """What the planner compiles; arguments for tests."""
    mesh = make_mesh({"fsdp": -1}, devices)
    learner = Learner(arch, mesh, OptimizerSettings(3e-5, "cosine", 100, 1000), LossSettings("nll"), dtype=jnp.bfloat16,
                      remat="offload", vocabulary_chunk=128)
    rows = ROWS_A_CHIP * len(devices)
    return Parts(learner, PackSettings((0,), (TOKENS,), TOKENS, TOKENS, rows), StepShape(rows, 1, 1, TOKENS), None)


def flops(arch: Arch = ARCHS[MODEL]) -> float:
    """Of one step on one chip, as the published utilisation counts them."""
    tokens = ROWS_A_CHIP * TOKENS
    return 3 * arch.forward_flops(tokens, keys=TOKENS)


def mfu(seconds: float) -> float:
    """The share of a chip's peak that a step of so many seconds is."""
    return flops() / (seconds * parse_topology(TOPOLOGY).chip.peak_flops)


def line() -> str:
    """For people."""
    return (f"calibration: MaxText's Llama 3.1 70B on {TOPOLOGY} takes {COMPILER_SECONDS:.1f} s a step by the compiler's cycles, "
            f"{mfu(COMPILER_SECONDS):.1%} MFU ({ROOFLINE_SECONDS:.1f} s by roofline); published are {PUBLISHED_SECONDS:.1f} s, "
            f"{PUBLISHED_MFU:.1%}{_age()}")


def _age() -> str:
    """That it was made by other versions than those which are installed, and what makes it anew; or nothing."""
    here = _installed()
    if here == VERSIONS:
        return ""
    made, found = (", ".join(f"{name} {version}" for name, version in some.items()) for some in (VERSIONS, here))
    return f" (made with {made}, installed are {found}: python tests/bench/calibration.py makes it anew)"


def _installed() -> dict[str, str]:
    installed = {found.name: found.version for found in importlib.metadata.distributions() if found.name in VERSIONS}
    return {name: installed.get(name, "none") for name in VERSIONS}


def as_json() -> dict[str, Any]:
    """The same as numbers."""
    return {"topology": TOPOLOGY, "compiler_s": COMPILER_SECONDS, "roofline_s": ROOFLINE_SECONDS, "mfu": mfu(COMPILER_SECONDS),
            "versions": VERSIONS, "installed": _installed(), "published_s": PUBLISHED_SECONDS, "published_mfu": PUBLISHED_MFU}
