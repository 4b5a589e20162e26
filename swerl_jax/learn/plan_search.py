"""The nearest settings that fit: fewer rows at a time, less kept for the backward pass, more tensor shards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_collections

from swerl_jax.learn.plan import Plan

TRIES = 8  # at most; one that does not fit is refused by the compiler within seconds


def nearest(config: ml_collections.ConfigDict, key_heads: int, chips: int, make: Callable[[dict[str, Any]], Plan],
            say: Callable[[str], None] = lambda text: None) -> tuple[dict[str, Any], Plan] | None:
    """(the changed settings, their plan) of the first candidate that fits, or None.

    Args:
      key_heads: of the model; tensor shards divide them. make: changes → plan; may raise ValueError for a bad combination.
    """
    for changes in itertools.islice(candidates(config, key_heads, chips), TRIES):
        say("trying " + ", ".join(f"{name}={value}" for name, value in changes.items()))
        try:
            plan = make(changes)
        except ValueError as error:
            say(f"  cannot be: {str(error).splitlines()[0]}")
            continue
        if plan.fits:
            return changes, plan
    return None


def candidates(config: ml_collections.ConfigDict, key_heads: int, chips: int) -> Iterator[dict[str, Any]]:
    """Changes of settings, those that change least first: how many settings, then by how many steps."""
    rows = [n for n in (config.learner.rows, *_halves(config.learner.rows))]
    remat = list(dict.fromkeys((config.learner.remat, "layer")))
    slices = config.mesh.slice
    tensor = [t for t in (config.mesh.tensor * 2**i for i in range(8)) if key_heads % t == 0 and (chips // slices) % t == 0]
    choices = [(r, m, t) for r in range(len(rows)) for m in range(len(remat)) for t in range(len(tensor))]
    for r, m, t in sorted(choices, key=lambda c: (sum(map(bool, c)), sum(c), c))[1:]:
        new = {"learner.rows": rows[r], "learner.remat": remat[m], "mesh.tensor": tensor[t]}
        if t and config.mesh.fsdp > 0:
            new["mesh.fsdp"] = -1
        yield {name: value for name, value in new.items() if value != _value(config, name)}


def _halves(number: int) -> list[int]:
    return [number >> i for i in range(1, number.bit_length())]


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
    section, key = name.split(".")
    return config[section][key]
