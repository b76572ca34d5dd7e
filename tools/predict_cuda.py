"""Predicts the speed of CUDA fills from the instructions of their hot loops. Needs nvcc, no GPU.

    python tools/predict_cuda.py [--nvcc nvcc] [--nvdisasm nvdisasm] [--arch 90 100]

Compiles the fill kernels, counts (sass.py says which path through a loop is taken for the hot one),
writes benchmarks/predicted_cuda.csv, and puts its table into docs/gpu.md. `make cuda-predict` runs
it with an nvdisasm of its own.

The model: for a value a multiprocessor needs the longest of the times that its units need: all
instructions at the rate of issue, and those of a kind at the rate of their unit. The GPU needs, if
longer, the time to write the value to memory at the speed of `zero_`. At 85%, issue and units reach
85% of their rates, as good kernels do. Waits, launches, tails and other clocks are not modelled. Of
boxes in tiles both loops count, one after the other, without their barriers and bank conflicts.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import sass
from cuda_compile import BIT_FLAGS

ROOT = Path(__file__).resolve().parent.parent
CSV = ROOT / "benchmarks" / "predicted_cuda.csv"
PAGE = ROOT / "docs" / "gpu.md"
OUTPUT = ROOT / "build" / "cuda"

# A clock and multiprocessor, of compute capability 9.0: NVIDIA's programming guide, table of
# throughputs; that widening products have half the rate of others is inferred from measurements of
# earlier GPUs (benchmarks of `mad.hi`).
RATES: Mapping[str, float] = {
    "all": 128,
    "fp32": 128,
    "alu": 64,
    "imad": 64,
    "wide": 32,
    "mufu": 16,
}
BOUNDS = {"all": "issue", "fp32": "FP32", "alu": "ALU", "mufu": "special functions"}
REACHED = 0.85  # of the rates, by good kernels
ZERO = 0.91  # of the memory's nominal speed, by `zero_`


class Gpu(NamedTuple):
    """A GPU: compute capability, multiprocessors, clock in Hz, memory in bytes a second."""

    name: str
    arch: str
    processors: int
    clock: float
    memory: float


GPUS = (
    Gpu("H100", "90", 132, 1.755e9, 3.35e12),
    Gpu("H200", "90", 132, 1.755e9, 4.8e12),
)

# The parts of mangled names, and the bytes of an element; the fills' names are those of cases.py.
DTYPES: Mapping[str, tuple[str, int]] = {
    "float32": ("StoreFloat32E", 4),
    "bfloat16": ("StoreBFloat16E", 2),
    "float16": ("StoreFloat16E", 2),
    "float8_e4m3fn": ("Float8E4M3E", 1),
}
FILLS: Mapping[str, str] = {
    "uniform": "12UniformValueIfLb1E",
    "normal": "13NormalSamplerIfE",
    "trunc_normal within 2 std": "20TruncatedCentreValueILi2E",
    "trunc_normal within 3 std": "20TruncatedCentreValueILi3E",
}
SHOWN_DTYPES = ("float32", "bfloat16", "float8_e4m3fn")  # in the page
SHOWN_FILLS = ("uniform", "normal", "trunc_normal within 2 std")
LAYOUTS: Mapping[str, tuple[str, str]] = {
    "contiguous": ("contiguous", "table_kernel"),
    "transposed": ("strided", "tile_kernel"),
}
VALUES = 16  # that a thread of a contiguous kernel makes in a pass
IN_BLOCK = 4  # that a thread of a tiled kernel does, of one Philox block

COUNTED = ("all", "fp32", "alu", "imad", "wide", "mufu", "branch", "store")

Counts = Mapping[str, float]  # instructions a value, by kind
Row = dict[str, str]  # one line of the file


class Speed(NamedTuple):
    """What the model says of a fill on a GPU.

    Attributes:
        bound: what limits it at 85%.
        values: a nanosecond, at 85%.
        share_100, share_85: parts of `zero_`'s speed at 100% and 85%.
    """

    bound: str
    values: float
    share_100: float
    share_85: float

    def text(self) -> Row:
        """The fields of the file."""
        return {
            name: f"{value:.3f}" if isinstance(value, float) else str(value)
            for name, value in self._asdict().items()
        }


def clocks(counts: Counts) -> dict[str, float]:
    """Those that a value takes of each unit's time, on one multiprocessor."""
    found = {name: counts[kind] / RATES[kind] for kind, name in BOUNDS.items() if kind in counts}
    found["multiply"] = (
        counts.get("imad", 0) / RATES["imad"] + counts.get("wide", 0) / RATES["wide"]
    )
    return found


def predict(counts: Counts, itemsize: int, gpu: Gpu) -> Speed:
    """The speed of a fill with some instructions a value."""
    unit, needed = max(clocks(counts).items(), key=lambda item: item[1])
    compute = gpu.processors * gpu.clock / needed
    memory = ZERO * gpu.memory / itemsize
    reached = min(REACHED * compute, memory)
    bound = unit if REACHED * compute < memory else "memory"
    return Speed(bound, reached / 1e9, min(compute / memory, 1), reached / memory)


