"""What a training step runs and holds: the programs that the planner compiles, with how often each runs."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swerl_jax.learn import flop_count
from swerl_jax.learn.batch import Batch, Branch, PackSettings, Prefixed, pack
from swerl_jax.learn.learner import Learner
from swerl_jax.policy import engine_weights, splash
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.attention import RowShape
from swerl_jax.policy.chips import Topology
from swerl_jax.policy.engine_steps import EngineSteps


@dataclasses.dataclass(frozen=True)
class StepShape:
    """How much one RL step draws and learns, every prompt and answer as long as allowed.

    Attributes:
      prompts, samples: P and R. prompt_tokens, answer_tokens: of a prompt and of an answer. minibatches, epochs: optimiser
        steps an epoch, and passes over what was drawn.
      is_weighted: by importance, with a forward pass over what was drawn. has_reference: a frozen policy is held, and asked
        before every optimiser step.
    """

    prompts: int
    samples: int
    prompt_tokens: int
    answer_tokens: int
    minibatches: int = 1
    epochs: int = 1
    is_weighted: bool = False
    has_reference: bool = False

    @property
    def updates(self) -> int:
        """Optimiser steps."""
        return self.minibatches * self.epochs

    @property
    def forward_passes(self) -> float:
        """Without a gradient, for each with one."""
        return self.is_weighted / self.epochs + self.has_reference

    def useful_flops(self, arch: Arch) -> float:
        """Of learning: three forward passes over every token that is needed, once; no padding, nothing computed again."""
        prefix, branch = self.prompts * self.prompt_tokens, self.prompts * self.samples * self.answer_tokens
        keys = (prefix * self.prompt_tokens / 2 + branch * (self.prompt_tokens + self.answer_tokens / 2)) / (prefix + branch)
        return 3 * self.epochs * arch.forward_flops(prefix + branch, keys, head_tokens=branch)


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a plan is made of; see assemble.plan_parts. What draws is None where nothing is sampled.

    Attributes:
      steps, evaluation: of the engines, while training and while evaluating.
    """

    learner: Learner
    packing: PackSettings
    shape: StepShape
    steps: EngineSteps | None
    evaluation: EngineSteps | None = None


@dataclasses.dataclass(frozen=True)
class Copy:
    """Where one copy of the engine's weights lies.

    Attributes:
      chips, hosts: that hold it together. weights: what they are kept in. wider: the next number of chips, at least twice as
        many, that could; 0 where there is none.
    """

    chips: int
    hosts: int
    weights: str
    wider: int


@dataclasses.dataclass(frozen=True)
class Program:
    """One function that is to be compiled.

    Attributes:
      name, phase: phase is learn, prefill, decode or reshard. runs: how often it runs in an RL step.
      traced: jax.stages.Traced.
      minimum_bytes: that a chip must read or write in one run, whatever the code.
      live: kernel's name → share of its grid's blocks in which it computes.
      counted: what runs, where that differs from `traced` in its kernels' grids alone, which are then counted as they are
        here, so that the code around them is compiled once.
    """

    name: str
    phase: str
    runs: float
    traced: Any
    minimum_bytes: float
    live: flop_count.Live = lambda name: 1.0
    counted: Any = None

    @property
    def flops(self) -> flop_count.Flops:
        """Operations of all devices together."""
        return flop_count.count((self.counted or self.traced).jaxpr, self.live)


def resident(parts: Parts) -> dict[str, float]:
    """Bytes of one chip's HBM that are held all through a step, by part."""
    state = parts.learner.abstract
    found = {"parameters": held(state.params), "optimiser": held((state.opt, state.step))}
    return found | ({"reference": held(state.params)} if parts.shape.has_reference else {})


def sampling(parts: Parts) -> dict[str, float]:
    """The same, of what the engine holds."""
    if parts.steps is None:
        return {}
    return {"engine weights": held(parts.steps.weights(parts.learner.base)), "K/V cache": cache_bytes(parts.steps)}


