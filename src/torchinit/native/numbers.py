"""The numbers that ``csrc/job`` gives to distributions and dtypes."""

from __future__ import annotations

from enum import IntEnum

import torch


class Distribution(IntEnum):
    """What is filled; tests hold it against the native module's own."""

    WORDS = 0
    UNIFORM = 1
    NORMAL = 2
    TRUNCATED_NORMAL = 3
    CONSTANT = 4


DTYPE_NUMBERS = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.float8_e4m3fn: 6,
    torch.float8_e5m2: 7,
}
