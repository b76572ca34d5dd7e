"""Times fills against ``Tensor.zero_`` and ``torch.nn.init`` in the same run, on the same tensors.

    python benchmarks/run.py                                    # Markdown tables
    python benchmarks/run.py --json benchmarks/results/NAME.json
    python benchmarks/report.py benchmarks/results/NAME.json    # the tables again
    python benchmarks/run.py --quick                            # does it run?

Every round times zero_, torchinit and torch in turn, so that drift of the machine affects all
alike. Ratios are taken within a round, and their median is quoted with the smallest and largest.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import re
import timeit
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import report
import torchinit
from cases import CASES, ELEMENTS, Case, small_calls
from torchinit.native import load as native

Samples = dict[str, Any]


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = perf_counter()
    call()
    return perf_counter() - start


def machine() -> dict[str, Any]:
    """The conditions that the figures depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "torch": torch.__version__,
        "torchinit": torchinit.__version__,
        "instruction_set": native.module.instruction_set() if native.module else None,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def time_case(case: Case, elements: int, threads: int, rounds: int) -> Samples:
    """Times a case on resident memory, and torch's on as many threads."""
    tensor = torch.zeros((elements // 1024, 1024), dtype=case.dtype)
    fewer = min(case.torch_elements or elements, elements)
    part = tensor[: fewer // 1024]
    torch.set_num_threads(threads)
    calls = {
        "zero": lambda: tensor.zero_(),
        "ours": lambda: case.ours(tensor, **case.arguments),
        "torch": lambda: case.theirs(part, **case.arguments),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            # torch's fills take long and vary little, so they get fewer rounds.
            if name == "torch" and round_ > max(2, rounds // 3):
                continue
            elapsed = seconds(call)
            if round_:
                times[name].append(elapsed)
    return {
        "case": case.title,
        "threads": threads,
        "elements": elements,
        "torch_elements": fewer,
        "bytes": tensor.numel() * tensor.element_size(),
        "seconds": times,
    }


def time_fresh(size: int, rounds: int) -> Samples:
    """Times fills of fresh float32 memory, allocated each time."""
    calls: dict[str, Callable[[torch.Tensor], object]] = {
        "zero": lambda tensor: tensor.zero_(),
        "ours": torchinit.normal_,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            tensor = torch.empty(size // 4)
            times[name].append(seconds(functools.partial(call, tensor)))
            del tensor
    return {"bytes": size, "seconds": times}


def time_small(size: int, rounds: int, calls_a_round: int) -> list[Samples]:
    """Times calls on small parameters."""
    results = []
    for name, (ours, theirs) in small_calls(size).items():
        times: dict[str, list[float]] = {"ours": [], "torch": []}
        for _ in range(rounds):
            times["ours"].append(timeit.timeit(ours, number=calls_a_round) / calls_a_round)
            times["torch"].append(timeit.timeit(theirs, number=calls_a_round) / calls_a_round)
        results.append({"call": name, "size": size, "seconds": times})
    return results


def time_instruction_sets(cases: list[Case], elements: int, rounds: int) -> list[Samples]:
    """Times torchinit on every instruction set of the machine, on one thread."""
    module = native.module
    if module is None:
        return []
    torch.set_num_threads(1)
    active = module.instruction_set()
    results = []
    for case in cases:
        tensor = torch.zeros((elements // 1024, 1024), dtype=case.dtype)
        times: dict[str, list[float]] = {name: [] for name in module.instruction_sets()}
        for _ in range(rounds):
            for name, samples in times.items():
                module.choose_instruction_set(name)
                samples.append(seconds(functools.partial(case.ours, tensor, **case.arguments)))
        results.append({"case": case.title, "elements": elements, "seconds": times})
    module.choose_instruction_set(active)
    return results


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", help="comma-separated; default: 1 and all")
    parser.add_argument("--only", default="", help="regular expression on the cases' titles")
    parser.add_argument("--fresh-bytes", type=int, default=2**31)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="small and few: not for figures")
    options = parser.parse_args()
    if options.quick:
        options.elements, options.rounds, options.fresh_bytes = 2**16, 3, 2**22

    most = torch.get_num_threads()
    threads = [int(n) for n in options.threads.split(",")] if options.threads else [1, most]
    cases = [case for case in CASES if re.search(options.only, case.title)]
    results: dict[str, Any] = {"machine": machine(), "threads": sorted(set(threads))}
    results["fills"] = [
        time_case(case, options.elements, count, options.rounds)
        for case in cases
        for count in results["threads"]
    ]
    torch.set_num_threads(most)
    results["fresh"] = time_fresh(options.fresh_bytes, max(3, options.rounds // 2))
    results["small"] = time_small(64, options.rounds, 50 if options.quick else 2000)
    sets = [case for case in cases if case.dtype in (torch.float32, torch.bfloat16)]
    results["instruction_sets"] = time_instruction_sets(sets, options.elements // 8, 5)
    torch.set_num_threads(most)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    print(report.markdown(results))


if __name__ == "__main__":
    main()
