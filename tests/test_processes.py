"""Several processes that hold one model together: real ones, on this machine, joined by `jax.distributed`."""

import dataclasses
import json

import jax
import joined
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import hf, hf_weights
from swerl_jax.policy.llama import parameter_name
from swerl_jax.policy.mesh import make_mesh


def loads(directory, processes):
    """Every process reads its own part of the parameters and keeps it in a file."""
    arch = hf.read_arch(str(directory))
    learner = Learner(arch, make_mesh({"fsdp": -1, "tensor": 2}), OptimizerSettings(0.1, "constant", 0, 1),
                      LossSettings("nll"))
    model = hf_weights.load(str(directory), arch, learner.abstract.params)
    parts = {f"{parameter_name(path)}|{json.dumps([[s.start, s.stop] for s in shard.index])}": shard.data
             for path, x in jax.tree_util.tree_leaves_with_path(model) for shard in x.addressable_shards}
    np.savez(directory / f"part{processes.index}.npz", **parts)


@pytest.mark.slow
def test_each_process_reads_its_part_of_a_model(tmp_path):
    arch = dataclasses.replace(reference.SMALL, V=62)  # so that two devices share it
    model = reference.random_model(arch)
    hf_weights.write(tmp_path, arch, model, "float32")
    (tmp_path / hf.CONFIG_NAME).write_text(json.dumps(hf.config(arch, "float32")))
    joined.run(__file__, "loads", tmp_path, count=2, devices=4)
    wanted = reference.parameters(model, np.float32)
    held, elements = [], 0
    for rank in range(2):
        with np.load(tmp_path / f"part{rank}.npz") as parts:
            for key in parts:
                name, index = key.split("|")
                np.testing.assert_array_equal(parts[key], wanted[name][tuple(slice(*ends) for ends in json.loads(index))])
            held.append(set(parts))
            elements += sum(parts[key].size for key in parts)
    assert not held[0] & held[1]  # nothing is held by both, and nothing by neither
    assert elements == sum(x.size for x in wanted.values())


if __name__ == "__main__":
    joined.main(globals())
