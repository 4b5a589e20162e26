"""The nearest settings that fit: less at a time, less kept for the backward pass, more chips to hold one copy of what is held.

Learning and sampling are searched apart, and only the side that is short of memory is compiled, until both fit.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections

from swerl_jax.learn.plan import SIDES, Plan

TRIES = 8  # of each side, at most; one that cannot hold what stays is not compiled

# (changes of settings, the sides to plan) → their plan; may raise ValueError for a bad combination
Make = Callable[[dict[str, Any], Sequence[str]], Plan]


def nearest(config: ml_collections.ConfigDict, key_heads: int, whole: Plan, make: Make,
            say: Callable[[str], None] = lambda text: None) -> tuple[dict[str, Any], Plan] | None:
    """(the changed settings, their plan) with the first candidate that fits on each side that is short, or None.

    Args:
      key_heads: of the model; tensor shards divide them. whole: the plan that does not fit.
    """
    changes: dict[str, Any] = {}
    found: dict[str, tuple[dict[str, Any], Plan]] = {}
    for side in whole.short:
        for candidate in itertools.islice(candidates(config, key_heads, whole, side), TRIES):
            tried = changes | candidate
            plan = _tried(tried, side, make, say)
            if plan is not None and plan.fits:
                changes, found[side] = tried, (tried, plan)
                break
        else:
            return None
    plans = []
    for side in SIDES:
        if side == "learning" and all(name.startswith("engine.") for name in changes):  # which learning knows nothing of
            plans.append(dataclasses.replace(whole, reports=[report for report in whole.reports if report.phase == "learn"]))
        else:
            plans.append(found[side][1] if side in found and found[side][0] == changes else _tried(changes, side, make, say))
    if not all(plan is not None and plan.fits for plan in plans):
        return None
    return changes, dataclasses.replace(plans[-1], reports=[report for plan in plans for report in plan.reports])


def _tried(changes: dict[str, Any], side: str, make: Make, say: Callable[[str], None]) -> Plan | None:
    say(f"trying {side} with " + ", ".join(f"{name}={value}" for name, value in changes.items()))
    try:
        return make(changes, [side])
    except ValueError as error:
        say(f"  cannot be: {str(error).splitlines()[0]}")
        return None


def candidates(config: ml_collections.ConfigDict, key_heads: int, whole: Plan, side: str) -> Iterator[dict[str, Any]]:
    """Changes of settings, those that change least first: by how many steps, then how many settings.

    Of those that change equally much, one of a setting further back in `ways` comes first.
    """
    chips = whole.topology.chips
    ways = _learning(config, key_heads, chips) if side == "learning" else _sampling(config, chips, whole.sampling)
    names = list(ways)
    choices = itertools.product(*(range(len(values) + 1) for values in ways.values()))
    for steps in sorted(choices, key=lambda c: (sum(c), sum(map(bool, c)), c))[1:]:
        new = {name: ways[name][step - 1] for name, step in zip(names, steps, strict=True) if step}
        yield new | ({"mesh.fsdp": -1} if "mesh.tensor" in new and config.mesh.fsdp > 0 else {})


def _learning(config: ml_collections.ConfigDict, key_heads: int, chips: int) -> dict[str, list[Any]]:
    """Setting → values that need less memory, the nearest first."""
    kept = ("none", "dots", "attention", "layer", "offload")  # most first
    tensor = [config.mesh.tensor * 2**i for i in range(1, 8)]
    moments = "bfloat16" if "bfloat16" not in (config.optimizer.moments_dtype, config.model.param_dtype) else None
    answer = config.answer.max_tokens
    row = config.rl.samples * answer if config.phases[-1] == "rl" else 0
    shorter = [(row // part,) for part in (2, 4) if row // part >= answer and row // part < min((*config.rl.row_tokens, row))]
    return {"learner.rows": [config.learner.rows >> i for i in range(1, config.learner.rows.bit_length())],
            "learner.remat": list(kept[kept.index(config.learner.remat) + 1:]),
            "mesh.tensor": [t for t in tensor if key_heads % t == 0 and chips // (config.mesh.slice * config.mesh.context) % t == 0],
            "rl.row_tokens": shorter, "optimizer.moments_dtype": [moments] if moments else []}


def _sampling(config: ml_collections.ConfigDict, chips: int, held: Mapping[str, float]) -> dict[str, list[Any]]:
    """As `_learning`; held: see Plan.sampling. What makes the larger part of that smaller comes first: weights or cache."""
    now = config.engine.devices or config.mesh.tensor
    ways = {"engine.groups": [config.engine.groups >> i for i in range(1, config.engine.groups.bit_length())],
            "engine.devices": [now * 2**i for i in range(1, 6) if now * 2**i <= chips],
            "engine.cache": ["int8"] if config.engine.cache == "model" else [],
            "engine.weights": ["int8"] if config.engine.weights == "model" else []}
    if held["engine weights"] < held["K/V cache"]:
        ways = {name: ways[name] for name in ("engine.weights", "engine.devices", "engine.groups", "engine.cache")}
    return ways
