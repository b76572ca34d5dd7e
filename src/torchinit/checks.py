"""Checks of tensors and parameters: each raises before anything is written."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from torchinit import native
from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError

_LIMITS = {dtype: torch.finfo(dtype).max for dtype in ALL_DTYPES}


def check_target(tensor: Tensor) -> None:
    """What ``check_writable`` and ``check_memory`` do, quickly for the commonest tensors."""
    if tensor.is_contiguous() and not tensor.is_inference():
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.resizable():
            return
    check_writable(tensor)
    check_memory(tensor)


def check_writable(tensor: Tensor) -> None:
    """Raises ArgumentError if a dense tensor cannot take a value at every place, each its own.

    That is: an element of memory shared by two logical positions (an expanded tensor), an inference
    tensor outside ``torch.inference_mode``, or memory mapped read-only.
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
    """Raises ArgumentError if a dense tensor's memory was freed or is mapped read-only.

    The latter where it can be told. Only memory that torch did not allocate can be read-only, and
    such storages cannot be resized.
    """
    if native.module is None or isinstance(tensor, FakeTensor) or tensor.is_meta:
        return
    storage = tensor.untyped_storage()
    if storage.nbytes() == 0 and tensor.numel() > 0:
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} has no memory: its storage was resized to 0"
        )
    if (
        tensor.is_cpu
        and not storage.resizable()
        and not native.module.is_writable(tensor.data_ptr(), _extent(tensor))
    ):
        raise ArgumentError(
            f"tensor of shape {tuple(tensor.shape)} lies in memory mapped read-only: clone() it"
        )


def _overlaps(tensor: Tensor) -> bool:
    if tensor.is_contiguous() or tensor.numel() < 2:
        return False
    dims = sorted(
        (step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    )
    reach = 0  # the largest offset that the dimensions so far attain
    for stride, size in dims:
        if stride <= reach:
            break
        reach += stride * (size - 1)
    else:
        return False
    if dims[0][0] == 0 or tensor.numel() > 1 << 20:
        return True  # of large interleaved views we do not prove that they are safe
    offsets = torch.zeros((), dtype=torch.int64, device="cpu")
    for stride, size in dims:
        offsets = offsets.unsqueeze(-1) + torch.arange(size, device="cpu") * stride
    return int(offsets.unique().numel()) != tensor.numel()


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to past the last element in memory."""
    if tensor.is_contiguous():
        return tensor.numel() * tensor.element_size()
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def check_finite(**arguments: float) -> None:
    """Raises ArgumentError for the first argument that is NaN or infinite."""
    for name, value in arguments.items():
        if not -math.inf < value < math.inf:
            raise ArgumentError(f"{name}={value} must be a finite number")


def check_uniform(dtype: torch.dtype, a: float, b: float) -> None:
    """Raises ArgumentError unless [a, b) is an interval within the range of the dtype."""
    limit = _LIMITS[dtype]
    if -limit <= a <= b <= limit and b - a <= limit:
        return
    check_finite(a=a, b=b)
    if a > b:
        raise ArgumentError(f"a={a} must not be greater than b={b}")
    for name, value in (("a", a), ("b", b)):
        if not -limit <= value <= limit:
            raise ArgumentError(
                f"{name}={value} is out of the range of {dtype}, {-limit} to {limit}"
            )
    raise ArgumentError(f"the width of [a={a}, b={b}) exceeds the range of {dtype}, {limit}")


def check_normal(mean: float, std: float) -> None:
    """Raises ArgumentError unless mean is finite and std finite and not negative."""
    if -math.inf < mean < math.inf and 0 <= std < math.inf:
        return
    check_finite(mean=mean, std=std)
    raise ArgumentError(f"std={std} must not be negative")


def check_interval(a: float, b: float) -> None:
    """Raises ArgumentError unless a <= b, where a may be minus and b plus infinity."""
    if not a <= b or a == math.inf or b == -math.inf:
        raise ArgumentError(f"a={a} must not be greater than b={b}, and neither may be NaN")


def check_constant(dtype: torch.dtype, val: float) -> None:
    """Raises ArgumentError for a value out of the dtype's range; infinity is in most ranges."""
    limit = _LIMITS[dtype]
    if abs(val) > limit and (math.isfinite(val) or dtype == torch.float8_e4m3fn):
        raise ArgumentError(f"val={val} is out of the range of {dtype}, {-limit} to {limit}")
