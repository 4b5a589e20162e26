"""SWE-RL's setting on Llama-3.1-8B, from a directory in Hugging Face's layout.

    python -m swerl_jax.main --config=configs/8b.py --dry_run
    python -m swerl_jax.main --config=configs/8b.py --workdir=DIR --config.init=hf:MODEL --config.tokenizer=hf:MODEL \\
        --config.data.train="('shards/*.array_record',)" --config.data.held_out=held_out.jsonl

MODEL may be another of Llama 3 or Qwen's: then also --config.model.arch=init, and for Qwen --config.chat=chatml. Parameters,
moments, gradient and the engine's copy take about 145 GB, over all devices of one process. Not run by us at this size.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """variant: "" or "quick" (a tiny model, the same path, a CPU minute)."""
    config = config_lib.update(config_lib.default(), {
        "name": "8b", "phases": ("rl",), "model.arch": "llama3.1-8b", "tokenizer": "tiktoken:tokenizer.model",
        "prompt.max_tokens": 8192, "answer.max_tokens": 2048, "engine.groups": 8,
        "engine.prefix_buckets": (2048, 4096, 8192), "learner.block": 128, "learner.remat": "layer",
    })
    if variant == "quick":
        config_lib.shrink(config)
    elif variant:
        raise ValueError(f"configs/8b.py has no variant {variant!r}; there is quick")
    return config
