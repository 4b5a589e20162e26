"""Hugging Face directories: every element in its place, what does not fit refused by name."""

import dataclasses
import json
import math

import fsspec
import jax
import numpy as np
import pytest
import reference_llama as reference
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from swerl_jax.learn.learner import Learner, OptimizerSettings
from swerl_jax.learn.loss import LossSettings
from swerl_jax.policy import hf, hf_weights
from swerl_jax.policy.arch import YarnScaling
from swerl_jax.policy.mesh import make_mesh

UNTIED = dataclasses.replace(reference.SMALL, V=62)  # so that two devices share it
TIED = dataclasses.replace(UNTIED, is_tied=True, rope_scaling=None)
QWEN25 = dataclasses.replace(UNTIED, has_qkv_bias=True, rope_scaling=YarnScaling(factor=2.0, original_context=32))
QWEN3 = dataclasses.replace(TIED, has_qk_norm=True)
ARCHS = {"tied": TIED, "untied": UNTIED, "biases": QWEN25, "norms": QWEN3}


def write(directory, arch, model, dtype, max_file_bytes=10**9):
    directory.mkdir(exist_ok=True)
    hf_weights.write(directory, arch, model, dtype, max_file_bytes)
    (directory / hf.CONFIG_NAME).write_text(json.dumps(hf.config(arch, dtype)))


def load(directory, arch, sizes=None, dtype=np.float32):
    """The arrays by name, from a model on as many devices as `sizes` asks for."""
    mesh = make_mesh(sizes, jax.devices()[:math.prod((sizes or {"": 1}).values())])
    learner = Learner(arch, mesh, OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"), param_dtype=dtype)
    model = hf_weights.load(str(directory), arch, learner.abstract.params)
    assert jax.tree.structure(model) == jax.tree.structure(learner.abstract.params)
    for x, wanted in zip(jax.tree.leaves(model), jax.tree.leaves(learner.abstract.params), strict=True):
        assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim) and x.dtype == wanted.dtype
    return reference.parameters(model, dtype)


@pytest.fixture(params=ARCHS.values(), ids=ARCHS.keys())
def saved(request, tmp_path):
    """(arch, our parameters, the directory)."""
    model = reference.random_model(request.param)
    write(tmp_path / "model", request.param, model, "float32")
    return request.param, reference.parameters(model, np.float32), tmp_path / "model"


