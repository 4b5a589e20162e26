"""Makes a policy to start from, out of random parameters: supervised, on tasks made from the standard library.

    python -m swerl_jax.main --config=configs/tiny_warmstart.py                      (:quick in two minutes, to no use)
    python -m swerl_jax.main --config=configs/export.py --config.checkpoint=runs/tiny-warmstart \\
        --config.export.dtype=float16 --config.out=exported

It teaches how to answer. First drills, ever longer made-up functions whose issue tells the change: within 500 steps the model
learns to copy lines of its prompt. Then injected bugs in functions of the standard library and pieces of them, read once each,
most of them in other words throughout, so that words never seen are copied too. Of their issues a tenth tell the repair, a
tenth are words by chance, a fifth are a mistaken user's, about a bug that the function might have had, so that the policy edits
where it does not understand, a tenth are a user's and true, and the others name the fault as a maintainer would; how far to trust
a user is left to reinforcement learning (configs/tiny.py). The taught thought tells what changes and between which words, and
the edit rewrites the whole function: a causal model cannot choose a line by what comes later in it.

The parameters that ship (`swerl_jax/models/tiny`) come from forms of this recipe, in fourteen stages: 2,400 steps of short edits of
all kinds of bugs in their own words, 670 of long edits and other words, 230 and 650 of bugs whose repair can be inferred, a
fifth of them told, the last 650 with falling rates, 520 of whole functions of at most 200 bytes, 400 where a third of the issues
say nothing, 600 where four in ten are a user's about any kind of bug, 500 and 1,500 of thoughts that tell the place too, 1,250
where half of the other words are invented, 400 where some of the user's issues are true, 480 of functions that admit two bugs
or more, 450 where three of five issues are mistaken or say nothing, and 300 where half of the demonstrations are guesses
(`tasks.guessed_share`), all with falling rates (seeds 0 to 2, 2, 5, 6, 14, 17 to 21, 26 and 27, Python 3.11.7, two AMD EPYC cores
shared with other work, eight hours); exported as float16. The guesses are there to be unlearnt: they leave reinforcement learning
something to find. The last two stages were made by

    python -m swerl_jax.main --config=configs/tiny_warmstart.py --workdir=runs/w1 --config.seed=26 --config.init=hf:STAGE_12 \\
        --config.tokenizer=hf:STAGE_12 --config.model.arch=init --config.tasks.drill_count=0 --config.tasks.train_count=14400 \\
        --config.tasks.babbled_share=0.3 --config.tasks.misled_share=0.3 --config.tasks.overheard_share=0 --config.sft.steps=450 \\
        --config.sft.learning_rate=6e-4 --config.sft.muon_learning_rate=0.006 --config.sft.warmup_steps=20 \\
        --config.prompt.max_tokens=160 --config.answer.max_tokens=240 --config.engine.prefix_buckets="(160,)" \\
        --config.eval.every_steps=0

and the same from its export with seed 27, 9600 tasks, 300 steps, `babbled_share` 0.1, `misled_share` 0.2 and `guessed_share` 0.5:
11 and 7 minutes. A maintainer's issues of eleven kinds of bugs: 88.5 % [84.0, 92.5] of the answers are usable and 74.5 %
[68.0, 80.5] exact (200 held-out tasks, greedy; mean reward 0.757, 0.985 among usable ones). `swerl_jax/models/tiny/scores.json`
has the scores, on the main job's tasks, that a test holds the parameters to. This recipe as it stands has not been run to its end.
"""

from swerl_jax import config as config_lib
from swerl_jax.data.operators import INFERABLE


def get_config(variant: str = ""):
    """variant: "" or "quick"."""
    config = config_lib.update(config_lib.default(), {
        "name": "tiny-warmstart", "phases": ("sft",),
        "tasks.drill_count": 12_800, "tasks.train_count": 52_000, "tasks.held_out_count": 400, "tasks.operators": INFERABLE,
        "tasks.max_function_bytes": 200, "tasks.is_cut": True, "tasks.told_share": 0.1, "tasks.babbled_share": 0.1,
        "tasks.misled_share": 0.2, "tasks.overheard_share": 0.1, "tasks.reworded_share": 0.9,
        "data.shuffle": False,
        "tokenizer": "train:1024", "chat": "compact", "prompt.style": "compact", "sft.thought": "{change}",
        "sft.lines_around": 100, "prompt.max_tokens": 176, "answer.max_tokens": 256,
        "model.arch": "tiny", "model.dtype": "float32",
        "engine.groups": 8, "engine.prefix_buckets": (176,), "engine.ticks": 64, "rl.samples": 8,
        "sft.steps": 2000, "sft.examples": 32, "sft.rows": 8, "sft.prompt_weight": 0.02,
        "sft.learning_rate": 2e-3, "sft.muon_learning_rate": 0.02, "sft.schedule": "cosine", "sft.warmup_steps": 50,
        "eval.every_steps": 500, "eval.examples": 200,
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
