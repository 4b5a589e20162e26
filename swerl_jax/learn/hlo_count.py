"""What a compiled program does, read from its text: cycles by the compiler's estimate, bytes from memory, bytes between chips.

The compiler estimates the cycles of every instruction of a TPU program, its collectives excepted, and says them in the
program's text, loop bodies once. Here a loop's body counts as often as it runs. It is the compiler's model of the chip, not
a measurement, but of the code that will run: what a roofline forgives (copies, slow layouts) is in it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from functools import cached_property

import numpy as np

ITEM_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # others say their bits
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all",
               "collective-broadcast")
# As the program's text calls what hosts do between slices → the collective.
_BETWEEN_SLICES = {"ALL_REDUCE": "all-reduce", "ALL_GATHER": "all-gather", "REDUCE_SCATTER": "reduce-scatter",
                   "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute"}
# These name memory, move nothing: their cost is that of what uses them.
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
        "while", "conditional", "call", "recv", "opt-barrier", "optimization-barrier", "copy-done", "slice-done", "async-done",
        "async-update", "async-start")
KERNEL = "tpu_custom_call"
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
                     r"|branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A kind of collective on equal groups of devices.

    Attributes:
      kind: a name of COLLECTIVES. group: the numbers, in the program's order of devices, of those of the first group; those of
        further slices behind them.
    """

    kind: str
    group: tuple[int, ...]


@dataclasses.dataclass
class Work:
    """What one chip does.

    Attributes:
      cycles: by the compiler's estimate, without collectives and kernels. memory_bytes: read from and written to HBM,
        kernels excepted: which part of an operand they fetch is not in the text.
      sent: bytes that a chip sends, by kind and group. kernels: how often each kernel is called, by name.
    """

    cycles: float = 0.0
    memory_bytes: float = 0.0
    sent: dict[Transfer, float] = dataclasses.field(default_factory=dict)
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def sent_bytes(self) -> float:
        """Of all collectives."""
        return sum(self.sent.values())

    def add(self, other: Work, times: float = 1.0) -> None:
        """Adds `times` what another does."""
        self.cycles += other.cycles * times
        self.memory_bytes += other.memory_bytes * times
        for mine, theirs in ((self.sent, other.sent), (self.kernels, other.kernels)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0.0) + value * times


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    rest: str
    is_root: bool

    @cached_property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth, end = 1, len(self.rest)
        for i, character in enumerate(self.rest):
            depth += (character in "([{") - (character in ")]}")
            if depth == 0:
                end = i
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    @cached_property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        names = []
        for one, many in _CALLED.findall(self.rest):
            names += [one] if one else re.findall(r"[\w.\-]+", many)
        return names

    @property
    def base(self) -> str:
        """The opcode without -start."""
        return self.opcode.removesuffix("-start")


def count(text: str) -> Work:
    """What the entry computation of a compiled program does, for one chip; see `Work`."""
    return _Program(text).work


