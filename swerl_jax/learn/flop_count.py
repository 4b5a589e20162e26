"""Floating-point operations of a traced function: its matrix products times how often they run.

The compiler's own count takes the body of a loop once and a kernel as nothing. Here a body under `scan` counts its length
times, a kernel its grid times the share of its blocks that do something. Sums, exponentials and the like are not counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jax.extend import core

# Kernel's name → share of its grid's blocks that are live.
Live = Callable[[str], float]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What the calls of a kernel do together.

    Attributes:
      calls: how many. flops: of its matrix products. bytes: blocks fetched and written, one after the other.
    """

    calls: float
    flops: float
    bytes: float

    def __add__(self, other: Kernel) -> Kernel:
        return Kernel(self.calls + other.calls, self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Kernel:
        return Kernel(self.calls * times, self.flops * times, self.bytes * times)


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of all devices together; a multiply-add is two.

    Attributes:
      products: of plain matrix products. kernels: by kernel's name.
    """

    products: float = 0.0
    kernels: Mapping[str, Kernel] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> float:
        """Products and kernels."""
        return self.products + sum(kernel.flops for kernel in self.kernels.values())

    def __add__(self, other: Flops) -> Flops:
        none = Kernel(0.0, 0.0, 0.0)
        names = [*self.kernels, *(name for name in other.kernels if name not in self.kernels)]
        return Flops(self.products + other.products,
                     {name: self.kernels.get(name, none) + other.kernels.get(name, none) for name in names})

    def __mul__(self, times: float) -> Flops:
        return Flops(self.products * times, {name: kernel * times for name, kernel in self.kernels.items()})


def count(jaxpr: Any, live: Live = lambda name: 1.0) -> Flops:
    """Operations of a jaxpr (closed or not), those of everything that it calls included.

    A `while` loop runs as often as the largest whole number that its condition compares with, once if there is none; of the
    branches of a `cond` the most expensive one is counted; the body of a `shard_map` runs on every shard.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = Flops()
    for equation in jaxpr.eqns:
        total += _equation(equation, live)
    return total


def _equation(equation: Any, live: Live) -> Flops:
    parameters = equation.params
    match equation.primitive.name:
        case "dot_general":
            return Flops(_product(equation))
        case "conv_general_dilated":
            return Flops(_convolution(equation))
        case "scan":
            return count(parameters["jaxpr"], live) * parameters["length"]
        case "while":
            return count(parameters["body_jaxpr"], live) * _trips(parameters["cond_jaxpr"])
        case "cond":
            return max((count(branch, live) for branch in parameters["branches"]), key=lambda flops: flops.total)
        case "shard_map":
            mesh = parameters["mesh"]
            axes = parameters.get("manual_axes", mesh.axis_names)
            return count(parameters["jaxpr"], live) * math.prod(mesh.shape[axis] for axis in axes)
        case "pallas_call":
            name, mapping = str(parameters.get("name") or "kernel"), parameters["grid_mapping"]
            body = count(parameters["jaxpr"], live) * math.prod(mapping.grid)
            return Flops(0.0, {name: Kernel(1.0, body.total * live(name), _fetched(mapping, live(name)))})
        case _:
            return sum((count(inner, live) for inner in _inner(parameters)), Flops())


def _inner(parameters: Mapping[str, Any]) -> Iterator[Any]:
    """The jaxprs that an equation calls; rules for its derivative are functions, not jaxprs, so they are not among them."""
    for value in parameters.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (core.Jaxpr, core.ClosedJaxpr)):
                yield one


def _product(equation: Any) -> float:
    (left_axes, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in left_axes)


def _convolution(equation: Any) -> float:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / out_features


def _fetched(mapping: Any, live: float) -> float:
    """Bytes of the blocks that a kernel moves; one that is the same as in the step before is not moved again."""
    total, grid = 0.0, mapping.grid
    for block in mapping.block_mappings:
        sizes = [getattr(size, "block_size", size if isinstance(size, int) else 1) for size in block.block_shape]
        index = block.index_map_jaxpr.jaxpr
        read = {id(atom) for atom in index.outvars} | {id(atom) for equation in index.eqns for atom in equation.invars}
        deepest = max((axis + 1 for axis in range(len(grid)) if id(index.invars[axis]) in read), default=0)
        steps = math.prod(grid[:deepest]) * (live if deepest == len(grid) else 1.0)
        total += math.prod(sizes) * block.array_aval.dtype.itemsize * steps
    return total


def _trips(condition: Any) -> int:
    """The largest whole number that a loop's condition is written with."""
    jaxpr = condition.jaxpr
    numbers = [int(atom.val) for equation in jaxpr.eqns for atom in equation.invars
               if isinstance(atom, core.Literal) and getattr(atom.aval, "shape", None) == () and atom.aval.dtype.kind in "iu"]
    return max(numbers, default=1)
