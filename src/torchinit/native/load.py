"""Loads the native modules, or keeps the reasons why there are none.

Environment variables, read once at import:
    TORCHINIT_DISABLE_NATIVE: anything but empty or ``0`` turns the native modules off.
    TORCHINIT_ISA: ``avx512``, ``avx2``, ``neon`` or ``portable`` forces an instruction set; an
        unknown name, or one that this processor has not, is an error.
    TORCHINIT_HUGEPAGES: ``0`` keeps large fills from asking for huge pages.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

import torch  # noqa: F401  (its OpenMP runtime must be loaded first: ours uses the same)


def _is_set(name: str) -> bool:
    """Returns whether an environment variable is anything but ``0`` or nothing."""
    return os.environ.get(name, "") not in ("", "0")


def _import(name: str) -> tuple[ModuleType | None, str]:
    full = f"torchinit.native.{name}"
    try:
        return importlib.import_module(full), "built and loaded"
    except ModuleNotFoundError:
        return None, f"the module {full} was not built"
    except ImportError as error:
        return None, f"the module {full} cannot be loaded: {error}"


def _load() -> tuple[ModuleType | None, str]:
    if _is_set("TORCHINIT_DISABLE_NATIVE"):
        return None, "turned off by TORCHINIT_DISABLE_NATIVE"
    loaded, why = _import("_native")
    wanted = os.environ.get("TORCHINIT_ISA", "")
    if loaded and wanted and not loaded.choose_instruction_set(wanted):
        raise ValueError(
            f"TORCHINIT_ISA={wanted!r} is not an instruction set of this machine, "
            f"choose one of {loaded.instruction_sets()}"
        )
    if loaded and os.environ.get("TORCHINIT_HUGEPAGES", "") == "0":
        loaded.allow_huge_pages(False)
    return loaded, why


module, reason = _load()
cuda, cuda_reason = _import("_cuda") if module else (None, reason)
