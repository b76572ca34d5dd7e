"""Builds a real model in every way, times them, and checks every parameter."""

from __future__ import annotations

import json

import torch

import torchinit
from torchinit.commands.build import builder
from torchinit.commands.memory import reserve_largest
from torchinit.commands.report import Report
from torchinit.commands.shell import say
from torchinit.commands.table import to_json, to_text
from torchinit.commands.ways import WAYS, forget, on_meta, take, zero
from torchinit.native import load
from torchinit.progress import progress
from torchinit.reporting.report import ModelReport, judge_values


def run(
    model_name: str, *, dtype: torch.dtype, device: torch.device, seed: int, as_json: bool
) -> tuple[str, int]:
    """Runs the demo; notes go to standard error.

    Args:
        model_name: a key of ``models.MODELS``; the next smaller that fits into memory is taken.
        dtype: of all parameters.
        device: where they lie; cpu or cuda.
        seed: of torch's default generators, and of keys by name.
        as_json: give one JSON object in place of a table.

    Returns:
        The report, and the exit code: 0, or 1 if a parameter failed its check.

    Raises:
        MemoryError: if there is not enough memory for even the smallest model.
    """
    with progress("making memory ready", len(WAYS) + 2, " steps") as advance:
        model = reserve_largest(model_name, dtype, device, note=say)
        route = torchinit.which(torch.empty(1, dtype=dtype, device=device), "normal")
        if route.kind == "torch":
            slowly = " (up to minutes for a large model)" if device.type == "cpu" else ""
            say(f"torch.nn.init fills everything{slowly}: {route.reason}")
        build = builder(model, dtype)
        meta = on_meta(build)
        parameters = list(meta.parameters())
        advance(1, "zeroing")
        zero_time = zero(meta, device)
        advance(1)
        timings = []
        judged: dict[str, ModelReport] = {}
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
    report = Report(
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
    text = json.dumps(to_json(report), indent=2) if as_json else to_text(report)
    return text, int(bool(report.failures))


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    module = load.module
    instruction_set = f"{module.instruction_set()}, " if module else ""
    return f"{device} ({instruction_set}{torch.get_num_threads()} threads)"
