"""TPU chips as their makers describe them, and the names of their slices: `v5p:4x4x8`, `v6e:16x16:x2`.

Sources: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of docs.cloud.google.com/tpu/docs (read in 2026). Memory is what the TPU
compiler says is available to a program, a little less or more than the rounded number of those pages. Links: the published
bandwidth of a chip in both directions over its links (4 in a plane, 6 in space) and directions. The clock is not published:
it is the one at which all matrix units together reach the published peak.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as in a topology's name.
      hbm_bytes: memory that a program may use.
      peak_flops: bfloat16 floating-point operations a second. hbm_bandwidth: bytes a second.
      link_bandwidth: bytes a second over one link in one direction; a chip has two links along each axis of its torus.
      slice_bandwidth: bytes a second, this chip's share of the network between slices.
      matrix_unit: rows and columns of one matrix unit. matrix_units: of a chip.
      shapes: slices that can be rented, beside those of whole cubes of 4x4x4 chips. largest_cubes: sides of the largest of
        these; () where there are none. lone_host: chips that a slice of a single host has, at most.
      ring: size from which on an axis is closed to a ring.
    """

    name: str
    hbm_bytes: int
    peak_flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    slice_bandwidth: float
    matrix_unit: int
    matrix_units: int
    shapes: tuple[str, ...]
    largest_cubes: tuple[int, ...]
    lone_host: int
    ring: int

    @property
    def clock_hz(self) -> float:
        """Cycles a second, by which the compiler's cycles become seconds."""
        return self.peak_flops / (2 * self.matrix_unit**2 * self.matrix_units)

    def has(self, sides: tuple[int, ...]) -> bool:
        """Whether slices of this shape can be rented; those of whole cubes have their sides in ascending order."""
        return _text(sides) in self.shapes or len(sides) == len(self.largest_cubes) and list(sides) == sorted(sides) and all(
            side and side % 4 == 0 and side <= most for side, most in zip(sides, self.largest_cubes, strict=True))


HOST = (2, 2)  # chips on each of several hosts: a box of these sides
_PLANES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
CHIPS = {chip.name: chip for chip in (
    Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 400e9 / 8, 6.4e12 / 8 / 256, 128, 4, _PLANES, (), lone_host=8, ring=16),
    Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 1200e9 / 12, 50e9 / 8, 128, 8, _CUBES, (16, 16, 24), lone_host=4, ring=4),
    Chip("v6e", int(31.25 * GIB), 918e12, 1640e9, 800e9 / 8, 25.6e12 / 8 / 256, 256, 4, _PLANES, (), lone_host=8, ring=16),
)}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of chips: `shape` each, `slices` of them."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def name(self) -> str:
        """The name of one slice, as the compiler knows it."""
        return f"{self.chip.name}:{_text(self.shape)}"

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def host(self) -> tuple[int, ...]:
        """Sides of the box of chips that a host holds. Eight chips are one host, as one of several slices two."""
        is_lone = self.slices == 1 and self.chips <= self.chip.lone_host
        return self.shape if is_lone else HOST + (1,) * (len(self.shape) - len(HOST))

    @property
    def chips_per_host(self) -> int:
        """On each host."""
        return math.prod(self.host)

    @property
    def hosts(self) -> int:
        """Of all slices."""
        return self.chips // self.chips_per_host

    def axis_bandwidth(self, axis: int) -> float:
        """Bytes a second that a chip sends along an axis of the torus in both directions; half where it is no ring."""
        return self.chip.link_bandwidth * (2 if self.shape[axis] >= self.chip.ring else 1)

    def __str__(self) -> str:
        return self.name + (f":x{self.slices}" if self.slices > 1 else "")


def parse_topology(text: str) -> Topology:
    """`CHIP:SHAPE` or `CHIP:SHAPE:xSLICES`.

    Raises:
      ValueError: not such a name, or no such slice can be rented; lists what there is.
    """
    found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)(?::x(\d+))?", text.strip())
    if not found:
        raise ValueError(f"--plan={text!r} is no topology; needed is CHIP:SHAPE or CHIP:SHAPE:xSLICES out of\n"
                         f"{valid_topologies()}")
    name, shape, slices = found[1], found[2], int(found[3] or 1)
    chip = CHIPS.get(name)
    if chip is None:
        raise ValueError(f"--plan={text!r} names chip {name!r}; there are\n{valid_topologies()}")
    sides = tuple(map(int, shape.split("x")))
    if not chip.has(sides):
        ordered = tuple(sorted(sides))
        near = _text(ordered) if chip.has(ordered) else difflib.get_close_matches(shape, _examples(chip), n=1, cutoff=0.0)[0]
        raise ValueError(f"--plan={text!r}: there is no slice of {shape} {name} chips; the nearest name is {name}:{near}; "
                         f"there are\n{valid_topologies()}")
    if slices < 1:
        raise ValueError(f"--plan={text!r} asks for {slices} slices; needed is at least 1, as in\n{valid_topologies()}")
    if slices > 1 and math.prod(sides) <= math.prod(HOST):
        raise ValueError(f"--plan={text!r} is several slices of one host each; several slices need several hosts in each: take "
                         f"a larger shape of\n{valid_topologies()}")
    return Topology(chip, sides, slices)


def valid_topologies() -> str:
    """All names, a chip a line."""
    lines = []
    for chip in CHIPS.values():
        cubes = f", and AxBxC of multiples of 4 with A <= B <= C, at most {_text(chip.largest_cubes)}" if chip.largest_cubes else ""
        lines.append(f"  {chip.name}: {', '.join(chip.shapes)}{cubes}")
    return "\n".join([*lines, "  with :xN for N slices of several hosts each, as in v5e:16x16:x2"])


def _examples(chip: Chip) -> list[str]:
    """All shapes of a chip."""
    cubes = itertools.product(*(range(4, most + 1, 4) for most in chip.largest_cubes)) if chip.largest_cubes else ()
    return [*chip.shapes, *(_text(sides) for sides in cubes if chip.has(sides))]


def _text(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))
