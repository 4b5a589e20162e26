"""Where parameters come from: exports are read back, and a low-rank change is gone on with as it is or not at all."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import reference_llama as reference

from swerl_jax import parameters, run_directory
from swerl_jax.learn.checkpoint import DIRECTORY_NAME, Checkpoints
from swerl_jax.learn.export import export
from swerl_jax.learn.learner import Learner, OptimizerSettings, to_arrays
from swerl_jax.learn.loss import LossSettings
from swerl_jax.models import shipped
from swerl_jax.policy.llama import Lora
from swerl_jax.policy.mesh import make_mesh

ARCH = dataclasses.replace(reference.SMALL, V=64)
LORA = Lora(3, 6.0, ("qkv", "down"))


def learner(lora=None, arch=ARCH, mesh=None):
    return Learner(arch, mesh or reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"), lora=lora)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_orbax_export_is_read_onto_any_devices(tmp_path, dtype):
    wanted = reference.parameters(reference.random_model(ARCH), np.float32)
    export(tmp_path / "out", ARCH, reference.random_model(ARCH), "orbax", dtype, {}, {}, 1, lambda place: None)
    for lora in (None, LORA):
        found = parameters.load(str(tmp_path / "out"), learner(lora, mesh=make_mesh({"fsdp": 4, "tensor": 2})))
        for name, x in reference.parameters(found, np.float32).items():
            np.testing.assert_array_equal(x, np.asarray(jnp.asarray(wanted[name], dtype), np.float32))
    with pytest.raises(ValueError, match="L is 2 and not 3"):
        parameters.load(str(tmp_path / "out"), learner(arch=dataclasses.replace(ARCH, L=3)))
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 50, "tie_word_embeddings": True}))
    other = dataclasses.replace(ARCH, F=50, is_tied=True)
    with pytest.raises(ValueError, match=r"(?s)3 differences.*head: in the checkpoint, but not needed.*\(2, 32, 2, 48\), needed"):
        parameters.load(str(tmp_path / "out"), learner(arch=other))


def test_a_models_directory_is_asked_for_by_its_kind(tmp_path):
    export(tmp_path / "out", ARCH, reference.random_model(ARCH), "hf", "float32", {}, {}, 10**9, lambda place: None)
    with pytest.raises(ValueError, match=f"give hf:{tmp_path / 'out'}$"):
        shipped.find(str(tmp_path / "out"))
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="config.json does not hold a run's settings; .* give hf:"):
        run_directory.read_settings(tmp_path / "out")


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """The directory of a run that has learnt a low-rank change, and its parameters."""
    directory = tmp_path_factory.mktemp("run")
    state = learner(LORA).begin(reference.random_model(ARCH))
    checkpoints = Checkpoints(directory / DIRECTORY_NAME, keep=1)
    checkpoints.save(1, to_arrays(state), {})
    checkpoints.close()
    (directory / "config.json").write_text(json.dumps({"config": {
        "lora.rank": LORA.rank, "lora.alpha": LORA.alpha, "lora.targets": list(LORA.targets)}}))
    return directory, state.params


@pytest.mark.parametrize("place", ["", DIRECTORY_NAME])
def test_a_change_is_gone_on_with(changed, place):
    directory, params = changed
    found = parameters.load(str(directory / place), learner(LORA))
    np.testing.assert_array_equal(found.layers.qkv_a[...], params.layers.qkv_a[...])


@pytest.mark.parametrize("lora", [
    None, dataclasses.replace(LORA, rank=4), dataclasses.replace(LORA, alpha=3.0), dataclasses.replace(LORA, targets=("qkv",)),
    dataclasses.replace(LORA, targets=("qkv", "down", "out"))], ids=str)
def test_another_change_is_refused(changed, lora):
    its = r"learnt a low-rank change, lora.rank 3, lora.alpha 6.0, lora.targets \['qkv', 'down'\], "
    with pytest.raises(ValueError, match=f"{its}and here it would be another, .*give its settings, or export it"):
        parameters.load(str(changed[0]), learner(lora))
