"""Native or torch: the one place that decides, and can say why."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._functorch import peek_interpreter_stack
from torch._subclasses.fake_tensor import FakeTensor
from torch.compiler import is_compiling
from torch.nn.parameter import Buffer, Parameter

from torchinit import native
from torchinit.dtypes import ALL_DTYPES

# Schemes with an operator of their own or made of such; the others are torch's everywhere.
NATIVE_SCHEMES = frozenset(
    {
        "uniform",
        "normal",
        "trunc_normal",
        "constant",
        "ones",
        "zeros",
        "xavier_uniform",
        "xavier_normal",
        "kaiming_uniform",
        "kaiming_normal",
        "orthogonal",
        "biased_normal",
    }
)
TORCH_SCHEMES = frozenset({"eye", "dirac", "sparse"})

# A subclass may hold its values anywhere (DTensor, quantised tensors), so only these are known. A
# FakeTensor reaches the operators' fake implementations.
_KNOWN_TYPES = frozenset({Tensor, Parameter, Buffer, FakeTensor})


class Path(NamedTuple):
    """Who fills a tensor, and why."""

    path: Literal["native", "torch"]
    reason: str


def which(tensor: Tensor, scheme: str) -> Path:
    """Returns which path a scheme takes for a tensor, and the reason in words.

    Args:
        tensor: the tensor to be filled; its contents do not matter.
        scheme: a name of ``InitializationType``, or ``eye`` or ``sparse``. The name of the function
            (``"normal_"``) will do.

    Raises:
        ValueError: if there is no such scheme.
    """
    name = scheme.rstrip("_")
    if name not in NATIVE_SCHEMES and name not in TORCH_SCHEMES:
        raise ValueError(
            f"scheme {scheme!r} is unknown, choose one of {sorted(NATIVE_SCHEMES | TORCH_SCHEMES)}"
        )
    if name in TORCH_SCHEMES:
        return Path("torch", f"{name} has no random fill worth a kernel: torch.nn.init serves it")
    obstacle = _obstacle(tensor)
    return Path("torch", obstacle) if obstacle else Path("native", "every condition is met")


def is_native(tensor: Tensor) -> bool:
    """Returns whether the operators serve a tensor."""
    if not is_compiling():
        kind = (type(tensor), tensor.dtype, tensor.layout, tensor.device)
        if kind in _native_kinds and not tensor.is_neg() and native.module is not None:
            return True
    return not _obstacle(tensor)


def is_plain(tensor: Tensor) -> bool:
    """Returns whether a tensor is of floats in dense memory that torch's operations can write."""
    return (
        type(tensor) in _KNOWN_TYPES
        and tensor.dtype in ALL_DTYPES
        and tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not tensor.is_neg()
    )


def is_direct(tensor: Tensor) -> bool:
    """Returns whether the kernel can be called at once for a tensor that is native.

    That is: its memory is at hand, and nothing (a tracer, a mode, a transform of functorch) wants
    to see the operator.
    """
    return (
        (tensor.is_cpu or tensor.is_cuda)
        and not is_compiling()
        and type(tensor) is not FakeTensor
        and _len_torch_dispatch_stack() == 0
        and peek_interpreter_stack() is None
    )


def _obstacle(tensor: Tensor) -> str:
    """Returns why the operators cannot serve a tensor; empty if they can."""
    if native.module is None:
        return native.reason
    obstacle = _obstacle_of_kind(type(tensor), tensor.dtype, tensor.layout, tensor.device.type)
    if obstacle or is_compiling():
        return obstacle
    _native_kinds.add((type(tensor), tensor.dtype, tensor.layout, tensor.device))
    return "the tensor is a view with the negative bit set" if tensor.is_neg() else ""


# Kinds of tensors that were found to be native: looking closer costs more than small fills.
_native_kinds: set[tuple[type, torch.dtype, torch.layout, torch.device]] = set()


def _obstacle_of_kind(
    kind: type, dtype: torch.dtype, layout: torch.layout, device_type: str
) -> str:
    if kind not in _KNOWN_TYPES:
        return f"tensor subclass {kind.__name__} is not known"
    if dtype not in ALL_DTYPES:
        return f"dtype {dtype} is not one of the native ones"
    if device_type == "cuda":
        if native.cuda is None:
            return native.cuda_reason
    elif device_type not in ("cpu", "meta"):
        return f"device type {device_type} has no native kernels"
    if layout is not torch.strided:
        return f"layout {layout} is not strided"
    return ""
