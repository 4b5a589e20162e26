"""Shows one example of a set as a page, and the set in numbers.

    python -m swerl_jax.main --config=configs/inspect.py --config.data=SHARDS [--config.inspect.index=7]

SHARDS is a directory that configs/curate.py made (its tokenizer counts unless another is given), or any file of examples:
.array_record, .jsonl, .jsonl.gz, rows in SWE-bench's format among them.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/inspect.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {
        "task": "inspect", "name": "inspect", "tokenizer": "embedded:tiny", "chat": "compact", "prompt.style": "compact"})
