"""Runs the demo: chooses a model, times every way to it, checks the values and prints a report."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import torchinit
from torchinit.cli.demo.catalog import MODELS, builder, largest_that_fits, needed_memory
from torchinit.cli.demo.ways import WAYS, Timing, forget, on_meta, take, zero
from torchinit.cli.shell import say
from torchinit.native import load
from torchinit.progress import progress
from torchinit.reporting.outliers import Outlier
from torchinit.reporting.report import ModelReport, judge_values
from torchinit.text_table import text_table
from torchinit.version import __version__

_GIB = 2**30
_HEADINGS = ("", "seconds", "GB/s", "times faster", "times zeroing")


@dataclass(frozen=True)
class DemoResult:
    """Everything that the demo measured.

    Attributes:
        model, dtype, device, seed: what was built, and how.
        parameters, values, nbytes: the size of the model.
        timings: of the ways; the first is the stock constructor.
        zero: the time of allocating and zeroing the memory.
        judged: the reports of the models that torchinit filled, by the name of the way.
    """

    model: str
    dtype: str
    device: str
    seed: int
    parameters: int
    values: int
    nbytes: int
    timings: list[Timing]
    zero: Timing
    judged: Mapping[str, ModelReport]

    @property
    def false_alarm_rate(self) -> float:
        """The probability that a correct run fails a check, at most."""
        return sum(report.false_alarm_rate for report in self.judged.values())

    @property
    def failures(self) -> dict[str, Sequence[Outlier]]:
        """The parameters with wrong values, by the name of the way."""
        return {way: report.offenders for way, report in self.judged.items() if report.offenders}

    def measures(self, timing: Timing) -> dict[str, float]:
        """A time as the JSON and the columns of the table have it."""
        return {
            "seconds": timing.seconds,
            "gb_per_second": self.nbytes / timing.seconds / 1e9,
            "times_faster_than_plain": self.timings[0].seconds / timing.seconds,
            "times_as_long_as_zeroing": timing.seconds / self.zero.seconds,
        }


def run(
    model_name: str, *, dtype: torch.dtype, device: torch.device, seed: int, as_json: bool
) -> tuple[str, int]:
    """Runs the demo; notes go to standard error.

    Args:
        model_name: a key of ``MODELS``; where memory is short, a smaller model is taken.
        dtype: of all parameters.
        device: where they are; cpu or cuda.
        seed: of torch's default generators, and of the keys derived from names.
        as_json: return one JSON object instead of a table.

    Returns:
        What to print, and the exit code: 0, or 1 if a parameter failed its check.
    """
    available = available_memory(device)
    model = largest_that_fits(model_name, dtype, available)
    if model is not (wanted := MODELS[model_name]):
        say(
            f"{wanted.title} needs {needed_memory(wanted, dtype) / _GIB:.1f} GiB and "
            f"{available / _GIB:.1f} GiB are available: taking {model.title}"
        )
    route = torchinit.which(torch.empty(1, dtype=dtype, device=device), "normal")
    if route.kind == "torch":
        slowly = " (up to minutes for a large model)" if device.type == "cpu" else ""
        say(f"torch.nn.init fills everything{slowly}: {route.reason}")
    build = builder(model, dtype)
    timings: list[Timing] = []
    judged: dict[str, ModelReport] = {}
    with progress("preparing", len(WAYS) + 2, " steps") as advance:
        meta = on_meta(build)
        zero(meta, device)  # untimed: memory that is new to the host takes many times as long
        advance(1, "zeroing")
        zero_time = zero(meta, device)
        advance(1)
        for way in WAYS:
            advance(0, way.title)
            made, timing = take(way, build, device, seed)
            timings.append(timing)
            if way.is_ours:
                advance(0, "checking")
                judged[way.name] = judge_values(made, build)
            del made
            forget(device)
            advance(1)
    parameters = list(meta.parameters())
    result = DemoResult(
        model=model.title,
        dtype=str(dtype).removeprefix("torch."),
        device=_device_name(device),
        seed=seed,
        parameters=len(parameters),
        values=sum(parameter.numel() for parameter in parameters),
        nbytes=sum(parameter.nbytes for parameter in parameters),
        timings=timings,
        zero=zero_time,
        judged=judged,
    )
    text = json.dumps(to_json(result), indent=2) if as_json else to_text(result)
    return text, int(bool(result.failures))


def available_memory(device: torch.device) -> float:
    """Bytes that can be allocated; infinite where the system does not tell, as outside Linux."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    said = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    return int(said.split("MemAvailable:")[1].split()[0]) * 1024 if said else math.inf


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    module = load.module
    instruction_set = f"{module.instruction_set()}, " if module else ""
    return f"{device} ({instruction_set}{torch.get_num_threads()} threads)"


def to_json(result: DemoResult) -> dict[str, Any]:
    """Returns a result as numbers and strings."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "model": result.model,
        "dtype": result.dtype,
        "device": result.device,
        "seed": result.seed,
        "parameters": result.parameters,
        "values": result.values,
        "bytes": result.nbytes,
        "ways": {timing.name: result.measures(timing) for timing in (*result.timings, result.zero)},
        "checks": {
            "passed": not result.failures,
            "failures": {
                way: [{"name": one.name, "problems": one.problems} for one in failures]
                for way, failures in result.failures.items()
            },
            "false_alarm_rate": result.false_alarm_rate,
        },
    }


def to_text(result: DemoResult) -> str:
    """Returns a result as a heading, a table and the outcome of the checks."""
    rows = [
        (timing.title, *map(_significant, result.measures(timing).values()))
        for timing in (*result.timings, result.zero)
    ]
    lines = [
        f"{result.model}: {result.values:,} values in {result.parameters} parameters, "
        f"{result.dtype}, {_significant(result.nbytes / 1e9)} GB",
        f"on {result.device}; seed {result.seed}",
        "",
        *text_table([_HEADINGS, *rows], left=1),
        "",
        *_verdict(result),
    ]
    return "\n".join(lines)


def _significant(number: float) -> str:
    """Three significant digits without an exponent; more before the point if need be."""
    if number <= 0:
        return "0"
    return f"{number:.{max(2 - math.floor(math.log10(number)), 0)}f}"


def _verdict(result: DemoResult) -> list[str]:
    lines = []
    titles = {timing.name: timing.title for timing in result.timings}
    for way, failures in result.failures.items():
        lines.append(f"FAILED, {titles[way]}: {len(failures)} of {result.parameters} parameters")
        lines += [f"  {failure}" for failure in failures]
    return lines or [
        f"all {result.parameters} parameters pass, each of {len(result.judged)} times: finite, "
        "within bounds, and with the",
        "mean, std and distribution that the model's constructor asks for",
        f"(false alarm: 1 in {1 / result.false_alarm_rate:,.0f} correct runs)",
    ]
