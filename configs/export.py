"""Writes a checkpoint's parameters and tokenizer as a directory for other tools.

    python -m swerl_jax.main --config=configs/export.py --config.checkpoint=RUN --config.out=DIRECTORY \\
        [--config.format=hf|orbax] [--config.export.dtype=float32|bfloat16|float16] [--config.export.max_file_gb=5]
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/export.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {"task": "export", "name": "export"})
