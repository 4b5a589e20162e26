"""SWE-RL's published setting on Llama-3.3-70B: 32 prompts × 16 answers, one update a step, 1,600 steps, 16k context.

    python -m swerl_jax.main --config=configs/70b.py --dry_run
    python -m swerl_jax.main --config=configs/70b.py:v5p --plan=v5p:4x8x8
    python -m swerl_jax.main --config=configs/70b.py:v6e --plan=v6e:16x16
    python -m swerl_jax.main --config=configs/70b.py:v5p --workdir=DIR --config.init=CHECKPOINT \\
        --config.tokenizer=tiktoken:tokenizer.model --config.data.train="('shards/*.array_record',)" \\
        --config.data.held_out=held_out.jsonl

Paper (arXiv 2502.18449): 512 H100, about 32 hours, 41.0 % on SWE-bench Verified with its scaffold. Not run by us; what the
planner says of it is in docs/tpu.md.
"""

from swerl_jax import config as config_lib

# A key head on each of 8 chips for the learner. Two prompts' answers are drawn by 16 chips together, each key head on two of
# them, and with weights of eight bits: what limits a step of decoding is how fast weights come to the matrix units. What the
# rounding changes, importance weights correct: of a single update they cost nothing.
CHIPS = {"mesh.fsdp": -1, "mesh.tensor": 8, "engine.devices": 16, "engine.weights": "int8", "rl.importance_cap": 2.0}
VARIANTS = {"": {}, "v5p": CHIPS | {"learner.remat": "attention"},
            "v6e": CHIPS | {"optimizer.moments_dtype": "bfloat16", "rl.row_tokens": (32_768,)}}


def get_config(variant: str = ""):
    """variant: "", "v5p" or "v6e" (256 chips), or "quick" (a tiny model, the same path, a CPU minute)."""
    config = config_lib.update(config_lib.default(), {
        "name": "70b", "phases": ("rl",), "model.arch": "llama3.3-70b", "tokenizer": "tiktoken:tokenizer.model",
        "prompt.max_tokens": 12_288, "answer.max_tokens": 4096, "engine.groups": 32,
        "engine.prefix_buckets": (4096, 8192, 12_288), "learner.block": 128, "learner.remat": "layer",
    })
    if variant == "quick":
        return config_lib.shrink(config)
    if variant not in VARIANTS:
        raise ValueError(f"configs/70b.py has no variant {variant!r}; there are v5p, v6e and quick")
    return config_lib.update(config, VARIANTS[variant])
