"""The numbers of dtypes in ``csrc/job/dtype.h``; a test compares them with the module's."""

from __future__ import annotations

import torch

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
