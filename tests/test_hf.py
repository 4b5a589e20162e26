"""Hugging Face directories: every element in its place, what does not fit refused by name."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import reference_llama as reference
from safetensors.numpy import load_file, save_file

from swerl_jax.learn.learner import Learner, OptimizerSettings, params_from_host, params_to_host
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import hf

TIED = dataclasses.replace(reference.SMALL, is_tied=True, rope_scaling=None)
ARCHS = {"tied": TIED, "untied": reference.SMALL}


@pytest.fixture(params=ARCHS.values(), ids=ARCHS.keys())
def saved(request, tmp_path):
    """(arch, our parameters, the directory)."""
    params = params_to_host(reference.random_model(request.param))
    hf.write(tmp_path / "model", request.param, params, "float32")
    return request.param, params, tmp_path / "model"


def test_what_is_written_is_read(saved):
    arch, params, directory = saved
    assert hf.read_arch(directory) == arch
    found = hf.read_params(directory, arch)
    assert found.keys() == params.keys()
    for name, x in params.items():
        np.testing.assert_array_equal(found[name], x)


def test_a_linear_map_in_their_layout_is_ours(saved):
    """x · Wᵀ of their [out in] matrices, head after head, against the sums over our fused ones."""
    arch, ours, directory = saved
    theirs = load_file(directory / "model.safetensors")
    rng = np.random.default_rng(0)
    x, o, hidden = rng.normal(size=arch.D), rng.normal(size=arch.N * arch.H), rng.normal(size=arch.F)
    for i in range(arch.L):
        layer = {name: theirs[f"model.layers.{i}.{name}.weight"] for name in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
            "mlp.down_proj")}
        for head in range(arch.N):
            key_head, place = divmod(head, arch.G)
            rows = slice(head * arch.H, (head + 1) * arch.H)
            query = sum(x[d] * ours["layers/qkv"][i, d, key_head, place] for d in range(arch.D))
            np.testing.assert_allclose(layer["self_attn.q_proj"][rows] @ x, query, rtol=1e-5, atol=1e-6)
            out = sum(o[rows][h] * ours["layers/out"][i, key_head, place, h] for h in range(arch.H))
            np.testing.assert_allclose(layer["self_attn.o_proj"][:, rows] @ o[rows], out, rtol=1e-5, atol=1e-6)
        for head in range(arch.K):
            rows = slice(head * arch.H, (head + 1) * arch.H)
            for name, place in (("k", arch.G), ("v", arch.G + 1)):
                expected = x @ ours["layers/qkv"][i, :, head, place]
                np.testing.assert_allclose(layer[f"self_attn.{name}_proj"][rows] @ x, expected, rtol=1e-5, atol=1e-6)
        for place, name in enumerate(("gate", "up")):
            expected = x @ ours["layers/gate_up"][i, :, place]
            np.testing.assert_allclose(layer[f"mlp.{name}_proj"] @ x, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer["mlp.down_proj"] @ hidden, hidden @ ours["layers/down"][i], rtol=1e-5, atol=1e-6)


def test_parameters_go_to_the_devices_and_back(saved):
    arch, params, _ = saved
    learner = Learner(arch, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"))
    placed = params_from_host(learner.abstract, params)
    assert jax.tree.structure(placed) == jax.tree.structure(learner.abstract.params)
    for name, x in params_to_host(placed).items():
        np.testing.assert_array_equal(x, params[name])


def test_half_precision_is_rounded_and_never_overflows(saved, tmp_path):
    arch, params, _ = saved
    hf.write(tmp_path / "half", arch, params, "float16")
    for name, x in hf.read_params(tmp_path / "half", arch).items():
        np.testing.assert_array_equal(x, params[name].astype(np.float16).astype(np.float32))
    with pytest.raises(ValueError, match="model.norm.weight cannot be held in float16"):
        hf.write(tmp_path / "over", arch, {**params, "final_norm": params["final_norm"] + 1e6}, "float16")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        hf.write(tmp_path / "other", arch, params, "int8")


@pytest.mark.parametrize("changes, message", [
    ({"architectures": ["MixtralForCausalLM"]}, r"architectures is \['MixtralForCausalLM'\]"),
    ({"attention_bias": True}, "attention_bias is True"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "yarn"),
    ({"vocab_size": None}, "no key 'vocab_size'"),
    ({"num_key_value_heads": 3}, "do not divide"),
])
def test_a_config_that_asks_for_more_is_refused(saved, changes, message):
    _, _, directory = saved
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if changes.get(key, 0) is not None}))
    with pytest.raises(ValueError, match=message):
        hf.read_arch(directory)


def test_tensors_that_do_not_fit_are_all_named(saved):
    arch, _, directory = saved
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(3, np.float32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        hf.read_params(directory, arch)
    for part in ("layers.1.mlp.up_proj.weight is missing", f"needed is [{arch.D}]", "q_proj.bias is not in the model"):
        assert part in str(error.value)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        hf.read_params(directory, arch)
    with pytest.raises(ValueError, match="holds no model"):
        hf.read_arch(directory / "absent")
