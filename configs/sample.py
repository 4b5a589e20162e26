"""Answers one issue about given files with a checkpoint, and shows the diff.

    python -m swerl_jax.main --config=configs/sample.py --config.checkpoint=RUN \\
        --config.sample.issue="area() ignores the height" --config.sample.files=shapes.py
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/sample.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {"task": "sample", "name": "sample"})
