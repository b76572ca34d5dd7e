"""The progress bar for large models, shown only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from torch import Tensor

_LEAST = 1 << 30  # bytes from which a bar is shown
_STEP = 1 << 28  # bytes between two updates


def in_view(tensors: Sequence[Tensor]) -> Iterator[slice]:
    """Yields slices of tensors to fill together: all, or, with a bar, one per update.

    The values are the same either way.
    """
    total = sum(tensor.nbytes for tensor in tensors)
    if total < _LEAST or not sys.stderr.isatty():
        yield slice(0, len(tensors))
        return
    from tqdm import tqdm  # imported only if the bar is shown

    with tqdm(total=total, desc="init_model_", unit="B", unit_scale=True, leave=False) as bar:
        begin, size = 0, 0
        for end, tensor in enumerate(tensors, 1):
            size += tensor.nbytes
            if size >= _STEP or end == len(tensors):
                yield slice(begin, end)
                bar.update(size)
                begin, size = end, 0
