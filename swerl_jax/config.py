"""Every setting once: its default, what it means with its unit, and where the value comes from.

A config file returns `default()` with some values changed; the command line changes single ones
(`--config.rl.steps=100`). A name that is not in this table fails with the nearest one that is. "ours" marks a value
that SWE-RL (arXiv 2502.18449) does not disclose; "paper" one that it does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

import ml_collections

from swerl_jax import config_rules

# name → (default, meaning [unit]; source)
KEYS: dict[str, tuple[Any, str]] = {
    "task": ("train", "what to do: train, score, eval, sample, export, curate or inspect"),
    "name": ("run", "the run's name, used for its directory when --workdir is not given"),
    "seed": (0, "of data order, initialisation and sampling"),
    "phases": (("sft", "rl"), "what training consists of, in order: sft, rl"),
    "init": ("random", "where parameters come from: random, embedded:NAME (shipped), hf:DIR, or the directory of a run or of an Orbax export"),
    # -- data ----------------------------------------------------------------------------------------------------
    "data.train": ((), "paths (files, directories, globs) of training examples; empty: made from the standard library"),
    "data.shards": ("", "shards that configs/curate.py made (--config.data=DIRECTORY): train and held-out paths follow; inspect: any file of examples"),
    "data.weights": ((), "share of each path in the mixture; empty: equal"),
    "data.held_out": ("", "path of the evaluation examples; empty: made from the standard library (with data.train empty)"),
    "data.on_malformed": ("stop", "a malformed row: stop the run, or skip (and count) it"),
    "data.shuffle": (True, "reshuffle every epoch"),
    "tasks.train_count": (4000, "tasks made from the standard library for training [tasks]"),
    "tasks.held_out_count": (200, "tasks made for evaluation, from other modules [tasks]"),
    "tasks.max_function_bytes": (600, "size of the largest function used [bytes]"),
    "tasks.scope": ("function", "what a task shows: function, or module"),
    "tasks.drill_count": (0, "drills (told changes of made-up code) before the training tasks [tasks]"),
    "tasks.told_share": (0.0, "share of the training tasks whose issue gives the repair away [0 … 1]"),
    "tasks.babbled_share": (0.0, "share of the training tasks whose issue says nothing: words by chance [0 … 1]"),
    "tasks.misled_share": (0.0, "share of the training tasks whose issue is a mistaken user's: of a bug that the function might have had [0 … 1]"),
    "tasks.overheard_share": (0.0, "share of the training tasks whose issue is a user's and true, whatever the voice [0 … 1]"),
    "tasks.guessed_share": (0.0, "share of the training tasks whose oracle is an edit by chance, for a supervised phase [0 … 1]"),
    "tasks.operators": ((), "kinds of bugs, keys of data.operators.OPERATORS; empty: all"),
    "tasks.voice": ("maintainer", "whose words the issues are in: a maintainer's, who names the fault, or a user's (user)"),
    "tasks.reworded_share": (0.0, "share of the training tasks whose names, texts and numbers are other words [0 … 1]"),
    "tasks.min_choices": (1, "functions used admit at least so many bugs of these kinds: with one, the code alone tells the repair [bugs]"),
    "tasks.is_cut": (False, "cut longer functions into pieces within the bounds"),
    "tasks.distractor_files": (0, "further files shown that need no change [files]"),
    "tasks.is_renamed": (True, "rename identifiers at random, so that copying must be learnt"),
    # -- text ----------------------------------------------------------------------------------------------------
    "tokenizer": ("train:768", "byte, sentencepiece:PATH, tiktoken:PATH, json:PATH, embedded:NAME, hf:DIR, or train:VOCABULARY (here, or taken from the run that init names)"),
    "chat": ("llama3", "chat template: llama3, chatml (Qwen) or compact; paper: Llama 3 headers"),
    "prompt.style": ("swe_rl", "instructions: swe_rl (the paper's structure) or compact (issue and files only)"),
    "prompt.max_tokens": (12_288, "examples with a longer prompt are dropped and counted [tokens]; paper: 16k in all, split ours"),
    "answer.max_tokens": (4096, "limit of an answer [tokens]; ours"),
    # -- reward --------------------------------------------------------------------------------------------------
    "reward.name": ("search_replace", "search_replace (paper), unified_diff, or module:function of (output, files, oracle)"),
    "reward.similarity": ("difflib", "of two diffs: difflib (paper) or indel"),
    "reward.line_autojunk": (True, "difflib's line heuristic while making diffs; True is the released behaviour"),
    "reward.discrete": (False, "1 for an exact match else 0 (the paper's ablation)"),
    "reward.truncated": ("score", "an answer cut by the limit: score its text as it is, or a number; paper silent, ours"),
    "reward.workers": (2, "scoring processes"),
    "reward.deadline_s": (0.0, "per answer [s]; 0: longer than any answer can take (scorer.default_deadline_s)"),
    "reward.max_fault_frac": (0.05, "share of answers lost to infrastructure faults above which the run stops; ours"),
    # -- model and mesh --------------------------------------------------------------------------------------------
    "model.arch": ("llama3.3-70b", "a row of policy.arch.ARCHS (the vocabulary is taken from a tokenizer trained here), or init: what init=hf:DIR holds"),
    "model.dtype": ("bfloat16", "of activations and matrix products: float32 or bfloat16"),
    "model.param_dtype": ("float32", "of parameters and optimiser moments: float32 or bfloat16; gradients add up in float32"),
    "lora.rank": (0, "rank of a low-rank change that learns in place of the parameters; 0: all parameters learn"),
    "lora.alpha": (32.0, "the change is alpha / rank · A B"),
    "lora.targets": (("qkv", "out", "gate_up", "down"), "matrices of every layer that change"),
    "mesh.slice": (1, "data-parallel copies of the learner, a multiple of the TPU's slices [copies]; 1: one a slice"),
    "mesh.fsdp": (-1, "data and parameter shards [devices]; -1: all that are left"),
    "mesh.tensor": (1, "tensor shards [devices]"),
    "mesh.context": (1, "parts of a learner's row, which is too long for one device; parameters are cut over them, too [devices]"),
    "distributed.coordinator": ("auto", "of several processes: auto (as a TPU slice, Slurm or JAX_COORDINATOR_ADDRESS says), none (this one alone), or HOST:PORT, where process 0 listens"),
    "distributed.processes": (1, "with HOST:PORT: how many there are"),
    "distributed.process": (0, "with HOST:PORT: which one this is"),
    "distributed.heartbeat_s": (60, "when nothing was heard of one for so long, jax ends all of them [s]"),
    "distributed.deadline_s": (1800.0, "longest wait for the others, where all meet [s]"),
    # -- engine ----------------------------------------------------------------------------------------------------
    "engine.groups": (8, "prompts sampled at one time (slots), by all engines together"),
    "engine.devices": (0, "of several hosts, too, that hold one copy of the weights and draw together; 0: mesh.tensor, no more than a process has"),
    "engine.prefix_buckets": ((), "sizes a padded prompt may take [tokens]; empty: a quarter, a half and the whole of prompt.max_tokens"),
    "engine.ticks": (32, "tokens decoded between two looks of the host [tokens]"),
    "engine.unroll_layers": ("auto", "layers as an unrolled loop: true, false, or auto (on CPU up to 16 layers)"),
    "engine.attention": ("auto", "plain, kernel (the TPU's; elsewhere slow), or auto: what suits the devices (GPUs: cuDNN's for prompts)"),
    "engine.weights": ("model", "that draw: in model.dtype (model), or the layers' matrices and what they multiply rounded to eight bits (int8): half the memory; what that changes is Δlogp, and rl.importance_cap corrects it"),
    "engine.cache": ("model", "of keys and values while drawing: in model.dtype (model), or rounded to eight bits, each token of each key head by itself (int8): about half the memory; otherwise as engine.weights"),
    "engine.temperature": (1.0, "of sampling; ours (the paper is silent for training)"),
    "engine.top_p": (1.0, "refused unless 1: a truncated distribution makes the policy ratio wrong"),
    "engine.top_k": (0, "refused unless 0: as top_p"),
    # -- reinforcement learning --------------------------------------------------------------------------------------
    "rl.steps": (1600, "rollout batches; paper: 1600"),
    "rl.prompts": (32, "prompts a step; paper: 32"),
    "rl.samples": (16, "answers a prompt; paper: 16"),
    "rl.minibatches": (1, "optimiser steps an epoch over a rollout batch; paper: 1"),
    "rl.epochs": (1, "passes over a rollout batch; paper: 1"),
    "rl.advantage": ("grpo", "grpo, dr_grpo or rloo; paper: grpo"),
    "rl.loss": ("clip", "clip or cispo; paper: clip"),
    "rl.clip_low": (0.2, "ε below 1; ours"),
    "rl.clip_high": (0.2, "ε above 1; ours"),
    "rl.kl_coefficient": (0.0, "β of the k3 penalty against the policy before RL; ours"),
    "rl.aggregation": ("token_mean", "token_mean, sequence_mean or constant; the paper is silent, ours"),
    "rl.learn_truncated": (True, "False: answers cut by the limit carry no loss (they stay in the baseline); ours"),
    "rl.drop_constant_groups": (False, "draw other groups for those whose rewards are all equal; ours"),
    "rl.max_draws": (4, "with drop_constant_groups: at most this many times rl.prompts are drawn a step"),
    "rl.row_tokens": ((), "branch tokens a row may hold [tokens]; empty: what a group needs, a half and a quarter of it"),
    "rl.max_lag": (0, "optimiser steps that a rollout may be behind; only 0 (synchronous) is implemented"),
    "rl.importance_cap": (0.0, "at least 1: weigh tokens by learner / sampler probability, at most so much (truncated importance sampling); before several updates that is a forward pass more; 0: the clip alone corrects; ours"),
    "rl.max_logp_diff": (0.05, "mean |learner − sampler| log-probability above which the run stops [nats]; ours"),
    # -- supervised fine-tuning ---------------------------------------------------------------------------------------
    "sft.steps": (0, "optimiser steps"),
    "sft.examples": (32, "examples a step"),
    "sft.rows": (8, "rows of a microbatch on each data shard; a row holds one example"),
    "sft.prompt_weight": (0.0, "loss weight of a prompt's token, an answer's being 1; ours"),
    "sft.thought": ("The fault is in {paths}.", "what the taught answer thinks; {paths}: changed files, {change}: what changes, and between which words; ours"),
    "sft.lines_around": (0, "unchanged lines on either side of a change that the taught answer's search takes along [lines]; ours"),
    # -- optimiser (one for each phase) -------------------------------------------------------------------------------
    "rl.learning_rate": (1e-6, "peak; ours"),
    "rl.muon_learning_rate": (0.0, "as sft.muon_learning_rate; ours"),
    "rl.schedule": ("constant", "constant or cosine, by updates: a step without any (all advantages 0) leaves the rate as it is; ours"),
    "rl.warmup_steps": (0, "updates of linear warm-up; ours"),
    "sft.learning_rate": (1e-5, "peak; ours"),
    "sft.muon_learning_rate": (0.0, "peak for the layers' matrices, by Muon; 0: AdamW for all parameters; ours"),
    "sft.schedule": ("cosine", "constant or cosine; ours"),
    "sft.warmup_steps": (10, "updates of linear warm-up; ours"),
    "optimizer.beta1": (0.9, "AdamW; ours"),
    "optimizer.beta2": (0.95, "AdamW; ours"),
    "optimizer.epsilon": (1e-8, "AdamW; ours"),
    "optimizer.weight_decay": (0.0, "AdamW; ours"),
    "optimizer.moments_dtype": ("auto", "of the optimiser's moments: float32, bfloat16, or auto: as the parameters"),
    "optimizer.max_grad_norm": (1.0, "the global gradient norm is clipped to it; ours"),
    "optimizer.max_skipped": (5, "updates in a row with a non-finite gradient, after which the run stops"),
    # -- learner ---------------------------------------------------------------------------------------------------
    "learner.rows": (1, "rows of a microbatch on each data shard"),
    "learner.block": (0, "branches begin at multiples of it [tokens]; 0: the answer limit up to 128"),
    "learner.remat": ("dots", "what the backward pass computes again, as in policy.llama.REMAT: none, layer, dots, attention or offload"),
    "learner.attention": ("auto", "plain, splash (the TPU's kernel; interpreted elsewhere, slowly), or auto: what suits the devices (GPUs: cuDNN's for prompts)"),
    "learner.vocabulary_chunk": (1024, "tokens of a row, or of each part of it, whose logits exist at one time [tokens]"),
    # -- evaluation --------------------------------------------------------------------------------------------------
    "eval.every_steps": (50, "held-out evaluation every so many steps; 0: before and after each phase only"),
    "eval.examples": (200, "held-out examples, or all where there are fewer"),
    "eval.samples": (1, "answers an example"),
    "eval.temperature": (0.0, "of evaluation; 0 is greedy; paper: greedy"),
    "eval.pass_k": ((1,), "k of pass@k, at most eval.samples"),
    "checkpoint": ("", "task eval, sample and export: embedded:NAME, hf:DIR, or the directory of a run or of an Orbax export"),
    "eval.output": ("", "task eval: where the answers go (JSONL); empty: not written"),
    # -- checkpoints and logs ------------------------------------------------------------------------------------------
    "checkpoints.every_steps": (50, "a checkpoint every so many steps, and at the end"),
    "checkpoints.keep": (3, "good checkpoints kept"),
    "checkpoints.grace_s": (25.0, "SIGTERM: time to end the optimiser steps under way and save the last finished step; below the 30 s that a Spot VM has [s]"),
    "log.tensorboard": (True, "write TensorBoard scalars"),
    "log.rollouts": (True, "write every answer to rollouts/"),
    # -- task score ------------------------------------------------------------------------------------------------------
    "input": ("", "task score: JSONL with output, code_context, oracle_new_content, or a rollout file"),
    "output": ("", "task score: where the scored rows go"),
    "on_malformed": ("stop", "task score: a malformed row: stop, or skip (and count) it"),
    # -- task sample -----------------------------------------------------------------------------------------------------
    "sample.issue": ("", "the issue's text, or @FILE"),
    "sample.files": ("", "paths of the files shown, separated by commas"),
    "sample.temperature": (0.0, "0 is greedy"),
    # -- task export -----------------------------------------------------------------------------------------------------
    "out": ("", "task export: the directory to make; task curate: the directory of the shards, local or gs://"),
    "format": ("hf", "hf (safetensors, as Hugging Face lays a model out) or orbax (the parameters alone)"),
    "export.dtype": ("float32", "of the written parameters: float32, bfloat16 or float16"),
    "export.max_file_gb": (5.0, "size of a safetensors file, at most [GB]"),
    # -- task curate -----------------------------------------------------------------------------------------------------
    "source": ("", "git:PATH (a clone, or a directory of clones), gharchive:DIR (hours of events) or swebench:FILE"),
    "keep_rejects": (False, "write everything that was dropped, with its reason, to rejects.jsonl.gz"),
    "held_out_share": (0.1, "share of the examples held out, by repository (by id where there are too few) [0 … 1)"),
    "beam": ("", "options of Apache Beam, for example --runner=DirectRunner; empty: processes of this machine"),
    "curate.clones": ("", "gharchive, swebench: a clone or a directory of clones; empty: gharchive looks beside the hours"),
    "curate.issues": ("", "git: JSON lines of issues (number, title, body, created_at, repo …), linked by closing keywords"),
    "curate.hints": (False, "swebench: add hints_text to the issue"),
    "curate.decontaminate": (True, "drop what is of, or forked from, a repository of an evaluation split"),
    "curate.evaluation_files": ((), "rows in SWE-bench's format (JSON lines, gz, parquet) whose copies are dropped, wherever they are found"),
    "curate.bots": ("signed", "which changes are a program's: signed, or paper (SWE-RL's words)"),
    "curate.bug_fix": ("auto", "words (a heuristic), any, or module:function of a Candidate; auto: words, of rows any"),
    "curate.needs_issue": (True, "drop what has neither a linked issue nor a message that stands for one"),
    "curate.min_issue_words": (5, "an issue of fewer says nothing [words]"),
    "curate.max_files": (100, "paths that a change touches, at most [files]"),
    "curate.max_changed_lines": (2000, "removed and added lines of code, at most [lines]"),
    "curate.max_file_chars": (400_000, "of a changed file, at most [characters]"),
    "curate.max_fix_share": (0.5, "share of the new code that the issue may quote [0 … 1]"),
    "curate.languages": ((), "of source files, as in curate.paths.LANGUAGES; empty: any"),
    "curate.licences": (("auto",), "SPDX ids, permissive, weak_copyleft, copyleft, or any (also unknown); auto: all three; any for rows without clones"),
    "curate.oracle_roles": (("source", "data"), "roles of files that are to be changed, and shown, as in curate.paths.ROLES"),
    "curate.context_files": (8, "unchanged files shown beside the changed ones, at most [files]"),
    "curate.keep_conversation": (True, "keep the pull request's comments in meta"),
    "curate.similarity": (0.8, "estimated share of common runs of words from which two examples are the same [0 … 1]"),
    "curate.buckets": (32, "parts that repositories and examples are divided into; no more shards than that"),
    "curate.range_commits": (1000, "of a clone in one piece of work [commits]"),
    "curate.shard_examples": (5000, "of a shard, about [examples]"),
    "curate.workers": (0, "processes; 0: one a core"),
    "curate.item_timeout_s": (7200.0, "a piece of work that takes longer is given up [s]"),
    "curate.worker_memory_gb": (0.5, "a process that has grown beyond is replaced after its piece of work [GiB]"),
    # -- task inspect ----------------------------------------------------------------------------------------------------
    "inspect.index": (0, "which example to show"),
}


def default() -> ml_collections.ConfigDict:
    """All settings with their defaults, locked: a misspelt name is an error."""
    config = ml_collections.ConfigDict()
    for name, (value, _) in KEYS.items():
        *sections, key = name.split(".")
        node = config
        for section in sections:
            if section not in node:
                node[section] = ml_collections.ConfigDict()
            node = node[section]
        node[key] = value
    return config.lock()


def update(config: ml_collections.ConfigDict, changes: dict[str, Any]) -> ml_collections.ConfigDict:
    """Changes settings by their dotted names; returns the same config.

    Raises:
      ValueError: an unknown name, with the nearest valid one; or a value of another type than the default's.
    """
    for name, value in changes.items():
        if name not in KEYS:
            raise ValueError(unknown(name))
        *sections, key = name.split(".")
        node = config
        for section in sections:
            node = node[section]
        try:
            node[key] = value
        except TypeError as error:
            raise ValueError(f"config.{name} is {value!r}; needed is {type(KEYS[name][0]).__name__} like the default "
                             f"{KEYS[name][0]!r}") from error
    return config


def unknown(name: str) -> str:
    """The error text for a setting that does not exist."""
    near = difflib.get_close_matches(name, KEYS, n=1, cutoff=0.5)
    hint = f"; did you mean config.{near[0]}?" if near else "; swerl_jax/config.py lists them all"
    return f"config.{name} is not a setting{hint}"


def flat(config: ml_collections.ConfigDict) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting, in the table's order."""
    for name in KEYS:
        node: Any = config
        for part in name.split("."):
            node = node[part]
        yield name, node


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Makes a large model's config one of a tiny model that takes the same path in a minute on a CPU.

    The model is random, so rewards are equal in almost all groups, and a tokenizer that is trained here has Llama 3's special ids.
    """
    return update(config, {
        "name": f"{config.name}-quick", "model.arch": "tiny", "model.dtype": "float32", "tokenizer": "train:1024", "chat": "llama3",
        "tasks.train_count": 200, "tasks.held_out_count": 16, "tasks.max_function_bytes": 200, "eval.examples": 4,
        "prompt.max_tokens": 1024, "answer.max_tokens": 64, "engine.prefix_buckets": (1024,), "engine.groups": 2,
        "engine.ticks": 64, "rl.steps": 2, "rl.prompts": 2, "rl.samples": 4, "rl.minibatches": 1, "rl.drop_constant_groups": False,
        "learner.block": 64, "rl.row_tokens": (256,)})


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what cannot work, before any device is touched.

    Raises:
      ValueError: every broken rule, one a line, each with what was got and what to change.
    """
    faults = config_rules.faults(config, dict(flat(config)))
    if faults:
        raise ValueError("\n".join(faults))
