"""Makes training shards from a clone, an archive of events with clones, or rows in SWE-bench's format; no accelerator.

    python -m swerl_jax.main --config=configs/curate.py --config.source=git:CLONES --config.out=shards \\
        --config.tokenizer=hf:MODEL --config.chat=llama3 --config.prompt.style=swe_rl

Lengths are counted by the tokenizer, template and style that training will use; as they stand here, by those of the tiny
policy that ships. `--config.source=gharchive:HOURS --config.curate.clones=CLONES` and `--config.source=swebench:FILE` are the
other sources. A run that was stopped goes on when the same command is given again. docs/curation.md says more.
"""

from swerl_jax import config as config_lib


def get_config(variant: str = ""):
    """No variants."""
    if variant:
        raise ValueError(f"configs/curate.py has no variant {variant!r}")
    return config_lib.update(config_lib.default(), {
        "task": "curate", "name": "curate", "tokenizer": "embedded:tiny", "chat": "compact", "prompt.style": "compact"})
