"""Initialises a real transformer, times it against torch, and checks every parameter.

The order matters. Everything is filled with NaN first, which makes the memory resident and shows
up whatever is left unfilled; then ``zero_`` and ``torch.nn.init`` are timed; then NaN again, the
initialisation itself, timed once, and the checks.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn import init as torch_init
from tqdm import tqdm

import torchinit
from torchinit import native
from torchinit.models import MODELS, Distribution, Model, Parameter

# What is filled: a parameter and its memory.
Filled = tuple[Parameter, Tensor]

_GIB = 2**30
# Memory asked for, as a multiple of the parameters: room for torch's temporaries and the checks.
_HEADROOM = 1.25
# Values of each scheme that torch.nn.init is timed on: on a CPU about a tenth of a second.
_SLICE = {"cpu": 2**22, "cuda": 2**28}
_SLICE_REPEATS = 5
_ZERO_REPEATS = 3
# Values widened at a time for the checks: what the cache holds, and what occupies a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**24}
# Standard errors that a mean or a std may be off.
_TOLERANCE = 6.0
_FALSE_ALARM = math.erfc(_TOLERANCE / math.sqrt(2))


@dataclass(frozen=True)
class Timing:
    """Times of all parameters of one scheme.

    Attributes:
        scheme: name of the scheme.
        path: who fills, as ``torchinit.which`` says.
        values: number of values.
        nbytes: their size.
        seconds: of torchinit.
        torch_seconds: of ``torch.nn.init``, extrapolated from a slice.
        torch_slice: number of values in that slice.
        zero_seconds: of ``zero_``.
    """

    scheme: str
    path: str
    values: int
    nbytes: int
    seconds: float
    torch_seconds: float
    torch_slice: int
    zero_seconds: float

    def rate(self, seconds: float) -> float:
        """GB/s that a time comes to."""
        return self.nbytes / seconds / 1e9


@dataclass(frozen=True)
class Failure:
    """A parameter that failed its check, and how."""

    name: str
    problems: list[str]


@dataclass(frozen=True)
class Report:
    """Everything the demo found out."""

    model: str
    dtype: str
    device: str
    seed: int
    parameters: int
    timings: list[Timing]
    statistical_checks: int
    failures: list[Failure]

    @property
    def total(self) -> Timing:
        """The schemes' times added up."""
        rows = self.timings
        return Timing(
            scheme="total",
            path="",
            values=sum(row.values for row in rows),
            nbytes=sum(row.nbytes for row in rows),
            seconds=sum(row.seconds for row in rows),
            torch_seconds=sum(row.torch_seconds for row in rows),
            torch_slice=sum(row.torch_slice for row in rows),
            zero_seconds=sum(row.zero_seconds for row in rows),
        )

    @property
    def false_alarm_rate(self) -> float:
        """How often a run of correct fills fails: a bound on the sum over all checks."""
        return self.statistical_checks * _FALSE_ALARM


def run(
    model_name: str, *, dtype: torch.dtype, device: torch.device, seed: int, as_json: bool
) -> int:
    """Runs the demo and prints its report to standard output, and notes to standard error.

    Args:
        model_name: a key of ``models.MODELS``; the next smaller that fits into memory is taken.
        dtype: of all parameters.
        device: where they lie; cpu or cuda.
        seed: of torch's default generators.
        as_json: print one JSON object in place of a table.

    Returns:
        The exit code: 0, or 1 if a parameter failed its check.

    Raises:
        MemoryError: if the memory that was there is not.
    """
    model, note = choose_model(model_name, dtype, available_memory(device))
    if note:
        print(f"torchinit: {note}", file=sys.stderr)
    filled = allocate(model, dtype, device)
    path, reason = torchinit.which(filled[0][1], model.parameters[0].scheme)
    if path == "torch":
        slowly = " (up to minutes for a large model)" if device.type == "cpu" else ""
        print(f"torchinit: torch.nn.init fills everything{slowly}: {reason}", file=sys.stderr)
    timings = initialise(filled, seed)
    failures = check_all(filled)
    report = Report(
        model=model.title,
        dtype=str(dtype).removeprefix("torch."),
        device=_device_name(device),
        seed=seed,
        parameters=len(filled),
        timings=timings,
        statistical_checks=sum(2 for p, _ in filled if p.distribution().std > 0),
        failures=failures,
    )
    print(json.dumps(to_json(report), indent=2) if as_json else to_text(report))
    return 1 if failures else 0


# Memory


