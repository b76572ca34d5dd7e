"""Native or torch: the one place that decides, and can say why."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.parameter import Buffer, Parameter

from torchinit.dtypes import ALL_DTYPES
from torchinit.native import load
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.native.torch_private import (
    FakeTensor,
    dispatch_modes,
    dual_level,
    innermost_transform,
    is_functionalizing,
    is_zero,
    jit_trace,
)
from torchinit.placement.distributed import is_dtensor, local_of
from torchinit.schemes.schemes import find_scheme

# A subclass may hold its values anywhere (DTensor, quantised tensors), so only these are known. A
# FakeTensor reaches the operators' fake implementations.
PLAIN_TYPES = frozenset({Tensor, Parameter, Buffer})
KNOWN_TYPES = PLAIN_TYPES | {FakeTensor}

FLOAT_NUMBERS = {dtype: DTYPE_NUMBERS[dtype] for dtype in ALL_DTYPES}

# now: the kernel at once, or in the open batch; staged: the kernel in host memory, and a copy;
# operator: torch's dispatcher is to see the fill; nothing: there is no memory; torch: torch.nn.init
# serves; sharded: a DTensor, whose local tensor is filled by one of these roads.
Road = Literal["now", "staged", "operator", "nothing", "torch", "sharded"]


class Route(NamedTuple):
    """Who fills a tensor, and why.

    Attributes:
        kind: ``native``, by the kernels; ``staged``, by the kernels in host memory and copied;
            ``torch``, by ``torch.nn.init``.
        reason: in words.

    >>> import torch, torchinit
    >>> torchinit.which(torch.empty(3), "normal")
    Route(kind='native', reason='every condition is met')
    """

    kind: Literal["native", "staged", "torch"]
    reason: str


def which(tensor: Tensor, scheme: str) -> Route:
    """Returns which route a scheme takes for a tensor, and the reason in words.

    Args:
        tensor: the tensor to be filled; its contents do not matter.
        scheme: a name of ``InitializationType``, or ``eye`` or ``sparse``. The name of the function
            (``"normal_"``) will do.

    Raises:
        UnknownSchemeError: (a ``ValueError``) if there is no such scheme.

    >>> import torch, torchinit
    >>> torchinit.which(torch.empty(3, dtype=torch.complex64), "normal").kind
    'torch'
    """
    if is_dtensor(tensor):
        if scheme.rstrip("_") in ("eye", "dirac"):
            return Route("native", "what lies here of a DTensor is written by its place")
        route = which(local_of(tensor), scheme)
        if route.kind != "torch":
            return Route(route.kind, f"of what lies here of a DTensor: {route.reason}")
        return Route("torch", f"by way of a plain tensor of the whole: {route.reason}")
    if why := find_scheme(scheme).why_torch:
        return Route("torch", why)
    if why := obstacle(tensor):
        return Route("torch", why)
    if why := why_staged(tensor.device):
        return Route("staged", f"{why}: filled on the CPU and copied")
    return Route("native", "every condition is met")


def is_observed() -> bool:
    """Whether something wants to see operators: a mode, a tracer, a transform or a derivative."""
    return (
        dispatch_modes() != 0
        or innermost_transform() is not None
        or jit_trace() is not None
        or dual_level() >= 0
    )


def find_road(tensor: Tensor) -> Road:
    """Returns how a tensor is to be filled."""
    if type(tensor) not in KNOWN_TYPES and is_dtensor(tensor):
        return "sharded"
    if obstacle(tensor):
        if load.module is None and not _obstacle_of_kind(type(tensor), tensor.dtype, tensor.layout):
            load.warn_once()
        return "torch"
    if tensor.is_meta:
        return "nothing"
    if is_compiling():
        return "operator"
    if isinstance(tensor, FakeTensor):
        return "operator" if dispatch_modes() else "nothing"
    if is_observed() or is_functionalizing(tensor):
        return "operator"
    if why_staged(tensor.device):
        load.warn_once(tensor.device.type)
        return "staged"
    return "now"


def is_native_memory(tensor: Tensor) -> bool:
    """Returns whether a tensor is of plain memory that may be looked at."""
    return (
        not is_compiling()
        and type(tensor) in PLAIN_TYPES
        and tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and innermost_transform() is None
        and not is_functionalizing(tensor)
    )


def is_plain(tensor: Tensor) -> bool:
    """Returns whether a tensor is of floats in dense memory that torch's operations can write."""
    return (
        type(tensor) in KNOWN_TYPES
        and tensor.dtype in ALL_DTYPES
        and tensor.layout is torch.strided
        and tensor.device.type in ("cpu", "cuda")
        and not tensor.is_neg()
    )


def obstacle(tensor: Tensor) -> str:
    """Returns why neither kernels nor operators can serve a tensor; empty if they can.

    A DTensor is served always, if by way of a plain tensor of the whole.
    """
    if type(tensor) not in KNOWN_TYPES and is_dtensor(tensor):
        return ""
    if load.module is None:
        return load.reason
    why = _obstacle_of_kind(type(tensor), tensor.dtype, tensor.layout)
    if why or is_compiling():
        return why
    if tensor.is_neg():
        return "the tensor is a view with the negative bit set"
    if is_zero(tensor):
        return "the tensor stands for zeros and has no memory"
    return ""


def why_staged(device: torch.device) -> str:
    """Returns why tensors of a device are filled in host memory and copied; empty if not."""
    if device.type == "cuda":
        return load.why_no_cuda(device)
    if device.type in ("cpu", "meta"):
        return ""
    return f"device type {device.type} has no native kernels"


def _obstacle_of_kind(kind: type, dtype: torch.dtype, layout: torch.layout) -> str:
    if kind not in KNOWN_TYPES:
        return f"tensor subclass {kind.__name__} is not known"
    if dtype not in ALL_DTYPES:
        return f"dtype {dtype} is not one of the native ones"
    if layout is not torch.strided:
        return f"layout {layout} is not strided"
    return ""
