"""Reading a compiled program's text: its collectives, and what share of its traffic loops.

XLA's own cost analysis counts a loop's body once, however often it runs, and says nothing about
collectives.
"""

import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)

# Moves between the memories, and how their pieces are joined, which moves nothing.
_MOVES = ("copy-start", "slice-start")
_VIEW = 'custom_call_target="ConcatBitcast"'

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # the others have theirs in their name
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "call", "conditional"),  # what they run is counted
}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
# The type, which may be a tuple of types with spaces, ends before the first word with a bracket.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
# Type, shape, and the layout: order of the axes from the innermost out; on a TPU also the tile that
# they fill, T(8,128), and the memory, S(1) for the one on the chip, nothing for HBM.
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Array(NamedTuple):
    """An array in a type as written.

    Attributes:
        bytes: of its entries.
        padded: of the tiles that it fills in a TPU's memory.
        in_hbm: whether it is in the main memory.
    """

    bytes: int
    padded: int
    in_hbm: bool


class Instruction(NamedTuple):
    """One line of a computation; operands are names, rest is all that follows the bracket."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    rest: str


Counts = Callable[[Instruction, Array], bool]
"""Whether an array that an instruction reads or writes is counted."""


class Collective(NamedTuple):
    """One collective operation.

    Attributes:
        kind: one of COLLECTIVES.
        bytes: what a device brings into it.
        group: devices that take part together; 0 stands for all.
        times: how often it runs in a call of the program.
    """

    kind: str
    bytes: int
    group: int
    times: int


class Module:
    """A compiled program.

    Args:
        text: as Compiled.as_text gives it.
    """

    def __init__(self, text: str):
        self._computations: dict[str, list[Instruction]] = {}
        self._entry = ""
        for line in text.splitlines():
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = self._computations.setdefault(header[2], [])
                self._entry = header[2] if header[1] else self._entry
            elif found := _INSTRUCTION.match(line):
                current.append(_instruction(*found.groups()))

    def loop_share(self) -> float:
        """Share of all traffic, loops taken once, that is in the body of the busiest loop."""
        total = self._traffic(self._entry)
        return self._traffic(self._loop()) / total if total else 0.0

    def hbm_bytes(self, trips: int) -> int:
        """Bytes that cross the main memory's bus; slices within fusions count as the whole.

        Args:
            trips: how often the busiest loop runs; other loops are taken to run once.
        """
        return self._over(trips, lambda instruction, array: array.in_hbm)

    def operation_bytes(self, trips: int) -> int:
        """Bytes that operations read and write, in whatever memory.

        XLA's count has more: both ends of moves between the memories, and a copy where the pieces
        of a move are seen as one array, which copies nothing.

        Args:
            trips: as in hbm_bytes.
        """

        def computes(instruction: Instruction, _: Array) -> bool:
            return instruction.opcode not in _MOVES and _VIEW not in instruction.rest

        return self._over(trips, computes)

    def _over(self, trips: int, counts: Counts) -> int:
        return self._traffic(self._entry, counts) + (trips - 1) * self._traffic(
            self._loop(), counts
        )

    def collectives(self, trips: int) -> list[Collective]:
        """All collectives.

        Args:
            trips: how often the busiest loop runs; other loops are taken to run once.
        """
        inside = self._reachable(self._loop())
        found = []
        for name, computation in self._computations.items():
            types = {i.name: i.type for i in computation}
            for instruction in computation:
                kind = instruction.opcode.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                brought = [types.get(operand, "") for operand in instruction.operands]
                size = sum(array.bytes for type_ in brought for array in _arrays(type_))
                times = trips if name in inside else 1
                found.append(Collective(kind, size, _group(instruction.rest), times))
        return found

    def _loop(self) -> str:
        """Name of the body of the busiest loop, or ""."""
        bodies = [
            _CALLED.findall(instruction.rest)
            for name in self._reachable(self._entry)
            for instruction in self._computations[name]
            if instruction.opcode == "while"
        ]
        return max((name for pair in bodies for name in pair), key=self._traffic, default="")

    def _traffic(self, name: str, counts: Counts = lambda instruction, array: True) -> int:
        """Bytes that the instructions of a computation, and what they call, read and write.

        Args:
            name: of the computation.
            counts: whether an array that an instruction reads or writes is counted.
        """
        computation = self._computations.get(name, [])
        types = {instruction.name: instruction.type for instruction in computation}
        total = 0
        for instruction in computation:
            if instruction.opcode in ("while", "call", "conditional"):
                total += sum(self._traffic(called, counts) for called in _called(instruction))
            elif instruction.opcode not in _FREE and not instruction.opcode.endswith("-done"):
                arrays = _moved(instruction, types)
                total += sum(array.padded for array in arrays if counts(instruction, array))
        return total

    def _reachable(self, name: str) -> set[str]:
        """Names of a computation and all that it calls."""
        found, waiting = set(), [name] if name in self._computations else []
        while waiting:
            now = waiting.pop()
            if now not in found:
                found.add(now)
                for instruction in self._computations.get(now, []):
                    waiting += _called(instruction)
        return found & self._computations.keys()


def _instruction(name: str, type_: str, opcode: str, rest: str) -> Instruction:
    steps = ({"(": 1, ")": -1}.get(character, 0) for character in rest)
    depths = itertools.accumulate(steps, initial=1)
    end = next((i - 1 for i, depth in enumerate(depths) if depth == 0), len(rest))
    operands = re.sub(r"/\*.*?\*/", "", rest[:end])
    # Some versions write the operands' types before their names.
    names = re.findall(r"%([\w.\-]+)", operands) or re.findall(r"[\w.\-]+", operands)
    return Instruction(name, type_, opcode, tuple(names), rest[end:])


def _called(instruction: Instruction) -> list[str]:
    branches = _BRANCHES.search(instruction.rest)
    names = re.findall(r"[\w.\-]+", branches[1]) if branches else []
    return names + _CALLED.findall(instruction.rest)


def _moved(instruction: Instruction, types: dict[str, str]) -> list[Array]:
    """What an instruction reads and writes."""
    arrays = _arrays(instruction.type)
    if instruction.opcode in _MOVES:
        # From one memory to another: both ends are in the type, and a slice is all that moves.
        size = min(array.padded for array in arrays[:2])
        return [array._replace(padded=size) for array in arrays[:2]]
    for operand in instruction.operands:
        arrays += _arrays(types.get(operand, ""))
    return arrays


def _arrays(type_: str) -> list[Array]:
    """All arrays of a type as written, such as "(bf16[2,3]{1,0}, f32[])"."""
    found = []
    for dtype, shape, layout in _ARRAY.findall(type_):
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype, int(digits[0]) if digits else 0)
        sizes = [int(n) for n in shape.split(",") if n]
        filled = sizes
        if tile := re.search(r"T\(([\d,]+)\)", layout):
            order = [int(i) for i in layout.split(":")[0].split(",") if i]
            filled = [sizes[i] for i in order] or [1]
            tiles = [int(n) for n in reversed(tile[1].split(","))]
            tiles += [1] * (len(filled) - len(tiles))
            filled = [-(-n // t) * t for n, t in zip(filled, tiles, strict=False)]
        size, padded = (math.prod(n) * bits // 8 for n in (sizes, filled))
        found.append(Array(size, padded, re.search(r"S\([1-9]", layout) is None))
    return found


def _group(rest: str) -> int:
    """Devices in a replica group, written {{0,1},{2,3}} or [2,2]<=[4]; 0 where it is not said."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(iota[1])
    return 0
