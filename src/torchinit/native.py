"""Loads the native module, or keeps the reason why there is none.

Environment variables, read once at import:
    TORCHINIT_DISABLE_NATIVE: anything but empty or ``0`` turns the native module off.
    TORCHINIT_ISA: ``avx512``, ``avx2`` or ``portable`` forces an instruction set; an unknown name,
        or one that this processor has not, is an error.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch  # noqa: F401  (its OpenMP runtime must be loaded first: ours uses the same)


def environment_flag(name: str) -> bool:
    """Returns whether an environment variable is set to anything but ``0`` or nothing."""
    return os.environ.get(name, "") not in ("", "0")


def _load() -> tuple[ModuleType | None, str]:
    if environment_flag("TORCHINIT_DISABLE_NATIVE"):
        return None, "turned off by TORCHINIT_DISABLE_NATIVE"
    try:
        from torchinit import _native
    except ModuleNotFoundError:
        return None, "the native module was not built"
    except ImportError as error:
        return None, f"the native module cannot be loaded: {error}"
    wanted = os.environ.get("TORCHINIT_ISA", "")
    if wanted and not _native.choose_instruction_set(wanted):
        raise ValueError(
            f"TORCHINIT_ISA={wanted!r} is not an instruction set of this machine, "
            f"choose one of {_native.instruction_sets()}"
        )
    return _native, "built and loaded"


def _load_cuda() -> tuple[ModuleType | None, str]:
    if module is None:
        return None, reason
    try:
        from torchinit import _cuda
    except ModuleNotFoundError:
        return None, "the CUDA module was not built"
    except ImportError as error:
        return None, f"the CUDA module cannot be loaded: {error}"
    return _cuda, "built and loaded"


module, reason = _load()
cuda, cuda_reason = _load_cuda()
