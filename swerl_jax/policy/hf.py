"""Directories as Hugging Face lays them out: `config.json` and `model.safetensors` of a Llama, in and out.

Our arrays are theirs in another order: their linear weights are [out in] and one a layer, ours are [in out], fused and
stacked over layers. Both turn rotary pairs in the half-split form, so no row moves inside a head.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from swerl_jax.policy.arch import Arch, Llama3Scaling

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.safetensors"
DTYPES = ("float32", "float16")  # that files may hold

# Our size → its key in config.json.
_SIZES = {"V": "vocab_size", "D": "hidden_size", "L": "num_hidden_layers", "N": "num_attention_heads",
          "K": "num_key_value_heads", "H": "head_dim", "F": "intermediate_size"}
_SCALING = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
            "original_context": "original_max_position_embeddings"}
# What the model does; a file that says otherwise is refused.
_FIXED = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False,
          "mlp_bias": False}
_TOP = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
_LAYER = ("input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
          "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def read_arch(directory: str | os.PathLike[str]) -> Arch:
    """The sizes in `config.json`.

    Raises:
      ValueError: it is missing, unreadable, or asks for what the model does not do, naming key and value.
    """
    path = pathlib.Path(directory) / CONFIG_NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        sizes = {letter: found[key] for letter, key in _SIZES.items() if key != "head_dim"}
        head = found.get("head_dim") or found["hidden_size"] // found["num_attention_heads"]
        wrong = [f"{key} is {found[key]!r}; supported is {value!r}" for key, value in _FIXED.items()
                 if found.get(key, value) != value]
        scaling = found.get("rope_scaling")
        if scaling and scaling.get("rope_type") != "llama3":
            wrong.append(f"rope_scaling is {scaling!r}; supported are none and the rope_type 'llama3'")
        if wrong:
            raise ValueError("; ".join(wrong))
        rope = Llama3Scaling(**{ours: scaling[key] for ours, key in _SCALING.items()}) if scaling else None
        return Arch(**sizes, H=head, is_tied=found.get("tie_word_embeddings", False), rope_theta=found["rope_theta"],
                    rope_scaling=rope, norm_epsilon=found["rms_norm_eps"])
    except OSError as error:
        raise ValueError(f"{directory} holds no model: {path.name} cannot be read ({error.strerror})") from error
    except KeyError as error:
        raise ValueError(f"{path} has no key {error.args[0]!r}, which a Llama's has") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_params(directory: str | os.PathLike[str], arch: Arch) -> dict[str, np.ndarray]:
    """The parameters under their names in `policy.llama.Llama` ("embed", "layers/qkv", …), float32.

    Raises:
      ValueError: missing, surplus or misshapen tensors, all of them named; or a file that cannot be read.
    """
    path = pathlib.Path(directory) / WEIGHTS_NAME
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as safetensors of {' or '.join(DTYPES)}: {error}") from error
    wanted = _shapes(arch)
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is not in the model" for name in tensors if name not in wanted]
    faults += [f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}; needed is {list(shape)} of "
               f"{' or '.join(DTYPES)}" for name, shape in wanted.items()
               if name in tensors and (tensors[name].shape != shape or str(tensors[name].dtype) not in DTYPES)]
    if faults:
        raise ValueError(f"{path} does not fit its {CONFIG_NAME}:\n  " + "\n  ".join(faults))
    return _to_ours({name: x.astype(np.float32) for name, x in tensors.items()}, arch)


def write(directory: str | os.PathLike[str], arch: Arch, params: Mapping[str, np.ndarray], dtype: str) -> None:
    """Writes a directory that `read_params` and other tools read.

    Args:
      directory: made, if need be; its two files are replaced.
      params: as `read_params` returns them. dtype: one of DTYPES.

    Raises:
      ValueError: another dtype, or a parameter that leaves its range.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; needed is one of {', '.join(DTYPES)}")
    with np.errstate(over="ignore"):  # told below, by name
        tensors = {name: np.ascontiguousarray(x, dtype) for name, x in _to_theirs(params, arch)}
    lost = [name for name, x in tensors.items() if not np.isfinite(x).all()]
    if lost:
        raise ValueError(f"{', '.join(lost)} cannot be held in {dtype}: infinite or not a number")
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    (directory / CONFIG_NAME).write_text(json.dumps(_config(arch, dtype), indent=2) + "\n", encoding="utf-8")


def _config(arch: Arch, dtype: str) -> dict[str, Any]:
    scaling = arch.rope_scaling
    return {**_FIXED, **{key: getattr(arch, letter) for letter, key in _SIZES.items()},
            "rms_norm_eps": arch.norm_epsilon, "rope_theta": arch.rope_theta, "tie_word_embeddings": arch.is_tied,
            "torch_dtype": dtype, "rope_scaling": None if scaling is None else
            {"rope_type": "llama3", **{key: getattr(scaling, ours) for ours, key in _SCALING.items()}}}


def _shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    D, F, q, kv = arch.D, arch.F, arch.N * arch.H, arch.K * arch.H
    layer = dict(zip(_LAYER, [(D,), (D,), (q, D), (kv, D), (kv, D), (D, q), (F, D), (F, D), (D, F)], strict=True))
    shapes = {_TOP["embed"]: (arch.V, D), _TOP["final_norm"]: (D,)}
    if not arch.is_tied:
        shapes[_TOP["head"]] = (arch.V, D)
    return shapes | {f"model.layers.{i}.{name}.weight": shape for i in range(arch.L) for name, shape in layer.items()}


def _to_ours(tensors: Mapping[str, np.ndarray], arch: Arch) -> dict[str, np.ndarray]:
    L, D, K, G, H, F = arch.L, arch.D, arch.K, arch.G, arch.H, arch.F
    stacked = {name: np.stack([tensors[f"model.layers.{i}.{name}.weight"] for i in range(L)]) for name in _LAYER}
    heads = [stacked[f"self_attn.{x}_proj"].reshape(L, K, -1, H, D) for x in "qkv"]
    ours = {name: tensors[theirs] for name, theirs in _TOP.items() if theirs in tensors}
    return ours | {
        "layers/attention_norm": stacked["input_layernorm"], "layers/mlp_norm": stacked["post_attention_layernorm"],
        "layers/qkv": np.einsum("lkyhd->ldkyh", np.concatenate(heads, axis=2)),
        "layers/out": np.einsum("ldq->lqd", stacked["self_attn.o_proj"]).reshape(L, K, G, H, D),
        "layers/gate_up": np.einsum("xlfd->ldxf", np.stack([stacked["mlp.gate_proj"], stacked["mlp.up_proj"]])),
        "layers/down": np.einsum("ldf->lfd", stacked["mlp.down_proj"]).reshape(L, F, D)}


def _to_theirs(params: Mapping[str, np.ndarray], arch: Arch) -> Iterator[tuple[str, np.ndarray]]:
    D, G = arch.D, arch.G
    for name, theirs in _TOP.items():
        if name in params:
            yield theirs, params[name]
    for i in range(arch.L):
        qkv = np.einsum("dkyh->kyhd", params["layers/qkv"][i])
        gate_up = params["layers/gate_up"][i]
        layer = (params["layers/attention_norm"][i], params["layers/mlp_norm"][i], qkv[:, :G].reshape(-1, D),
                 qkv[:, G].reshape(-1, D), qkv[:, G + 1].reshape(-1, D), params["layers/out"][i].reshape(-1, D).T,
                 gate_up[:, 0].T, gate_up[:, 1].T, params["layers/down"][i].T)
        for name, x in zip(_LAYER, layer, strict=True):
            yield f"model.layers.{i}.{name}.weight", x
