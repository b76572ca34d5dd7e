"""Fills by ``torch.nn.init``, of tensors that neither kernels nor operators support."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init

from torchinit.dtypes import FLOAT8_DTYPES
from torchinit.placement.box import Box, cut_out
from torchinit.schemes.distributions import (
    CONSTANT,
    DISTRIBUTIONS,
    TRUNCATED_NORMAL,
    UNIFORM,
    Draw,
    parameters_of,
)
from torchinit.streams.keys import Stream


def fill_by_torch(draw: Draw, tensor: Tensor, stream: Stream, box: Box | None = None) -> None:
    """Fills a draw by its function of ``torch.nn.init``, from torch's own streams.

    A key becomes the seed of a generator. The values then do not depend on the layout, unlike
    torch's: a tensor that is not contiguous, or a box, is copied from a full tensor.
    """
    if draw[0] == CONSTANT:
        _fill(draw, tensor, None)
        return
    is_keyed = isinstance(stream, int | Tensor)
    stream = generator_of(stream, tensor.device)
    if box is None:
        in_place = not is_keyed or tensor.layout is not torch.strided or tensor.is_contiguous()
        if in_place:
            _fill(draw, tensor, stream)
            return
        box = Box(tensor.shape, (0,) * tensor.dim())
    whole = torch.empty(tuple(box.global_shape), dtype=tensor.dtype, device=tensor.device)
    _fill(draw, whole, stream)
    with torch.no_grad():
        tensor.copy_(cut_out(whole, box.offset, tensor.shape))


def generator_of(stream: Stream, device: torch.device) -> Generator | None:
    """The generator for a stream; a key becomes the seed of a new one."""
    if isinstance(stream, int | Tensor):
        return torch.Generator(device).manual_seed(int(stream) % 2**64)
    return stream


def _fill(draw: Draw, tensor: Tensor, generator: Generator | None) -> Tensor:
    if draw[0] == CONSTANT:
        if type(draw[1]) is float and draw[1] == 0:
            return call_torch(torch_init.zeros_, tensor)  # it supports more kinds of tensors
        return call_torch(torch_init.constant_, tensor, draw[1])
    row, parameters = DISTRIBUTIONS[draw[0]], parameters_of(draw)
    function = row.by_torch or getattr(torch_init, f"{row.name}_")
    if draw[0] == TRUNCATED_NORMAL:
        mean, std, a, b = parameters
        if std == 0:  # torch divides by it
            return call_torch(torch_init.constant_, tensor, min(max(mean, a), b))
        with warnings.catch_warnings():  # functional.py has warned already
            warnings.filterwarnings("ignore", message="mean is more than 2 std")
            return call_torch(function, tensor, *parameters, generator)
    below = parameters[1] if draw[0] == UNIFORM and parameters[0] < parameters[1] else None
    return call_torch(function, tensor, *parameters, generator, below=below)


def call_torch(
    function: Callable[..., Tensor], tensor: Tensor, *arguments: Any, below: float | None = None
) -> Tensor:
    """Calls a function of ``torch.nn.init``; for float8, which that refuses, on a float32 tensor.

    Args:
        function: fills its first argument.
        tensor: what to fill.
        arguments: the function's other arguments.
        below: a bound that float8 values must stay below when they are rounded.
    """
    if tensor.dtype not in FLOAT8_DTYPES or tensor.is_meta:
        return function(tensor, *arguments)
    single = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    return copy_rounded(tensor, function(single, *arguments), below)


def copy_rounded(tensor: Tensor, values: Tensor, below: float | None = None) -> Tensor:
    """Copies values of the working dtype into a tensor; float8 saturates.

    torch's own conversion, depending on its version, turns values beyond the range of float8 into
    NaN or infinity, or saturates.
    """
    if tensor.dtype in FLOAT8_DTYPES:
        limit = torch.finfo(tensor.dtype).max
        if below is not None:
            limit = min(limit, _largest_below(tensor.dtype, below))
        values = values.clamp(-torch.finfo(tensor.dtype).max, limit)
    with torch.no_grad():
        return tensor.copy_(values)


def _largest_below(dtype: torch.dtype, bound: float) -> float:
    """The largest value of a float8 dtype that is less than a bound within its range."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return float(values[values.isfinite() & (values < bound)].max())
