"""Times orthogonal_ against torch.nn.init's, and against one product of two square matrices.

    python benchmarks/orthogonal.py                                     # a Markdown table
    python benchmarks/orthogonal.py --markdown benchmarks/results/orthogonal.md

Shards are of columns of what is formed: rows of a square or wide matrix. The last one needs all
reflectors, and takes longest. Every round times all calls of a case in turn; ratios are taken
within a round, and their median is quoted with the smallest and largest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import init as torch_init

import torchinit
from report import spread, table
from run import machine
from torchinit.orthogonal.orthogonal import fill_orthogonal
from torchinit.placement.box import Box

Calls = dict[str, Callable[[], object]]


def ratios(calls: Calls, rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, round by round after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            start = perf_counter()
            for _ in range(repeats):
                call()
            if round_:
                times[name].append((perf_counter() - start) / repeats)
    return times


def cases(largest: int) -> list[tuple[str, Calls, int, int]]:
    """Title, calls, rounds and repeats."""

    def single(rows: int, columns: int) -> Calls:
        single, narrow = torch.empty(rows, columns), torch.empty(rows, columns).bfloat16()
        factor, product = torch.randn(rows, rows), torch.empty(rows, rows)
        calls: Calls = {
            "ours": lambda: torchinit.orthogonal_(single),
            "torch": lambda: torch_init.orthogonal_(single),
            "bfloat16": lambda: torchinit.orthogonal_(narrow),
        }
        dim = 0 if rows <= columns else 1
        for ranks in (2, 4):
            sizes, offset = [rows, columns], [0, 0]
            sizes[dim] //= ranks
            offset[dim] = (ranks - 1) * sizes[dim]
            shard, box = torch.empty(sizes), Box((rows, columns), offset)
            calls[f"{ranks} ranks"] = partial(fill_orthogonal, shard, 1.0, None, box)
        if rows == columns:
            calls["product"] = lambda: torch.mm(factor, factor, out=product)
        return calls

    def batch(count: int, n: int) -> Calls:
        stack = torch.empty(count, n, n)
        tensors = [torch.empty(n, n) for _ in range(count)]

        def loop(function: Callable[[Tensor], Tensor]) -> None:
            for tensor in tensors:
                function(tensor)

        return {
            "ours": lambda: torchinit.orthogonal_batch_(tensors),
            "stack": lambda: torchinit.orthogonal_batch_(stack),
            "torch": lambda: loop(torch_init.orthogonal_),
        }

    def small() -> Calls:
        tensor = torch.empty(64, 64)
        return {
            "ours": lambda: torchinit.init_(tensor, None, "orthogonal"),
            "torch": lambda: torch_init.orthogonal_(tensor),
        }

    shapes = [(4096, 4096), (2048, 2048), (1024, 1024), (512, 512), (256, 256), (8192, 2048)]
    found = []
    for rows, columns in [*shapes, (2048, 8192)]:
        if max(rows, columns) <= largest:
            repeats = max(1, 2**17 // (rows * columns))
            rounds = 5 if rows * columns > 2**22 else 15
            found.append((f"{rows} x {columns}", single(rows, columns), rounds, repeats))
    found += [("64 of 256 x 256", batch(64, 256), 9, 1), ("256 of 64 x 64", batch(256, 64), 9, 1)]
    return [*found, ("`init_`, 64 x 64", small(), 15, 200)]


def rows_of(title: str, times: dict[str, list[float]]) -> list[str]:
    """One line of the table."""

    def against(name: str, other: str) -> str:
        if name not in times or other not in times:
            return ""
        return spread([a / b for a, b in zip(times[name], times[other], strict=True)])

    milliseconds = sorted(times["ours"])[len(times["ours"]) // 2] * 1e3
    return [
        title,
        f"{milliseconds:.3g}",
        against("torch", "ours"),
        against("ours", "product"),
        against("bfloat16", "ours"),
        against("torch", "stack"),
        against("2 ranks", "ours"),
        against("4 ranks", "ours"),
    ]


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--largest", type=int, default=8192, help="longest side that is timed")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    header = [
        "float32",
        "ms",
        "times faster than torch",
        "time as a part of one product's",
        "bfloat16's time as a part of float32's",
        "times faster, stacked",
        "last of 2 shards as a part of the whole's time",
        "last of 4",
    ]
    lines = [
        rows_of(title, ratios(calls, rounds, repeats))
        for title, calls, rounds, repeats in cases(options.largest)
    ]
    about = machine()
    text = (
        f"{about['cpu']}, {torch.get_num_threads()} threads, torch {about['torch']}, "
        f"{about['date']}.\n\n{table(header, lines)}\n"
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
