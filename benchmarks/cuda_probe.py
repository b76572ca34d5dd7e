"""A short pass over every CUDA kernel, for compute-sanitizer to watch.

compute-sanitizer --error-exitcode 1 python benchmarks/cuda_probe.py
"""

from __future__ import annotations

import math

import torch

import torchinit
from torchinit.dtypes import ALL_DTYPES

ops = torch.ops.torchinit

BOUNDS = [(-2.0, 2.0), (-3.0, 1.0), (-4.0, 5.0), (8.0, 10.0), (-math.inf, -50.0)]


def main() -> None:
    """Fills odd sizes, misaligned memory, boxes, lists and orthogonal matrices."""
    key = torch.tensor(7)
    fills = 0
    for dtype in ALL_DTYPES:
        memory = torch.empty(40_000, dtype=dtype, device="cuda")
        transposed = torch.empty(37, 53, dtype=dtype, device="cuda").t()
        for tensor in (memory, memory[:1], memory[3:-1], transposed):
            ops.uniform_(tensor, key, -1.0, 1.3)
            ops.uniform_(tensor, key, 0.0, 1e-30)
            ops.normal_(tensor, key, 0.0, 1.0)
            for a, b in BOUNDS:
                ops.trunc_normal_(tensor, key, 0.0, 1.0, a, b)
            ops.constant_(tensor, 1.5)
            fills += 4 + len(BOUNDS)
    with torchinit.batch():
        for i in range(300):
            torchinit.normal_(torch.empty(i * 37, device="cuda"))
            torchinit.zeros_(torch.empty(i * 11, device="cuda"))
    for shape in [(70, 40), (40, 300)]:
        torchinit.orthogonal_(torch.empty(shape, device="cuda"))
        torchinit.orthogonal_(torch.empty(shape, device="cuda", dtype=torch.float64))
    torch.cuda.synchronize()
    print(f"fills: {fills}, and a batch of 600")


if __name__ == "__main__":
    main()
