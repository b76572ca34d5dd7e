"""Checks of tensors before they are filled; each raises before anything is written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchinit.errors import ArgumentError
from torchinit.native import kernels, load
from torchinit.native.torch_private import FakeTensor, dual_level, is_zero

# On most systems memory is at higher addresses than this. A lower one may be an offset into a freed
# storage, and is checked.
LEAST_ADDRESS = 1 << 44


def is_ordinary(tensor: Tensor) -> bool:
    """Whether a tensor has writable memory that torch allocated."""
    storage = tensor.untyped_storage()
    return bool(storage.nbytes() and storage.resizable()) and not tensor.is_inference()


def check_target(tensor: Tensor) -> None:
    """``check_writable`` and ``check_memory``."""
    if tensor.is_contiguous() and is_ordinary(tensor) and not is_zero(tensor):
        return  # most are so
    check_writable(tensor)
    check_memory(tensor)


def check_writable(tensor: Tensor) -> None:
    """Raises ArgumentError unless every element of a dense tensor can be written on its own.

    Two positions that share memory (an expanded tensor) cannot, nor can an inference tensor outside
    ``torch.inference_mode``.
    """
    if _overlaps(tensor):
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()} has elements "
            "that share memory (expanded?), fill a tensor without overlaps: clone() it first"
        )
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} is an inference tensor and read-only outside "
            "torch.inference_mode(): fill it inside, or clone() it"
        )


def check_memory(tensor: Tensor) -> None:
    """Raises ArgumentError if a dense tensor's memory was freed, or is known to be read-only.

    Only memory that torch did not allocate can be read-only, and such storages are not resizable.
    """
    if isinstance(tensor, FakeTensor) or tensor.device.type not in kernels.DEVICES:
        return
    storage = tensor.untyped_storage()
    if tensor.numel() > 0 and (storage.nbytes() == 0 or tensor.data_ptr() == 0):
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} has no memory: its storage was resized to 0, "
            "or it stands for values that are not stored"
        )
    if (
        load.module is not None
        and tensor.is_cpu
        and not storage.resizable()
        and not load.module.is_writable(tensor.data_ptr(), extent(tensor))
    ):
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} lies in memory mapped read-only: clone() it"
        )


def file_behind(address: int) -> str:
    """The file that is written to with memory at an address; empty if there is none.

    Shared memory of processes is no such file.
    """
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.exists() else ():
        where, kind, _, _, _, *file = line.split(maxsplit=5)
        begin, _, end = where.partition("-")
        if int(begin, 16) <= address < int(end, 16):
            name = "".join(file)
            is_file = kind[3] == "s" and name.startswith("/")
            return name if is_file and not name.startswith(("/dev/", "/memfd:")) else ""
    return ""


def extent(tensor: Tensor) -> int:
    """Bytes from the first element to the end of the last one in memory; 0 without elements."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.numel() * tensor.element_size()
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def forget_tangent(tensor: Tensor) -> None:
    """Zeroes the tangent of a dual tensor of forward-mode differentiation.

    A fill depends on nothing, but operators without a derivative formula keep the old tangent.
    """
    if dual_level() >= 0:
        tangent = forward_ad.unpack_dual(tensor).tangent
        if tangent is not None:
            tangent.zero_()


def _overlaps(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    dims = sorted(
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    )
    reach = 0  # the largest offset within the dimensions so far
    for stride, size in dims:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    if dims[0][0] == 0 or tensor.numel() > 1 << 20:
        return True  # large interleaved views may be safe, but proving it would take too long
    with kernels.serial_if_forked():
        offsets = torch.zeros((), dtype=torch.int64, device="cpu")
        for stride, size in dims:
            offsets = offsets.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
        return int(offsets.unique().numel()) != tensor.numel()
