"""The main job: GRPO on a tiny Llama that repairs small functions, on a laptop, in one run.

    bash launch/local.sh                                   or, in your own environment:
    python -m swerl_jax.main --config=configs/tiny.py      (--config=configs/tiny.py:quick in a minute)

It starts from the policy that ships with the project (forms of configs/tiny_warmstart.py made it), draws tasks from this
machine's standard library, and learns from the paper's reward; held-out functions come from modules that neither saw. In its last
stage the warm start was taught by demonstrations of which half were guesses, an edit of some kind by chance, about bugs of
eleven kinds; here all bugs are of three, told by a user, and the reward alone says which edits are repairs.

Two AMD EPYC cores, Python 3.11: ten minutes on one of them, eight on both. What it changes is in the README, "Watch it learn".
"""

from swerl_jax import config as config_lib

VARIANTS = {
    "": {},
    "discrete": {"name": "tiny-discrete", "reward.discrete": True},
    "group4": {"name": "tiny-group4", "rl.prompts": 32, "rl.samples": 4, "engine.groups": 32,
               "rl.row_tokens": (384, 512, 640, 768)},
    "sft_only": {"name": "tiny-sft-only", "phases": ("sft",)},
    "scratch": {"name": "tiny-scratch", "init": "random", "model.arch": "tiny", "tokenizer": "train:1024", "phases": ("sft", "rl"),
                "tasks.drill_count": 9600, "tasks.train_count": 6400, "data.shuffle": False,
                "sft.steps": 400, "sft.examples": 32, "sft.prompt_weight": 0.1, "sft.learning_rate": 2e-3,
                "sft.muon_learning_rate": 0.02, "sft.schedule": "cosine", "sft.warmup_steps": 50,
                "tasks.reworded_share": 0.5, "tasks.told_share": 0.2,
                "rl.steps": 10, "rl.row_tokens": (), "eval.every_steps": 0},
    "quick": {"name": "tiny-quick", "tasks.train_count": 40, "tasks.held_out_count": 24, "eval.examples": 16, "eval.samples": 1,
              "engine.groups": 4, "engine.prefix_buckets": (160,), "rl.row_tokens": (1536,), "rl.steps": 2, "rl.prompts": 4,
              "checkpoints.every_steps": 2},
}


def get_config(variant: str = ""):
    """variant: a key of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/tiny.py has no variant {variant!r}; there are {', '.join(filter(None, VARIANTS))}")
    config = config_lib.update(config_lib.default(), {
        "name": "tiny", "seed": 1, "init": "embedded:tiny", "tokenizer": "embedded:tiny", "phases": ("rl",),
        "tasks.train_count": 4000, "tasks.held_out_count": 400, "tasks.max_function_bytes": 160,
        "tasks.is_cut": True, "tasks.voice": "user", "tasks.operators": ("missing_not", "boundary", "and_or"),
        "tasks.reworded_share": 1.0,
        "chat": "compact", "prompt.style": "compact", "sft.thought": "{change}", "sft.lines_around": 100,
        "prompt.max_tokens": 160, "answer.max_tokens": 240,
        "model.arch": "init", "model.dtype": "float32",
        "engine.groups": 16, "engine.prefix_buckets": (112, 160), "engine.ticks": 48, "engine.temperature": 0.7,
        "rl.steps": 100, "rl.prompts": 16, "rl.samples": 8, "rl.learning_rate": 4e-4, "rl.schedule": "cosine", "rl.warmup_steps": 3,
        "rl.row_tokens": (1024, 1280, 1536), "learner.block": 32,
        "sft.steps": 160, "sft.examples": 48, "sft.rows": 4, "sft.learning_rate": 3e-4, "sft.schedule": "constant",
        "eval.every_steps": 0, "eval.examples": 300, "eval.samples": 4, "eval.temperature": 0.7,
        "checkpoints.every_steps": 20, "checkpoints.keep": 2,
    })
    return config_lib.update(config, VARIANTS[variant])
