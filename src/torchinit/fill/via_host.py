"""Writes memory on any device: by its kernels, or on the CPU followed by a copy.

The bits are those of the CPU on every device that torch has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.fill import route
from torchinit.native import kernels
from torchinit.native.torch_private import dispatch_modes
from torchinit.placement.box import Box, cut_out
from torchinit.schemes.distributions import Draw

# Bytes of a piece: small enough to stay in the caches until it is copied, and large enough for the
# cost of waking the threads not to matter, even on a busy machine.
PIECE = 1 << 24


def write(draw: Draw, tensor: Tensor, key: int, box: Box | None = None) -> None:
    """Fills a tensor on any device; the tensor, the draw and the box have been checked."""
    if tensor.numel() == 0:
        pass
    elif route.via_host_reason(tensor.device):
        _write_via_host(draw, tensor, key, box)
    else:
        kernels.run_fill(tensor, draw, key, kernels.extent_of(tensor, box))
    kernels.count_write(tensor)


@contextmanager
def memory_for_kernels(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor that kernels can write: the tensor itself, or one in host memory to be copied."""
    if not route.via_host_reason(tensor.device):
        yield tensor
        return
    memory = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    yield memory
    with torch.no_grad():
        tensor.copy_(memory)


@contextmanager
def dense_memory_for_kernels(tensor: Tensor | None) -> Iterator[Tensor | None]:
    """``memory_for_kernels`` that is contiguous, and copied where a mode observes writes.

    None stands for memory that is not wanted.
    """
    if tensor is None:
        yield None
        return
    with memory_for_kernels(tensor) as memory:
        if memory.is_contiguous() and not dispatch_modes():
            yield memory
            return
        with _disable_current_modes():
            dense = torch.empty(memory.shape, dtype=memory.dtype, device=memory.device)
        yield dense
        with torch.no_grad():
            memory.copy_(dense)


def largest_magnitude(
    draw: Draw, dtype: torch.dtype, key: int, count: int, device: torch.device
) -> float:
    """The largest magnitude of a full tensor of draws: found on the device, if it has kernels."""
    here = torch.device("cpu") if route.via_host_reason(device) else device
    return kernels.largest_magnitude(draw, dtype, key, count, here)


def _write_via_host(draw: Draw, tensor: Tensor, key: int, box: Box | None) -> None:
    shape = tuple(tensor.shape)
    global_shape, offset = box or (shape, (0,) * len(shape))
    limit = max(1, PIECE // tensor.element_size())
    memory = torch.empty(min(limit, tensor.numel()), dtype=tensor.dtype, device="cpu")
    with torch.no_grad():
        for start, size in pieces(shape, limit):
            piece = memory[: math.prod(size)].view(size)
            first = [begin + more for begin, more in zip(offset, start, strict=True)]
            kernels.run_fill(piece, draw, key, kernels.extent_of(piece, (global_shape, first)))
            cut_out(tensor, start, size).copy_(piece)


def pieces(shape: Sequence[int], limit: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cuts a shape into boxes (start, size) of at most `limit` elements, where limit >= 1."""
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
