"""How much memory there is, and the largest model that fits into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from torchinit.commands.models import MODELS, Model, Parameter
from torchinit.commands.shell import out_of_memory

# What is filled: a parameter and its memory.
Filled = tuple[Parameter, Tensor]

_GIB = 2**30
# Memory asked for, as a multiple of the parameters: room for torch's temporaries and the checks.
_HEADROOM = 1.25
# And what any run takes, however small the model: warming up, the checks, stacks of the threads.
_RESERVE = 2**26


def allocate_largest(
    name: str, dtype: torch.dtype, device: torch.device, note: Callable[[str], object]
) -> tuple[Model, list[Filled]]:
    """Returns the model of that name, or the next smaller one that fits, and memory for it.

    Args:
        name: a key of ``models.MODELS``.
        dtype: of its parameters.
        device: where they lie; cpu or cuda.
        note: called with why a smaller model was taken, if one was.

    Raises:
        MemoryError: if even the smallest cannot be allocated.
    """
    wanted = MODELS[name]()
    available = available_memory(device)
    models = fitting_models(name, dtype, available)
    why = ""
    if available is not None and models[0].title != wanted.title:
        why = (
            f"{wanted.title} needs {_needed(wanted, dtype) / _GIB:.1f} GiB and "
            f"{available / _GIB:.1f} GiB are available"
        )
    for model in models[:-1]:
        try:
            filled = allocate(model, dtype, device)
        except MemoryError as error:
            why = why or str(error)
            continue
        break
    else:
        model = models[-1]
        filled = allocate(model, dtype, device)
    if why:
        note(f"{why}: taking {model.title}")
    return model, filled


def fitting_models(name: str, dtype: torch.dtype, available: int | None) -> list[Model]:
    """Returns the model of that name and the smaller ones, without those that do not fit.

    Args:
        name: a key of ``models.MODELS``.
        dtype: of the parameters.
        available: bytes of memory, None if unknown. The smallest model is always tried.
    """
    names = list(MODELS)
    *models, smallest = (MODELS[each]() for each in names[names.index(name) :])
    fit = [model for model in models if available is None or _needed(model, dtype) <= available]
    return [*fit, smallest]


def _needed(model: Model, dtype: torch.dtype) -> float:
    return model.numel * dtype.itemsize * _HEADROOM + _RESERVE


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
    except (MemoryError, RuntimeError) as error:
        if not (why := out_of_memory(error)):
            raise
        why = why.removeprefix("out of memory: ")
        raise MemoryError(f"{model.title} does not fit into memory: {why}") from None


def count_values(filled: Iterable[Filled]) -> int:
    """Returns the number of values of all parameters together."""
    return sum(tensor.numel() for _, tensor in filled)


def available_memory(device: torch.device) -> int | None:
    """Returns the bytes that can be allocated on a device, None if that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    limits = (_system_memory(), _cgroup_memory(Path("/sys/fs/cgroup")), *_process_memory())
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


def _process_memory() -> Iterator[int]:
    """What ``ulimit -v`` and ``ulimit -d`` leave of address space and of data."""
    try:
        import resource
    except ImportError:
        return  # Windows
    try:
        pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
    except OSError:
        return  # not Linux: what is in use cannot be told
    for limit_name, used in (("RLIMIT_AS", pages[0]), ("RLIMIT_DATA", pages[5])):
        limit, _ = resource.getrlimit(getattr(resource, limit_name))
        if limit != resource.RLIM_INFINITY:
            yield max(limit - used * resource.getpagesize(), 0)
