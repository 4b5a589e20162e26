"""(Re-)scores answers: no model, no accelerator.

    python -m swerl_jax.main --config=configs/score.py --config.input=A.jsonl --config.output=B.jsonl

Each row carries `output`, `code_context` and `oracle_new_content`, or the file is one of a run's rollouts/. Rows come
back in their order with `reward`, `reason`, `status` and `similarities`.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/score.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {"task": "score", "name": "score"})
