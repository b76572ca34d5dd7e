"""Plants faults in a copy of csrc, one at a time, and says how the emulated device notices each.

    python tests/emulator/mutants.py --cpu OBJECT ... [--nvcc nvcc] [--only NAME ...]

mutants.toml has the faults. Each is compiled by nvcc and run as emulate.py does, but only the file
that has it and the part that must fail; that this part passes without it, `make cuda-emulate` says.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import emulate
import tomllib
from lint_ptx import lint

TABLE = Path(__file__).resolve().parent / "mutants.toml"


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        name: of it.
        source: the .cu, without the ending, that is compiled with it.
        part: of compare.cpp that must stop, or "lint".
        says: a pattern that what it says must have.
        file, old, new: what stands there once, and what in its place.
        flags: a flag of nvcc, and what in its place.
        multiprocessors: of the device that it runs on.
    """

    name: str
    source: str
    part: str
    says: str
    file: str = ""
    old: str = ""
    new: str = ""
    flags: Sequence[str] = ()
    multiprocessors: int = 3


def read_mutants(table: Path = TABLE) -> list[Mutant]:
    """The table."""
    return [Mutant(**row) for row in tomllib.loads(table.read_text())["mutant"]]


def problems(mutants: Sequence[Mutant], root: Path = emulate.ROOT) -> list[str]:
    """What is wrong with a table: one line each."""
    found = []
    names = [mutant.name for mutant in mutants]
    found += [
        f"{name}: more than one has this name" for name in set(names) if names.count(name) > 1
    ]
    for mutant in mutants:
        if mutant.flags:
            continue
        path = root / mutant.file
        times = path.read_text().count(mutant.old) if path.is_file() else 0
        if times != 1:
            found.append(f"{mutant.name}: its old text occurs {times} times in {mutant.file}")
        if mutant.old == mutant.new:
            found.append(f"{mutant.name}: changes nothing")
    return found


def plant(mutant: Mutant, folder: Path) -> Path:
    """Copies csrc with the fault, and returns the .cu."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(emulate.ROOT / "csrc", folder / "csrc")
    if mutant.file:
        path = folder / mutant.file
        path.write_text(path.read_text().replace(mutant.old, mutant.new))
    return folder / "csrc" / "cuda" / f"{mutant.source}.cu"


def outcome(mutant: Mutant, tools: emulate.Tools, cpu: Sequence[Path]) -> tuple[bool, str]:
    """Whether a fault is noticed as it should be, and what was said."""
    objects, compiled = emulate.compile_all(tools, [emulate.MAIN])
    folder = emulate.OUTPUT / "mutants" / mutant.name
    changed = (mutant.flags[0], mutant.flags[1]) if mutant.flags else None
    planted = tools.compile_cuda(plant(mutant, folder), folder, [emulate.MAIN], changed)
    text = planted.ptx[emulate.MAIN].read_text()
    if mutant.part == "lint":
        said = "; ".join(lint(text).wrong.values())
    else:
        compiled = compiled | {mutant.source: planted}
        program = folder / "compare"
        tools.link([*objects, *(each.host for each in compiled.values()), *cpu], program)
        part = emulate.Part(emulate.MAIN, mutant.part, mutant.multiprocessors)
        is_equal, said, _ = emulate.compare(program, part, False, compiled)
        if is_equal:
            said = ""
    shutil.rmtree(folder)
    return re.search(mutant.says, said) is not None, said


def main() -> int:
    """Tries the faults; 1 if one is not noticed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--cxx", default="c++")
    parser.add_argument("--cpu", nargs="+", type=Path, required=True, help="the CPU's objects")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    asked = parser.parse_args()
    mutants = read_mutants()
    if wrong := problems(mutants):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    mutants = [mutant for mutant in mutants if not asked.only or mutant.name in asked.only]
    noticed = 0
    for mutant in mutants:
        begin = time.monotonic()
        is_noticed, said = outcome(mutant, emulate.Tools(asked.nvcc, asked.cxx), asked.cpu)
        noticed += is_noticed
        word = "noticed" if is_noticed else "NOT NOTICED"
        print(
            f"{word:11} {time.monotonic() - begin:4.0f} s  {mutant.name:35} {said[:250]}",
            flush=True,
        )
    print(f"{noticed} of {len(mutants)} mutants noticed")
    return 0 if noticed == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
