"""Which sizes the learner's rows may have: few, so that little is compiled, and such that a mesh can cut them.

On the path: config → here → batch.
"""

from __future__ import annotations

import ml_collections
from jax.sharding import Mesh

from swerl_jax import config_rules, engines
from swerl_jax.learn.batch import PackSettings
from swerl_jax.policy import context, splash

SFT_SIZES = 6  # of rows: the longest and five shorter ones


def packing(config: ml_collections.ConfigDict, mesh: Mesh, phase: str) -> PackSettings:
    """The rows of one phase: a group's answers share a row; a taught answer, or document, has one of about its size.

    On a mesh with a context axis sizes are rounded up to what can be cut, but for rl.row_tokens, which are as configured.
    """
    shards, parts = mesh.shape["slice"] * mesh.shape["fsdp"], mesh.shape["context"]
    longest = config.answer.max_tokens

    def settings(prefixes: tuple[int, ...], sizes: tuple[int, ...], block: int, rows: int) -> PackSettings:
        if parts > 1:
            unit = context.unit(block, parts)
            prefixes, even = (tuple(sorted({-(-size // unit) * unit for size in some})) for some in (prefixes, sizes))
            sizes = sizes if sizes == tuple(config.rl.row_tokens) else even
        return PackSettings(prefixes, sizes, block, longest, rows * shards, parts)

    common = config_rules.row_block(config)
    if phase == "sft":
        prefixes = engines.prefix_buckets(config)
        if config.sft.prompt_weight:
            prefixes, longest = (0,), longest + config.prompt.max_tokens
        step = -(-longest // SFT_SIZES)
        step += -step % splash.LANES if step > splash.LANES else 0  # what a kernel would pad is room for tokens
        sizes = tuple(step * (i + 1) for i in range(SFT_SIZES))
        return settings(prefixes, sizes, step if parts == 1 else common, config.sft.rows)
    padded = -(-longest // common) * common
    sizes = {max(padded, -(-config.rl.samples * padded // part // common) * common) for part in (1, 2, 4)}
    return settings(engines.prefix_buckets(config), tuple(sorted(config.rl.row_tokens or sizes)), common, config.learner.rows)
