"""TPU chips as their makers describe them, and the names of their slices: `v5p:4x4x8`, `v6e:16x16:x2`.

Sources: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of docs.cloud.google.com/tpu/docs (read in 2026). Memory is what the TPU
compiler says is available to a program, a little less or more than the rounded number of those pages. Links: the published
bandwidth of a chip in both directions over its links (4 in a plane, 6 in space) and directions. The clock is not published:
it is the one at which all matrix units together reach the published peak.
"""

from __future__ import annotations

import dataclasses
import difflib
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
      shapes: slices that can be rented. ring: size from which on an axis is closed to a ring.
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
    ring: int

    @property
    def clock_hz(self) -> float:
        """Cycles a second, by which the compiler's cycles become seconds."""
        return self.peak_flops / (2 * self.matrix_unit**2 * self.matrix_units)


_PLANES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x4x12", "4x8x8", "4x4x16", "8x8x8", "8x8x12", "8x8x16",
          "8x16x16", "16x16x16", "16x16x24")
CHIPS = {chip.name: chip for chip in (
    Chip("v5e", int(15.75 * GIB), 197e12, 819e9, 400e9 / 8, 6.4e12 / 8 / 256, 128, 4, _PLANES, ring=16),
    Chip("v5p", int(95.74 * GIB), 459e12, 2765e9, 1200e9 / 12, 50e9 / 8, 128, 8, _CUBES, ring=4),
    Chip("v6e", int(31.25 * GIB), 918e12, 1640e9, 800e9 / 8, 25.6e12 / 8 / 256, 256, 4, _PLANES, ring=16),
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
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        """In all slices."""
        return math.prod(self.shape) * self.slices

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
    is_cube = chip.name == "v5p" and len(sides) == 3 and all(side and side % 4 == 0 for side in sides) and max(sides) <= 24
    if shape not in chip.shapes and not is_cube:
        near = difflib.get_close_matches(shape, chip.shapes, n=1, cutoff=0.0)[0]
        raise ValueError(f"--plan={text!r}: there is no slice of {shape} {name} chips; the nearest name is {name}:{near}; "
                         f"there are\n{valid_topologies()}")
    if slices < 1:
        raise ValueError(f"--plan={text!r} asks for {slices} slices; needed is at least 1")
    return Topology(chip, sides, slices)


def valid_topologies() -> str:
    """All names, a chip a line."""
    more = {"v5p": ", and other multiples of 4x4x4"}
    lines = [f"  {chip.name}: {', '.join(chip.shapes)}{more.get(chip.name, '')}" for chip in CHIPS.values()]
    return "\n".join([*lines, "  with :xN for N slices, as in v5e:16x16:x2"])
