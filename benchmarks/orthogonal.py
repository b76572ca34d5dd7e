"""Times orthogonal_ against torch.nn.init's, and against torchinit at another commit.

    python benchmarks/orthogonal.py                                     # a Markdown table
    python benchmarks/orthogonal.py --before build/before/.venv/bin/python --isa avx2
    python benchmarks/orthogonal.py --markdown benchmarks/results/orthogonal.md

``--before`` is a Python that has the other commit installed: ``git worktree add build/before`` and
``make .venv/.installed`` there. It runs in its own process, and every round measures both in turn.
Ratios are taken within a round, and their median is quoted with the smallest and largest. Shards
are of formed columns: rows of a square or wide matrix. The last shard needs all reflectors and
takes longest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import init as torch_init

import torchinit
from torchinit.orthogonal import fill_orthogonal
from torchinit.placement.box import Box

Call = Callable[[], object]

SQUARES = [(n, n) for n in (64, 128, 256, 512, 1024, 2048, 4096)]
SHAPES = [*SQUARES, (8192, 2048), (2048, 8192)]
BATCHES = [(64, 256), (64, 128), (256, 64), (1024, 32)]
# Required speed-ups over before, by processor and instruction set, in order of SHAPES and BATCHES.
WANTED: dict[str, list[float]] = {
    "AMD, avx512 (two 512-bit units)": [
        2, 3.5, 7, 4.8, 3.5, 2.7, 2.4, 2.1, 2.2, 4.5, 2.4, 1.3, 1.6
    ],
    "AMD, avx2": [1, 1, 1, 1, 1, 1, 1, 0.95, 1, 1, 1, 1, 1],
    "Intel": [1] * 13,
}  # fmt: skip


def names() -> list[str]:
    """Names of the cases, in order."""
    return [f"{m} x {n}" for m, n in SHAPES] + [f"{count} of {n} x {n}" for count, n in BATCHES]


def calls_of(name: str) -> dict[str, Call]:
    """The timed calls of a case, by implementation."""
    numbers = [int(word) for word in name.replace(" of ", " ").replace(" x ", " ").split()]
    if " of " in name:
        count, n = numbers[:2]
        stack = torch.empty(count, n, n)
        tensors = [torch.empty(n, n) for _ in range(count)]

        def loop(function: Callable[[Tensor], Tensor]) -> None:
            for tensor in tensors:
                function(tensor)

        return {
            "ours": lambda: torchinit.orthogonal_batch_(stack),
            "torch": lambda: loop(torch_init.orthogonal_),
        }
    rows, columns = numbers
    single, narrow = torch.empty(rows, columns), torch.empty(rows, columns).bfloat16()
    calls: dict[str, Call] = {
        "ours": lambda: torchinit.orthogonal_(single),
        "torch": lambda: torch_init.orthogonal_(single),
        "bfloat16": lambda: torchinit.orthogonal_(narrow),
    }
    dim = 0 if rows <= columns else 1
    for ranks in (2, 4, 8):
        sizes, offset = [rows, columns], [0, 0]
        sizes[dim] //= ranks
        offset[dim] = (ranks - 1) * sizes[dim]
        shard, box = torch.empty(sizes), Box((rows, columns), offset)
        calls[f"{ranks} ranks"] = partial(fill_orthogonal, shard, 1.0, None, box)
    return calls


def seconds(call: Call, repeats: int) -> float:
    """Seconds of one call."""
    start = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - start) / repeats


def serve() -> None:
    """Answers "name repeats" with seconds, line by line: the process of the other commit."""
    calls: dict[str, Call] = {}
    for line in sys.stdin:
        name, _, repeats = line.rpartition(" ")
        if name not in calls:
            calls = {name: calls_of(name)["ours"]}
        print(seconds(calls[name], int(repeats)), flush=True)


class Before:
    """torchinit in another Python."""

    def __init__(self, python: str, threads: int, isa: str) -> None:
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        clean |= {"TORCHINIT_ISA": isa} if isa else {}
        words = [python, __file__, "--serve", "--threads", str(threads)]
        self.process = subprocess.Popen(
            words, env=clean, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self, name: str, repeats: int) -> float:
        """Seconds of one call there."""
        assert self.process.stdin
        assert self.process.stdout
        print(f"{name} {repeats}", file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def measure(name: str, before: Before | None, rounds: int) -> dict[str, list[float]]:
    """Seconds of every call of a case, round by round, after one uncounted round."""
    calls = calls_of(name)
    once = seconds(calls["ours"], 1)
    repeats = max(1, min(200, int(0.02 / once)))
    rounds = rounds if once < 0.05 else max(3, rounds // 4)
    times: dict[str, list[float]] = {}
    for round_ in range(rounds + 1):
        found = {who: seconds(call, repeats) for who, call in calls.items()}
        if before:
            found["before"] = before.seconds(name, repeats)
        for who, time in found.items() if round_ else ():
            times.setdefault(who, []).append(time)
    return times


def processor(isa: str) -> str:
    """The processor in WANTED that this machine has."""
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    if "GenuineIntel" in about:
        return "Intel"
    # A Zen 4 runs AVX-512 in halves: as many multiply-adds a cycle as AVX2.
    halves = "cpu family\t: 25" in about
    wide = "AMD, avx512 (two 512-bit units)"
    return "AMD, avx2" if isa == "avx2" or halves else wide


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--largest", type=int, default=8192, help="longest side that is timed")
    parser.add_argument("--before", help="a Python that has another commit installed")
    parser.add_argument("--isa", default="", help="instruction set, of those of torchinit info")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve()
        return
    from report import spread, table
    from run import machine
    from torchinit.native import load

    if options.isa and load.module:
        assert load.module.choose_instruction_set(options.isa), load.module.instruction_sets()
    isa = load.module.instruction_set() if load.module else "none"
    here = processor(isa)
    before = Before(options.before, options.threads, options.isa) if options.before else None
    lines: list[list[str]] = []
    wanted: list[list[str]] = []
    for number, name in enumerate(names()):
        if max(int(word) for word in name.replace("x", "").replace("of", "").split()) > (
            options.largest
        ):
            continue
        times = measure(name, before, options.rounds)

        def against(who: str, other: str, times: dict[str, list[float]] = times) -> str:
            if who not in times:
                return ""
            return spread([a / b for a, b in zip(times[who], times[other], strict=True)])

        median = sorted(times["ours"])[len(times["ours"]) // 2] * 1e3
        ranks = [against(f"{count} ranks", "ours") for count in (2, 4, 8)]
        lines.append(
            [name, f"{median:.3g}", against("before", "ours"), against("torch", "ours"),
             against("bfloat16", "ours"), *ranks]
        )  # fmt: skip
        row = [name]
        for kind, ratios in WANTED.items():
            measured = against("before", "ours") if kind == here else ""
            row.append(f"{ratios[number]:g}: {measured or 'not run here'}")
        wanted.append(row)
    header = ["float32", "ms", "times faster than before", "than torch", "bfloat16 / float32",
              "last of 2 shards / whole", "last of 4", "last of 8"]  # fmt: skip
    about = machine()
    text = (
        f"{about['cpu']}, {isa}, {options.threads} threads, torch {about['torch']}, "
        f"{about['date']}; load average {os.getloadavg()[0]:.1f}.\n\n{table(header, lines)}\n"
    )
    if before:
        heads = ["times faster than before: wanted, measured", *WANTED]
        text += f"\n{table(heads, wanted)}\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()
