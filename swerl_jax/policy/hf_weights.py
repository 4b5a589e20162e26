"""The tensors of a model in a directory as Hugging Face lays it out, in and out, streamed; `hf` has its `config.json`.

Our arrays are theirs in another order: their linear weights are [out in] and one a layer, ours are [in out], fused and
stacked over layers. Both turn rotary pairs in the half-split form, so no row moves inside a head. One table, `_LAYER`,
says where every tensor goes; reading and writing are the same moves in two directions.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
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

from swerl_jax.policy import host_arrays, stored
from swerl_jax.policy.arch import Arch
from swerl_jax.policy.llama import LAYER_AXES, TOP_AXES, merged, parameter_name

DTYPES: Mapping[str, np.dtype] = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_EMBED, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Bytes of a tensor that are put in order at a time: what a processor's cache holds; of a remote one, worth a request.
_BLOCK_BYTES, _REMOTE_BLOCK_BYTES = 2**21, 2**24
_THREADS = 8  # at most

_Ranges = tuple[tuple[int, int], ...]  # of an array's axes, one after the other


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
    """Reads a model onto its devices: of every tensor the ranges that the devices of this process hold.

    Args:
      directory: local or remote (gs://…), with safetensors files.
      abstract: `policy.llama.Llama` of ShapeDtypeStructs that have shardings; the layers' axis L is not cut.

    Returns:
      The model in the dtypes and on the devices of `abstract`. Beside it the host's memory holds less than two of the
      largest tensors.

    Raises:
      ValueError: missing, surplus or misshapen tensors, all of them named; or a file that cannot be read.
    """
    tensors, damaged = stored.find(directory)
    _check(directory, arch, tensors, damaged)
    leaves, structure = jax.tree_util.tree_flatten_with_path(abstract)
    sources = [_source(parameter_name(path), x, arch, tensors) for path, x in leaves]
    if all(_is_host(x.sharding) for _, x in leaves):
        return structure.unflatten(_filled(sources, _sizes(arch)))
    return structure.unflatten([_streamed(source, _sizes(arch)) for source in sources])


@dataclasses.dataclass(frozen=True)
class _Source:
    """What one of our arrays is made of.

    Attributes:
      x: its shape, dtype and sharding. axes: its letters.
      tensors: (layer, place) → the tensor that lies there; the layer of an array without L is None.
    """

    x: jax.ShapeDtypeStruct
    axes: str
    tensors: Mapping[tuple[int | None, _Place], stored.Stored]


def _source(name: str, x: jax.ShapeDtypeStruct, arch: Arch, tensors: Mapping[str, stored.Stored]) -> _Source:
    top, layer = _places(arch)
    if name in TOP_AXES:
        return _Source(x, TOP_AXES[name], {(None, place): tensors[place.theirs] for place in top if place.ours == name})
    return _Source(x, LAYER_AXES[name], {
        (i, place): tensors[f"model.layers.{i}.{place.theirs}"] for i in range(arch.L) for place in layer if place.ours == name})


def _is_host(sharding: NamedSharding) -> bool:
    """Whether the devices' memory is this machine's."""
    return all(device.platform == "cpu" for device in sharding.device_set)


@dataclasses.dataclass(frozen=True)
class _Held:
    """What this process holds of an array, in memory that its devices take over.

    Attributes:
      of_device: device → its ranges of the axes. shards: those → the memory; of several copies there is one.
    """

    x: jax.ShapeDtypeStruct
    of_device: Mapping[jax.Device, _Ranges]
    shards: Mapping[_Ranges, np.ndarray]

    @classmethod
    def empty(cls, x: jax.ShapeDtypeStruct) -> _Held:
        of_device = {device: tuple(one.indices(size)[:2] for one, size in zip(index, x.shape, strict=True))
                     for device, index in x.sharding.addressable_devices_indices_map(x.shape).items()}
        return cls(x, of_device, {
            ranges: host_arrays.empty(tuple(b - a for a, b in ranges), x.dtype) for ranges in of_device.values()})

    def array(self) -> jax.Array:
        """The array, once all of the memory is filled."""
        return jax.make_array_from_single_device_arrays(self.x.shape, self.x.sharding, [
            jax.device_put(self.shards[ranges], device) for device, ranges in self.of_device.items()])


def _filled(sources: list[_Source], sizes: Mapping[str, int]) -> list[jax.Array]:
    """The arrays on devices whose memory is this machine's: each byte goes from its file to the place where it stays.

    Several threads do it: reading and putting in order, which take the time, let the others run.
    """
    held = [_Held.empty(source.x) for source in sources]
    jobs = [(source.axes, one.shards, i, place, tensor)
            for source, one in zip(sources, held, strict=True) for (i, place), tensor in source.tensors.items()]
    jobs.sort(key=lambda job: -job[-1].nbytes)  # none of the long ones alone at the end
    is_local, device = stored.is_local(jobs[0][-1].url), next(iter(held[0].of_device))
    block_bytes = _BLOCK_BYTES if is_local else _REMOTE_BLOCK_BYTES
    threads = min(_THREADS, os.cpu_count() or 1) if is_local else _THREADS
    bound = jobs[0][-1].nbytes // (2 * block_bytes)  # a block is there twice, all of them less than the largest tensor
    with concurrent.futures.ThreadPoolExecutor(max(1, min(threads, bound))) as pool:
        list(pool.map(lambda job: _fill(*job, sizes, block_bytes, device), jobs))
    return [one.array() for one in held]


def _fill(axes: str, shards: Mapping[_Ranges, np.ndarray], i: int | None, place: _Place, tensor: stored.Stored,
          sizes: Mapping[str, int], block_bytes: int, device: jax.Device) -> None:
    """One tensor to its place in all shards, block after block; what none of them holds is not read.

    Args:
      shards: by the ranges of our axes that they hold.
    """
    letters, first = axes.split(), next(letter for letter in place.groups[0] if letter != place.letter)
    axis, count, read = letters.index(first), sizes[first], tensor.rows()
    rows, step = tensor.shape[0] // count, max(1, block_bytes * count // tensor.nbytes)
    span = {place.letter: (place.start, place.stop), "L": (i, (i or 0) + 1)}
    whole = tuple(span.get(letter, (0, sizes[letter])) for letter in letters)
    box = tuple((min(a for a, _ in ends), max(b for _, b in ends)) for ends in zip(*shards, strict=True))
    box = _intersection(whole, box)
    crop = [slice(None) if k == axis else one for k, one in enumerate(_within(box, whole))]
    # Of each shard: its range of `first`; its memory for the tensor, and where that lies in the box, both from `first` on.
    parts = [(both[axis], np.moveaxis(shards[one][_within(both, one)], axis, 0),
              [index for k, index in enumerate(_within(both, box)) if k != axis])
             for one in shards for both in [_intersection(one, whole)]]
    for start in range(0, count, step):
        stop = min(start + step, count)
        met = [part for part in parts if part[0][0] < stop and start < part[0][1]]
        if not met:
            continue
        view = place.to_ours(read(start * rows, stop * rows), axes.removeprefix("L "), {**sizes, first: stop - start})
        view = (view if i is None else view[None])[tuple(crop)]
        block = np.moveaxis(host_arrays.in_rows(view, device), axis, 0)
        for (a, b), memory, index in met:
            low, high = max(a, start), min(b, stop)
            host_arrays.copy(memory[low - a:high - a], block[(slice(low - start, high - start), *index)])


def _intersection(one: _Ranges, other: _Ranges) -> _Ranges:
    return tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))


def _within(part: _Ranges, whole: _Ranges) -> tuple[slice, ...]:
    """The index of a part in an array that begins where `whole` does."""
    return tuple(slice(a - c, b - c) for (a, b), (c, _) in zip(part, whole, strict=True))


def _streamed(source: _Source, sizes: Mapping[str, int]) -> jax.Array:
    """The array on devices with memory of their own: tensor after tensor goes there, and then to its place in [L …]."""
    x, axes = source.x, source.axes.removeprefix("L ")

    def placed(place: _Place, tensor: stored.Stored, sharding: NamedSharding) -> jax.Array:
        view = place.to_ours(tensor.read(), axes, sizes)  # each device reads, and puts in order, only its own part of it
        return jax.make_array_from_callback(view.shape, sharding, lambda index: view[index].astype(x.dtype, copy=False))

    if axes == source.axes:
        ((_, place), tensor), = source.tensors.items()
        return placed(place, tensor, x.sharding)
    of_layer = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))
    stack = jax.jit(lambda: jnp.zeros(x.shape, x.dtype), out_shardings=x.sharding)()
    put = jax.jit(lambda stack, one, start: jax.lax.dynamic_update_slice(stack, one[None], start), donate_argnums=0,
                  out_shardings=x.sharding)
    for (i, place), tensor in source.tensors.items():
        start = [i] + [place.start if letter == place.letter else 0 for letter in axes.split()]
        stack = jax.block_until_ready(put(stack, placed(place, tensor, of_layer), start))  # else many would wait on the host
    return stack


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
    """Whether two matrices have the same numbers; some rows of them are in memory at a time."""
    if one.shape != other.shape:
        return False
    count, step = one.shape[0], max(1, _REMOTE_BLOCK_BYTES * one.shape[0] // one.nbytes)
    a, b = one.rows(), other.rows()
    return all(np.array_equal(a(i, min(i + step, count)), b(i, min(i + step, count))) for i in range(0, count, step))


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
