"""Makes one model in one way, in its own process, and prints the cost as JSON.

    python benchmarks/one_build.py gpt2-medium patch

Before the clock starts, it imports the model's libraries, uses its class once on the meta device,
and writes to as much memory as the model needs and frees it. So neither imports nor the host are
timed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import resource
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

import torchinit
from torchinit.cli.demo import forget
from torchinit.cli.demo_models import Build
from zoo import CASES, SMOKE

_SEED = 0
_CPU = torch.device("cpu")
# Memory of a build, as a multiple of the parameters: a head before it is tied, temporaries.
_HEADROOM = 1.5


def _plain(build: Build) -> object:
    return build()


def _patch(build: Build) -> object:
    with torchinit.patch_nn_init():
        return build()


def _build_model(build: Build) -> object:
    return torchinit.build_model(build, seed=_SEED)


def _zero(build: Build) -> object:
    return _zeros(_on_meta(build))


def _zeros(model: nn.Module) -> list[Tensor]:
    return [torch.empty(p.shape, dtype=p.dtype).zero_() for p in model.parameters()]


MODES: dict[str, Callable[[Build], object]] = {
    "plain": _plain,
    "patch": _patch,
    "build_model": _build_model,
    "zero": _zero,
}


def _on_meta(build: Build) -> nn.Module:
    with torch.device("meta"):
        return build()


def _layer() -> nn.Module:
    return nn.Linear(1024, 1024)


def _touch(nbytes: int) -> None:
    """Writes to every page of as much fresh memory, so that the host provides it, and frees it.

    Uses huge pages, as the fills do: after small ones the host might need to provide others.
    """
    private: dict[str, Any] = {}
    if hasattr(mmap, "MAP_PRIVATE"):  # Windows has no such flags
        private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, nbytes, **private) as region:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages
                region.madvise(mmap.MADV_HUGEPAGE)
        pages = torch.frombuffer(region, dtype=torch.uint8)
        pages[:: mmap.PAGESIZE] = 1
        del pages  # a mapping cannot be closed under a tensor


def run(name: str, mode: str) -> dict[str, Any]:
    """Times one way to one model."""
    case = {**CASES, **SMOKE}[name]
    build = case.prepare(case.dtype)
    _on_meta(build)
    start = perf_counter()
    meta = _on_meta(build)
    meta_seconds = perf_counter() - start
    parameters = list(meta.parameters())
    size = sum(parameter.nbytes for parameter in parameters)
    torch.manual_seed(_SEED)
    MODES[mode](_layer)  # wakes threads and loads code
    _touch(int(size * _HEADROOM))
    forget(_CPU)
    before, start = resource.getrusage(resource.RUSAGE_SELF), perf_counter()
    made = _zeros(meta) if mode == "zero" else MODES[mode](build)
    seconds = perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    tensors = list(made.parameters()) if isinstance(made, nn.Module) else made
    assert isinstance(tensors, list)
    assert [(t.shape, t.dtype, t.is_meta) for t in tensors] == [
        (p.shape, p.dtype, False) for p in parameters
    ]
    return {
        "seconds": seconds,
        "meta_seconds": meta_seconds,
        "user_seconds": after.ru_utime - before.ru_utime,
        "kernel_seconds": after.ru_stime - before.ru_stime,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "parameters": len(parameters),
        "values": sum(parameter.numel() for parameter in parameters),
        "bytes": size,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(run(*sys.argv[1:])))
