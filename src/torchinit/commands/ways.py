"""Ways to a model whose parameters have their first values, each timed as it is used.

Allocating and zeroing the same memory is timed beside them: less no initialisation can take.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import torchinit
from torchinit.commands.build import Build
from torchinit.commands.memory import give_back

# Of what is filled before any time is taken: enough values to give every thread work.
_WARM_SHAPE = (1024, 1024)


@dataclass(frozen=True)
class Way:
    """A way to a model.

    Attributes:
        name: in JSON.
        title: in words.
        make: takes the way, given what builds the model, the device and the seed.
        is_ours: whether torchinit fills.
    """

    name: str
    title: str
    make: Callable[[Build, torch.device, int], nn.Module]
    is_ours: bool = True


@dataclass(frozen=True)
class Timing:
    """Seconds that a way took."""

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
    Way("plain", "built as people do", _plain, is_ours=False),
    Way("patch_nn_init", "the same in patch_nn_init()", _patched),
    Way("build_model", "by build_model()", _built),
)


def on_meta(build: Build) -> nn.Module:
    """The model without memory."""
    with torch.device("meta"):
        return build()


def take(way: Way, build: Build, device: torch.device, seed: int) -> tuple[nn.Module, Timing]:
    """Returns the model that a way leads to, and the time of it."""
    _warm_up(way, device)
    start = _now(device)
    model = way.make(build, device, seed)
    return model, Timing(way.name, way.title, _now(device) - start)


def zero(model: nn.Module, device: torch.device) -> Timing:
    """The time of allocating and zeroing the memory of a model on the meta device."""
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
    """Gives memory back that nobody holds any more, so that the next way finds it as fresh."""
    gc.collect()
    give_back(device)


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return device if device.type != "cpu" else _nothing()


@contextlib.contextmanager
def _nothing() -> Iterator[None]:
    yield


def _warm_up(way: Way, device: torch.device) -> None:
    """Takes a way to a layer of its own.

    So no time includes the loading of a kernel or the start of the threads, and these are awake.
    """
    way.make(_layer, device, 0)


def _layer() -> nn.Module:
    return nn.Linear(*_WARM_SHAPE)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