@pytest.mark.parametrize("is_host", [True, False], ids=["host", "accelerator"])
@pytest.mark.parametrize("sizes", [{"fsdp": 1}, {"fsdp": 4, "tensor": 2}], ids=["one", "eight"])
def test_what_is_written_is_read_onto_any_devices(saved, sizes, is_host, monkeypatch):
    arch, params, directory = saved
    monkeypatch.setattr(hf_weights, "_is_host", lambda sharding: is_host)
    assert hf.read_arch(str(directory)) == arch
    found = load(directory, arch, sizes)
    assert found.keys() == params.keys()
    for name, x in params.items():
        np.testing.assert_array_equal(found[name], x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_there_and_back_is_the_same_bytes_in_any_number_of_files(tmp_path, dtype):
    arch, wanted = QWEN25, hf_weights.DTYPES[dtype]
    write(tmp_path / "first", arch, reference.random_model(arch), dtype, max_file_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "first").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    with jax.set_mesh(reference.one_device()):
        abstract = Learner(arch, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"),
                           param_dtype=wanted).abstract.params
    model = hf_weights.load(str(tmp_path / "first"), arch, abstract)
    write(tmp_path / "second", arch, model, dtype)
    theirs = {}
    for name in files:
        theirs |= load_tensors(tmp_path / "first" / name)
    again = load_tensors(tmp_path / "second" / "model.safetensors")
    assert theirs.keys() == again.keys()
    for name, x in theirs.items():
        assert x.dtype == wanted and x.tobytes() == again[name].tobytes(), name
    assert json.loads((tmp_path / "first" / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == sum(
        x.nbytes for x in theirs.values())


def load_tensors(path):
    """By the published library; it gives bfloat16 to numpy as ml_dtypes has it."""
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def test_remote_directories_are_read(tmp_path):
    write(tmp_path / "model", TIED, reference.random_model(TIED), "float32")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "model") + "/", "/bucket/model/", recursive=True)
    assert hf.read_arch("memory://bucket/model") == TIED
    here, there = load(tmp_path / "model", TIED), load("memory://bucket/model", TIED)
    for name, x in here.items():
        np.testing.assert_array_equal(there[name], x)


@pytest.mark.parametrize("where", ["here", "memory://bucket/blocks"])
def test_blocks_of_any_size_put_together_are_the_model(tmp_path, monkeypatch, where):
    """Rows of more than one tensor a block, of one, and fewer than a device's share; in bfloat16, cut over eight devices."""
    arch = dataclasses.replace(QWEN25, K=2, N=4, F=48)
    model = reference.random_model(arch)
    write(tmp_path / "model", arch, model, "float32", max_file_bytes=20_000)
    directory = str(tmp_path / "model")
    if where != "here":
        fsspec.filesystem("memory").put(directory + "/", where.removeprefix("memory:/") + "/", recursive=True)
        directory = where
    bfloat16 = hf_weights.DTYPES["bfloat16"]
    wanted = {name: x.astype(bfloat16) for name, x in reference.parameters(model, np.float32).items()}
    for block_bytes in (1, 900, 5000, 10**9):
        monkeypatch.setattr(hf_weights, "_BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(hf_weights, "_REMOTE_BLOCK_BYTES", block_bytes)
        found = load(directory, arch, {"fsdp": 2, "tensor": 2}, bfloat16)
        for name, x in wanted.items():
            np.testing.assert_array_equal(np.asarray(found[name], bfloat16).view(np.uint16), x.view(np.uint16), err_msg=name)


def test_what_was_read_may_be_donated(tmp_path):
    """A step takes over memory that numpy made, and several devices show the same of what is not cut."""
    write(tmp_path / "model", TIED, reference.random_model(TIED), "float32")
    learner = Learner(TIED, make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4]), OptimizerSettings(0.1, "constant", 0, 1),
                      LossSettings("nll"))
    model = hf_weights.load(str(tmp_path / "model"), TIED, learner.abstract.params)
    before = {name: x.copy() for name, x in reference.parameters(model, np.float32).items()}
    grow = jax.jit(lambda model: jax.tree.map(lambda x: 2 * x, model), donate_argnums=0)
    grown = reference.parameters(grow(grow(model)), np.float32)
    for name, x in before.items():
        np.testing.assert_array_equal(grown[name], 4 * x)
    assert model.layers.qkv[...].is_deleted()


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
            query = sum(x[d] * ours["qkv"][i, d, key_head, place] for d in range(arch.D))
            np.testing.assert_allclose(layer["self_attn.q_proj"][rows] @ x, query, rtol=1e-5, atol=1e-6)
            out = sum(o[rows][h] * ours["out"][i, key_head, place, h] for h in range(arch.H))
            np.testing.assert_allclose(layer["self_attn.o_proj"][:, rows] @ o[rows], out, rtol=1e-5, atol=1e-6)
        for head in range(arch.K):
            rows = slice(head * arch.H, (head + 1) * arch.H)
            for name, place in (("k", arch.G), ("v", arch.G + 1)):
                expected = x @ ours["qkv"][i, :, head, place]
                np.testing.assert_allclose(layer[f"self_attn.{name}_proj"][rows] @ x, expected, rtol=1e-5, atol=1e-6)
        for place, name in enumerate(("gate", "up")):
            expected = x @ ours["gate_up"][i, :, place]
            np.testing.assert_allclose(layer[f"mlp.{name}_proj"] @ x, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer["mlp.down_proj"] @ hidden, hidden @ ours["down"][i], rtol=1e-5, atol=1e-6)


def test_half_precision_is_rounded_and_never_overflows(tmp_path):
    model = reference.random_model(TIED)
    params = reference.parameters(model, np.float32)
    write(tmp_path / "half", TIED, model, "float16")
    for name, x in load(tmp_path / "half", TIED).items():
        np.testing.assert_array_equal(x, params[name].astype(np.float16).astype(np.float32))
    model.final_norm[...] = model.final_norm[...] + 1e6
    with pytest.raises(ValueError, match="model.norm.weight cannot be held in float16"):
        write(tmp_path / "over", TIED, model, "float16")
    with pytest.raises(ValueError, match="dtype is 'int8'"):
        write(tmp_path / "other", TIED, model, "int8")


