"""A trained model as a directory for others: Hugging Face's layout, or Orbax with the parameters alone.

On the path: behind checkpoint, and the end of it.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from swerl_jax.learn.checkpoint import save_arrays
from swerl_jax.learn.learner import params_to_arrays
from swerl_jax.models import shipped
from swerl_jax.policy import hf, hf_weights
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.llama import MATRICES, Llama, is_low_rank, merged

FORMATS = ("hf", "orbax")


def export(directory: pathlib.Path, arch: Arch, model: Llama, kind: str, dtype: str, ids: Mapping[str, Any],
           generation: Mapping[str, Any], max_file_bytes: int, add_files: Callable[[pathlib.Path], None]) -> None:
    """Writes a new directory under a temporary name and renames it when complete.

    Args:
      directory: does not exist. model: low-rank changes are added to its matrices.
      kind: one of FORMATS. dtype: "float32", "bfloat16" or "float16".
      ids, generation: keys for config.json, and what generation_config.json holds (see origin.token_ids).
      max_file_bytes: of a safetensors file. add_files: puts more files into the directory before it gets its name.

    Raises:
      ValueError: an unknown kind or dtype, or a parameter that leaves the dtype's range.
    """
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was cut off
    partial.mkdir(parents=True)
    if kind == "hf":
        hf_weights.write(partial, arch, model, dtype, max_file_bytes)
        _write_json(partial / hf.GENERATION_NAME, generation)
    elif kind == "orbax":
        save_arrays(partial / shipped.PARAMS_NAME, _arrays(arch, model, hf_weights.DTYPES[dtype]))
    else:
        raise ValueError(f"format is {kind!r}; needed is one of {', '.join(FORMATS)}")
    _write_json(partial / hf.CONFIG_NAME, hf.config(arch, dtype) | ids)
    add_files(partial)
    partial.rename(directory)  # a reader sees a whole directory or none


def _arrays(arch: Arch, model: Llama, dtype: jnp.dtype) -> dict[str, jax.Array]:
    """The parameters by name in `dtype`, a low-rank change added layer by layer."""
    cast = {name: x.astype(dtype) for name, x in params_to_arrays(model).items() if not is_low_rank(name)}
    for name in MATRICES:
        if getattr(model.layers, f"{name}_a") is not None:
            cast[f"layers/{name}"] = jnp.stack([merged(model.layers, name, i).astype(dtype) for i in range(arch.L)])
    lost = [name for name, x in cast.items() if not jnp.isfinite(x).all()]
    if lost:
        raise ValueError(f"{', '.join(lost)} cannot be held in {dtype}: infinite or not a number")
    return cast


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=2) + "\n", encoding="utf-8")
