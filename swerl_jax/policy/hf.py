"""`config.json` as Hugging Face writes it: which model a directory holds; `hf_weights` has its tensors.

What a file asks for and the model does not do is refused, by key and value: a wrong number would be worse than no number.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from swerl_jax.policy import stored
from swerl_jax.policy.arch import ARCHS, Arch, Llama3Scaling, YarnScaling

CONFIG_NAME, GENERATION_NAME = "config.json", "generation_config.json"


@dataclasses.dataclass(frozen=True)
class _Family:
    """What `architectures` implies."""

    model_type: str
    has_qkv_bias: bool = False
    has_qk_norm: bool = False


FAMILIES: Mapping[str, _Family] = {
    "LlamaForCausalLM": _Family("llama"),
    "Qwen2ForCausalLM": _Family("qwen2", has_qkv_bias=True),
    "Qwen3ForCausalLM": _Family("qwen3", has_qk_norm=True),
}
# Our size → its key in config.json.
_SIZES = {"V": "vocab_size", "D": "hidden_size", "L": "num_hidden_layers", "N": "num_attention_heads",
          "K": "num_key_value_heads", "F": "intermediate_size"}
# What the model does; a file that has the key and says otherwise is refused.
_FIXED: Mapping[str, Any] = {
    "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "use_sliding_window": False, "use_mrope": False,
    "partial_rotary_factor": 1.0, "num_experts": None, "num_local_experts": None, "quantization_config": None,
    "dual_chunk_attention_config": None, "auto_map": None,
}
_FIXED_ROPE: Mapping[str, Any] = {"partial_rotary_factor": 1.0, "mrope_section": None}
_LLAMA3 = {"factor": "factor", "low": "low_freq_factor", "high": "high_freq_factor",
           "original_context": "original_max_position_embeddings"}
_YARN = {"factor": "factor", "fast": "beta_fast", "slow": "beta_slow", "original_context": "original_max_position_embeddings"}


def find_arch(name: str, directory: Callable[[], str | None]) -> Arch:
    """A row of ARCHS by its name, or for "init" the model in `directory()`, where training begins with one.

    Raises:
      ValueError: unknown name, or no directory; or as `read_arch`.
    """
    if name == "init" and (found := directory()) is not None:
        return read_arch(found)
    if name not in ARCHS:
        raise ValueError(f"model.arch is {name!r}; needed is one of {', '.join(ARCHS)}, or init with --config.init=hf:DIR "
                         "(or embedded:NAME)")
    return ARCHS[name]


def read_arch(directory: str) -> Arch:
    """The sizes in `config.json`.

    Args:
      directory: local or remote (gs://…).

    Raises:
      ValueError: it is missing, unreadable, or asks for what the model does not do, naming key, value and what is supported.
    """
    path = stored.join(directory, CONFIG_NAME)
    try:
        found = json.loads(stored.read_text(path))
        return _arch(found)
    except OSError as error:
        raise ValueError(f"{directory} holds no model: {path} cannot be read ({error})") from error
    except KeyError as error:
        raise ValueError(f"{path} has no key {error.args[0]!r}, which a model's has") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _arch(found: Mapping[str, Any]) -> Arch:
    if not isinstance(found, dict):
        raise ValueError(f"it holds {str(found)[:60]!r}; needed is an object of keys")
    wrong = _mistyped(found)
    if wrong:
        raise ValueError("; ".join(wrong))
    family, wrong = _family(found)
    wrong += _other(found, _FIXED)
    kinds = sorted(set(found.get("layer_types") or ()) - {"full_attention"})
    wrong += [f"layer_types has {', '.join(kinds)}; supported is 'full_attention'"] if kinds else []
    rope, contradictions = _rope(found)
    scaling, faults = _scaling(rope, found)
    if wrong or contradictions or faults:
        raise ValueError("; ".join(wrong + contradictions + faults))
    sizes = {letter: found[key] for letter, key in _SIZES.items()}
    return Arch(**sizes, H=found.get("head_dim") or sizes["D"] // sizes["N"],
                is_tied=found.get("tie_word_embeddings", False), has_qkv_bias=family.has_qkv_bias,
                has_qk_norm=family.has_qk_norm, rope_theta=float(rope["rope_theta"]),
                rope_scaling=scaling, norm_epsilon=found["rms_norm_eps"], context=found["max_position_embeddings"])


def _mistyped(found: Mapping[str, Any]) -> list[str]:
    """What is no number, truth value or table where the model needs one: JSON has room for more than a model can be."""
    ropes = {key: found[key] for key in ("rope_parameters", "rope_scaling") if found.get(key) is not None}
    no_table = {key: rope for key, rope in ropes.items() if not isinstance(rope, dict)}
    wrong = [f"{key} is {rope!r}; needed is an object of keys, or null" for key, rope in no_table.items()]
    said = found | {key: value for name, rope in ropes.items() if name not in no_table for key, value in rope.items()}
    optional = {key for key in ("head_dim", "rope_theta", *_LLAMA3.values(), *_YARN.values()) if said.get(key) is None}
    for keys, is_right, needed in (
            ((*_SIZES.values(), "head_dim", "max_position_embeddings", "original_max_position_embeddings"), _is_count,
             "a whole number from 1"),
            (("rms_norm_eps", "rope_theta", *_LLAMA3.values(), *_YARN.values()), _is_amount, "a number above 0"),
            (("tie_word_embeddings",), lambda value: isinstance(value, bool), "true or false"),
            (("architectures",), lambda value: isinstance(value, list), "a list of one name")):
        wrong += [f"{key} is {said[key]!r}; needed is {needed}" for key in dict.fromkeys(keys)
                  if key in said and key not in optional and not is_right(said[key])]
    return wrong


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1  # true is an int, too


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _other(found: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
    return [f"{key} is {found[key]!r}; supported is {value!r}" for key, value in fixed.items() if found.get(key, value) != value]


def _rope(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(what the file says of rotary positions, rope_type and rope_theta among it; where it contradicts itself).

    Version 5 of transformers puts all of it under one key, earlier ones under two.
    """
    newer, older = (dict(found.get(key) or {}) for key in ("rope_parameters", "rope_scaling"))
    for one in (newer, older):
        kind = one.pop("type", None)
        one["rope_type"] = one.get("rope_type") or kind or "default"
        one["rope_theta"] = one.get("rope_theta") or found.get("rope_theta") or newer.get("rope_theta")
    if found.get("rope_parameters") and (found.get("rope_scaling") and older != newer
                                         or found.get("rope_theta") not in (None, newer["rope_theta"])):
        return newer, [f"rope_parameters are {newer!r}, and rope_scaling and rope_theta say {older!r}; needed is one of them"]
    rope = newer if found.get("rope_parameters") else older
    if rope["rope_theta"] is None:
        raise KeyError("rope_theta")
    return rope, _other(rope, _FIXED_ROPE)


def _family(found: Mapping[str, Any]) -> tuple[_Family, list[str]]:
    names = found["architectures"]
    if len(names) == 1 and names[0] in FAMILIES:
        family = FAMILIES[names[0]]
        return family, _other(found, {"model_type": family.model_type})
    return _Family(""), [f"architectures is {names!r}; supported is one of {', '.join(FAMILIES)}"]


def _scaling(
    rope: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[Llama3Scaling | YarnScaling | None, list[str]]:
    """(the scaling, what is not supported in it)."""
    kind = rope["rope_type"]
    if kind == "default":
        return None, []
    if kind == "llama3":
        scaling = Llama3Scaling(**{ours: rope[key] for ours, key in _LLAMA3.items()})
        return scaling, [] if scaling.low < scaling.high else [
            f"low_freq_factor is {scaling.low} and high_freq_factor {scaling.high}; needed is a higher one"]
    if kind != "yarn":
        return None, [f"the rope_type is {kind!r}; supported are 'default', 'llama3' and 'yarn'"]
    if rope.get("factor") is None:
        return None, ["factor of YaRN is missing; needed is by how much the context grows"]
    values = {key: value for key, value in rope.items() if value is not None}
    values = {"original_max_position_embeddings": found["max_position_embeddings"], **values}
    scaling = YarnScaling(**{ours: values[key] for ours, key in _YARN.items() if key in values})
    if scaling.factor < 1 or scaling.slow >= scaling.fast:
        return None, [f"YaRN has factor {scaling.factor}, beta_fast {scaling.fast} and beta_slow {scaling.slow}; needed is a "
                      "factor of at least 1 and beta_slow below beta_fast"]
    size = 0.1 * math.log(scaling.factor) + 1
    wrong = [f"{key} of YaRN is {rope[key]!r}; supported is {value!r}" for key, value in {
        "attention_factor": size, "mscale": None, "mscale_all_dim": None, "truncate": True}.items()
        if rope.get(key) is not None and rope[key] != value]
    return scaling, wrong


def config(arch: Arch, dtype: str) -> dict[str, Any]:
    """What `config.json` says of a model: the inverse of `read_arch`.

    Raises:
      ValueError: no family has these layers.
    """
    for name, family in FAMILIES.items():
        if (family.has_qkv_bias, family.has_qk_norm) == (arch.has_qkv_bias, arch.has_qk_norm):
            break
    else:
        raise ValueError(f"{arch} has biases and norms together; no model in Hugging Face's format here has")
    rope = arch.rope_scaling
    scaling = None
    if rope is not None:
        kind, keys = ("llama3", _LLAMA3) if isinstance(rope, Llama3Scaling) else ("yarn", _YARN)
        scaling = {"rope_type": kind, **{key: getattr(rope, ours) for ours, key in keys.items()}}
    return {
        "architectures": [name], "model_type": family.model_type,
        **{key: getattr(arch, letter) for letter, key in _SIZES.items()}, "head_dim": arch.H, "hidden_act": "silu",
        **({"attention_bias": False, "mlp_bias": False} if name == "LlamaForCausalLM" else {}),
        **({"attention_bias": False} if name == "Qwen3ForCausalLM" else {}),
        "max_position_embeddings": arch.context, "rms_norm_eps": arch.norm_epsilon, "rope_theta": arch.rope_theta,
        "rope_scaling": scaling, "tie_word_embeddings": arch.is_tied, "torch_dtype": dtype,
    }
