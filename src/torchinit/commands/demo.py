"""Initialises a real transformer, times it against torch, and checks every parameter."""

from __future__ import annotations

import json

import torch

import torchinit
from torchinit.commands.checks import check_all, law
from torchinit.commands.memory import allocate_largest
from torchinit.commands.report import Report
from torchinit.commands.shell import say
from torchinit.commands.table import to_json, to_text
from torchinit.commands.timing import initialise
from torchinit.native import load


def run(
    model_name: str, *, dtype: torch.dtype, device: torch.device, seed: int, as_json: bool
) -> tuple[str, int]:
    """Runs the demo; notes go to standard error.

    Args:
        model_name: a key of ``models.MODELS``; the next smaller that fits into memory is taken.
        dtype: of all parameters.
        device: where they lie; cpu or cuda.
        seed: of torch's default generators.
        as_json: give one JSON object in place of a table.

    Returns:
        The report, and the exit code: 0, or 1 if a parameter failed its check.

    Raises:
        MemoryError: if not even the smallest model can be allocated.
    """
    model, filled = allocate_largest(model_name, dtype, device, note=say)
    route = torchinit.which(filled[0][1], model.parameters[0].scheme)
    if route.kind == "torch":
        slowly = " (up to minutes for a large model)" if device.type == "cpu" else ""
        say(f"torch.nn.init fills everything{slowly}: {route.reason}")
    timings = initialise(filled, seed)
    failures = check_all(filled)
    report = Report(
        model=model.title,
        dtype=str(dtype).removeprefix("torch."),
        device=_device_name(device),
        seed=seed,
        parameters=len(filled),
        timings=timings,
        statistical_checks=sum(2 for parameter, _ in filled if law(parameter).std > 0),
        failures=failures,
    )
    text = json.dumps(to_json(report), indent=2) if as_json else to_text(report)
    return text, 1 if failures else 0


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    module = load.module
    instruction_set = f"{module.instruction_set()}, " if module else ""
    return f"{device} ({instruction_set}{torch.get_num_threads()} threads)"
