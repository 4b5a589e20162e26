"""What the settings may be: single values, intervals, and combinations that do not work, each with what to say.

On the path: `config.check` asks here, before any device work.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections


@dataclasses.dataclass(frozen=True)
class _Rule:
    """A combination that does not work: `is_broken(config)` and what to say."""

    is_broken: Any
    text: str


CHOICES: dict[str, tuple[str, ...]] = {
    "task": ("train", "score", "eval", "sample", "export", "curate", "inspect"),
    "curate.bots": ("signed", "paper"),
    "export.dtype": ("float32", "bfloat16", "float16"), "format": ("hf", "orbax"),
    "data.on_malformed": ("stop", "skip"),
    "on_malformed": ("stop", "skip"),
    "tasks.scope": ("function", "module"), "tasks.voice": ("maintainer", "user"),
    "chat": ("llama3", "chatml", "compact"),
    "prompt.style": ("swe_rl", "compact"),
    "reward.similarity": ("difflib", "indel"),
    "model.dtype": ("float32", "bfloat16"),
    "model.param_dtype": ("float32", "bfloat16"),
    "engine.unroll_layers": ("auto", "true", "false"), "engine.attention": ("auto", "plain", "kernel"),
    "engine.weights": ("model", "int8"), "engine.cache": ("model", "int8"),
    "learner.attention": ("auto", "plain", "splash"),
    "learner.remat": ("none", "layer", "dots", "attention", "offload"),
    "optimizer.moments_dtype": ("auto", "float32", "bfloat16"),
    "rl.advantage": ("grpo", "dr_grpo", "rloo"),
    "rl.loss": ("clip", "cispo"),
    "rl.aggregation": ("token_mean", "sequence_mean", "constant"),
    "rl.schedule": ("constant", "cosine"),
    "sft.schedule": ("constant", "cosine"),
}
AT_LEAST_ONE = (
    "prompt.max_tokens", "answer.max_tokens", "reward.workers", "engine.groups", "engine.ticks", "rl.prompts", "rl.samples",
    "rl.minibatches", "rl.epochs", "rl.max_draws", "sft.examples", "sft.rows", "optimizer.max_skipped", "learner.rows",
    "learner.vocabulary_chunk", "mesh.slice", "mesh.tensor", "mesh.context", "eval.examples", "eval.samples", "checkpoints.every_steps", "checkpoints.keep",
    "curate.buckets", "curate.range_commits", "curate.shard_examples", "distributed.heartbeat_s", "distributed.deadline_s",
)
# Intervals: a square bracket belongs to it, a round one does not.
NUMBERS = {
    "(0, inf)": ("rl.learning_rate", "sft.learning_rate", "optimizer.epsilon", "engine.temperature", "lora.alpha",
                 "export.max_file_gb", "checkpoints.grace_s"),
    "(0, inf]": ("optimizer.max_grad_norm", "rl.max_logp_diff"),
    "[0, inf)": ("rl.steps", "sft.steps", "rl.warmup_steps", "sft.warmup_steps", "rl.muon_learning_rate",
                 "sft.muon_learning_rate", "rl.kl_coefficient", "optimizer.weight_decay", "sft.prompt_weight", "sft.lines_around",
                 "eval.temperature", "sample.temperature", "eval.every_steps", "reward.deadline_s", "engine.devices",
                 "lora.rank", "learner.block", "tasks.train_count", "tasks.held_out_count", "tasks.drill_count",
                 "tasks.max_function_bytes", "tasks.distractor_files", "inspect.index"),
    "[0, inf]": ("rl.clip_high",),
    "[0, 1]": ("rl.clip_low", "reward.max_fault_frac", "tasks.told_share", "tasks.babbled_share", "tasks.misled_share",
               "tasks.guessed_share", "tasks.overheard_share", "tasks.reworded_share", "curate.max_fix_share", "curate.similarity"),
    "[0, 1)": ("optimizer.beta1", "optimizer.beta2", "held_out_share"),
}
WHOLE_NUMBERS = ("engine.prefix_buckets", "rl.row_tokens", "eval.pass_k")  # several of them
_MATRICES = {"qkv", "out", "gate_up", "down"}
_RULES = (
    _Rule(lambda c: c.mesh.context > 1 and any(size % (2 * c.mesh.context * row_block(c)) for size in c.rl.row_tokens),
          "mesh.context is {mesh.context} and rl.row_tokens are {rl.row_tokens}: a row is cut into two blocks of learner.block "
          "tokens (0: the answer limit up to 128) for each part; needed are multiples of 2 × mesh.context × that, or empty"),
    _Rule(lambda c: c.mesh.context > 1 and c.learner.attention == "splash" and row_block(c) % 128,
          "mesh.context is {mesh.context}, learner.attention {learner.attention} and learner.block {learner.block}: parts of "
          "a row are whole blocks of the kernel; needed is a learner.block that is a multiple of 128"),
    _Rule(lambda c: _packs(c) and any(size < 1 or size % row_block(c) for size in c.rl.row_tokens),
          "rl.row_tokens are {rl.row_tokens} and learner.block {learner.block} (0: answer.max_tokens, {answer.max_tokens}, up to 128): "
          "answers begin at multiples of that; needed are multiples, or empty"),
    _Rule(lambda c: _packs(c) and -(-c.answer.max_tokens // row_block(c)) * row_block(c) > max(c.rl.row_tokens),
          "rl.row_tokens are {rl.row_tokens} and answer.max_tokens is {answer.max_tokens}: no row holds the longest answer, rounded "
          "up to a multiple of learner.block; add a larger one, or leave them out with --config.rl.row_tokens=\"()\""),
    _Rule(lambda c: c.mesh.fsdp < 1 and c.mesh.fsdp != -1, "mesh.fsdp is {mesh.fsdp}; needed is at least 1, or -1 (all left)"),
    _Rule(lambda c: c.engine.top_p != 1.0 or c.engine.top_k != 0,
          "top_p {engine.top_p} / top_k {engine.top_k}: answers drawn from a truncated distribution make the policy ratio "
          "of the loss wrong (it is taken against the full one); set top_p=1 and top_k=0 and use temperature"),
    _Rule(lambda c: c.rl.max_lag != 0, "rl.max_lag is {rl.max_lag}; only 0 (synchronous) is implemented"),
    _Rule(lambda c: not set(c.phases) <= {"sft", "rl"}, "phases are {phases}; needed are names out of sft, rl"),
    _Rule(lambda c: c.distributed.coordinator not in ("auto", "none") and not 0 <= c.distributed.process < c.distributed.processes,
          "distributed.process is {distributed.process} of distributed.processes={distributed.processes}; needed is a number from 0, "
          "below the count"),
    _Rule(lambda c: c.task == "train" and not any(c[p].steps for p in c.phases if p in ("sft", "rl")),
          "phases are {phases}, rl.steps {rl.steps} and sft.steps {sft.steps}: nothing to do; give one of the phases steps"),
    _Rule(lambda c: c.rl.importance_cap and c.rl.importance_cap < 1, "rl.importance_cap is {rl.importance_cap}; needed is 0 or at least 1"),
    _Rule(lambda c: c.engine.prefix_buckets and c.prompt.max_tokens > max(c.engine.prefix_buckets),
          "prompt.max_tokens is {prompt.max_tokens} and the largest of engine.prefix_buckets {engine.prefix_buckets} is smaller; "
          "add a larger one, or leave them out with --config.engine.prefix_buckets=\"()\""),
    _Rule(lambda c: c.task == "train" and c.rl.kl_coefficient and c.rl.steps and c.sft.steps and c.phases[:1] == ("sft",),
          "rl.kl_coefficient is {rl.kl_coefficient} and phases are {phases}: it needs the policy before RL as reference; run the "
          "sft phase by itself, then RL with --config.phases=\"('rl',)\" --config.init=DIRECTORY_OF_THE_SFT_RUN"),
    _Rule(lambda c: c.rl.minibatches > 0 and c.rl.prompts % c.rl.minibatches != 0,
          "rl.prompts {rl.prompts} do not divide into {rl.minibatches} minibatches; make one a multiple of the other"),
    _Rule(lambda c: c.reward.truncated != "score" and not _is_number(c.reward.truncated),
          "reward.truncated is {reward.truncated!r}; needed is score or a number"),
    _Rule(lambda c: (c.lora.rank and not c.lora.targets) or set(c.lora.targets) - _MATRICES,
          "lora.rank is {lora.rank} and lora.targets are {lora.targets}; needed are names out of qkv, out, gate_up, down"),
    _Rule(lambda c: c.task == "train" and c.lora.rank and any(p in c.phases and c[p].muon_learning_rate for p in ("sft", "rl")),
          "lora.rank is {lora.rank}, and sft.muon_learning_rate {sft.muon_learning_rate} or rl.muon_learning_rate "
          "{rl.muon_learning_rate}: Muon is for whole matrices; set the rate to 0"),
    _Rule(lambda c: c.lora.rank and c.init == "random" and c.task == "train",
          "lora.rank is {lora.rank} and init is random: a low-rank change of random parameters learns nothing; set "
          "--config.init"),
    _Rule(lambda c: not _is_tokenizer(c.tokenizer),
          "tokenizer is {tokenizer!r}; needed is byte, sentencepiece:PATH, tiktoken:PATH, json:PATH, embedded:NAME, hf:DIR, or "
          "train:VOCABULARY with a number of ids"),
    # A remote model has its tokenizer elsewhere: that must be on this machine.
    _Rule(lambda c: c.task == "train" and c.init.startswith(("hf:", "embedded:")) and c.tokenizer != c.init and (
              c.tokenizer.startswith("train:") or c.tokenizer.startswith(("hf:", "embedded:")) and "://" not in c.init),
          "init is {init} and tokenizer {tokenizer}: the parameters belong to another tokenizer; set --config.tokenizer={init} "
          "(of a model that shares its tokenizer with another's directory, name the file: json:PATH or tiktoken:PATH)"),
    _Rule(lambda c: c.data.train and not c.data.held_out and c.task == "train",
          "data.train is set and data.held_out is not; name the evaluation examples too"),
    _Rule(lambda c: len(c.data.weights) not in (0, len(c.data.train)),
          "data.weights {data.weights} and data.train {data.train} differ in number; give one weight a path"),
    _Rule(lambda c: any(not 1 <= k <= c.eval.samples for k in c.eval.pass_k),
          "eval.pass_k is {eval.pass_k}; needed are numbers from 1 to eval.samples {eval.samples}"),
    _Rule(lambda c: c.task == "score" and not (c.input and c.output),
          "task score needs --config.input=A.jsonl and --config.output=B.jsonl"),
    _Rule(lambda c: c.task == "export" and not c.out, "task export needs --config.out=DIRECTORY"),
    _Rule(lambda c: c.task == "curate" and not (c.source and c.out),
          "task curate needs --config.source=git:PATH, gharchive:DIRECTORY or swebench:FILE, and --config.out=DIRECTORY"),
    _Rule(lambda c: c.task == "inspect" and not c.data.shards, "task inspect needs --config.data=SHARDS"),
    _Rule(lambda c: c.task in ("eval", "sample", "export") and not c.checkpoint,
          "task {task} needs --config.checkpoint=RUN_DIRECTORY"),
)


def row_block(config: ml_collections.ConfigDict) -> int:
    """Tokens at whose multiples branches begin in a row of a group."""
    return config.learner.block or max(1, min(128, config.answer.max_tokens))


def faults(config: ml_collections.ConfigDict, values: Mapping[str, Any]) -> list[str]:
    """What is wrong with a config, one sentence each: what was got, what is needed, what to change.

    Args:
      values: the same settings by their dotted names.
    """
    found = [f"{name} is {values[name]!r}; needed is one of {', '.join(allowed)}" for name, allowed in CHOICES.items()
             if values[name] not in allowed]
    found += [f"{name} is {values[name]}; needed is at least 1" for name in AT_LEAST_ONE if values[name] < 1]
    found += [f"{name} is {values[name]}; needed is a number in {interval}" for interval, names in NUMBERS.items()
              for name in names if not _is_within(values[name], interval)]
    mistyped = [f"{name} are {values[name]!r}; needed are whole numbers" for name in WHOLE_NUMBERS
                if any(type(one) is not int for one in values[name])]
    if mistyped:  # the rules reckon with them
        return found + mistyped
    return found + [rule.text.format(**config) for rule in _RULES if rule.is_broken(config)]


def _packs(config: ml_collections.ConfigDict) -> bool:
    """Whether rows of the sizes in rl.row_tokens are to be made."""
    return bool(config.task == "train" and "rl" in config.phases and config.rl.steps and config.rl.row_tokens)


def _is_tokenizer(text: str) -> bool:
    kind, _, rest = text.partition(":")
    return text == "byte" or kind == "train" and rest.isdecimal() or (
        kind in ("sentencepiece", "tiktoken", "json", "embedded", "hf") and rest != "")


def _is_within(value: float, interval: str) -> bool:
    low, high = map(float, interval[1:-1].split(","))
    return (low <= value if interval[0] == "[" else low < value) and (value <= high if interval[-1] == "]" else value < high)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
