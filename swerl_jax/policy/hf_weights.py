"""The tensors of a model in a directory as Hugging Face lays it out, in and out, streamed; `hf` has its `config.json`.

Our arrays are theirs in another order: their linear weights are [out in] and one a layer, ours are [in out], fused and
stacked over layers. Both turn rotary pairs in the half-split form, so no row moves inside a head. One table, `_LAYER`,
says where every tensor goes; reading and writing are the same moves in two directions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from swerl_jax.policy import stored
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.llama import LAYER_AXES, TOP_AXES, merged, parameter_name

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_CHUNK = 2**22  # numbers compared at a time


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where one of their tensors lies within one of ours.

    Attributes:
      ours: name in LAYER_AXES or TOP_AXES.
      theirs: their name, behind "model.layers.i." for a layer's.
      axes: their axes by our letters, those that they join into one in brackets: "(K y H) D".
      letter, start, stop: it is this range of our axis `letter`; "" for all of it.
    """

    ours: str
    theirs: str
    axes: str
    letter: str = ""
    start: int = 0
    stop: int = 1

    @property
    def groups(self) -> list[list[str]]:
        """The letters of each of their axes."""
        return [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\S+", self.axes)]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Their shape."""
        return tuple(math.prod(self._size(x, sizes) for x in group) for group in self.groups)

    def to_ours(self, theirs: np.ndarray, axes: str, sizes: Mapping[str, int]) -> np.ndarray:
        """A view of their tensor with our axes."""
        letters = sum(self.groups, [])
        split = theirs.reshape([self._size(x, sizes) for x in letters])
        return split.transpose([letters.index(x) for x in axes.split()])

    def to_theirs(self, ours: np.ndarray, axes: str, sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of `to_ours`, from the whole array that holds this tensor."""
        letters = sum(self.groups, [])
        part = ours[tuple(slice(self.start, self.stop) if x == self.letter else slice(None) for x in axes.split())]
        return part.transpose([axes.split().index(x) for x in letters]).reshape(self.shape(sizes))

    def _size(self, letter: str, sizes: Mapping[str, int]) -> int:
        return self.stop - self.start if letter == self.letter else sizes[letter]


def _places(arch: Arch) -> tuple[list[_Place], list[_Place]]:
    """(of the top, of a layer): every tensor of the model."""
    G = arch.G
    top = [_Place("embed", _EMBED, "V D"), _Place("final_norm", "model.norm.weight", "D")]
    if not arch.is_tied:
        top.append(_Place("head", _HEAD, "V D"))
    heads = (("q", 0, G), ("k", G, G + 1), ("v", G + 1, G + 2))
    layer = [
        _Place("attention_norm", "input_layernorm.weight", "D"),
        _Place("mlp_norm", "post_attention_layernorm.weight", "D"),
        *(_Place("qkv", f"self_attn.{x}_proj.weight", "(K y H) D", "y", start, stop) for x, start, stop in heads),
        _Place("out", "self_attn.o_proj.weight", "D (K G H)"),
        _Place("gate_up", "mlp.gate_proj.weight", "(x F) D", "x", 0, 1),
        _Place("gate_up", "mlp.up_proj.weight", "(x F) D", "x", 1, 2),
        _Place("down", "mlp.down_proj.weight", "D F"),
    ]
    if arch.has_qkv_bias:
        layer += [_Place("qkv_bias", f"self_attn.{x}_proj.bias", "(K y H)", "y", a, b) for x, a, b in heads]
    if arch.has_qk_norm:
        layer += [_Place("query_norm", "self_attn.q_norm.weight", "H"), _Place("key_norm", "self_attn.k_norm.weight", "H")]
    return top, layer


def _sizes(arch: Arch) -> dict[str, int]:
    return {**{letter: getattr(arch, letter) for letter in "VDLNKHFG"}, "y": arch.G + 2, "x": 2}


def load(directory: str, arch: Arch, abstract: Any) -> Any:
    """Reads a model onto its devices: of every tensor the ranges that the devices of this process hold, one after another.

    Args:
      directory: local or remote (gs://…), with safetensors files.
      abstract: `policy.llama.Llama` of ShapeDtypeStructs that have shardings; the layers' axis L is not cut.

    Returns:
      The model in the dtypes and on the devices of `abstract`. On the host there is never more than one of the tensors.

    Raises:
      ValueError: missing, surplus or misshapen tensors, all of them named; or a file that cannot be read.
    """
    tensors, damaged = stored.find(directory)
    _check(directory, arch, tensors, damaged)
    top, layer = _places(arch)
    sizes = _sizes(arch)

    def make(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        name = parameter_name(path)
        if name in TOP_AXES:
            (place,) = [place for place in top if place.ours == name]
            view = place.to_ours(tensors[place.theirs].read(), TOP_AXES[name], sizes)
            return _placed(view, x.sharding, x.dtype, is_kept=True)
        places = [place for place in layer if place.ours == name]
        return _stacked(x, LAYER_AXES[name], {
            (i, place): tensors[f"model.layers.{i}.{place.theirs}"] for i in range(arch.L) for place in places}, sizes)

    return jax.tree_util.tree_map_with_path(make, abstract)


def _placed(view: np.ndarray, sharding: NamedSharding, dtype: Any, *, is_kept: bool = False) -> jax.Array:
    """An array on the devices; each of this process reads, and puts in order, only its own part of `view`.

    A CPU's array may be the file itself: one that is kept is a copy.
    """
    is_copy = is_kept and next(iter(sharding.device_set)).platform == "cpu"
    return jax.make_array_from_callback(view.shape, sharding, lambda index: view[index].astype(dtype, copy=is_copy))


def _stacked(x: jax.ShapeDtypeStruct, axes: str, tensors: Mapping[tuple[int, _Place], stored.Stored],
             sizes: Mapping[str, int]) -> jax.Array:
    """Tensor after tensor to its place in an array [L …] on the devices."""
    letters = axes.split()
    of_layer = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))
    stack = jax.jit(lambda: jnp.zeros(x.shape, x.dtype), out_shardings=x.sharding)()
    put = jax.jit(_put, donate_argnums=0, out_shardings=x.sharding)
    for (i, place), tensor in tensors.items():
        one = _placed(place.to_ours(tensor.read(), " ".join(letters[1:]), sizes), of_layer, x.dtype)
        stack = put(stack, one, [i] + [place.start if letter == place.letter else 0 for letter in letters[1:]])
    return stack


def _put(stack: jax.Array, one: jax.Array, start: list[int]) -> jax.Array:
    """Writes a layer's tensor into [L …], as bits: XLA moves bfloat16 on a CPU by way of float32, six times slower."""
    bits = jnp.dtype(f"uint{8 * stack.dtype.itemsize}")
    held, new = (jax.lax.bitcast_convert_type(array, bits) for array in (stack, one[None]))
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice(held, new, start), stack.dtype)


def _check(directory: str, arch: Arch, tensors: Mapping[str, stored.Stored], damaged: Mapping[str, str]) -> None:
    wanted = shapes(arch)
    ignored = {_HEAD} if arch.is_tied else set()  # some write the tied matrix twice
    faults = [*damaged.values(), *(f"{name} is missing" for name in wanted if name not in tensors and name not in damaged)]
    faults += [f"{name} is not in the model" for name in tensors
               if name not in wanted and name not in ignored and not name.endswith("rotary_emb.inv_freq")]
    faults += [f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}; needed is {list(shape)} of "
               f"{' or '.join(DTYPES)}" for name, shape in wanted.items()
               if name in tensors and (tensors[name].shape != shape or tensors[name].dtype not in DTYPES.values())]
    if arch.is_tied and _HEAD in tensors and _EMBED in tensors and not _is_equal(tensors[_HEAD], tensors[_EMBED]):
        faults.append(f"{_HEAD} is not {_EMBED}, though tie_word_embeddings is true; set that to false, or leave {_HEAD} out")
    if faults:
        raise ValueError(f"the tensors in {directory} do not fit its config.json:\n  " + "\n  ".join(faults))


def _is_equal(one: stored.Stored, other: stored.Stored) -> bool:
    """Whether two tensors have the same numbers; of a local file a few are in memory at a time."""
    if one.shape != other.shape:
        return False
    a, b = one.read().reshape(-1), other.read().reshape(-1)
    return all(np.array_equal(a[i:i + _CHUNK], b[i:i + _CHUNK]) for i in range(0, a.size, _CHUNK))


def shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape."""
    (top, layer), sizes = _places(arch), _sizes(arch)
    return {**{place.theirs: place.shape(sizes) for place in top},
            **{f"model.layers.{i}.{place.theirs}": place.shape(sizes) for i in range(arch.L) for place in layer}}


def write(directory: pathlib.Path, arch: Arch, model: Any, dtype: str, max_file_bytes: int = 5_000_000_000) -> None:
    """Writes the files with tensors that `load` and other tools read.

    Args:
      directory: exists.
      model: a `policy.llama.Llama`; one array of one layer at a time comes to the host, a low-rank change added in float32.
      dtype: one of DTYPES. max_file_bytes: of the data in one file; a single tensor may exceed it.

    Raises:
      ValueError: another dtype, or a parameter that leaves its range.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; needed is one of {', '.join(DTYPES)}")
    stored.write(directory, _parts(arch, model, DTYPES[dtype]), DTYPES[dtype], max_file_bytes)


def _parts(arch: Arch, model: Any, dtype: np.dtype) -> Iterator[stored.Part]:
    (top, layer), sizes = _places(arch), _sizes(arch)

    @functools.lru_cache(1)  # tensors that share an array follow each other
    def fetch(name: str, i: int | None) -> np.ndarray:
        return np.asarray(getattr(model, name)[...] if i is None else merged(model.layers, name, i))

    def make(place: _Place, name: str, i: int | None) -> np.ndarray:
        axes = TOP_AXES[place.ours] if i is None else LAYER_AXES[place.ours].removeprefix("L ")
        with np.errstate(over="ignore"):  # told below, by name
            tensor = place.to_theirs(fetch(place.ours, i), axes, sizes).astype(dtype)
        if not np.isfinite(tensor).all():
            raise ValueError(f"{name} cannot be held in {dtype}: infinite or not a number")
        return tensor

    for i, places in [(None, top), *((i, layer) for i in range(arch.L))]:
        for place in places:
            name = place.theirs if i is None else f"model.layers.{i}.{place.theirs}"
            yield stored.Part(name, place.shape(sizes), partial(make, place, name, i))
