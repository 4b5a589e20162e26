"""Makes the tiny policy that ships with the project."""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """variant: "" or "quick"."""
    config = config_lib.update(config_lib.default(), {
        "name": "tiny-warmstart", "phases": ("sft",),
        "tasks.train_count": 22_400, "tasks.drill_count": 12_800, "data.shuffle": False, "tasks.held_out_count": 400, "tasks.max_function_bytes": 240,
        "tokenizer": "train:1024", "chat": "compact", "prompt.style": "compact", "sft.thought": "Fix it.",
        "prompt.max_tokens": 160, "answer.max_tokens": 160,
        "model.arch": "tiny", "model.dtype": "float32",
        "engine.groups": 8, "engine.prefix_buckets": (160,), "engine.ticks": 80, "rl.samples": 8,
        "sft.steps": 1100, "sft.examples": 32, "sft.rows": 4, "sft.prompt_weight": 0.5,
        "sft.learning_rate": 3e-3, "sft.schedule": "cosine", "sft.warmup_steps": 50,
        "eval.every_steps": 250, "eval.examples": 200,
        "checkpoint.every_steps": 250, "checkpoint.keep": 4,
    })
    return config
