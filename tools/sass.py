"""Counts the instructions that a thread of a CUDA kernel issues for a value: reads nvdisasm's text.

A kernel's loops are found by their backward branches. The hot path through a loop is, of all ways
from its first instruction to its backward branch that make a number of stores of one kind and take
no call, the one with the fewest instructions. So it leaves out

- slow paths of functions such as the square root: they call;
- ends of tensors: stores one by one are not the stores asked for, and more instructions;
- rare cases behind a branch, such as the tails of a normal distribution, if they take longer than
  the common case.

A predicated instruction counts whether or not its predicate holds: it is issued.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

# By the start of their names. Units are those of compute capability 8.0 to 10.0.
KINDS: Mapping[str, str] = {
    "fp32": "FADD FMUL FFMA",
    "wide": "IMAD.WIDE IMAD.HI",
    "imad": "IMAD",
    "alu": "LOP LOP3 IADD3 VIADD VIADDMNMX VIMNMX SHF LEA PRMT SEL FSEL FSET FSETP FMNMX ISETP "
    "IABS IMNMX I2FP F2FP FCHK MOV PLOP3 P2R R2P BMSK SGXT HMNMX2 VOTE",
    "mufu": "MUFU I2F F2I I2I F2F FRND POPC FLO BREV",
    "branch": "BRA BSSY BSYNC BREAK EXIT CALL RET WARPSYNC BRX",
    "store": "STG ST STS",
    "load": "LDG LD LDS LDC",
}
_OF_NAME = {name: kind for kind, names in KINDS.items() for name in names.split()}


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: with its modifiers, `STG.E.128`.
        predicate: `P0`, `!P0`; empty if there is none.
        operands: the text after the name.
    """

    name: str
    predicate: str
    operands: str

    @property
    def kind(self) -> str:
        """Of KINDS; "uniform" for those of the warp as one, "other" for what needs no unit here."""
        first, _, modifiers = self.name.partition(".")
        if f"{first}.{modifiers.partition('.')[0]}" in _OF_NAME:
            return "wide"
        if first in _OF_NAME:
            return _OF_NAME[first]
        return "uniform" if first.startswith("U") or first in ("R2UR", "S2UR") else "other"


class Kernel(NamedTuple):
    """A kernel: its instructions, and the number of the one that each label stands before."""

    name: str
    code: Sequence[Instruction]
    labels: Mapping[str, int]

    def target(self, number: int) -> int:
        """Where a branch goes."""
        match = re.search(r"`\((\.?[\w$]+)\)", self.code[number].operands)
        if match is None or match[1] not in self.labels:
            raise ValueError(f"no target of {self.code[number]} in {self.name}")
        return self.labels[match[1]]

    def next(self, number: int) -> list[int]:
        """The instructions that may follow one, but for the inside of a call."""
        instruction = self.code[number]
        first = instruction.name.partition(".")[0]
        if first == "BRX":
            raise ValueError(f"{self.name} branches to a computed address")
        if first == "BRA":
            # A predicate may be the last operand before the target: `BRA.U !UP0, `(.L_x_1)`.
            may_fall_through = instruction.predicate or "," in instruction.operands
            there = self.target(number)
            return [number + 1, there] if may_fall_through else [there]
        if first in ("EXIT", "RET") and not instruction.predicate:
            return []
        return [number + 1]

    def loops(self) -> list[tuple[int, int]]:
        """First instruction and backward branch of each, the shortest loop first."""
        found = [
            (there, number)
            for number, instruction in enumerate(self.code)
            if instruction.name.startswith("BRA") and (there := self.target(number)) < number
        ]
        return sorted(found, key=lambda loop: loop[1] - loop[0])


_LABEL = re.compile(r"(\.?[\w$]+):$")
_CODE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@(!?U?P[\dT]+)\s+)?([A-Z][\w.]*)\s*([^;]*);")


def read_kernels(text: str) -> dict[str, Kernel]:
    """The kernels in what `nvdisasm -c` prints, by their mangled names."""
    found: dict[str, Kernel] = {}
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        words = line.strip()
        if words.startswith(".text.") and words.endswith(":"):
            code, labels = [], {}
            name = words.removeprefix(".text.").removesuffix(":")
            found[name] = Kernel(name, code, labels)
        elif match := _CODE.search(words):
            code.append(Instruction(match[2], match[1] or "", match[3].strip()))
        elif match := _LABEL.match(words):
            labels[match[1]] = len(code)
    return found


