"""Calls the kernels of the native modules, which take numbers and addresses.

Callers have checked tensors, draws and boxes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from operator import attrgetter
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchinit.native import load
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.native.torch_private import count_writes

# A distribution's number and its parameters (``schemes/distributions.py``).
Numbers: TypeAlias = tuple[int, float, float, float, float]
# (global_shape, offset) of a box.
Bounds: TypeAlias = tuple[Sequence[int], Sequence[int]]
# What a fill writes, as csrc/python/read_jobs.h reads it: a number of contiguous elements from
# logical index 0 on, or (sizes, strides, global_shape, offset).
StridedBox: TypeAlias = tuple[list[int], list[int], list[int], list[int]]
Extent: TypeAlias = int | StridedBox

# Types of devices that have kernels; on others, fills go via host memory.
DEVICES = ("cpu", "cuda")

_is_cpu, _device = attrgetter("is_cpu"), attrgetter("device")

# Managed memory of at least this many bytes is filled by the CPU: filling it on the device would
# migrate all of it, and it may not fit.
LARGE = 1 << 26


def cpu_module() -> ModuleType:
    """The CPU module; RuntimeError if there is none."""
    if load.module is None:
        raise RuntimeError(f"torchinit has no native module: {load.reason}")
    return load.module


def cuda_module() -> ModuleType:
    """The CUDA module; RuntimeError if there is none."""
    if load.cuda is None:
        raise RuntimeError(f"torchinit has no CUDA module: {load.cuda_reason}")
    return load.cuda


def hold_while_forking(lock: Any) -> None:
    """Has every fork wait for a lock, so that a child finds nothing that it guards half-way."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )


@contextlib.contextmanager
def serial_if_forked() -> Iterator[None]:
    """Keeps torch's own operations on one thread in a forked child process.

    The parent's OpenMP threads do not exist there, and torch would wait for them forever.
    """
    if load.module is None or not load.module.is_forked():
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def extent_of(tensor: Tensor, bounds: Bounds | None = None) -> Extent:
    """The extent of a fill of a tensor; with bounds, as a box of a larger one."""
    if bounds is None and tensor.is_contiguous():
        return tensor.numel()
    return _box_of(tensor, bounds)


def _box_of(tensor: Tensor, bounds: Bounds | None) -> StridedBox:
    sizes = list(tensor.shape)
    if bounds is None:
        return sizes, list(tensor.stride()), sizes, [0] * len(sizes)
    return sizes, list(tensor.stride()), list(bounds[0]), list(bounds[1])


def run_fill(tensor: Tensor, draw: Numbers, key: int, extent: Extent) -> None:
    """Fills a tensor: at once in host memory, in the current stream on a device."""
    number, address = DTYPE_NUMBERS[tensor.dtype], tensor.data_ptr()
    if not tensor.is_cpu:
        _queue(tensor.device, [draw], [number], [key], [tensor], [address], [extent])
    elif isinstance(extent, int):
        cpu_module().fill(*_positional(draw, number), key, address, extent, torch.get_num_threads())
    else:
        cpu_module().fill_box(
            *_positional(draw, number), key, address, *extent, torch.get_num_threads()
        )


def _positional(draw: Numbers, dtype: int) -> tuple[int, int, float, float, float, float]:
    return (draw[0], dtype, *draw[1:])


def run_fills(
    draws: Sequence[Numbers],
    dtypes: Sequence[int],
    keys: Sequence[int],
    tensors: Sequence[Tensor],
    addresses: Sequence[int],
    extents: Sequence[Extent],
) -> None:
    """Fills many tensors together; those that overlap, in order.

    Args:
        draws, dtypes, keys, tensors, addresses, extents: one for each fill; dtypes are numbers.
    """
    if all(map(_is_cpu, tensors)):
        cpu_module().fill_list(draws, dtypes, keys, addresses, extents, torch.get_num_threads())
    else:
        columns = (draws, dtypes, keys, tensors, addresses, extents)
        for device in dict.fromkeys(map(_device, tensors)):
            chosen = [i for i, tensor in enumerate(tensors) if tensor.device == device]
            some: list[Any] = [[column[i] for i in chosen] for column in columns]
            if device.type == "cuda":
                _queue(device, *some)
            else:
                del some[3]
                cpu_module().fill_list(*some, torch.get_num_threads())
    count_writes(tensors)