@pytest.mark.parametrize("changes, message", [
    ({"architectures": ["MixtralForCausalLM"]}, r"architectures is \['MixtralForCausalLM'\]"),
    ({"attention_bias": True, "mlp_bias": True}, "attention_bias is True; supported is False; mlp_bias is True"),
    ({"use_sliding_window": True}, "use_sliding_window is True"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types has sliding_attention"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}; supported is None"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}, "the rope_type is 'dynamic'"),
    ({"rope_scaling": {"type": "linear", "factor": 4}}, "the rope_type is 'linear'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.0}}, "attention_factor of YaRN is 1.0"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "factor of YaRN is missing"),
    ({"rope_parameters": {"rope_theta": 1000.0, "partial_rotary_factor": 0.5}, "rope_scaling": None},
     "partial_rotary_factor is 0.5; supported is 1.0"),
    ({"rope_parameters": {"rope_theta": 1000.0}, "rope_scaling": {"type": "yarn", "factor": 4.0}},
     "rope_scaling and rope_theta say"),
    ({"rope_parameters": {"rope_theta": 500.0}, "rope_scaling": None},
     "'rope_theta': 500.0, .* say .*'rope_theta': 1000.0}; needed"),
    ({"auto_map": {"AutoModelForCausalLM": "m.M"}}, "auto_map is .*; supported is None"),
    ({"model_type": "mistral"}, "model_type is 'mistral'; supported is '(llama|qwen2|qwen3)'"),
    ({"vocab_size": None}, "no key 'vocab_size'"),
    ({"hidden_size": 32.0, "num_hidden_layers": "2"}, "hidden_size is 32.0; needed is a whole number from 1; num_hidden_layers is '2"),
    ({"rms_norm_eps": "1e-5", "rope_theta": -1, "head_dim": True}, "head_dim is True; .*eps is '1e-5'; .*rope_theta is -1"),
    ({"tie_word_embeddings": "true", "architectures": "L"}, "embeddings is 'true'; .*architectures is 'L'; needed is a list"),
    ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; needed is an object"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor is '4'; needed is a number above 0"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "YaRN has factor 0.5, .* needed is a factor of at least 1"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 2, "beta_slow": 40}}, "beta_slow 40; needed"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                       "original_max_position_embeddings": 64}}, "low_freq_factor is 4.0 and high_freq_factor 1.0"),
    ({"num_key_value_heads": 3}, "do not divide"),
])
def test_a_config_that_asks_for_more_is_refused(saved, changes, message):
    _, _, directory = saved
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if changes.get(key, 0) is not None}))
    with pytest.raises(ValueError, match=message):
        hf.read_arch(str(directory))


def test_a_model_is_found_by_name_or_where_training_begins(saved):
    arch, _, directory = saved
    assert hf.find_arch("init", lambda: str(directory)) == arch
    assert hf.find_arch("llama3-8b", lambda: str(directory)).parameters == 8_030_261_248
    for name, where in (("init", None), ("gpt2", str(directory))):
        with pytest.raises(ValueError, match=f"model.arch is '{name}'; needed is one of tiny, .* or init with"):
            hf.find_arch(name, lambda: where)


def test_newer_and_older_configs_are_read(tmp_path):
    def read(**changes):
        plain = {key: value for key, value in hf.config(TIED, "float32").items() if key not in ("rope_scaling", "rope_theta")}
        (tmp_path / "config.json").write_text(json.dumps(plain | changes))
        return hf.read_arch(str(tmp_path))

    yarn = YarnScaling(factor=4.0, fast=32.0, slow=1.0, original_context=8192)
    for rope in ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0}},  # transformers 5
                 {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_theta": 1000},  # Qwen2.5's model card
                 {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": None}, "rope_theta": 1000},
                 {"rope_scaling": {"type": "yarn", "factor": 4.0},  # both, in agreement
                  "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1000.0}}):
        assert read(**rope) == dataclasses.replace(TIED, rope_scaling=yarn)
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 1000.0}) == TIED
    assert read(rope_theta=1000.0, head_dim=None).H == TIED.D // TIED.N
    assert read(rope_theta=1000.0, architectures=["Qwen3ForCausalLM"], model_type="qwen3").has_qk_norm


def test_tensors_that_do_not_fit_are_all_named(saved):
    arch, _, directory = saved
    path = directory / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1]
    tensors["model.layers.0.self_attn.o_proj.bias"] = np.zeros(3, np.float32)
    tensors["model.layers.0.mlp.down_proj.weight"] = np.zeros((arch.D, arch.F), np.int32)
    save_file(tensors, path)
    with pytest.raises(ValueError) as error:
        load(directory, arch)
    for part in ("layers.1.mlp.up_proj.weight is missing", f"needed is [{arch.D}]", "o_proj.bias is not in the model",
                 f"int32 [{arch.D}, {arch.F}]"):
        assert part in str(error.value)


def test_a_tied_matrix_may_be_there_twice_but_not_in_two_versions(tmp_path):
    write(tmp_path / "model", TIED, reference.random_model(TIED), "float32")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    embed = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embed.copy()}, path)
    np.testing.assert_array_equal(load(tmp_path / "model", TIED)["embed"], embed)
    other = embed.copy()
    other[-1, -1] += 1
    for wrong in (other, embed[:-1].copy()):
        save_file(tensors | {"lm_head.weight": wrong}, path)
        with pytest.raises(ValueError, match="lm_head.weight is not model.embed_tokens.weight, though tie_word_embeddings is true"):
            load(tmp_path / "model", TIED)


