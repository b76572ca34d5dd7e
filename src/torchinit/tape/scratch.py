"""Scratch memory for code that nothing is known of: what it leaves unwritten is found.

A parameter is not touched before all such code has returned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchinit.errors import ArgumentError

_CHUNK = 1 << 22  # elements looked at together


# What no initialisation leaves. Smaller integers have no value to spare: they begin as zero.
_MARKS = {torch.int64: -0x5EED_5EED_5EED_5EED, torch.int32: -0x5EED_5EED}


def mark_unwritten(tensor: Tensor) -> None:
    """Fills a tensor with NaN, or with a number that no initialisation leaves."""
    floats = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    with torch.no_grad():
        tensor.fill_(math.nan if floats else _MARKS.get(tensor.dtype, 0))


def count_unwritten(tensor: Tensor) -> int:
    """How many elements are marked still."""
    if tensor.dtype in _MARKS:
        return int((tensor == _MARKS[tensor.dtype]).sum())
    if not tensor.dtype.is_floating_point and not tensor.dtype.is_complex:
        return 0
    flat = tensor.detach().reshape(-1)
    if flat.dtype.itemsize == 1:
        return sum(int(piece.float().isnan().sum()) for piece in flat.split(_CHUNK))
    return sum(int(piece.isnan().sum()) for piece in flat.split(_CHUNK))


def check_written(name: str, tensor: Tensor, by: str) -> None:
    """Raises ArgumentError if elements of a tensor that was marked are unwritten."""
    left = count_unwritten(tensor)
    if left:
        what = "nothing" if left == tensor.numel() else f"all but {left} of {tensor.numel()} values"
        raise ArgumentError(
            f"{by} wrote {what} of parameter {name!r}: it must fill the tensor it is given in place"
        )
