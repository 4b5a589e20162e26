"""A run that takes seconds: `--config=tests/small.py:DIRECTORY`, where `write_examples(DIRECTORY)` has been.

The tests of whole runs start it through the command line, with this folder on PYTHONPATH for `reward`.
"""

import json
import os
import pathlib
import subprocess
import sys

from swerl_jax import config as config_lib
from swerl_jax.policy import arch

ROOT = pathlib.Path(__file__).resolve().parents[1]
arch.ARCHS["small"] = arch.Arch(V=262, D=32, L=2, N=4, K=2, H=8, F=48, is_tied=True)  # whoever loads this may choose it


def get_config(variant=""):
    """variant: the directory of the examples."""
    data = pathlib.Path(variant)
    return config_lib.update(config_lib.default(), {
        "name": "small", "data.train": (str(data / "train.jsonl"),), "data.held_out": str(data / "held_out.jsonl"),
        "tokenizer": "byte", "chat": "compact", "prompt.style": "compact", "prompt.max_tokens": 64,
        "answer.max_tokens": 160,
        "reward.name": "small:reward", "reward.workers": 1, "model.arch": "small", "model.dtype": "float32",
        "engine.groups": 2, "engine.prefix_buckets": (64,), "engine.ticks": 160, "engine.unroll_layers": "false",
        "sft.steps": 3, "sft.examples": 4, "sft.rows": 4, "sft.learning_rate": 1e-3, "sft.warmup_steps": 2,
        "sft.muon_learning_rate": 0.01,  # another optimiser than RL's: a resumed run must know whose state it reads
        "rl.steps": 5, "rl.prompts": 2, "rl.samples": 4, "rl.learning_rate": 1e-3, "rl.minibatches": 2,
        "rl.row_tokens": (640,), "learner.block": 32, "learner.remat": "none",
        "eval.every_steps": 3, "eval.examples": 3, "checkpoints.every_steps": 2, "checkpoints.keep": 2,
    })


def reward(output, files, oracle):
    """A number that differs between answers of an untaught model, so that every step has a gradient."""
    return sum(output.encode("utf-8", "replace")) % 101 / 100


def broken_reward(output, files, oracle):
    """Fails on every answer."""
    return 1 / 0


def example(number):
    """One changed operator; the prompt has about 60 bytes, the taught answer about 150."""
    wrong, right = "+-*/"[number % 4], "+-*/"[(number + 1) % 4]
    return {"id": f"small-{number}", "repo": "", "commit": "", "issue": f"f{number} is wrong",
            "files": {"m.py": f"def f{number}(a):\n    return a {wrong} 2\n"},
            "oracle": {"m.py": f"def f{number}(a):\n    return a {right} 2\n"}}


def write_examples(directory):
    """Seven to learn from, three to be judged by."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, numbers in (("train", range(7)), ("held_out", range(7, 10))):
        lines = (json.dumps(example(number)) + "\n" for number in numbers)
        (directory / f"{name}.jsonl").write_text("".join(lines))


def environment(compilations=None):
    """One device; `compilations` is a directory in which processes share what they compiled."""
    shared = {"JAX_COMPILATION_CACHE_DIR": str(compilations), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
              "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"} if compilations else {}
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(ROOT / "tests"), **shared}


def command(*arguments):
    """The command line of `swerl_jax.main`."""
    return [sys.executable, "-m", "swerl_jax.main", *map(str, arguments)]


def run(*arguments, **variables):
    """Runs `swerl_jax.main` to its end; `variables` are added to the environment."""
    return subprocess.run(command(*arguments), cwd=ROOT, env={**environment(), **variables}, capture_output=True,
                          text=True, timeout=300)
