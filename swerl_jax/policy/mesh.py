"""Where arrays live: one mesh with all axis names, and one table from axis letters to mesh axes.

Every mesh (laptop, engine, planner) carries all four axes, size 1 where unused, so that one set of partition
specifications is valid everywhere. Axis types are Auto on purpose: the compiler propagates shardings from the
parameters and the batch, and nothing in the model names a mesh axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("slice", "fsdp", "tensor", "context")

Rules = Mapping[str, str | tuple[str, ...] | None]

_DATA = ("slice", "fsdp")
# Axis letter (see arch.py) → the mesh axes that cut it, in three columns; letters that are not listed are never cut.
# - What the learner keeps: parameters are cut over fsdp and context along D, and over tensor along heads, hidden width and
#   vocabulary; slices repeat them. A row's tokens T are cut over context (see context.py).
# - What it computes with: between layers T is cut over tensor, too, because the backward pass keeps what is there (sequence
#   parallelism, arXiv 2205.05198, §4.2.2), and inside a layer, written t, over context alone. A layer's parameters are gathered
#   from the fsdp and context axes to be used.
# - The engine keeps whole weights in every data replica and deals its group slots P over the data axes.
_TABLE = {
    #     learner               activations             engine
    "B": (_DATA,                _DATA,                  None),
    "P": (None,                 None,                   _DATA),
    "T": ("context",            ("context", "tensor"),  None),
    "t": (None,                 "context",              None),
    "D": (("fsdp", "context"),  None,                   None),
    "K": ("tensor",             "tensor",               "tensor"),
    "N": (None,                 None,                   "tensor"),
    "F": ("tensor",             "tensor",               "tensor"),
    "V": ("tensor",             "tensor",               "tensor"),
}
LEARNER_RULES, ACTIVATION_RULES, ENGINE_RULES = ({letter: row[column] for letter, row in _TABLE.items()} for column in range(3))
# (array, the letters of its axes, those of its gradient if other) → the array, where the mesh wants it
Place = Callable[..., jax.Array]


def make_mesh(sizes: Mapping[str, int] | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all of AXES over `devices` in their flat order.

    Args:
      sizes: axis name → size; missing axes are 1; at most one may be −1 (takes the devices that are left).
      devices: all devices of this run by default, process by process.

    Raises:
      ValueError: unknown axis, or the product of the sizes is not the number of devices.
    """
    devices = run_devices() if devices is None else list(devices)
    sizes = dict(sizes or {"fsdp": -1})
    unknown = sorted(set(sizes) - set(AXES))
    if unknown:
        raise ValueError(f"mesh axes {unknown} are unknown; the axes are {list(AXES)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    if shape.count(-1) == 1:
        rest = -int(np.prod(shape))
        shape[shape.index(-1)] = max(1, len(devices) // rest)
    if int(np.prod(shape)) != len(devices):
        raise ValueError(f"mesh {dict(zip(AXES, shape))} needs {int(np.prod(shape))} devices, there are {len(devices)}; "
                         "change the sizes, or give -1 to one axis")
    return Mesh(np.array(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def run_devices() -> list[jax.Device]:
    """All devices of this run, those of a process side by side: tensor shards stay within a host."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def slices(devices: Sequence[jax.Device]) -> int:
    """How many slices of TPUs these are, which only a slower network joins; 1 for other devices."""
    return len({getattr(device, "slice_index", 0) if device.platform == "tpu" else 0 for device in devices})


def spec(letters: str, rules: Rules) -> PartitionSpec:
    """The partition specification of an array whose axes are `letters`, separated by spaces ("L D F")."""
    return PartitionSpec(*(rules.get(letter) for letter in letters.split()))


def sharding(mesh: Mesh, letters: str, rules: Rules) -> NamedSharding:
    """As `spec`, on a mesh."""
    return NamedSharding(mesh, spec(letters, rules))


def anywhere(x: jax.Array, letters: str, gradient: str = "") -> jax.Array:
    """The Place that leaves it to the compiler."""
    del letters, gradient
    return x


def placer(mesh: Mesh, rules: Rules) -> Place:
    """The Place of a mesh (see `fitting`)."""
    if mesh.size == 1:
        return anywhere

    def constrained(x: jax.Array, letters: str) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fitting(mesh, x.shape, letters, rules)))

    @partial(jax.custom_vjp, nondiff_argnums=(1, 2))
    def place(x: jax.Array, letters: str, gradient: str = "") -> jax.Array:
        return constrained(x, letters)

    place.defvjp(lambda x, letters, gradient: (constrained(x, letters), None),
                 lambda letters, gradient, _, dx: (constrained(dx, gradient or letters),))
    return place


def fitting(mesh: Mesh, shape: Sequence[int], letters: str, rules: Rules) -> PartitionSpec:
    """As `spec`, of an array of this shape: of an axis's mesh axes only the first ones that together divide its size."""
    def dividing(cut: str | tuple[str, ...] | None, size: int) -> tuple[str, ...]:
        axes = (cut,) if isinstance(cut, str) else cut or ()
        return next(axes[:n] for n in range(len(axes), -1, -1) if size % extent(mesh, axes[:n]) == 0)

    return PartitionSpec(*(dividing(cut, size) or None for cut, size in zip(spec(letters, rules), shape, strict=True)))


def extent(mesh: Mesh, axes: str | tuple[str, ...]) -> int:
    """Into how many parts these mesh axes cut."""
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes))
