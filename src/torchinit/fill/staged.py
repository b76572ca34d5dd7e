"""Fills of devices without kernels: on the CPU, in pieces of bounded size, and copied.

The same bits as on the CPU, on whatever torch has as a device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from torchinit.native import calls
from torchinit.placement.box import Box, cut_out
from torchinit.schemes.distributions import Draw

# Bytes of a piece: few enough that caches hold much of it until it is copied, and enough that
# waking the threads for it counts little, also where other programs want the processors.
PIECE = 1 << 24


def fill(draw: Draw, tensor: Tensor, key: int, box: Box | None = None) -> None:
    """Fills a tensor on any device by way of one piece of host memory.

    For a tensor, a draw and a box that have been checked.
    """
    shape = tuple(tensor.shape)
    global_shape, offset = box or (shape, (0,) * len(shape))
    limit = max(1, PIECE // tensor.element_size())
    memory = torch.empty(min(limit, tensor.numel()), dtype=tensor.dtype, device="cpu")
    with torch.no_grad():
        for start, size in pieces(shape, limit):
            piece = memory[: math.prod(size)].view(size)
            place = [begin + first for begin, first in zip(offset, start, strict=True)]
            calls.fill(piece, draw, key, calls.place_of(piece, (global_shape, place)))
            cut_out(tensor, start, size).copy_(piece)


def pieces(shape: Sequence[int], limit: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts a shape into boxes, (start, size) each, of at most `limit` elements, at least 1."""
    if not shape:
        yield (), ()
        return
    rest = math.prod(shape[1:])
    if rest <= limit:
        step = max(1, limit // max(1, rest))
        for first in range(0, shape[0], step):
            yield (
                (first, *[0] * (len(shape) - 1)),
                (min(step, shape[0] - first), *shape[1:]),
            )
        return
    for first in range(shape[0]):
        for start, size in pieces(shape[1:], limit):
            yield (first, *start), (1, *size)
