"""Compiles every .cu for some architectures and prints each kernel's resources.

    python tools/cuda_compile.py [--nvcc nvcc] [--arch 80 90 100]

Those of benchmarks and tests too. Needs only nvcc: no GPU, no torch. Fails on a warning, on a
spilled register, and on a stack frame, which means that a kernel keeps an array in slow local
memory.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
BIT_FLAGS = [
    line.split()[1]
    for line in (ROOT / "csrc" / "flags.txt").read_text().splitlines()
    if line.startswith("nvcc ")
]
FLAGS = (*BIT_FLAGS, "-O3", "-Werror", "all-warnings", "-Xptxas", "-v")


class Kernel(NamedTuple):
    """Resources of one kernel on one architecture: a number of registers, else bytes."""

    name: str
    arch: str
    registers: int
    shared: int
    stack: int
    spills: int


def kernels(text: str) -> list[Kernel]:
    """The kernels in ptxas's output."""
    entry = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\w+)'")
    frame = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill load")
    found: list[Kernel] = []
    name = arch = ""
    stack = spills = 0
    for line in text.splitlines():
        if match := entry.search(line):
            name, arch = match.groups()
        elif match := frame.search(line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found.append(
                Kernel(name, arch, int(match[1]), int(shared[1]) if shared else 0, stack, spills)
            )
            name = ""
    return found


def compile_one(nvcc: str, source: Path, arch: str, output: Path) -> tuple[int, str]:
    """Runs nvcc; returns its status and output."""
    target = output / f"{source.stem}_sm{arch}.o"
    words = [nvcc, *FLAGS, f"-arch=sm_{arch}", "-c", str(source), "-o", str(target)]
    run = subprocess.run(words, capture_output=True, text=True)
    return run.returncode, run.stdout + run.stderr


def readable(names: list[str]) -> list[str]:
    """Demangled names, without the parts that all of them share."""
    try:
        run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    except OSError:
        return names
    shorter = re.compile(r"torchinit::|generic::|cuda::|\(anonymous namespace\)::|void ")
    return [re.sub(r"\(.*\)$", "", shorter.sub("", name)) for name in run.stdout.splitlines()]


def main() -> int:
    """Compiles, prints a table and returns the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--arch", nargs="+", default=["80", "90"])
    options = parser.parse_args()
    output = ROOT / "build" / "cuda"
    output.mkdir(parents=True, exist_ok=True)
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    sources += [ROOT / "benchmarks" / "cuda_launches.cu"]
    sources += [ROOT / "tests" / "native" / "device_arithmetic.cu"]
    jobs = [(source, arch) for source in sources for arch in options.arch]
    with ThreadPoolExecutor(4) as pool:
        results = list(
            pool.map(lambda job: compile_one(options.nvcc, job[0], job[1], output), jobs)
        )
    failed = [(job, text) for job, (status, text) in zip(jobs, results, strict=True) if status]
    for (source, arch), text in failed:
        print(f"{source.name} for sm_{arch} does not compile:\n{text}", file=sys.stderr)
    found = [kernel for _, text in results for kernel in kernels(text)]
    print(f"{'registers':>9} {'shared':>6} {'stack':>5} {'spills':>6}  arch    kernel")
    for kernel, name in zip(found, readable([kernel.name for kernel in found]), strict=True):
        numbers = f"{kernel.registers:9} {kernel.shared:6} {kernel.stack:5} {kernel.spills:6}"
        print(f"{numbers}  sm_{kernel.arch:<4} {name}")
    wasteful = [kernel for kernel in found if kernel.stack or kernel.spills]
    silent = len(found) < len(jobs)  # every file has a kernel
    print(
        f"{len(found)} kernels of {len(sources)} files, {len(failed)} compilations failed, "
        f"{len(wasteful)} kernels with a stack frame or spills"
    )
    return 1 if failed or wasteful or silent else 0


if __name__ == "__main__":
    sys.exit(main())
