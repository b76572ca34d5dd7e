"""The dtypes that can be filled."""

from __future__ import annotations

import torch

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FLOAT8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
WITHOUT_INFINITY = {torch.float8_e4m3fn}
ALL_DTYPES = FLOATING_DTYPES + FLOAT8_DTYPES


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values are computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