def kernel_for(kernels: Mapping[str, sass.Kernel], *parts: str) -> sass.Kernel:
    """The one kernel whose mangled name has all parts, and computes in float32."""
    found = [
        name for name in kernels if all(part in name for part in parts) and "Widened" not in name
    ]
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels have {parts} in their names")
    return kernels[found[0]]


def counts_of(kernel: sass.Kernel, layout: str, itemsize: int) -> tuple[dict[str, float], str]:
    """Instructions a value of a kernel by kind, and the names of its stores to global memory."""
    if layout == "contiguous":
        path = sass.packet_path(kernel, VALUES * itemsize // 16)
        parts, storing = [(path, VALUES)], path
    else:
        storing, stored = sass.tile_store_path(kernel)
        parts = [(sass.make_path(kernel, IN_BLOCK), IN_BLOCK), (storing, stored)]
    counts: dict[str, float] = {}
    for path, values in parts:
        for kind, number in sass.count(path).items():
            counts[kind] = counts.get(kind, 0) + number / values
    return counts, " ".join(sorted({each.name for each in storing if sass.is_global_store(each)}))


def rows_of(kernels: Mapping[str, sass.Kernel], layout: str, arch: str) -> list[Row]:
    """The lines of a file's kernels: for each GPU of the architecture, or with counts alone."""
    found = []
    for dtype, (store, itemsize) in DTYPES.items():
        for fill, sampler in FILLS.items():
            if (dtype, fill) == ("float32", "uniform"):  # which needs no clamp between -1 and 1
                sampler = sampler.replace("Lb1", "Lb0")
            kernel = kernel_for(kernels, LAYOUTS[layout][1], store, sampler)
            counts, stores = counts_of(kernel, layout, itemsize)
            row = {"gpu": "", "arch": arch, "layout": layout, "dtype": dtype, "fill": fill}
            row |= {kind: f"{counts.get(kind, 0):.2f}" for kind in COUNTED} | {"stores": stores}
            found += [
                row | {"gpu": gpu.name} | predict(counts, itemsize, gpu).text()
                for gpu in GPUS
                if gpu.arch == arch
            ] or [row | dict.fromkeys(Speed._fields, "")]
    return found


def disassemble(nvcc: str, nvdisasm: str, source: str, arch: str) -> str:
    """Compiles a file for an architecture, and returns its SASS."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    cubin = OUTPUT / f"{source}_sm{arch}.cubin"
    path = ROOT / "csrc" / "cuda" / f"{source}.cu"
    words: list[str | Path] = [
        nvcc,
        *BIT_FLAGS,
        "-O3",
        f"-arch=sm_{arch}",
        "-cubin",
        path,
        "-o",
        cubin,
    ]
    subprocess.run(words, check=True)
    return subprocess.run(
        [nvdisasm, "-c", cubin], capture_output=True, text=True, check=True
    ).stdout


def table(rows: Iterable[Row]) -> str:
    """The table of docs/gpu.md, from the lines of the file."""
    by_fill: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in rows:
        if row["gpu"] and row["dtype"] in SHOWN_DTYPES and row["fill"] in SHOWN_FILLS:
            key = row["dtype"], row["fill"], row["layout"]
            by_fill.setdefault(key, {})[row["gpu"]] = row
    header = ["fill", "instructions", "FP32", "ALU", "multiply", "wide", "special", "branch"]
    for gpu in GPUS:
        header += [f"{gpu.name}: bound", "G values/s", "part of `zero_`"]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for (dtype, fill, layout), on in by_fill.items():
        cells = [f"{dtype} {fill}" + (f", {layout}" if layout != "contiguous" else "")]
        cells += [f"{float(on[GPUS[0].name][kind]):.1f}" for kind in COUNTED[:-1]]
        for gpu in GPUS:
            row = on[gpu.name]
            shares = f"{float(row['share_100']):.2f} / {float(row['share_85']):.2f}"
            cells += [row["bound"], f"{float(row['values']):.0f}", shares]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def put_into(page: str, text: str) -> str:
    """A page with a text between its marks."""
    before, begin, rest = page.partition("<!-- predicted -->\n")
    _, end, after = rest.partition("\n<!-- /predicted -->")
    if not begin or not end:
        raise ValueError("the page has no marks")
    return f"{before}{begin}{text}{end}{after}"


def write(rows: Sequence[Row]) -> None:
    """Writes the file, and the table into the page."""
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    PAGE.write_text(put_into(PAGE.read_text(), text))
    print(text)


def main() -> None:
    """Compiles, counts, predicts and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--nvdisasm", default="nvdisasm")
    parser.add_argument("--arch", nargs="+", default=["90"])
    asked = parser.parse_args()
    rows = []
    for arch in asked.arch:
        for layout, (source, _) in LAYOUTS.items():
            text = disassemble(asked.nvcc, asked.nvdisasm, source, arch)
            rows += rows_of(sass.read_kernels(text), layout, arch)
            print(f"{source}.cu for sm_{arch}: counted", file=sys.stderr)
    write(rows)


if __name__ == "__main__":
    main()
