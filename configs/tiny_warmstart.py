"""Makes the policy that ships with the project, from random parameters: supervised, on tasks made from the standard library.

    python -m swerl_jax.main --config=configs/tiny_warmstart.py                      (:quick in two minutes, to no use)
    python -m swerl_jax.main --config=configs/export.py --config.checkpoint=runs/tiny-warmstart \\
        --config.export.dtype=float16 --config.out=exported

First drills, ever longer made-up functions whose issue tells the change: within 500 steps the model learns to find lines of
its prompt and to write them again. Then injected bugs in functions of the standard library and pieces of them, read once each,
a third with the repair told in the issue. The taught thought tells the change in words.

The shipped parameters come from a shorter form of this recipe: 1,500 steps (16,000 drills, then 32,000 bugs in whole functions,
no repair told), a taught thought of "Fix it."; seed 0, Python 3.11.7, two AMD EPYC cores shared with other work, 53 minutes;
exported as float16. On the first 200 held-out tasks of then, greedy: 56.5 % [49.5, 63.5] usable answers (25.5 % change nothing,
15.5 % search for lines that are not there), mean reward 0.087, 0.924 among usable ones, 29.5 % [23.0, 36.0] exact.
`swerl_jax/models/tiny/scores.json` has the scores that a test holds the parameters to.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """variant: "" or "quick"."""
    config = config_lib.update(config_lib.default(), {
        "name": "tiny-warmstart", "phases": ("sft",),
        "tasks.drill_count": 14_400, "tasks.train_count": 66_000, "tasks.held_out_count": 400,
        "tasks.max_function_bytes": 240, "tasks.is_cut": True, "tasks.told_share": 0.33, "data.shuffle": False,
        "tokenizer": "train:1024", "chat": "compact", "prompt.style": "compact", "sft.thought": "{change}",
        "prompt.max_tokens": 160, "answer.max_tokens": 160,
        "model.arch": "tiny", "model.dtype": "float32",
        "engine.groups": 8, "engine.prefix_buckets": (160,), "engine.ticks": 80, "rl.samples": 8,
        "sft.steps": 2400, "sft.examples": 32, "sft.rows": 4, "sft.prompt_weight": 0.1,
        "sft.learning_rate": 2e-3, "sft.muon_learning_rate": 0.02, "sft.schedule": "cosine", "sft.warmup_steps": 50,
        "eval.every_steps": 600, "eval.examples": 200,
        "checkpoints.every_steps": 100, "checkpoints.keep": 4,
    })
    if variant == "quick":
        config_lib.update(config, {
            "name": "tiny-warmstart-quick", "tasks.drill_count": 320, "tasks.train_count": 160, "tasks.held_out_count": 20,
            "sft.steps": 30, "sft.examples": 16, "sft.warmup_steps": 5, "eval.examples": 16, "eval.every_steps": 0,
            "tokenizer": "train:600",
        })
    elif variant:
        raise ValueError(f"configs/tiny_warmstart.py has no variant {variant!r}; there is quick")
    return config
