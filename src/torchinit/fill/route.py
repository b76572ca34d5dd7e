"""The dispatch path of a tensor, with the reason in words.

Full tensors in plain host memory may take the quick path of ``csrc/python/quick_fill.cpp`` before,
under the conditions that select the kernels here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

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
from torchinit.schemes.init_table import find_scheme

# Other subclasses may hold their values anywhere (DTensor, quantised tensors). A FakeTensor reaches
# the operators' fake implementations.
PLAIN_TYPES = frozenset({Tensor, Parameter, Buffer})
KNOWN_TYPES = PLAIN_TYPES | {FakeTensor}

FLOAT_NUMBERS = {dtype: DTYPE_NUMBERS[dtype] for dtype in ALL_DTYPES}

_Path: TypeAlias = Literal["kernel", "via_host", "operator", "nothing", "torch", "sharded"]


class Ways(NamedTuple):
    """One function for each dispatch path of a kind of fill; all take the same arguments.

    Attributes:
        kernel: by a kernel in the tensor's own memory, at once or in the open batch.
        via_host: by a kernel in host memory, which is then copied to the device.
        operator: by an operator, because a compiler, tracer, transform or mode observes the fill.
        torch: by ``torch.nn.init``, because kernels do not support the tensor.
        sharded: a DTensor: piece by piece of the local tensor, each of which is dispatched again.
        nothing: there is no memory to fill.
    """

    kernel: Callable[..., object]
    via_host: Callable[..., object]
    operator: Callable[..., object]
    torch: Callable[..., object]
    sharded: Callable[..., object]
    nothing: Callable[..., object]


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
    """Returns the dispatch path of a scheme for a tensor, and the reason in words.

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
            return Route("native", "each rank writes its shard of a DTensor by position")
        route = which(local_of(tensor), scheme)
        if route.kind != "torch":
            return Route(route.kind, f"of a DTensor's local tensor: {route.reason}")
        return Route("torch", f"by way of the full tensor: {route.reason}")
    if why := find_scheme(scheme).why_torch:
        return Route("torch", why)
    if why := _unsupported_reason(tensor):
        return Route("torch", why)
    if why := via_host_reason(tensor.device):
        return Route("staged", f"{why}: filled on the CPU and copied")
    return Route("native", "every condition is met")


def dispatch(ways: Ways, tensor: Tensor, *arguments: Any) -> None:
    """Fills a tensor in the way for its dispatch path."""
    getattr(ways, _path_of(tensor))(tensor, *arguments)


def is_native(tensor: Tensor) -> bool:
    """Whether kernels or operators fill a tensor, and not ``torch.nn.init``; also a DTensor.

    Warns once if only the native module is missing.
    """
    return _path_of(tensor) != "torch"


def is_direct(tensor: Tensor) -> bool:
    """Whether a kernel writes a tensor's own memory and nothing observes the fill."""
    return _path_of(tensor) == "kernel"


def needs_operator(tensor: Tensor) -> bool:
    """Whether a compiler, tracer, transform or mode has to see the fill as an operator."""
    return _path_of(tensor) == "operator"


def _is_observed() -> bool:
    """Whether a mode, a tracer, a transform or forward-mode differentiation observes operators."""
    return (
        dispatch_modes() != 0
        or innermost_transform() is not None
        or jit_trace() is not None
        or dual_level() >= 0
    )


def _path_of(tensor: Tensor) -> _Path:
    if type(tensor) not in KNOWN_TYPES and is_dtensor(tensor):
        return "sharded"
    if _unsupported_reason(tensor):
        if load.module is None and not _unsupported_kind(type(tensor), tensor.dtype, tensor.layout):
            load.warn_once()
        return "torch"
    if tensor.is_meta:
        return "nothing"
    if is_compiling():
        return "operator"
    if isinstance(tensor, FakeTensor):
        return "operator" if dispatch_modes() else "nothing"
    if _is_observed() or is_functionalizing(tensor):
        return "operator"
    if via_host_reason(tensor.device):
        load.warn_once(tensor.device.type)
        return "via_host"
    return "kernel"


def is_native_memory(tensor: Tensor) -> bool:
    """Whether a tensor is strided, in plain memory that can be checked before it is filled."""
    return (
        not is_compiling()
        and type(tensor) in PLAIN_TYPES
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and innermost_transform() is None
        and not is_functionalizing(tensor)
    )


def _unsupported_reason(tensor: Tensor) -> str:
    """Why neither kernels nor operators can fill a tensor; empty if they can, as for DTensors."""
    if type(tensor) not in KNOWN_TYPES and is_dtensor(tensor):
        return ""
    if load.module is None:
        return load.reason
    why = _unsupported_kind(type(tensor), tensor.dtype, tensor.layout)
    if why or is_compiling():
        return why
    if tensor.is_neg():
        return "the tensor is a view with the negative bit set"
    if is_zero(tensor):
        return "the tensor stands for zeros and has no memory"
    return ""


def via_host_reason(device: torch.device) -> str:
    """Why tensors of a device are filled in host memory and copied; empty if they are not."""
    if device.type == "cuda":
        return load.why_no_cuda(device)
    if device.type in ("cpu", "meta"):
        return ""
    return f"device type {device.type} has no native kernels"


def _unsupported_kind(kind: type, dtype: torch.dtype, layout: torch.layout) -> str:
    if kind not in KNOWN_TYPES:
        return f"tensor subclass {kind.__name__} is not known"
    if dtype not in ALL_DTYPES:
        return f"dtype {dtype} is not one of the native ones"
    if layout is not torch.strided:
        return f"layout {layout} is not strided"
    return ""
