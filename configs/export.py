"""Writes a checkpoint's parameters and tokenizer as a Hugging Face directory of a Llama.

    python -m swerl_jax.main --config=configs/export.py --config.eval.checkpoint=RUN --config.output=DIRECTORY
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/export.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {"task": "export", "name": "export"})
