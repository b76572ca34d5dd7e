"""Scratch memory for arbitrary code, in which elements that it leaves unwritten are detected.

Parameters are written only after all such code has returned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchinit.errors import ArgumentError

_CHUNK = 1 << 22  # elements checked together


# Values that no initialisation writes. Smaller integers have no spare value and start as zero.
_MARKS = {torch.int64: -0x5EED_5EED_5EED_5EED, torch.int32: -0x5EED_5EED}


def mark_unwritten(tensor: Tensor) -> None:
    """Marks a tensor as unwritten: fills it with NaN or a number that no initialisation writes."""
    floats = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    with torch.no_grad():
        tensor.fill_(math.nan if floats else _MARKS.get(tensor.dtype, 0))


def count_unwritten(tensor: Tensor) -> int:
    """The number of elements that are still marked as unwritten."""
    if tensor.dtype in _MARKS:
        return int((tensor == _MARKS[tensor.dtype]).sum())
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return 0
    flat = tensor.detach().reshape(-1)
    if flat.dtype.itemsize == 1:
        return sum(int(piece.float().isnan().sum()) for piece in flat.split(_CHUNK))
    return sum(int(piece.isnan().sum()) for piece in flat.split(_CHUNK))


def check_written(name: str, tensor: Tensor, by: str) -> None:
    """Raises ArgumentError if elements of a marked tensor are still unwritten."""
    left = count_unwritten(tensor)
    if left:
        what = "nothing" if left == tensor.numel() else f"all but {left} of {tensor.numel()} values"
        raise ArgumentError(
            f"{by} wrote {what} to parameter {name!r}: it must fill its argument in place"
        )
