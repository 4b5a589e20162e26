"""A checkpoint on an example file: reward, format, exact fixes and pass@k with bootstrap intervals.

    python -m swerl_jax.main --config=configs/eval.py --config.checkpoint=RUN [--config.data.held_out=FILE]

Model, tokenizer and prompts are the run's own unless they are set here.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/eval.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {"task": "eval", "name": "eval"})
