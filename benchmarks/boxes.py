"""Times fills of column shards against a contiguous fill of the same size, on one thread.

    python benchmarks/boxes.py                                  # a Markdown table
    python benchmarks/boxes.py --markdown benchmarks/results/boxes.md

A shard of R rows and `inner` columns, in contiguous memory, is a box with `inner` elements of each
row of a wider matrix. Both fills take turns on the same memory, in short rounds. The best rounds
are compared, in the thread's own processor time, which other programs disturb less.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import thread_time

import torch

from report import table
from run import machine
from torchinit.native import kernels
from torchinit.schemes.distributions import Draw, normal_draw, truncated_draw, uniform_draw

DRAWS = {
    "normal": normal_draw(0.0, 0.02),
    "uniform": uniform_draw(-0.1, 0.1),
    "truncated within 2 std": truncated_draw(0.0, 0.02, -0.04, 0.04),
}
DTYPES = (torch.float32, torch.bfloat16)
# Rows begin at the first element of a Philox block if the extent allows it, else anywhere.
INNER = (4096, 1024, 512, 256, 255, 128, 64, 61, 32, 16, 13, 8, 4, 1)


def best(calls_: tuple[Callable[[], None], ...], rounds: int) -> list[float]:
    """The least seconds of each call; they take turns."""
    least = [float("inf")] * len(calls_)
    for _ in range(rounds):
        for i, call in enumerate(calls_):
            start = thread_time()
            call()
            least[i] = min(least[i], thread_time() - start)
    return least


def part_of_contiguous(
    inner: int, elements: int, dtype: torch.dtype, draw: Draw, rounds: int
) -> tuple[float, float]:
    """The box's speed relative to the contiguous fill, and the latter's elements a second."""
    aligned = inner % 4 == 0
    columns, offset = (8192, 1024) if aligned else (8191, 1025)
    shard = torch.zeros((elements // inner, inner), dtype=dtype)
    flat = shard.view(-1)
    box = kernels.extent_of(shard, ((shard.shape[0], columns), (0, offset)))
    whole = kernels.extent_of(flat)

    contiguous, narrow = best(
        (
            lambda: kernels.run_fill(flat, draw, 1, whole),
            lambda: kernels.run_fill(shard, draw, 1, box),
        ),
        rounds,
    )
    return contiguous / narrow, flat.numel() / contiguous


def lines(elements: int, rounds: int) -> list[list[str]]:
    """One line for each dtype and distribution."""
    found = []
    for dtype in DTYPES:
        for name, draw in DRAWS.items():
            measured = [part_of_contiguous(i, elements, dtype, draw, rounds) for i in INNER]
            speed = max(speed for _, speed in measured)
            title = f"{str(dtype).removeprefix('torch.')} {name}"
            parts = [f"{part:.2f}" for part, _ in measured]
            found.append([title, f"{speed / 1e9:.2f}", *parts])
    return found


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, nargs="+", default=[2**16, 2**22])
    parser.add_argument("--rounds", type=int, default=15, help="of 4 Mi elements; more of fewer")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = machine()
    text = (
        f"{about['cpu']}, {about['instruction_set']}, one thread, torch {about['torch']}, "
        f"{about['date']}. Speed as a part of the contiguous fill's, by the inner extent.\n"
    )
    header = ["fill", "G elements/s, contiguous", *map(str, INNER)]
    for elements in options.elements:
        rounds = max(5, options.rounds * 2**22 // elements)
        text += f"\n{elements:,} elements:\n\n{table(header, lines(elements, rounds))}\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
