"""Runs the demo: chooses a model, times every way to build it, checks the values, prints a report.

Each way is timed as it is used. So is allocating and zeroing the same memory, a lower bound for any
initialisation.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import torchinit
from torchinit.cli.demo_models import MODELS, Build, builder, largest_that_fits, needed_memory
from torchinit.cli.shell import say
from torchinit.errors import counted
from torchinit.native import load
from torchinit.progress import progress
from torchinit.reporting.report import ModelReport, judge_values
from torchinit.text_table import text_table
from torchinit.version import __version__

_GIB = 2**30
_ZEROING = "allocating and zeroing"
_HEADINGS = ("", "seconds", "GB/s", "times faster", "times zeroing")
# What is filled before the clock starts: large enough to give every thread work.
_WARM_SHAPE = (1024, 1024)


# The ways to build a model.


class Way(NamedTuple):
    """A way to build an initialised model.

    Attributes:
        name: in JSON.
        title: in words.
        make: builds the model, given its constructor, the device and the seed.
        is_ours: whether torchinit fills the parameters.
    """

    name: str
    title: str
    make: Callable[[Build, torch.device, int], nn.Module]
    is_ours: bool = True


class Timing(NamedTuple):
    """How many seconds a way took."""

    name: str
    seconds: float


def _plain(build: Build, device: torch.device, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    # torch.device("cpu") as a context would slow every call.
    with device if device.type != "cpu" else contextlib.nullcontext():
        return build()


def _patched(build: Build, device: torch.device, seed: int) -> nn.Module:
    with torchinit.patch_nn_init():
        return _plain(build, device, seed)


def _built(build: Build, device: torch.device, seed: int) -> nn.Module:
    return torchinit.build_model(build, seed=seed, device=device)


WAYS = (
    Way("plain", "stock constructor", _plain, is_ours=False),
    Way("patch_nn_init", "inside patch_nn_init()", _patched),
    Way("build_model", "by build_model()", _built),
)


def take(way: Way, build: Build, device: torch.device, seed: int) -> tuple[nn.Module, Timing]:
    """The model that a way builds, and the time it took.

    A layer is built first: kernels are loaded and threads awake before the clock starts.
    """
    way.make(lambda: nn.Linear(*_WARM_SHAPE), device, 0)
    start = _now(device)
    model = way.make(build, device, seed)
    return model, Timing(way.name, _now(device) - start)


def zero(model: nn.Module, device: torch.device) -> Timing:
    """Times allocating and zeroing as much memory as a model on the meta device would take."""
    shapes = [(parameter.shape, parameter.dtype) for parameter in model.parameters()]
    _zeros([(torch.Size(_WARM_SHAPE), torch.get_default_dtype())], device)
    start = _now(device)
    memory = _zeros(shapes, device)
    seconds = _now(device) - start
    memory.clear()
    forget(device)
    return Timing("zero", seconds)


def _zeros(
    shapes: Iterable[tuple[torch.Size, torch.dtype]], device: torch.device
) -> list[torch.Tensor]:
    return [torch.empty(shape, dtype=dtype, device=device).zero_() for shape, dtype in shapes]


def forget(device: torch.device) -> None:
    """Returns freed memory to the system, so that every way starts with fresh memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# The demo.


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
        with torch.device("meta"):
            meta = build()
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
    about = {
        "model": model.title,
        "dtype": str(dtype).removeprefix("torch."),
        "device": _device_name(device),
        "seed": seed,
    }
    result = result_of(about, list(meta.parameters()), [*timings, zero_time], judged)
    text = json.dumps(result, indent=2) if as_json else to_text(result)
    return text, int(not result["checks"]["passed"])


def available_memory(device: torch.device) -> float:
    """Bytes that can be allocated; infinite where the system does not tell, as outside Linux."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    said = Path("/proc/meminfo").read_text() if Path("/proc/meminfo").exists() else ""
    return int(said.split("MemAvailable:")[1].split()[0]) * 1024 if said else math.inf


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    instruction_set = f"{load.module.instruction_set()}, " if load.module else ""
    return f"{device} ({instruction_set}{counted(torch.get_num_threads(), 'thread')})"


def result_of(
    about: Mapping[str, Any],
    parameters: Sequence[torch.Tensor],
    timings: Sequence[Timing],
    judged: Mapping[str, ModelReport],
) -> dict[str, Any]:
    """Everything that the demo measured, ready for JSON.

    Args:
        about: what was built, and how.
        parameters: of the model.
        timings: of the stock constructor, the other ways, and zeroing.
        judged: the reports of the models that torchinit filled, by the name of the way.
    """
    nbytes = sum(parameter.nbytes for parameter in parameters)
    return {
        "version": __version__,
        "torch": torch.__version__,
        **about,
        "parameters": len(parameters),
        "values": sum(parameter.numel() for parameter in parameters),
        "bytes": nbytes,
        "ways": {
            timing.name: {
                "seconds": timing.seconds,
                "gb_per_second": nbytes / timing.seconds / 1e9,
                "times_faster_than_plain": timings[0].seconds / timing.seconds,
                "times_as_long_as_zeroing": timing.seconds / timings[-1].seconds,
            }
            for timing in timings
        },
        "checks": {
            "passed": not any(report.outliers for report in judged.values()),
            "failures": {
                way: [{"name": one.name, "problems": one.problems} for one in report.outliers]
                for way, report in judged.items()
                if report.outliers
            },
            # The probability that a correct run fails a check, at most.
            "false_alarm_rate": sum(report.false_alarm_rate for report in judged.values()),
        },
    }


def to_text(result: Mapping[str, Any]) -> str:
    """A result as a heading, a table and the outcome of the checks."""
    count, checks = result["parameters"], result["checks"]
    titles = {way.name: way.title for way in WAYS} | {"zero": _ZEROING}
    rows = [
        (titles[name], *map(_significant, measures.values()))
        for name, measures in result["ways"].items()
    ]
    lines = [
        f"{result['model']}: {result['values']:,} values in {count} parameters, "
        f"{result['dtype']}, {_significant(result['bytes'] / 1e9)} GB",
        f"on {result['device']}; seed {result['seed']}",
        "",
        *text_table([_HEADINGS, *rows], left=1, shorten=()),
        "",
    ]
    for way, failures in checks["failures"].items():
        lines.append(f"FAILED, {titles[way]}: {len(failures)} of {count} parameters")
        lines += [f"  {one['name']}: {'; '.join(one['problems'])}" for one in failures]
    if checks["passed"]:
        ours = sum(way.is_ours for way in WAYS)
        lines += [
            f"all {count} parameters pass, each of {ours} times: finite, within bounds, and with "
            "the",
            "mean, std and distribution that the model's constructor asks for",
            f"(false alarm: 1 in {1 / checks['false_alarm_rate']:,.0f} correct runs)",
        ]
    return "\n".join(lines)


def _significant(number: float) -> str:
    """Three significant digits without an exponent; more before the point if need be."""
    if number <= 0:
        return "0"
    return f"{number:.{max(2 - math.floor(math.log10(number)), 0)}f}"
