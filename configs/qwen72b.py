"""Long trajectories on Qwen2.5-72B: 10 of up to 131,072 tokens a problem, each row cut over 8 chips along its tokens.

    python -m swerl_jax.main --config=configs/qwen72b.py --dry_run
    python -m swerl_jax.main --config=configs/qwen72b.py:v5p --plan=v5p:4x8x8
    python -m swerl_jax.main --config=configs/qwen72b.py:v5p --workdir=DIR --config.init=hf:MODEL --config.tokenizer=hf:MODEL \\
        --config.data.train="('shards/*.array_record',)" --config.data.held_out=held_out.jsonl

The setting is the second stage of "Training Long-Context, Multi-Turn Software Engineering Agents with Reinforcement Learning",
arXiv 2508.03501: 100 problems an iteration, 10 trajectories each, YaRN with factor 4, DAPO's clip; how a trajectory divides into
its first prompt and what follows is ours. MODEL is a directory of Qwen2.5-72B-Instruct, with the rope_scaling in its config.json
that the model card tells to add for long texts. Not run by us; what the planner says of it is in docs/tpu.md: on 256 v5p chips
2.2 hours a step in which every trajectory is as long as allowed, and 37 % of the memory free.
"""

from swerl_jax import config as config_lib

# A key head on each of 8 chips for the learner and the engines. An engine holds the trajectories of two problems, whose keys and
# values of eight bits take half of its chips' memory; weights of eight bits come faster to the matrix units. What
# the rounding changes, importance weights correct, for a forward pass before the four updates.
CHIPS = {"mesh.fsdp": -1, "mesh.tensor": 8, "mesh.context": 8, "engine.devices": 8, "engine.weights": "int8",
         "engine.cache": "int8", "engine.groups": 64, "learner.remat": "attention", "rl.importance_cap": 2.0}
VARIANTS = {"": {}, "v5p": CHIPS}


def get_config(variant: str = ""):
    """variant: "", "v5p" (256 chips), or "quick" (a tiny model, the same path but for the mesh, a CPU minute)."""
    config = config_lib.update(config_lib.default(), {
        "name": "qwen72b", "phases": ("rl",), "model.arch": "qwen2.5-72b-131k", "tokenizer": "json:tokenizer.json",
        "chat": "chatml", "prompt.max_tokens": 16_384, "answer.max_tokens": 114_688, "engine.prefix_buckets": (16_384,),
        "engine.groups": 32, "rl.prompts": 100, "rl.samples": 10, "rl.minibatches": 4, "rl.row_tokens": (57_344, 114_688),
        "rl.learning_rate": 1e-6, "rl.clip_low": 0.2, "rl.clip_high": 0.26, "rl.drop_constant_groups": True,
        "optimizer.beta2": 0.999, "optimizer.weight_decay": 0.1, "learner.block": 128, "learner.remat": "layer",
    })
    if variant == "quick":
        return config_lib.shrink(config)
    if variant not in VARIANTS:
        raise ValueError(f"configs/qwen72b.py has no variant {variant!r}; there are v5p and quick")
    return config_lib.update(config, VARIANTS[variant])
