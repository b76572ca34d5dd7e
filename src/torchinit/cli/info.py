"""What was built, what is in use, and why."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

import torch

from torchinit.dtypes import ALL_DTYPES
from torchinit.fill.route import which
from torchinit.native import built, load, torch_private
from torchinit.schemes.init_table import SCHEMES
from torchinit.version import STREAM_VERSION, __version__


def run(as_json: bool) -> str:
    """The state of the installation as text or as one JSON object."""
    state = collect()
    return json.dumps(state, indent=2) if as_json else _text(state)


def collect() -> dict[str, Any]:
    """The state of the installation, ready for JSON."""
    module = load.module
    return {
        "version": __version__,
        "streams": STREAM_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "native": {
            "loaded": module is not None,
            "reason": load.reason,
            "instruction_sets": list(module.instruction_sets()) if module else [],
            "instruction_set": module.instruction_set() if module else None,
        },
        "cuda": {
            "loaded": load.cuda is not None,
            "reason": load.cuda_reason,
            "architectures": load.cuda.architectures() if load.cuda else None,
            "torch_architectures": torch.cuda.get_arch_list(),
            "devices": [_cuda_device(index) for index in range(torch.cuda.device_count())],
        },
        "build": built.record,
        "torch_private_missing": list(torch_private.missing),
        "threads": torch.get_num_threads(),
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith("TORCHINIT_")
        },
        "which": {device: _routes(device) for device in _device_types()},
        "always_torch": sorted(name for name, scheme in SCHEMES.items() if scheme.why_torch),
    }


def _device_types() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def _cuda_device(index: int) -> dict[str, str]:
    major, minor = torch.cuda.get_device_capability(index)
    return {
        "name": torch.cuda.get_device_name(index),
        "architecture": f"sm_{major}{minor}",
        "why_staged": load.why_no_cuda(torch.device("cuda", index)),
    }


def _routes(device: str) -> dict[str, dict[str, str]]:
    """How tensors of each dtype are filled."""
    return {
        # Every scheme with kernels takes the same route as normal.
        str(dtype).removeprefix("torch."): which(
            torch.empty(0, dtype=dtype, device=device), "normal"
        )._asdict()
        for dtype in (*ALL_DTYPES, torch.complex64)  # complex64 stands for those of torch alone
    }


def _text(state: dict[str, Any]) -> str:
    native_state, cuda = state["native"], state["cuda"]
    private_names = "of torch: all found"
    if missing := state["torch_private_missing"]:
        private_names = (
            f"{_listed(missing)}: not in this torch, so fills go by the operators, slower for "
            "small tensors"
        )
    environment = [f"{name}={value}" for name, value in state["environment"].items()]
    devices = [
        f"{device['name']} ({device['architecture']}{', staged' * bool(device['why_staged'])})"
        for device in cuda["devices"]
    ]
    fields = {
        "torchinit": state["version"],
        "streams": f"version {state['streams']}",
        "python": state["python"],
        "torch": state["torch"],
        "native module": native_state["reason"],
        "  built with": _listed(list(state["build"].get("tools", {}).values())),
        "instruction set": native_state["instruction_set"] or "none",
        "  of": _listed(native_state["instruction_sets"]),
        "CUDA module": cuda["reason"],
        "  compiled for": cuda["architectures"] or "nothing",
        "CUDA of torch": _listed(cuda["torch_architectures"]),
        "CUDA devices": _listed(devices),
        "private names": private_names,
        "threads": state["threads"],
        "environment": _listed(environment),
    }
    lines = [f"{name:16} {value}" for name, value in fields.items()]
    lines += [f"  {device['why_staged']}" for device in cuda["devices"] if device["why_staged"]]
    lines += _last_words(state["build"])
    lines += ["", "who fills a tensor:"]
    for device, routes in state["which"].items():
        lines += [
            f"  {device:5} {dtype:13} {route['kind']:7} {route['reason']}"
            for dtype, route in routes.items()
        ]
    lines.append(f"  {_listed(state['always_torch'])}: torch everywhere")
    return "\n".join(lines)


def _last_words(build: dict[str, Any]) -> list[str]:
    """What compilers said last of the modules that failed, and what would help."""
    lines = []
    for name, module in build.get("modules", {}).items():
        # Without the CPU module there is none for CUDA, and torch may have no CUDA itself.
        matters = name == "_native" or (load.module is not None and torch.version.cuda)
        if module.get("remedy") and matters:
            lines += ["", f"to have {name}: {module['remedy']}"]
        if module.get("words"):
            lines += [f"last words of the build of {name}:"]
            lines += [f"  {line}" for line in module["words"]]
    return lines


def _listed(items: list[str]) -> str:
    return ", ".join(items) or "none"