def available_memory(device: torch.device) -> int | None:
    """Returns the bytes that can be allocated on a device, None if that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    limits = (_system_memory(), _cgroup_memory(Path("/sys/fs/cgroup")))
    return min((limit for limit in limits if limit is not None), default=None)


def _system_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroup_memory(root: Path) -> int | None:
    """What the limit of a container leaves, as seen from inside: control groups v2, then v1."""
    for limit_name, usage_name, stat_name in (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    ):
        try:
            limit = int((root / limit_name).read_text())
            used = int((root / usage_name).read_text())
            stat = dict(line.split() for line in (root / stat_name).read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such file, or "max": no limit
        # Files in the page cache count as used, and give way.
        return max(limit - used + int(stat.get("inactive_file", 0)), 0)
    return None


def choose_model(name: str, dtype: torch.dtype, available: int | None) -> tuple[Model, str]:
    """Returns the model of that name or the next smaller one that fits, and a note if smaller.

    Args:
        name: a key of ``models.MODELS``.
        dtype: of its parameters.
        available: bytes of memory, None if unknown.
    """
    wanted = MODELS[name]()
    if available is None:
        return wanted, ""
    names = list(MODELS)
    model = wanted
    for candidate in names[names.index(name) :]:
        model = MODELS[candidate]()
        if model.numel * dtype.itemsize * _HEADROOM <= available:
            break
    if model.title == wanted.title:
        return wanted, ""
    needed = wanted.numel * dtype.itemsize * _HEADROOM / _GIB
    return model, (
        f"{wanted.title} needs {needed:.1f} GiB and {available / _GIB:.1f} GiB are available: "
        f"taking {model.title}"
    )


def allocate(model: Model, dtype: torch.dtype, device: torch.device) -> list[Filled]:
    """Returns the parameters of a model with memory for each, uninitialised.

    Raises:
        MemoryError: if there is not enough.
    """
    try:
        return [
            (parameter, torch.empty(parameter.shape, dtype=dtype, device=device))
            for parameter in model.parameters
        ]
    except RuntimeError as error:
        message = str(error).splitlines()[0]
        raise MemoryError(f"{model.title} does not fit into memory: {message}") from None


# Times


def initialise(filled: Sequence[Filled], seed: int) -> list[Timing]:
    """Initialises all parameters, scheme by scheme, and returns the times.

    Args:
        filled: all on one device.
        seed: of torch's default generators, set when everything but the initialisation is done.
    """
    device = filled[0][1].device
    groups = _by_scheme(filled)
    _poison(filled)
    _warm_up(filled)
    zero_seconds = {
        scheme: _median(partial(_zero, group), device, _ZERO_REPEATS)
        for scheme, group in groups.items()
    }
    torch_seconds: dict[str, float] = {}
    torch_slices: dict[str, int] = {}
    for scheme, group in groups.items():
        part = list(_slice(group, _SLICE[device.type]))
        slice_seconds = _median(partial(_fill, torch_init, part), device, _SLICE_REPEATS)
        torch_slices[scheme] = _count(part)
        torch_seconds[scheme] = slice_seconds * _count(group) / _count(part)

    _poison(filled)
    torch.manual_seed(seed)
    timings = []
    with _progress(_count(filled), "initialising") as bar:
        for scheme, group in groups.items():
            # The bar costs well under a microsecond a parameter: it redraws ten times a second.
            seconds = _seconds(partial(_fill, torchinit, group, bar.update), device)
            timings.append(
                Timing(
                    scheme=scheme,
                    path=torchinit.which(group[0][1], scheme).path,
                    values=_count(group),
                    nbytes=sum(tensor.nbytes for _, tensor in group),
                    seconds=seconds,
                    torch_seconds=torch_seconds[scheme],
                    torch_slice=torch_slices[scheme],
                    zero_seconds=zero_seconds[scheme],
                )
            )
    return timings


def _by_scheme(filled: Iterable[Filled]) -> dict[str, list[Filled]]:
    groups: dict[str, list[Filled]] = {}
    for parameter, tensor in filled:
        groups.setdefault(parameter.scheme, []).append((parameter, tensor))
    return groups


def _count(filled: Iterable[Filled]) -> int:
    return sum(tensor.numel() for _, tensor in filled)


def _poison(filled: Iterable[Filled]) -> None:
    for _, tensor in filled:
        tensor.fill_(math.nan)


def _zero(filled: Iterable[Filled]) -> None:
    for _, tensor in filled:
        tensor.zero_()


def _fill(
    library: ModuleType, filled: Iterable[Filled], done: Callable[[int], object] = lambda _: None
) -> None:
    for parameter, tensor in filled:
        parameter.fill(library, tensor)
        done(tensor.numel())


def _warm_up(filled: Iterable[Filled]) -> None:
    """Makes each call once, on four values, so that no time includes the loading of a kernel."""
    for group in _by_scheme(filled).values():
        parameter, tensor = group[0]
        parameter.fill(torchinit, tensor.new_empty(2, 2))


def _slice(filled: Iterable[Filled], values: int) -> Iterator[Filled]:
    """Yields the first parameters up to a number of values; of the last one only some rows."""
    for parameter, tensor in filled:
        rows = min(len(tensor), max(values * len(tensor) // tensor.numel(), 1))
        part = tensor[:rows]
        yield parameter, part
        values -= part.numel()
        if values <= 0 or rows < len(tensor):
            return


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _median(work: Callable[[], None], device: torch.device, repeats: int) -> float:
    return statistics.median(_seconds(work, device) for _ in range(repeats))


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _progress(total: int, what: str) -> tqdm[NoReturn]:
    """A bar on standard error, if that is a terminal."""
    return tqdm(total=total, desc=what, unit=" values", unit_scale=True, leave=False, disable=None)


# Checks


@dataclass(frozen=True)
class Moments:
    """What the values of a tensor came to; the moments are about the expected mean."""

    low: float
    high: float
    first: float
    second: float


def check_all(filled: Sequence[Filled]) -> list[Failure]:
    """Returns the parameters whose values are not what their scheme promises."""
    failures = []
    with _progress(_count(filled), "checking") as bar:
        for parameter, tensor in filled:
            if problems := check(parameter, tensor):
                failures.append(Failure(parameter.name, problems))
            bar.update(tensor.numel())
    return failures


def check(parameter: Parameter, tensor: Tensor) -> list[str]:
    """Returns what is wrong with the values of a parameter; nothing if all is well.

    Checked are: every value finite, so none left unfilled; every value within the bounds; mean and
    std within six standard errors. Each of these two fails for correct values with probability
    2e-9, by the normal approximation.
    """
    expected = parameter.distribution()
    moments = measure(tensor, expected.mean)
    if not (math.isfinite(moments.low) and math.isfinite(moments.high)):
        unfilled, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        return [f"{unfilled} of {tensor.numel()} values unfilled or NaN, {infinite} infinite"]
    problems = []
    low, high = _bounds(parameter, tensor, expected)
    if moments.low < low or moments.high > high:
        problems.append(
            f"values from {moments.low:.9g} to {moments.high:.9g}, "
            f"expected within {low:.9g} and {high:.9g}"
        )
    if expected.std > 0:
        problems += _check_moments(moments, expected, tensor)
    return problems


def measure(tensor: Tensor, centre: float) -> Moments:
    """Returns range and moments, computed on the device in float32 (float64 for float64).

    Args:
        tensor: contiguous. Only a chunk of it is widened at a time.
        centre: what the moments are about.
    """
    low, high = torch.aminmax(tensor)
    flat = tensor.view(-1)
    chunk = min(_CHUNK[tensor.device.type], flat.numel())
    wide = torch.promote_types(tensor.dtype, torch.float32)
    buffer = torch.empty(chunk, dtype=wide, device=tensor.device)
    first, second = torch.zeros(2, dtype=torch.float64, device=tensor.device)
    for start in range(0, flat.numel(), chunk):
        narrow = flat[start : start + chunk]
        values = buffer[: narrow.numel()].copy_(narrow)
        if centre:
            values -= centre
        first += values.sum()
        second += torch.dot(values, values)
    return Moments(
        low=low.item(),
        high=high.item(),
        first=first.item() / flat.numel(),
        second=second.item() / flat.numel(),
    )


def _bounds(parameter: Parameter, tensor: Tensor, expected: Distribution) -> tuple[float, float]:
    """Bounds of the values: exact for native fills; torch rounds them to the dtype."""
    if torchinit.which(tensor, parameter.scheme).path == "native":
        return expected.low, expected.high
    low, high = torch.tensor([expected.low, expected.high], dtype=tensor.dtype).tolist()
    return low, high


def _check_moments(moments: Moments, expected: Distribution, tensor: Tensor) -> list[str]:
    n, std = tensor.numel(), expected.std
    # Rounding to the dtype adds to the variance at most about the square of the spacing of values
    # of the size of std, and shifts the mean of symmetric distributions not at all.
    finfo = torch.finfo(tensor.dtype)
    spacing = finfo.eps * max(abs(expected.mean), std, finfo.tiny)
    mean_tolerance = _TOLERANCE * std / math.sqrt(n) + finfo.eps * (
        expected.mean_shift + abs(expected.mean)
    )
    # The second moment about the known mean has the variance (kurtosis - 1) std^4 / n.
    relative_error = math.sqrt((expected.kurtosis - 1) / (4 * n))
    std_tolerance = std * (_TOLERANCE * relative_error + (spacing / std) ** 2)

    problems = []
    if not abs(moments.first) <= mean_tolerance:
        found = expected.mean + moments.first
        problems.append(f"mean {found:.6g}, expected {expected.mean:.6g} +- {mean_tolerance:.2g}")
    found = math.sqrt(moments.second)
    if not abs(found - std) <= std_tolerance:
        problems.append(f"std {found:.6g}, expected {std:.6g} +- {std_tolerance:.2g}")
    return problems


# Output


def to_json(report: Report) -> dict[str, Any]:
    """Returns the report as numbers and strings."""

    def row(timing: Timing) -> dict[str, Any]:
        return {
            "values": timing.values,
            "bytes": timing.nbytes,
            "torchinit": _json_time(timing, timing.seconds),
            "torch_nn_init": {
                **_json_time(timing, timing.torch_seconds),
                "measured_on_values": timing.torch_slice,
                "extrapolated": timing.torch_slice < timing.values,
            },
            "zero_": _json_time(timing, timing.zero_seconds),
            "speed_against_torch_nn_init": timing.torch_seconds / timing.seconds,
            "speed_against_zero_": timing.zero_seconds / timing.seconds,
        }

    return {
        "version": torchinit.__version__,
        "torch": torch.__version__,
        "model": report.model,
        "dtype": report.dtype,
        "device": report.device,
        "seed": report.seed,
        "parameters": report.parameters,
        "schemes": [
            {"scheme": timing.scheme, "path": timing.path, **row(timing)}
            for timing in report.timings
        ],
        "total": row(report.total),
        "checks": {
            "passed": not report.failures,
            "failures": [vars(failure) for failure in report.failures],
            "false_alarm_rate": report.false_alarm_rate,
        },
    }


def _json_time(timing: Timing, seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "gb_per_second": timing.rate(seconds)}


def to_text(report: Report) -> str:
    """Returns the report as a heading, a table and the outcome of the checks."""
    total = report.total
    largest_slice = max(timing.torch_slice for timing in report.timings)
    lines = [
        f"{report.model}: {total.values:,} values in {report.parameters} parameters, "
        f"{report.dtype}, {_significant(total.nbytes / 1e9)} GB",
        f"on {report.device}; seed {report.seed}",
        "",
        *_table([*report.timings, total]),
        "",
        f"* measured on a slice, the first {largest_slice:,} values at most of each scheme; "
        "seconds extrapolated",
        "",
        *_verdict(report),
    ]
    return "\n".join(lines)


def _table(timings: Sequence[Timing]) -> list[str]:
    groups = ("", "", "", "torchinit", "", "torch.nn.init*", "", "zero_", "", "speed against", "")
    heads = ("scheme", "path", "values", *(("seconds", "GB/s") * 3), "nn.init", "zero_")
    rows = [
        (
            timing.scheme,
            timing.path,
            f"{timing.values:,}",
            *_time_cells(timing, timing.seconds),
            *_time_cells(timing, timing.torch_seconds),
            *_time_cells(timing, timing.zero_seconds),
            f"{_significant(timing.torch_seconds / timing.seconds)}x",
            f"{_significant(timing.zero_seconds / timing.seconds)}x",
        )
        for timing in timings
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    # A group's title stands above its two columns.
    spans = [*widths[:3], *(a + 2 + b for a, b in zip(widths[3::2], widths[4::2], strict=True))]
    titles = [*groups[:3], *groups[3::2]]
    lines = ["  ".join(t.rjust(w) for t, w in zip(titles, spans, strict=True))]
    for row in (heads, *rows):
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right))
    return lines


def _time_cells(timing: Timing, seconds: float) -> tuple[str, str]:
    return _significant(seconds), _significant(timing.rate(seconds))


def _significant(number: float) -> str:
    """Three significant digits without an exponent; more before the point if need be."""
    if number <= 0:
        return "0"
    return f"{number:.{max(2 - math.floor(math.log10(number)), 0)}f}"


def _verdict(report: Report) -> list[str]:
    if report.failures:
        return [
            f"FAILED: {len(report.failures)} of {report.parameters} parameters",
            *(f"  {failure.name}: {'; '.join(failure.problems)}" for failure in report.failures),
        ]
    return [
        f"all {report.parameters} parameters pass: filled, finite, within their bounds, mean and "
        "std within 6 standard errors",
        f"(correct fills fail this in one run of {1 / report.false_alarm_rate:,.0f})",
    ]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    module = native.module
    instruction_set = f"{module.instruction_set()}, " if module else ""
    return f"{device} ({instruction_set}{torch.get_num_threads()} threads)"
