"""The ways to build an initialised model, each timed as it is used.

So is allocating and zeroing the same memory, a lower bound for any initialisation.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torchinit
from torchinit.cli.demo.catalog import Build

# What is filled before the clock starts: large enough to give every thread work.
_WARM_SHAPE = (1024, 1024)


@dataclass(frozen=True)
class Way:
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


@dataclass(frozen=True)
class Timing:
    """How many seconds a way took."""

    name: str
    title: str
    seconds: float


def _plain(build: Build, device: torch.device, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with _on(device):
        return build()


def _patched(build: Build, device: torch.device, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with torchinit.patch_nn_init(), _on(device):
        return build()


def _built(build: Build, device: torch.device, seed: int) -> nn.Module:
    return torchinit.build_model(build, seed=seed, device=device)


WAYS = (
    Way("plain", "stock constructor", _plain, is_ours=False),
    Way("patch_nn_init", "inside patch_nn_init()", _patched),
    Way("build_model", "by build_model()", _built),
)


def on_meta(build: Build) -> nn.Module:
    """Builds the model without memory."""
    with torch.device("meta"):
        return build()


def take(way: Way, build: Build, device: torch.device, seed: int) -> tuple[nn.Module, Timing]:
    """Returns the model that a way builds, and the time it took."""
    _warm_up(way, device)
    start = _now(device)
    model = way.make(build, device, seed)
    return model, Timing(way.name, way.title, _now(device) - start)


def zero(model: nn.Module, device: torch.device) -> Timing:
    """Times allocating and zeroing as much memory as a model on the meta device would take."""
    shapes = [(parameter.shape, parameter.dtype) for parameter in model.parameters()]
    _zeros([(torch.Size(_WARM_SHAPE), torch.get_default_dtype())], device)
    start = _now(device)
    memory = _zeros(shapes, device)
    seconds = _now(device) - start
    memory.clear()
    forget(device)
    return Timing("zero", "allocating and zeroing", seconds)


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


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return device if device.type != "cpu" else contextlib.nullcontext()


def _warm_up(way: Way, device: torch.device) -> None:
    """Builds one layer in the same way: kernels are loaded and threads awake before the clock."""
    way.make(_layer, device, 0)


def _layer() -> nn.Module:
    return nn.Linear(*_WARM_SHAPE)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
