"""SWE-RL's setting on Llama-3.1-8B, in a window of 8k and with 8 prompts × 8 answers a step, from a Hugging Face directory.

    python -m swerl_jax.main --config=configs/8b.py --dry_run
    python -m swerl_jax.main --config=configs/8b.py:lora --dry_run
    python -m swerl_jax.main --config=configs/8b.py:v5e_2x4 --plan=v5e:2x4
    python -m swerl_jax.main --config=configs/8b.py:v5e_4x4 --plan=v5e:4x4
    python -m swerl_jax.main --config=configs/8b.py:v5e_4x4 --workdir=DIR --config.init=hf:MODEL --config.tokenizer=hf:MODEL \\
        --config.data.train="('shards/*.array_record',)" --config.data.held_out=held_out.jsonl

MODEL may be another of Llama 3 or Qwen's: then also --config.model.arch=init, and for Qwen --config.chat=chatml. The variant
lora, a change of rank 16 beside the bfloat16 parameters of a directory called model, is meant for one accelerator of 80 GB. Not
run by us at this size; what the planner says of the variants for chips is in docs/tpu.md.
"""

from swerl_jax import config as config_lib

# A key head on each of 8 chips, learning and sampling. What the backward pass keeps waits in the hosts' memory: else 9 % of the
# chips' would be free (on eight of them 8 %), which is little. Eight chips of 16 GB hold parameters in bfloat16 only (rounded at
# random, see Learner).
CHIPS = {"mesh.fsdp": -1, "mesh.tensor": 8, "engine.devices": 8, "learner.remat": "offload"}
LORA = {"init": "hf:model", "tokenizer": "hf:model", "lora.rank": 16, "model.param_dtype": "bfloat16", "rl.learning_rate": 2e-5,
        "rl.row_tokens": (2048, 4096)}
# Of a group's answers four share a row: eight would need 0.1 GiB more than eight chips have.
VARIANTS = {"": {}, "lora": LORA, "v5e_4x4": CHIPS,
            "v5e_2x4": CHIPS | {"model.param_dtype": "bfloat16", "rl.row_tokens": (8192,)}}


def get_config(variant: str = ""):
    """variant: "", "lora" (one accelerator), "v5e_2x4" or "v5e_4x4" (8 and 16 chips), or "quick" (tiny, a CPU minute)."""
    config = config_lib.update(config_lib.default(), {
        "name": "8b", "phases": ("rl",), "model.arch": "llama3.1-8b", "tokenizer": "tiktoken:tokenizer.model",
        "prompt.max_tokens": 6144, "answer.max_tokens": 2048, "rl.prompts": 8, "rl.samples": 8, "engine.groups": 8,
        "engine.prefix_buckets": (2048, 4096, 6144), "learner.block": 128, "learner.remat": "layer",
    })
    if variant == "quick":
        return config_lib.shrink(config)
    if variant not in VARIANTS:
        raise ValueError(f"configs/8b.py has no variant {variant!r}; there are lora, v5e_2x4, v5e_4x4 and quick")
    return config_lib.update(config, VARIANTS[variant])
