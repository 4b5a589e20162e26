"""Operations of learning when answers share their prompt's tokens, over those of the same answers with a prompt each.

    python tests/bench/shared_flops.py [MODEL]

Matrix products of the traced gradient times the lengths of its scans, and the live blocks of attention's kernels (see
learn/flop_count.py), of one prompt of 12,288 tokens with 16 answers of 4,096. Nothing is compiled or allocated.
"""

import dataclasses
import sys

import jax

from swerl_jax import assemble, config as config_lib
from swerl_jax.learn import plan_programs
from swerl_jax.policy.arch import ARCHS


def main(model: str = "llama3.3-70b") -> None:
    config = config_lib.update(config_lib.default(), {
        "phases": ("rl",), "rl.prompts": 1, "rl.samples": 16, "prompt.max_tokens": 12_288, "answer.max_tokens": 4096,
        "engine.prefix_buckets": (12_288,), "learner.block": 128, "learner.remat": "layer", "learner.attention": "splash",
        "model.dtype": "bfloat16"})
    parts = assemble.plan_parts(config, ARCHS[model], assemble.mesh(config, jax.devices()[:1]))
    alone = dataclasses.replace(parts.packing, branch_buckets=(config.answer.max_tokens,))  # a row holds one answer
    shared, unshared = map(plan_programs.gradient_flops, (parts, dataclasses.replace(parts, packing=alone)))
    for name, flops in (("one prompt for all", shared), ("a prompt for each", unshared)):
        print(f"{name:20}{flops.total / 1e15:10.2f} PFLOP, of which attention's kernels "
              f"{(flops.total - flops.products) / 1e15:.2f}")
    print(f"{'ratio':20}{shared.total / unshared.total:10.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
