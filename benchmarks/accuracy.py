"""Compiles and runs accuracy.cpp: the largest errors of the elementary functions, as a table.

    python benchmarks/accuracy.py                # all float32 arguments: half an hour on two cores
    python benchmarks/accuracy.py --stride 1009  # every 1009th: a second

docs/accuracy.md holds the table of the exhaustive run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from report import table

SOURCE = Path(__file__).with_name("accuracy.cpp")
CSRC = SOURCE.parent.parent / "csrc"
COMPILER = (os.environ.get("CXX", "c++"), "-O2", "-march=native", "-pthread")
# The bits of the functions, like those of the kernels, depend on these.
FLAGS = [
    line.split()[1]
    for line in (CSRC / "flags.txt").read_text().splitlines()
    if line.startswith("cxx ")
]


class Error(NamedTuple):
    """The largest error of a function over an interval, in units in the last place."""

    function: str
    interval: str
    arguments: int
    ulps: float
    at: float


def measure(stride: int, threads: int, samples: int, factor: float = 1.0) -> list[Error]:
    """Errors against long double.

    Args:
        stride: of the float32 bit patterns tried; 1 tries all.
        threads: how many.
        samples: of each float64 function.
        factor: multiplies results first; a value other than 1 shows that errors are found.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "accuracy")
        sources = [SOURCE, CSRC / "job" / "plan.cpp"]
        subprocess.run([*COMPILER, *FLAGS, *sources, "-o", program], check=True)
        words = [program, *map(str, (stride, threads, samples, factor))]
        run = subprocess.run(words, check=True, capture_output=True, text=True)
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    return [Error(row[0], row[1], int(row[2]), float(row[3]), float(row[4])) for row in rows]


def report(errors: list[Error]) -> str:
    """A Markdown table."""
    header = ["function", "arguments", "tried", "largest error, ulp", "at"]
    rows = []
    for e in errors:
        interval = e.interval.replace("|", "\\|")
        rows.append([e.function, interval, f"{e.arguments:,}", f"{e.ulps:.2f}", f"{e.at:.9g}"])
    return table(header, rows)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--samples", type=int, default=100_000_000)
    options = parser.parse_args()
    print(report(measure(options.stride, options.threads, options.samples)))


if __name__ == "__main__":
    main()
