"""SWE-RL's published setting on Llama-3.3-70B: 32 prompts × 16 answers, one update a step, 1,600 steps, 16k context.

    python -m swerl_jax.main --config=configs/70b.py --dry_run
    python -m swerl_jax.main --config=configs/70b.py --workdir=DIR --config.init=CHECKPOINT \\
        --config.tokenizer=tiktoken:tokenizer.model --config.data.train="('shards/*.array_record',)" \\
        --config.data.held_out=held_out.jsonl

Paper (arXiv 2502.18449): 512 H100, about 32 hours, 41.0 % on SWE-bench Verified with its scaffold. Not run by us.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """variant: "" or "quick" (a tiny model, the same path, a CPU minute)."""
    config = config_lib.update(config_lib.default(), {
        "name": "70b", "phases": ("rl",), "model.arch": "llama3.3-70b", "tokenizer": "tiktoken:tokenizer.model",
        "prompt.max_tokens": 12_288, "answer.max_tokens": 4096, "engine.groups": 32,
        "engine.prefix_buckets": (4096, 8192, 12_288), "learner.block": 128, "learner.remat": "layer",
    })
    if variant == "quick":
        config_lib.shrink(config)
    elif variant:
        raise ValueError(f"configs/70b.py has no variant {variant!r}; there is quick")
    return config
