"""Times fills and orthogonal matrices on a GPU: events of the device, medians, one Markdown table.

    python benchmarks/gpu.py                                        # the table
    python benchmarks/gpu.py --markdown benchmarks/results/GPU.md   # and keeps it
    python benchmarks/gpu.py --device cpu --quick                   # does it run?

Predicted speeds (predicted_cuda.csv) stand beside those of an H100 or H200: a row that reaches less
than 0.8 of its prediction is marked, and counted at the end.

Every round times all calls of a case in turn; ratios are taken within a round, and their median is
quoted with the smallest and largest. Tensors are far larger than the L2 cache.
"""

from __future__ import annotations

import argparse
import datetime
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import init as torch_init

import torchinit
from cases import CASES, Case
from predicted import DEVICES, ENOUGH, Prediction, cell, is_finding, read_predictions, title_of
from report import spread, table

try:
    from torch.func import _random as stateless
except ImportError:  # an older torch
    stateless = None  # type: ignore[assignment]

Calls = dict[str, Callable[[], object]]
Times = dict[str, list[float]]

TIMED = ("uniform", "normal", "trunc_normal within 2 std", "trunc_normal within 3 std", "constant")
TILED = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)  # dtypes that boxes are timed in
HEADER = ("case", "ms", "GB/s", "speed as a part of `zero_`'s", "predicted",
          "times faster than torch", "note")  # fmt: skip


def device_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Time between events around a call; on a CPU, wall time."""
    if device.type != "cuda":
        return wall_seconds(call, device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def wall_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call and of the work that it queued."""
    start = perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - start


def time_calls(calls: Calls, timer: Callable[[Callable[[], object]], float], rounds: int) -> Times:
    """Seconds of every call, round by round after two that are not counted."""
    times: Times = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            elapsed = timer(call)
            if round_ > 1:
                times[name].append(elapsed)
    return times


class Line(NamedTuple):
    """One line of the table, whether there is a prediction, and whether it is far off."""

    cells: list[str]
    is_predicted: bool = False
    is_finding: bool = False


def ratios(times: Times, above: str, below: str) -> str:
    """Quotients round by round; empty if a call is missing."""
    if above not in times or below not in times:
        return ""
    return spread([a / b for a, b in zip(times[above], times[below], strict=True)])


def row(
    title: str,
    times: Times,
    nbytes: int,
    note: str = "",
    predictions: Mapping[str, Prediction] | None = None,
) -> Line:
    """One line of the table."""
    ours = median(times["ours"])
    prediction = (predictions or {}).get(title)
    share = 0.0
    if "zero" in times:
        share = median(z / o for z, o in zip(times["zero"], times["ours"], strict=True))
    cells = [
        title,
        f"{ours * 1e3:.3g}",
        f"{nbytes / ours / 1e9:.0f}" if nbytes else "",
        ratios(times, "zero", "ours"),
        cell(share, prediction),
        ratios(times, "torch", "ours"),
        note,
    ]
    return Line(cells, prediction is not None, is_finding(share, prediction))


def gpu_cases() -> list[Case]:
    """The most telling cases of the CPU, and float8, which torch does not fill."""
    found = [case for case in CASES if case.name in TIMED]
    return found + [
        Case(case.name, dtype, case.ours, case.theirs, case.arguments)
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)
        for case in found
        if case.dtype == torch.float32
        and case.name in (TIMED[:3] if dtype == torch.float8_e4m3fn else ("normal",))
    ]


