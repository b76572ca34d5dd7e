"""Loads the native modules, or stores why they are missing and warns once.

Environment variables, read once at import:
    TORCHINIT_DISABLE_NATIVE: anything but empty or ``0`` turns the native modules off.
    TORCHINIT_ISA: ``avx512``, ``avx2``, ``neon`` or ``portable`` forces an instruction set; an
        unknown name, or a set that this processor lacks, is an error.
    TORCHINIT_HUGEPAGES: ``0`` keeps large fills from asking for huge pages.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from functools import cache
from types import ModuleType

import torch
from torch.compiler import is_compiling

from torchinit.native import built
from torchinit.version import STREAM_VERSION


def _is_set(name: str) -> bool:
    """Returns whether an environment variable is anything but ``0`` or nothing."""
    return os.environ.get(name, "") not in ("", "0")


def _import(name: str) -> tuple[ModuleType | None, built.Missing]:
    full = f"torchinit.native.{name}"
    try:
        return importlib.import_module(full), built.Missing("built and loaded", "", True, ())
    except ModuleNotFoundError:
        return None, built.find_missing(name)
    except ImportError as error:
        remedy = "install torchinit again, beside this torch"
        return None, built.Missing(f"cannot be loaded: {error}", remedy, False, ())


def _load() -> tuple[ModuleType | None, built.Missing]:
    if _is_set("TORCHINIT_DISABLE_NATIVE"):
        return None, built.Missing("turned off by TORCHINIT_DISABLE_NATIVE", "", True, ())
    loaded, why = _import("_native")
    if loaded and loaded.stream_version != STREAM_VERSION:
        reason = f"makes streams of version {loaded.stream_version}, and this is {STREAM_VERSION}"
        return None, built.Missing(reason, "install torchinit again", False, ())
    wanted = os.environ.get("TORCHINIT_ISA", "")
    if loaded and wanted and not loaded.choose_instruction_set(wanted):
        raise ValueError(
            f"TORCHINIT_ISA={wanted!r} is not an instruction set of this machine, "
            f"choose one of {loaded.instruction_sets()}"
        )
    if loaded and os.environ.get("TORCHINIT_HUGEPAGES", "") == "0":
        loaded.allow_huge_pages(False)
    return loaded, why


module, missing = _load()
cuda, cuda_missing = _import("_cuda") if module else (None, missing)
reason, cuda_reason = missing.reason, cuda_missing.reason

# Warnings for the first use that would have been native, by device type; each is removed when
# given. None if whoever built or runs this asked for it.
_unsaid: dict[str, str] = {}
if module is None and not missing.asked:
    _unsaid["cpu"] = (
        f"torchinit is running without its native module, with the numbers and speed of torch.nn."
        f"init: it {reason}. Remedy: {missing.remedy}. `python -m torchinit info` tells more."
    )
elif cuda is None and not cuda_missing.asked and torch.version.cuda:
    _unsaid["cuda"] = (
        f"torchinit is running without its CUDA module, so CUDA tensors take longer to fill: it "
        f"{cuda_reason}. Remedy: {cuda_missing.remedy}. `python -m torchinit info` tells more."
    )


def why_no_cuda(device: torch.device) -> str:
    """Returns why the CUDA module cannot fill on a device; empty if it can."""
    return cuda_reason if cuda is None else _why_no_kernels(device.index)


@cache
def _why_no_kernels(index: int | None) -> str:
    assert cuda is not None
    if not torch.cuda.is_available():  # a tensor without memory
        return ""
    with torch.cuda.device(index):
        error = cuda.why_no_kernels()
    if not error:
        return ""
    major, minor = torch.cuda.get_device_capability(index)
    why = (
        f"the CUDA module, compiled for {cuda.architectures()}, has no code for "
        f"{torch.cuda.get_device_name(index)} (sm_{major}{minor}): {error}"
    )
    _unsaid["cuda"] = (
        f"{why}. Its tensors are filled by the CPU and copied, which takes longer. Remedy: install "
        f"torchinit again with TORCH_CUDA_ARCH_LIST={major}.{minor} on a machine with nvcc. "
        "`python -m torchinit info` tells more."
    )
    return why


def warn_once(device_type: str = "cpu") -> None:
    """Warns that a fill would have been native, once a process and only if nobody asked for it.

    Args:
        device_type: ``cuda`` for what lacks the CUDA module alone, else ``cpu``.
    """
    if is_compiling() or not _unsaid:
        return
    if said := _unsaid.pop(device_type, ""):
        warnings.warn(said, RuntimeWarning, stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Returns how many frames above the caller the first code outside this package is."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "torchinit":
        frame, level = frame.f_back, level + 1
    return level