def rewrite_header(path, change):
    """Gives a file another header for the same data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(change(json.loads(data[8:8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length:])


def test_headers_that_cannot_be_meant_are_told(tmp_path):
    write(tmp_path / "model", TIED, reference.random_model(TIED), "float32")
    path, norm = tmp_path / "model" / "model.safetensors", "model.norm.weight"
    whole = path.read_bytes()
    for change, message in (
            ({"data_offsets": [-128, 0]}, "has the entry .* of numbers from 0"), ({"shape": 32}, "has the entry"),
            ({"shape": [32.0]}, "has the entry"), ({"data_offsets": [0]}, "has the entry"), ({"dtype": ["F32"]}, "has the entry"),
            ({"data_offsets": [4, 132]}, "begins at byte 4 of the data, where another"),
            ({"shape": [31]}, r"has 128 bytes for F32 \[31\]")):
        rewrite_header(path, lambda header: header | {norm: header[norm] | change})
        with pytest.raises(ValueError, match=rf"model.safetensors: {norm} {message}") as error:
            load(tmp_path / "model", TIED)
        assert len(str(error.value).splitlines()) == 2
        path.write_bytes(whole)
    for wrong in ([], {norm: 3}):
        rewrite_header(path, lambda header: wrong)
        with pytest.raises(ValueError, match="not a table of tensors|has the entry 3"):
            load(tmp_path / "model", TIED)
        path.write_bytes(whole)
    rewrite_header(path, lambda header: header | {norm: header[norm] | {"dtype": "F8_E4M3", "shape": [128]}} | {
        "more": {"dtype": "F8_E5M2", "shape": [0], "data_offsets": [0, 0]},
        "most": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    with pytest.raises(ValueError, match="(?s)is of dtype F8_E5M2; .*is of dtype F8_E4M3; .*most is not in the model"):
        load(tmp_path / "model", TIED)


def test_an_index_and_its_files_must_agree(tmp_path):
    directory = tmp_path / "model"
    write(directory, TIED, reference.random_model(TIED), "float32", max_file_bytes=20_000)
    index = directory / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    first = sorted(set(said["weight_map"].values()))[0]
    save_file({"model.norm.weight": np.zeros(32, np.float32), "stale": np.zeros(3, np.float32)} | load_file(directory / first),
              directory / first)
    index.write_text(json.dumps({"weight_map": said["weight_map"] | {"lost": first}}))
    with pytest.raises(ValueError, match=f"(?s)lost is not in {first}, where .*stale is in {first} and not so in the index"):
        load(directory, TIED)
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"a": 3}}, []):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="index.json cannot be read"):
            load(directory, TIED)
    index.write_text(json.dumps(said))
    save_file({"model.norm.weight": np.zeros(32, np.float32)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match="holds model.safetensors and an index of other files; delete"):
        load(directory, TIED)


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    write(tmp_path / "model", UNTIED, reference.random_model(UNTIED), "float32")
    path = tmp_path / "model" / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    aligned = -(8 + length) % 64  # only an aligned array can be the file itself
    path.write_bytes((length + aligned).to_bytes(8, "little") + data[8:8 + length] + b" " * aligned + data[8 + length:])
    learner = Learner(UNTIED, reference.one_device(), OptimizerSettings(0.1, "constant", 0, 1), LossSettings("nll"))
    model = hf_weights.load(str(tmp_path / "model"), UNTIED, learner.abstract.params)
    before = {name: x.copy() for name, x in reference.parameters(model).items()}
    with path.open("r+b") as file:
        file.seek(8 + length + aligned)
        file.write(b"\0" * (len(data) - 8 - length))
    for name, x in reference.parameters(model).items():
        np.testing.assert_array_equal(x, before[name])


def test_damaged_files_are_named(tmp_path):
    directory = tmp_path / "model"
    write(directory, TIED, reference.random_model(TIED), "float32", max_file_bytes=20_000)
    last = max(directory.glob("*.safetensors"))
    whole = last.read_bytes()
    for data, message in ((whole[:-8], r"down_proj.weight ends at byte .* it is cut off$"), (b"", "header claims 0 bytes"),
                          (b"\xff" * 100, "header claims"), (whole[:8] + b"x" + whole[9:], "cannot be read as safetensors")):
        last.write_bytes(data)
        with pytest.raises(ValueError, match=message) as error:
            load(directory, TIED)
        assert last.name in str(error.value)
        assert "down_proj.weight" in str(error.value)
    first = min(directory.glob("*.safetensors"))
    for path in (first, last):
        path.unlink()
    with pytest.raises(ValueError, match=rf"(?s)embed_tokens.weight is in a file that cannot be used: .*{first.name}.*{last.name}"):
        load(directory, TIED)
    (directory / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="neither model.safetensors nor model.safetensors.index.json but config.json, model-00002"):
        load(directory, TIED)
    with pytest.raises(ValueError, match="holds no model"):
        hf.read_arch(str(directory / "absent"))
