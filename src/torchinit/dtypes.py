"""The dtypes that can be filled."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
ALL_DTYPES = FLOATING_DTYPES + FLOAT8_DTYPES


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values are computed in: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def copy_rounded(tensor: Tensor, values: Tensor) -> Tensor:
    """Copies values of the working dtype into a tensor; float8 saturates.

    torch's own conversion makes NaN or infinity of what exceeds the range of float8, or saturates,
    by its version.
    """
    if tensor.dtype in FLOAT8_DTYPES:
        limit = torch.finfo(tensor.dtype).max
        values = values.clamp(-limit, limit)
    with torch.no_grad():
        return tensor.copy_(values)