def cache_bytes(steps: EngineSteps | None) -> float:
    """Of one chip, for prompts and answers as long as allowed."""
    if steps is None:
        return 0.0
    return held(steps.caches(steps.settings.prefix_buckets[-1], steps.settings.branch_buckets[-1]))


def copy(parts: Parts, topology: Topology) -> Copy | None:
    """Of the engine's weights; None where nothing is sampled."""
    if parts.steps is None:
        return None
    chips, settings = parts.steps.mesh.shape["tensor"], parts.steps.settings
    wider = 2 * chips
    while wider <= topology.chips and not _can_draw_together(parts.learner.arch, wider, topology.chips):
        wider *= 2
    kept = jnp.dtype(settings.dtype).name if settings.weights == "model" else settings.weights
    return Copy(chips, -(-chips // topology.chips_per_host), kept, wider if wider <= topology.chips else 0)


def _can_draw_together(arch: Arch, chips: int, of: int) -> bool:
    try:
        engine_weights.with_key_heads(arch, chips)
    except ValueError:
        return False
    return of % chips == 0


def learning(parts: Parts) -> Iterator[Program]:
    """What learning from a step's answers runs."""
    shape, learner = parts.shape, parts.learner
    state, parameters, update = held(learner.abstract), held(learner.abstract.params), None
    for batch, times in full_batches(shape, parts.packing):
        traced, live = learner.trace(batch), live_blocks(batch)
        size = f"{batch.ids.shape[0]} × {batch.ids.shape[1]:,}"
        update = update or traced["update"]
        yield Program(f"gradient {size}", "learn", times, traced["gradient"], parameters, live)
        if shape.forward_passes:
            yield Program(f"forward {size}", "learn", times * shape.forward_passes, learner.trace_logp(batch), parameters, live)
    yield Program("update", "learn", shape.updates, update, 2 * state)


def drawing(parts: Parts) -> Iterator[Program]:
    """The reshard, the prefill of one prompt after the other, and chunks of decoding at two lengths of the branches.

    What a chunk costs grows linearly with the columns that it reads, so two lengths stand for all chunks of an answer.
    """
    if parts.steps is None:
        return
    steps, shape, model = parts.steps, parts.shape, parts.learner.base
    settings, data = steps.settings, steps.data_shards
    S, C = settings.prefix_buckets[-1], settings.branch_buckets[-1]
    dealt = shape.prompts * -(-shape.samples // settings.samples)  # shares of groups, each with its prefix
    waves = -(-dealt // settings.groups)
    chunks = [steps.live_columns(start, C) for start in range(0, shape.answer_tokens, settings.ticks)]
    few, many = min(chunks[1:] or chunks), max(chunks)
    share = [(columns - few) / (many - few) if many > few else 1.0 for columns in chunks]
    weights = held(steps.weights(model))
    at_many = steps.trace(model, S, C, many)
    causal = splash.plan(np.zeros((1, 0), np.int32), np.ones((1, S), bool), RowShape(S, splash.LANES, 0))
    yield Program("reshard", "reshard", 1, at_many["reshard"], weights + held(model))
    yield Program(f"prefill {data} × {S:,}", "prefill", -(-dealt // data), at_many["prefill"], weights,
                  partial(splash.live_share, causal))
    for columns, runs in ((many, sum(share)), (few, len(chunks) - sum(share))):
        if runs:
            traced = at_many["decode"] if columns == many else steps.trace(model, S, C, columns)["decode"]
            read = weights + held(steps.caches(S, columns - settings.spare_columns))
            yield Program(f"decode {settings.ticks} tokens at {columns:,}", "decode", waves * runs,
                          at_many["decode"] if steps.has_kernel else traced, settings.ticks * read, counted=traced)


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


def held(tree: Any) -> float:
    """Bytes of one chip's part of a tree of sharded shapes."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
