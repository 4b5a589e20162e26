"""`--dry_run`: what a config would do, worked out on paper; no jax, no device."""

from __future__ import annotations

import ml_collections

from swerl_jax import config as config_lib, preflight, run_directory
from swerl_jax.policy import hf
from swerl_jax.policy.arch import Arch

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
GIB = 2**30


def describe(config: ml_collections.ConfigDict, place: str) -> str:
    """The resolved config, parameter count, batch arithmetic, estimated memory and disk, and warnings, if there are any.

    Raises:
      ValueError: unknown model or dtype, a model's directory that cannot be read, or what would be wrong on any machine.
    """
    if config.task in ("score", "curate", "inspect"):
        return _settings(config)
    for name in ("dtype", "param_dtype"):
        if config.model[name] not in BYTES:
            raise ValueError(f"model.{name} is {config.model[name]!r}; needed is one of {', '.join(BYTES)}")
    arch = hf.find_arch(config.model.arch, lambda: run_directory.model_directory(config.init))
    faults = preflight.look(config)
    if faults.wrong:
        raise ValueError("\n".join(faults.wrong))
    warnings = [*(f"{one}; on this machine a run would stop" for one in faults.absent),
                *filter(None, [preflight.beyond_context(config, arch)])]
    return "\n\n".join([_settings(config), _batches(config, arch), _memory(config, arch), _disk(config, arch, place),
                        *(f"warning: {one}" for one in warnings)])


def _settings(config: ml_collections.ConfigDict) -> str:
    default = dict(config_lib.flat(config_lib.default()))
    lines = [f"  {name} = {value!r}" + ("" if value == default[name] else f"   (default {default[name]!r})")
             for name, value in config_lib.flat(config)]
    return "settings\n" + "\n".join(lines)


def _batches(config: ml_collections.ConfigDict, arch: Arch) -> str:
    r = config.rl
    rollouts = r.prompts * r.samples
    answer, prompt = rollouts * config.answer.max_tokens, r.prompts * config.prompt.max_tokens
    unshared = arch.forward_flops(answer + prompt * r.samples) / arch.forward_flops(answer + prompt, head_tokens=answer)
    return "\n".join([
        "batches",
        f"  sft.examples {config.sft.examples}: examples an optimiser step, one answer each",
        f"  rl.prompts {r.prompts} × rl.samples {r.samples} = {rollouts} answers a step",
        f"  rl.minibatches {r.minibatches} × rl.epochs {r.epochs} = {r.minibatches * r.epochs} optimiser steps, each on "
        f"{r.prompts // r.minibatches} prompts ({rollouts // r.minibatches} answers)",
        f"  tokens a step, at most: {prompt:,} of prompts (computed once a group) + {answer:,} of answers",
        f"  linear FLOPs of learning, at most: {3 * arch.forward_flops(answer + prompt, head_tokens=answer):.3g}; "
        f"{unshared:.1f} times that without sharing prompts",
        f"  engine: {config.engine.groups} prompts × {r.samples} answers decode together"])


def _state(config: ml_collections.ConfigDict, arch: Arch) -> dict[str, int]:
    """Bytes of what training holds and a checkpoint keeps, by part."""
    param, rank, moments = config.model.param_dtype, config.lora.rank, config.optimizer.moments_dtype
    change = arch.low_rank_parameters(rank, config.lora.targets)
    learnt, dtype = (change, "float32") if rank else (arch.parameters, param)
    moments = dtype if moments == "auto" else moments
    return {f"parameters, {param}": arch.parameters * BYTES[param],
            **({f"low-rank change, {dtype}": change * BYTES[dtype]} if rank else {}),
            f"Adam's two moments, {moments}": 2 * learnt * BYTES[moments]}


def _memory(config: ml_collections.ConfigDict, arch: Arch) -> str:
    compute, prompt, answer = BYTES[config.model.dtype], config.prompt.max_tokens, config.answer.max_tokens
    n, change = arch.parameters, arch.low_rank_parameters(config.lora.rank, config.lora.targets)
    columns = config.engine.groups * (prompt + config.rl.samples * answer)  # evaluating takes no more
    row = config.learner.rows * (prompt + max(config.rl.row_tokens or (config.rl.samples * answer,)))
    column = arch.H + BYTES["float32"] if config.engine.cache == "int8" else arch.H * compute  # of a key or a value, with its scale
    rounded = arch.L * arch.matrix_parameters if config.engine.weights == "int8" else 0
    parts = {
        **_state(config, arch),
        "gradient": (change or n) * BYTES["float32"],
        **({"reference policy": n * BYTES[config.model.param_dtype]} if config.rl.kl_coefficient else {}),
        "engine's weights": (n + change - rounded) * compute + rounded,
        "keys and values, training or evaluating": columns * 2 * arch.L * arch.K * column,
        "one microbatch's kept activations (remat=layer)": row * arch.L * arch.D * compute,
        "logits of one chunk": config.learner.rows * config.learner.vocabulary_chunk * arch.V * 4,
    }
    lines = [f"  {value / GIB:10.2f} GiB  {name}" for name, value in parts.items()]
    total = sum(parts.values()) / GIB
    learns = f"; {change:,} learn, a change of rank {config.lora.rank}" if change else ""
    return "\n".join([f"model    {config.model.arch}: {n:,} parameters (published vocabulary of {arch.V:,}){learns}",
                      "memory, all devices together, estimated", *lines, f"  {total:10.2f} GiB  in all, without temporaries"])


def _disk(config: ml_collections.ConfigDict, arch: Arch, place: str) -> str:
    one = sum(_state(config, arch).values()) / GIB
    count = config.checkpoints.keep + 1
    return f"disk\n  {place}: {one:.2f} GiB a checkpoint × {count} at a time = {one * count:.2f} GiB, and logs"
