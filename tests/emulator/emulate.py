"""Runs the CUDA kernels that nvcc makes of csrc/cuda on the CPU, and compares with its bits.

    python tests/emulator/emulate.py --cpu OBJECT ... [--nvcc nvcc] [--full]

nvcc makes PTX for every architecture, and host code that launches; a CUDA runtime of our own
(runtime.cpp) takes the launches and runs the PTX, warp by warp (machine.cpp), on pretended devices
of 1, 3 and 132 multiprocessors. compare.cpp says what is filled. Needs no GPU and no torch.

The objects are the CPU's kernels, as the Makefile compiles them. With --full all is run on every
architecture; without, all on sm_90, some on sm_80, and nothing on sm_100.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from lint_ptx import Lint, lint

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "emulator"
OUTPUT = ROOT / "build" / "emulator"
# sm_80 converts to float8 by other instructions than sm_90; sm_100 has no code of its own.
ARCHITECTURES = ("80", "90")
ALL_ARCHITECTURES = (*ARCHITECTURES, "100")
MAIN = "90"
# device.cu has nothing that computes, but the kernel that probes.
SOURCES = ("contiguous", "strided", "orthogonal", "quantised", "device")
MACHINE = ("instructions", "ptx", "machine")
# -march=native: lanes side by side, and fma without a call. No bit depends on it.
CXX_FLAGS = ("-std=c++20", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing",
             "-Wall", "-Wextra", "-Werror")  # fmt: skip
SECONDS = 1800  # after which a program hangs


def flags_for(compiler: str) -> list[str]:
    """The flags that decide bits."""
    lines = (ROOT / "csrc" / "flags.txt").read_text().splitlines()
    return [line.split()[1] for line in lines if line.startswith(f"{compiler} ")]


def run(words: Sequence[str | Path], seconds: float = SECONDS) -> str:
    """Runs a program, and returns what it says; raises SystemExit if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds)
    if done.returncode:
        command = " ".join(map(str, words))
        raise SystemExit(f"{command[:300]}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def is_current(made: Path, sources: Sequence[Path]) -> bool:
    """Whether a file is there, and younger than what it is made of."""
    age = made.stat().st_mtime if made.exists() else 0
    return all(source.stat().st_mtime < age for source in sources)


class Compiled(NamedTuple):
    """What nvcc makes of one file: an object of host code, and PTX by architecture."""

    host: Path
    ptx: dict[str, Path]


class Tools(NamedTuple):
    """The compilers."""

    nvcc: str
    cxx: str

    def compile_cuda(
        self,
        source: Path,
        output: Path,
        architectures: Sequence[str],
        change_flags: tuple[str, str] | None = None,
    ) -> Compiled:
        """Compiles a .cu; a flag can be another."""
        kept = output / f"{source.stem}-kept"
        host = output / f"{source.stem}.o"
        ptx = {arch: output / f"{source.stem}.{arch}.ptx" for arch in architectures}
        needs = [path for path in source.parents[1].rglob("*") if path.is_file()]
        made = [host, *ptx.values()]
        if all(is_current(each, [*needs, Path(__file__)]) for each in made):
            return Compiled(host, ptx)
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        flags = [*flags_for("nvcc"), "-O3"]
        if change_flags:
            assert change_flags[0] in flags
            flags = [change_flags[1] if flag == change_flags[0] else flag for flag in flags]
        codes = [f"-gencode=arch=compute_{arch},code=compute_{arch}" for arch in architectures]
        run([self.nvcc, *flags, *codes, "-cudart=none", "--keep", "--keep-dir", kept,
             "-c", source, "-o", kept / "host.o"])  # fmt: skip
        for arch, path in ptx.items():
            many = kept / f"{source.stem}.compute_{arch}.ptx"
            (many if many.exists() else kept / f"{source.stem}.ptx").replace(path)
        (kept / "host.o").replace(host)
        shutil.rmtree(kept)
        return Compiled(host, ptx)

    def compile(self, name: str, *flags: str, output: Path = OUTPUT) -> Path:
        """Compiles a .cpp of this folder."""
        made = output / f"{name}.o"
        needs = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
        needs += [*HERE.glob("*.h"), HERE / f"{name}.cpp", Path(__file__)]
        if is_current(made, needs):
            return made
        output.mkdir(parents=True, exist_ok=True)
        words: list[str | Path] = [*CXX_FLAGS, *flags, "-c", HERE / f"{name}.cpp", "-o", made]
        if name == "runtime":  # nvcc knows where the headers are
            packed = ",".join(map(str, words[1 : words.index("-c")]))
            run([self.nvcc, "-std=c++20", "-Xcompiler", packed, *words[words.index("-c") :]])
        else:
            run([self.cxx, *words])
        return made

    def link(self, objects: Sequence[Path], made: Path) -> None:
        """Makes the program; the CPU's kernels may be sanitised."""
        run([self.cxx, "-fsanitize=address,undefined", *objects, "-o", made,
             "-pthread"])  # fmt: skip


def compile_all(
    tools: Tools, architectures: Sequence[str]
) -> tuple[list[Path], dict[str, Compiled]]:
    """The objects of the emulator, and what nvcc makes, as far as they are not there yet."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = [
            pool.submit(
                tools.compile_cuda,
                ROOT / "csrc" / "cuda" / f"{name}.cu",
                OUTPUT,
                architectures,
            )
            for name in SOURCES
        ]
        objects = [pool.submit(tools.compile, name, "-O2") for name in (*MACHINE, "runtime")]
        objects.append(pool.submit(tools.compile, "compare", "-O1"))
        compiled = {name: each.result() for name, each in zip(SOURCES, made, strict=True)}
        return [each.result() for each in objects], compiled


class Part(NamedTuple):
    """One run of the program."""

    architecture: str
    name: str
    multiprocessors: int


def parts(is_full: bool) -> list[Part]:
    """All runs, the longest first."""
    found = [Part(MAIN, "matrices", 132), Part(MAIN, "shapes", 132)]
    for arch in ALL_ARCHITECTURES if is_full else ARCHITECTURES:
        devices = (1, 3, 132) if is_full or arch == MAIN else (3,)
        found += [Part(arch, "fills", device) for device in devices]
        found += [Part(arch, "quantised", device) for device in devices]
        if is_full or arch == MAIN:
            found.append(Part(arch, "big", 132))
        if arch != MAIN:
            found.append(Part(arch, "matrices", 3))
    return found


def compare(
    program: Path, part: Part, is_full: bool, compiled: dict[str, Compiled]
) -> tuple[bool, str, float]:
    """Whether a part is right, what it says, and how long it takes."""
    ptx = [each.ptx[part.architecture] for each in compiled.values()]
    size = "full" if is_full else "quick"
    words: list[str | Path] = [program, part.name, str(part.multiprocessors), size]
    words += [ROOT / "tests" / "data", *ptx]
    begin = time.monotonic()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False, f"takes more than {SECONDS} s", SECONDS
    seconds = time.monotonic() - begin
    return done.returncode == 0, (done.stdout + done.stderr).strip(), seconds


def show_lint(compiled: dict[str, Compiled]) -> bool:
    """Prints what is in the PTX of each architecture, and whether all of it may be."""
    is_right = True
    for arch in next(iter(compiled.values())).ptx:
        found: list[Lint] = [lint(each.ptx[arch].read_text()) for each in compiled.values()]
        print(
            f"sm_{arch}: {sum(each.kernels for each in found)} kernels, "
            f"{sum(each.instructions.total() for each in found)} instructions, "
            f"{sum(each.rounded for each in found)} float operations, all to nearest; "
            f"{sum(len(each.wrong) for each in found)} that must not be"
        )
        for line in (line for each in found for line in each.wrong.values()):
            print(f"sm_{arch}: {line}", file=sys.stderr)
            is_right = False
    return is_right


def main() -> int:
    """Compiles and compares; 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--cxx", default="c++")
    parser.add_argument("--cpu", nargs="+", type=Path, required=True, help="the CPU's objects")
    parser.add_argument("--full", action="store_true", help="everything on every architecture")
    asked = parser.parse_args()
    begin = time.monotonic()
    tools = Tools(asked.nvcc, asked.cxx)
    architectures = ALL_ARCHITECTURES if asked.full else ARCHITECTURES
    objects, compiled = compile_all(tools, architectures)
    program = OUTPUT / "compare"
    tools.link([*objects, *(each.host for each in compiled.values()), *asked.cpu], program)
    print(f"compiled in {time.monotonic() - begin:.0f} s")
    is_right = show_lint(compiled)
    totals = {"fills": 0, "matrices": 0, "quantised": 0, "launches": 0, "values": 0}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [
            (part, pool.submit(compare, program, part, asked.full, compiled))
            for part in parts(asked.full)
        ]
        for part, job in jobs:
            is_equal, said, seconds = job.result()
            is_right = is_right and is_equal
            print(
                f"{'equal' if is_equal else 'DIFFERS':8} sm_{part.architecture:<4} "
                f"{part.name:9} {part.multiprocessors:4} multiprocessors {seconds:5.0f} s"
            )
            *table, last = said.splitlines()
            print(*(f"    {line}" for line in (*table, last)), sep="\n", flush=True)
            for name in totals:
                if match := re.search(rf"{name} (\d+)", last):
                    totals[name] += int(match[1])
    print(", ".join(f"{name} {count:,}" for name, count in totals.items()), end="")
    print(f": {'all equal to the CPU' if is_right else 'NOT ALL EQUAL'}", end="")
    print(f", {time.monotonic() - begin:.0f} s")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
