"""How much memory there is, and the largest model that fits into it."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from torchinit.commands.models import MODELS, Model
from torchinit.commands.shell import out_of_memory

_GIB = 2**30
# Memory asked for, as a multiple of the parameters: room for a head that is built before it is
# tied, torch's temporaries and the checks.
_HEADROOM = 1.5
# And what any run takes, however small the model: warming up, the checks, stacks of the threads.
_RESERVE = 2**26


def reserve_largest(
    name: str, dtype: torch.dtype, device: torch.device, note: Callable[[str], object]
) -> Model:
    """Returns the model of that name, or the next smaller one whose memory can be had.

    The memory has been written to and given back: it costs the host nothing any more, which would
    else be a part of the first time that is taken.

    Args:
        name: a key of ``models.MODELS``.
        dtype: of its parameters.
        device: where they lie; cpu or cuda.
        note: called with why a smaller model was taken, if one was.

    Raises:
        MemoryError: if there is not enough for even the smallest.
    """
    wanted = MODELS[name]
    available = available_memory(device)
    models = fitting_models(name, dtype, available)
    why = ""
    if available is not None and models[0] is not wanted:
        why = (
            f"{wanted.title} needs {needed(wanted, dtype) / _GIB:.1f} GiB and "
            f"{available / _GIB:.1f} GiB are available"
        )
    for model in models:
        try:
            reserve(int(needed(model, dtype)), device)
        except MemoryError as error:
            why = why or f"{model.title} does not fit into memory: {error}"
            if model is models[-1]:
                raise MemoryError(why) from None
            continue
        break
    if why:
        note(f"{why}: taking {model.title}")
    return model


def fitting_models(name: str, dtype: torch.dtype, available: int | None) -> list[Model]:
    """Returns the model of that name and the smaller ones, without those that do not fit.

    Args:
        name: a key of ``models.MODELS``.
        dtype: of the parameters.
        available: bytes of memory, None if unknown. The smallest model is always tried.
    """
    names = list(MODELS)
    models = [MODELS[each] for each in names[names.index(name) :]]
    *models, smallest = (model for model in models if model.is_usable)
    fit = [model for model in models if available is None or needed(model, dtype) <= available]
    return [*fit, smallest]


def needed(model: Model, dtype: torch.dtype) -> float:
    """Bytes that a run with a model takes."""
    return model.numel * dtype.itemsize * _HEADROOM + _RESERVE


def reserve(nbytes: int, device: torch.device) -> None:
    """Writes to as much memory, and gives it back.

    Raises:
        MemoryError: if it cannot be had.
    """
    try:
        if device.type == "cuda":
            torch.empty(nbytes, dtype=torch.uint8, device=device)
        else:
            touch(nbytes)
    except (OSError, OverflowError) as error:
        raise MemoryError(getattr(error, "strerror", None) or str(error)) from None
    except (MemoryError, RuntimeError) as error:
        if not (why := out_of_memory(error)):
            raise
        raise MemoryError(why.removeprefix("out of memory: ")) from None
    give_back(device)


def touch(nbytes: int) -> None:
    """Writes to every page of fresh memory that the allocator never sees.

    In huge pages: those that a fill asks for come from memory that was used as such before. After
    small ones they would be others, which the host may have to find first, at ten times the cost.

    Raises:
        OSError, OverflowError: if it cannot be had.
    """
    private: dict[str, Any] = {}
    if hasattr(mmap, "MAP_PRIVATE"):  # Windows has no such flags
        private["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, nbytes, **private) as region:
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without
                region.madvise(mmap.MADV_HUGEPAGE)
        bytes_ = torch.frombuffer(region, dtype=torch.uint8)
        bytes_[:: mmap.PAGESIZE] = 1
        del bytes_  # a mapping that is looked at cannot be closed


def give_back(device: torch.device) -> None:
    """Gives the system what allocators keep of freed memory, where they can be asked to."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


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
