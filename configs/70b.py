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
        config_lib.update(config, {
            "name": "70b-quick", "model.arch": "tiny", "model.dtype": "float32", "tokenizer": "train:1024",
            "tasks.train_count": 200, "tasks.held_out_count": 16, "tasks.max_function_bytes": 200, "eval.examples": 4,
            "prompt.max_tokens": 1024, "answer.max_tokens": 64, "engine.prefix_buckets": (1024,), "engine.groups": 2,
            "engine.ticks": 64, "rl.steps": 2, "rl.prompts": 2, "rl.samples": 4, "learner.block": 64,
            "rl.row_tokens": (256,),
        })
    elif variant:
        raise ValueError(f"configs/70b.py has no variant {variant!r}; there is quick")
    return config