class _Program:
    """Computations by name, and their work, each worked out once."""

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._done: dict[str, Work] = {}
        self._mesh_size = int(next(iter(re.findall(r"num_partitions=(\d+)", text[:5000])), 1))
        entry = ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self._computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            elif one := _LINE.match(line):
                current[one[2]] = _Instruction(one[2], one[3], one[4], one[5], bool(one[1]))
        if not entry:
            raise ValueError("the text has no ENTRY computation: it is not that of a compiled program")
        self.work = self._of(entry)

    def _of(self, name: str) -> Work:
        if name not in self._done:
            total = Work()
            for instruction in self._computations.get(name, {}).values():
                total.add(self._one(instruction, name))
            self._done[name] = total
        return self._done[name]

    def _one(self, instruction: _Instruction, computation: str) -> Work:
        match instruction.base:
            case "while":
                return self._loop(instruction)
            case "conditional":
                return max((self._of(name) for name in instruction.called), key=lambda work: (work.cycles, work.memory_bytes))
            case "call" | "async":
                return self._of(instruction.called[0]) if instruction.called and instruction.opcode != "async-done" else Work()
            case base if base in COLLECTIVES:
                return Work(sent=self._sent(instruction))
            case "send":
                return Work(sent=self._sent_to_slices(instruction))
        work = Work(cycles=float(next(iter(re.findall(r'"estimated_cycles":"(\d+)"', instruction.rest)), 0)))
        if instruction.base == "custom-call" and KERNEL in instruction.rest:
            return Work(kernels={_kernel_name(instruction): 1.0})
        if instruction.opcode == "fusion":  # collectives may be fused with what they overlap
            for name in instruction.called:
                work.add(Work(sent=self._of(name).sent, kernels=self._of(name).kernels))
        if instruction.base not in FREE and not instruction.opcode.endswith("-done"):
            work.memory_bytes = self._memory(instruction, computation)
        return work

    def _loop(self, instruction: _Instruction) -> Work:
        condition, body = (re.search(rf"{which}=%?([\w.\-]+)", instruction.rest)[1] for which in ("condition", "body"))
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
        work, times = Work(), int(known[1]) if known else -(-self._trips(condition) // self._stride(condition, body))
        work.add(self._of(body), times)
        work.add(self._of(condition), times)
        return work

    def _trips(self, condition: str) -> int:
        """The largest whole number in a loop's condition: what its counter, which begins at 0, is compared with."""
        numbers = [1]
        for instruction in self._computations[condition].values():
            if instruction.opcode == "constant" and re.match(r"[su]\d+\[\]", instruction.shape):
                numbers.append(int(re.match(r"-?\d+", instruction.rest)[0]))
            numbers += [self._trips(name) for name in instruction.called]
        return max(numbers)

    def _stride(self, condition: str, body: str) -> int:
        """What a loop's counter grows by in a turn: more than 1 where the compiler unrolled it."""
        after, held = (next((one for one in self._computations[name].values() if one.is_root), None) for name in (body, condition))
        for one in (self._computations[condition].get(name) for name in (held.operands if held else ())):
            place = one and one.opcode == "get-tuple-element" and re.search(r"index=(\d+)", one.rest)
            if place and after and after.opcode == "tuple":
                grown = self._computations[body].get(after.operands[int(place[1])])
                terms = [self._computations[body].get(name) for name in (grown.operands if grown and grown.opcode == "add" else ())]
                return next((int(re.match(r"\d+", x.rest)[0]) for x in terms if x and x.opcode == "constant"), 1)
        return 1

    def _memory(self, instruction: _Instruction, computation: str) -> float:
        """Bytes that an instruction reads from and writes to HBM; what lies in the chip's fast memory is free."""
        places = self._computations[computation]
        if instruction.base in ("copy", "slice") and instruction.opcode.endswith("-start"):
            return array_bytes(instruction.shape.split("u32[]")[0])  # (to, from), of which one or both are in HBM
        written = array_bytes(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":  # in place: the update is read and written
            return 2 * array_bytes(places[instruction.operands[1]].shape) if instruction.operands[1] in places else written
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        is_fusion = instruction.opcode == "fusion" and instruction.called
        fused = self._computations.get(instruction.called[0], {}) if is_fusion else None
        read = 0.0
        for number, name in enumerate(instruction.operands):
            if name in places:
                whole = array_bytes(places[name].shape)
                read += min(whole, self._read_in_fusion(fused, number)) if fused and whole else whole
        return read + (min(written, self._written_by_fusion(fused)) if fused and written else written)

    def _read_in_fusion(self, fused: Mapping[str, _Instruction], number: int) -> float:
        """Bytes of a fusion's parameter that it looks at: slices, where it is only sliced; 0 where it is updated in place."""
        total, seen = 0.0, set()
        names = [one.name for one in fused.values() if one.opcode == "parameter" and one.rest.startswith(f"{number})")]
        if not names:
            return math.inf
        while names:
            name = names.pop()
            for user in (one for one in fused.values() if name in one.operands and one.name not in seen):
                if user.opcode == "bitcast" or "output_to_operand_aliasing" in user.rest:  # the same bytes, read in other tiles
                    seen.add(user.name)
                    names.append(user.name)
                elif user.opcode in ("dynamic-slice", "slice", "gather"):
                    total += array_bytes(user.shape, everywhere=True)
                elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                    continue
                elif user.opcode == "fusion" and user.called:
                    total += self._read_in_fusion(self._computations[user.called[0]], user.operands.index(name))
                else:
                    return math.inf
        return total

    def _written_by_fusion(self, fused: Mapping[str, _Instruction]) -> float:
        root = next(one for one in fused.values() if one.is_root)
        while root.opcode == "bitcast" and root.operands[0] in fused:
            root = fused[root.operands[0]]
        if root.opcode == "dynamic-update-slice" and root.operands[1] in fused:
            return array_bytes(fused[root.operands[1]].shape, everywhere=True)
        return math.inf

    def _sent(self, instruction: _Instruction) -> dict[Transfer, float]:
        """Bytes that one chip sends, as a ring would: n − 1 of the n parts of what is gathered, twice for a sum."""
        kind, size = instruction.base, array_bytes(instruction.shape, everywhere=True)
        group = first_group(instruction.rest, self._mesh_size)
        n = len(group)
        if kind in ("all-gather", "collective-permute") and instruction.opcode.endswith("-start"):
            size = max(array_bytes(one[0], everywhere=True) for one in _ARRAY.finditer(instruction.shape))  # of (in, out, …)
        share = {"all-gather": (n - 1) / n, "all-reduce": 2 * (n - 1) / n, "reduce-scatter": float(n - 1),
                 "collective-permute": 1.0}.get(kind, (n - 1) / n)
        return {Transfer(kind, group): size * share} if share and size else {}

    def _sent_to_slices(self, instruction: _Instruction) -> dict[Transfer, float]:
        """The same between slices, whose hosts do it: chip after chip with its like, of which a program numbers only its own."""
        kind = _BETWEEN_SLICES.get(next(iter(re.findall(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)), ""))
        if kind is None:
            return {}
        listed = re.search(r'_xla_megascale_target="\{([\d,]+)\}', instruction.rest)
        n = len(listed[1].split(",")) if listed else 2
        share = {"all-gather": n - 1.0, "all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
        size = array_bytes(_ARRAY.search(instruction.shape)[0], everywhere=True)
        return {Transfer(kind, tuple(number * self._mesh_size for number in range(n))): size * share}


def array_bytes(shape: str, everywhere: bool = False) -> float:
    """Bytes of an array, or of a tuple's arrays, as a program's text writes them: `bf16[2,4]{1,0:T(8,128)S(1)}`.

    Args:
      everywhere: also of those that lie in the chip's fast memory (S(1)) or on the host (S(5)).
    """
    total = 0.0
    for found in _ARRAY.finditer(shape):
        item, sizes, layout = found.groups()
        if not everywhere and "S(" in (layout or ""):
            continue
        width = ITEM_BYTES.get(item) or (int(re.findall(r"\d+", item)[0]) / 8 if re.search(r"\d", item) else 0)
        total += width * math.prod(int(size) for size in sizes.split(",") if size)
    return total


def first_group(rest: str, devices: int) -> tuple[int, ...]:
    """The devices of a collective's first group, by their numbers in the program; all of them where it names none.

    Three ways to write groups are known: `{{0,1},{2,3}}`, `[2,2]<=[4]T(1,0)` and `mesh['a'=2,'b'=2] {'b'}`.
    """
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest):
        return tuple(sorted({int(pairs[1]), int(pairs[2])}))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return tuple(int(number) for number in listed[1].split(","))
    if tiled := re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        return tuple(_tiles(tiled[2]).reshape(_numbers(tiled[1]))[0].tolist())
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\](?:,? ?device_ids=\((.*?)\)+)? ?\{([^}]*)\}", rest):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        sides = [int(size) for size in axes.values()]
        grid = (_tiles(f"{named[2]})") if named[2] else np.arange(math.prod(sides))).reshape(sides)
        chosen = re.findall(r"'(\w+)'", named[3])
        return tuple(grid[tuple(slice(None) if axis in chosen else 0 for axis in axes)].reshape(-1).tolist())
    return tuple(range(devices))


def _tiles(text: str) -> np.ndarray:
    """`<=[2,4]T(1,0)`: the numbers from 0 in a box of these sides, turned."""
    sides, turn = re.search(r"<?=?\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()
    box = np.arange(math.prod(_numbers(sides))).reshape(_numbers(sides))
    return (box.transpose(_numbers(turn)) if turn else box).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _kernel_name(instruction: _Instruction) -> str:
    """As the kernel was named; the compiler appends a number."""
    return re.sub(r"(\.\d+)+$", "", instruction.name)