def shortest(
    kernel: Kernel, loop: tuple[int, int], is_store: Callable[[Instruction], bool], stores: int
) -> list[Instruction] | None:
    """The way through a loop with the fewest instructions that makes a number of stores.

    Ways that call are left out, and those that go backwards. None if there is no way.
    """
    begin, end = loop
    # The cheapest way to each instruction, by the stores on it: its length, and where it came from.
    ways: list[dict[int, tuple[int, int]]] = [{} for _ in range(begin, end + 1)]
    ways[0][0] = (0, begin)
    for number in range(begin, end):
        instruction = kernel.code[number]
        if instruction.name.startswith("CALL"):
            continue
        for made, (length, _) in ways[number - begin].items():
            after = made + is_store(instruction)
            if after > stores:
                continue
            for there in kernel.next(number):
                if not number < there <= end:
                    continue
                known = ways[there - begin].get(after)
                if known is None or length + 1 < known[0]:
                    ways[there - begin][after] = (length + 1, number)
    if stores not in ways[-1]:
        return None
    path, number, made = [kernel.code[end]], end, stores
    while number != begin:
        number = ways[number - begin][made][1]
        path.append(kernel.code[number])
        made -= is_store(kernel.code[number])
    return path[::-1]


def is_vector_store(instruction: Instruction) -> bool:
    """Whether it stores 16 bytes to global memory."""
    return instruction.name.split(".")[0] in ("ST", "STG") and "128" in instruction.name.split(".")


def is_shared_store(instruction: Instruction) -> bool:
    """Whether it stores to shared memory."""
    return instruction.name.startswith("STS")


def is_global_store(instruction: Instruction) -> bool:
    """Whether it stores to global memory."""
    return instruction.name.split(".")[0] in ("ST", "STG")


# Philox4x32's multipliers, as an immediate of either sign.
_PHILOX = re.compile(r"0xd2511f53|0xcd9e8d57|-0x2daee0ad|-0x326172a9")


def philox_products(path: Iterable[Instruction]) -> int:
    """How many widening products of Philox are on a path."""
    return sum(each.kind == "wide" and bool(_PHILOX.search(each.operands)) for each in path)


def packet_path(kernel: Kernel, stores: int) -> list[Instruction]:
    """One pass of the loop of a contiguous fill: it draws, and stores so often 16 bytes."""
    return _drawing_path(kernel, is_vector_store, stores, "stores of 16 bytes")


def make_path(kernel: Kernel, values: int) -> list[Instruction]:
    """One pass of the loop that makes a tile: it draws, and puts values into shared memory."""
    return _drawing_path(kernel, is_shared_store, values, "stores to shared memory")


def _drawing_path(
    kernel: Kernel, is_store: Callable[[Instruction], bool], stores: int, what: str
) -> list[Instruction]:
    for loop in kernel.loops():
        path = shortest(kernel, loop, is_store, stores)
        if path is not None and philox_products(path):
            return path
    raise ValueError(f"no loop of {kernel.name} draws and makes {stores} {what}")


def tile_store_path(kernel: Kernel) -> tuple[list[Instruction], int]:
    """One pass of the loop that stores a tile, and how many values it stores.

    The compiler unrolls it as it likes: the number of values is that which makes one cheapest.
    """
    for loop in kernel.loops():
        body = kernel.code[loop[0] : loop[1] + 1]
        most = sum(map(is_global_store, body))
        ways = [
            (path, stores)
            for stores in range(1, most + 1)
            if (path := shortest(kernel, loop, is_global_store, stores)) is not None
            and any(each.name.startswith("LDS") for each in path)
        ]
        if ways:
            return min(ways, key=lambda way: len(way[0]) / way[1])
    raise ValueError(f"no loop of {kernel.name} stores a tile")


def count(path: Iterable[Instruction]) -> Counter[str]:
    """How many of each kind, and "all"."""
    kinds = Counter(each.kind for each in path)
    kinds["all"] = kinds.total()
    return kinds
