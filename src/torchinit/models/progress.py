"""The bar that shows how far a large model has come, where somebody looks on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from torch import Tensor

_LEAST = 1 << 30  # bytes that are worth a bar
_STEP = 1 << 28  # bytes between two looks at it


def in_view(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Which tensors to fill together: all, or on a terminal as many as a bar moves on by.

    What is filled is the same either way.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    if total < _LEAST or not sys.stderr.isatty():
        yield slice(0, len(tensors))
        return
    from tqdm import tqdm  # only where it is shown

    with tqdm(total=total, desc="init_model_", unit="B", unit_scale=True, leave=False) as bar:
        begin, size = 0, 0
        for end, tensor in enumerate(tensors, 1):
            size += tensor.nbytes
            if size >= _STEP or end == len(tensors):
                yield slice(begin, end)
                bar.update(size)
                begin, size = end, 0