def run_orthogonal(
    tensors: Sequence[Tensor] | Tensor,
    keys: Sequence[int],
    gain: float,
    bounds: Bounds | None = None,
) -> None:
    """Makes matrices over the flattening (shape[0], rest), or the same box of each, times gain.

    Args:
        tensors: of one shape, layout, dtype and device, without overlaps; or a stack of such.
        keys: one for each.
        gain: factor, finite.
        bounds: the position of each tensor in its matrix; None if it is the whole matrix.
    """
    like = tensors[0]
    if isinstance(tensors, Tensor):
        first, step = tensors.data_ptr(), tensors.stride(0) * tensors.element_size()
        addresses = [first + i * step for i in range(len(keys))]
    else:
        addresses = [tensor.data_ptr() for tensor in tensors]
    job = (DTYPE_NUMBERS[like.dtype], keys, addresses, *_box_of(like, bounds), gain)
    if like.is_cpu:
        cpu_module().fill_orthogonal(*job, torch.get_num_threads())
        return
    module = cuda_module()
    with torch.cuda.device(like.device):
        size = module.orthogonal_memory(*job)
        memory = torch.empty(size, dtype=torch.uint8, device=like.device)
        stream = torch.cuda.current_stream().cuda_stream
        module.fill_orthogonal(*job, memory.data_ptr(), stream)


class QuantisedFill(NamedTuple):
    """A fill of ``csrc/job/quantised_job.h``.

    Attributes:
        draw: the distribution and its parameters; None if there are values.
        dtype: that values are drawn in.
        key: of the draws.
        values: float32 values of the box extended to complete blocks, contiguous; or None.
        format: numbers of the format.
        largest: the largest magnitude of the tensor, if the format has a scale of it.
        matrix: rows and columns of the logical tensor's matrices.
        box: (first, count) of matrices, rows and columns.
        payload, scales: contiguous and plain, on one device; None if not wanted.
    """

    draw: Numbers | None
    dtype: torch.dtype
    key: int
    values: Tensor | None
    format: tuple[int, int, int, int, int]
    largest: float
    matrix: tuple[int, int]
    box: tuple[int, int, int, int, int, int]
    payload: Tensor | None
    scales: Tensor | None


def run_quantised(fill: QuantisedFill) -> None:
    """Fills payload and scales: at once in host memory, in the current stream on a device."""
    addresses = [0 if one is None else one.data_ptr() for one in (fill.payload, fill.scales)]
    values = 0 if fill.values is None else fill.values.data_ptr()
    number = DTYPE_NUMBERS[fill.dtype]
    arguments = (
        fill.draw, number, fill.key, values, fill.format, fill.largest, fill.matrix, fill.box,
        *addresses,
    )  # fmt: skip
    like = fill.scales if fill.payload is None else fill.payload
    if like is None or like.is_cpu:
        cpu_module().fill_quantised(*arguments, torch.get_num_threads())
        return
    with torch.cuda.device(like.device):
        cuda_module().fill_quantised(*arguments, torch.cuda.current_stream().cuda_stream)


def largest_magnitude(
    draw: Numbers, dtype: torch.dtype, key: int, count: int, device: torch.device
) -> float:
    """The largest magnitude of a full tensor of float32 or bfloat16 draws, found on a device."""
    numbers = draw, DTYPE_NUMBERS[dtype], key, count
    if device.type != "cuda":
        found: float = cpu_module().largest_magnitude(*numbers, torch.get_num_threads())
        return found
    with torch.cuda.device(device):
        memory = torch.zeros((), dtype=torch.float32, device=device)
        stream = torch.cuda.current_stream().cuda_stream
        cuda_module().largest_magnitude(*numbers, memory.data_ptr(), stream)
        return memory.item()


def count_write(tensor: Tensor) -> None:
    """Increases a tensor's version, as autograd requires of in-place operators."""
    if not tensor.is_inference():
        count_writes((tensor,))


def _queue(
    device: torch.device,
    draws: Sequence[Numbers],
    dtypes: Sequence[int],
    keys: Sequence[int],
    tensors: Sequence[Tensor],
    addresses: Sequence[int],
    extents: Sequence[Extent],
) -> None:
    """Queues fills on the device's current stream; large managed memory is filled at once."""
    module = cuda_module()
    columns = (draws, dtypes, keys, addresses, extents)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream()
        large: list[bool] = []
        # Cheap test first: a batch may have thousands of small tensors.
        if (
            max(tensor.nbytes for tensor in tensors) >= LARGE
            and not torch.cuda.is_current_stream_capturing()
        ):
            large = [
                tensor.nbytes >= LARGE and module.is_host_backed(address)
                for tensor, address in zip(tensors, addresses, strict=True)
            ]
        if not any(large):
            module.fill_list(*columns, stream.cuda_stream)
            return
        # After what the stream has queued, and in the order of the list.
        for i, on_host in enumerate(large):
            one = [column[i : i + 1] for column in columns]
            if on_host:
                stream.synchronize()
                cpu_module().fill_list(*one, torch.get_num_threads())
            else:
                module.fill_list(*one, stream.cuda_stream)