def time_fills(
    elements: int, rounds: int, device: torch.device, predictions: Mapping[str, Prediction]
) -> Iterator[Line]:
    """Fills of one large tensor."""
    timer = functools.partial(device_seconds, device=device)
    for case in gpu_cases():
        tensor = torch.empty(elements // 1024, 1024, dtype=case.dtype, device=device)
        calls: Calls = {
            "zero": tensor.zero_,
            "ours": functools.partial(case.ours, tensor, **case.arguments),
        }
        if case.dtype.itemsize > 1:
            calls["torch"] = functools.partial(case.theirs, tensor, **case.arguments)
        note = ""
        times = time_calls(calls, timer, rounds)
        if stateless is not None and case.name in ("uniform", "normal") and "torch" in calls:
            key = stateless.key(1, device=device)
            fill = stateless.normal_ if case.name == "normal" else stateless.uniform_
            others: Calls = {"ours": calls["ours"], "theirs": functools.partial(fill, key, tensor)}
            try:
                both = time_calls(others, timer, rounds)
                note = f"{ratios(both, 'theirs', 'ours')} times `torch.func._random`'s speed"
            except (RuntimeError, TypeError) as error:
                note = f"`torch.func._random`: {type(error).__name__}"
        yield row(case.title, times, tensor.nbytes, note, predictions)
        del tensor, calls


def time_transposed(
    elements: int, rounds: int, device: torch.device, predictions: Mapping[str, Prediction]
) -> Iterator[Line]:
    """Fills of the transpose of a large matrix, which go by tiles."""
    timer = functools.partial(device_seconds, device=device)
    width = 1 << (elements.bit_length() - 1) // 2
    for case in gpu_cases():
        if case.name not in TIMED[:3] or case.dtype not in TILED:
            continue
        tensor = torch.empty(elements // width, width, dtype=case.dtype, device=device).t()
        calls: Calls = {
            "zero": tensor.zero_,
            "ours": functools.partial(case.ours, tensor, **case.arguments),
        }
        title = title_of(str(case.dtype).removeprefix("torch."), case.name, "transposed")
        times = time_calls(calls, timer, rounds)
        yield row(title, times, tensor.nbytes, "", predictions)
        del tensor, calls


def time_parameters(count: int, total: int, rounds: int, device: torch.device) -> Iterator[Line]:
    """Many parameters of 4 Ki to 1 Mi elements, including the time of Python code."""
    sizes = torch.logspace(12, 20, count, base=2).double()
    sizes = (sizes * (total / sizes.sum())).long().clamp(2**12 if total > 2**26 else 1, 2**20)
    shuffled = sizes[torch.randperm(count, generator=torch.Generator().manual_seed(1))]
    tensors = [torch.empty(size, device=device) for size in shuffled.tolist()]
    timer = functools.partial(wall_seconds, device=device)

    def mixed(library: object) -> None:
        # As in a vision transformer: truncated normal weights, zero biases, norms of one.
        for i, tensor in enumerate(tensors):
            if i % 2:
                library.zeros_(tensor)  # type: ignore[attr-defined]
            elif i % 6 == 0:
                library.ones_(tensor)  # type: ignore[attr-defined]
            else:
                library.trunc_normal_(tensor, std=0.02)  # type: ignore[attr-defined]

    def each(fill: Callable[[Tensor], object]) -> None:
        for tensor in tensors:
            fill(tensor)

    def batched(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            with torchinit.batch():
                call()

        return run

    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "trunc_normal": (
            lambda: each(torchinit.trunc_normal_),
            lambda: each(torch_init.trunc_normal_),
        ),
        "trunc_normal, zeros and ones": (lambda: mixed(torchinit), lambda: mixed(torch_init)),
        "normal": (lambda: each(torchinit.normal_), lambda: each(torch_init.normal_)),
    }
    elements = sum(tensor.numel() for tensor in tensors)
    for name, (ours, theirs) in cases.items():
        calls: Calls = {"ours": batched(ours), "alone": ours, "torch": theirs}
        times = time_calls(calls, timer, rounds)
        note = f"without a batch {ratios(times, 'torch', 'alone')} times faster than torch"
        title = f"{count} parameters, {elements / 1e9:.2g} G elements, {name}"
        yield row(title, times, 4 * elements, note)


def time_orthogonal(largest: int, rounds: int, device: torch.device) -> Iterator[Line]:
    """Single matrices and batches, in wall time because they take many launches."""
    timer = functools.partial(wall_seconds, device=device)
    for n in (4096, 2048, 1024):
        if n > largest:
            continue
        matrix, factor = torch.empty(n, n, device=device), torch.randn(n, n, device=device)
        product = torch.empty_like(matrix)
        calls: Calls = {
            "ours": functools.partial(torchinit.orthogonal_, matrix),
            "torch": functools.partial(torch_init.orthogonal_, matrix),
            "product": functools.partial(torch.mm, factor, factor, out=product),
        }
        times = time_calls(calls, timer, rounds)
        note = f"{ratios(times, 'ours', 'product')} times one product's time"
        yield row(f"orthogonal, {n} x {n}", times, 0, note)
    n = min(1024, largest)
    stack = torch.empty(64, n, n, device=device)

    def loop() -> None:
        for matrix in stack:
            torch_init.orthogonal_(matrix)

    calls = {"ours": lambda: torchinit.orthogonal_batch_(stack), "torch": loop}
    yield row(f"orthogonal, 64 of {n} x {n}", time_calls(calls, timer, rounds), 0)


def main() -> None:
    """Parses the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, default=2**30)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--gpu", help="of the predictions to compare with; default: this device's")
    parser.add_argument("--quick", action="store_true", help="small and few: not for figures")
    options = parser.parse_args()
    device = torch.device(options.device)
    largest, parameters, total = 4096, 2000, 2**29
    if options.quick:
        options.elements, options.rounds, largest, parameters, total = 2**16, 3, 128, 40, 2**16
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    predictions = read_predictions(options.gpu or DEVICES.get(name, ""))
    lines = [
        *time_fills(options.elements, options.rounds, device, predictions),
        *time_transposed(options.elements, options.rounds, device, predictions),
        *time_parameters(parameters, total, options.rounds, device),
        *time_orthogonal(largest, min(5, options.rounds), device),
    ]
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    text = (
        f"{name}, CUDA {torch.version.cuda}, torch {torch.__version__}, {date}.\n\n"
        f"{options.elements / 2**30:.3g} Gi elements a fill; medians, smallest and largest in "
        f"brackets.\n\n{table(HEADER, [line.cells for line in lines])}\n\n"
    )
    if predictions:
        findings = sum(line.is_finding for line in lines)
        predicted = sum(line.is_predicted for line in lines)
        text += f"{findings} of {predicted} predicted rows reach less than {ENOUGH} of it.\n"
    else:
        text += f"There is no prediction for {name}.\n"
    if options.markdown:
        options.markdown.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
