"""The memory of quantised weights: payload, scales and the factor of the tensor, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchinit.errors import ArgumentError, counted, shown
from torchinit.fill import checks
from torchinit.fill.route import PLAIN_TYPES
from torchinit.native import load
from torchinit.native.torch_private import FakeTensor, innermost_transform
from torchinit.placement.box import Box, check_box
from torchinit.placement.distributed import Sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.placement.overlap import overlapping_anywhere
from torchinit.quantised.fill import Destination
from torchinit.quantised.formats import BlockFormat


def check_format(form: Any, scales: Any) -> None:
    """Raises TypeError or ArgumentError unless a format and its scales are what they should be."""
    if form is None and scales is None:
        return
    if form is None:
        raise ArgumentError("scales are given without a format, such as format=torchinit.MXFP8()")
    if not isinstance(form, BlockFormat):
        raise TypeError(
            f"format={form!r} must be MXFP8(), FP8Blocks() or NVFP4() of torchinit, not "
            f"{type(form).__name__}"
        )
    both = scales if isinstance(scales, tuple | list) else (scales,)
    if any(one is not None and not isinstance(one, Tensor) for one in both):
        raise TypeError(f"scales must be tensors, not {scales!r}")
    if isinstance(scales, tuple | list) and (len(scales) != 2 or not form.has_whole):
        needed = "a pair (of blocks, of the tensor)" if form.has_whole else "one tensor"
        raise ArgumentError(
            f"scales of {form} must be {needed}, not {counted(len(scales), 'tensor')}"
        )


def check_served() -> None:
    """Raises RuntimeError if something observes the fill, or there are no kernels."""
    if is_compiling() or innermost_transform() is not None:
        raise RuntimeError(
            "quantised weights are filled outside torch.compile, tracers and transforms only: call "
            "init_shard_ or init_model_ before"
        )
    if load.module is None:
        raise RuntimeError(f"quantised weights need torchinit's native module: {load.reason}")


def is_in_memory(tensor: Tensor) -> bool:
    """Whether there is memory to fill."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def destination_of(
    form: BlockFormat,
    payload: Tensor,
    scales: Tensor | Sequence[Tensor] | None,
    shape: tuple[int, ...],
    offset: tuple[int, ...],
) -> Destination:
    """A plain shard of payload and scales, checked.

    Args:
        form: the format.
        payload: of the shard.
        scales: of the blocks that it touches; with the factor of the whole tensor, a pair.
        shape: of the whole, in values.
        offset: of the shard, in values.

    Raises:
        ArgumentError, TypeError: if they cannot hold the format.
    """
    form.payload_shape(shape)
    size = form.values_shape(tuple(payload.shape))
    check_box(size, Box(shape, offset))
    if form.packed and payload.numel() and offset[-1] % 2:
        raise ArgumentError(
            f"offset={shown(list(offset))} is at an odd column, and {form} has two values in a byte"
        )
    blocks, whole = scales if isinstance(scales, tuple | list) else (scales, None)
    placed = None
    if blocks is not None:
        first, count = form.blocks_of(offset, size)
        if payload.numel() and tuple(blocks.shape) != count:
            raise ArgumentError(
                f"scales have shape {tuple(blocks.shape)}, and {form} has scales of shape {count} "
                f"for values of shape {size} at offset={shown(list(offset))}"
            )
        pieces = [ShardPiece((0,) * len(shape), first, count)] if payload.numel() else []
        placed = Sharded(blocks.detach(), form.scales_shape(shape), pieces)
    pieces = [
        ShardPiece((0,) * len(shape), _packed(form, offset), tuple(payload.shape))
    ] if payload.numel() else []  # fmt: skip
    to = Destination(Sharded(payload.detach(), form.payload_shape(shape), pieces), placed, whole)
    check_memory(form, "", to)
    return to


def _packed(form: BlockFormat, offset: Sequence[int]) -> tuple[int, ...]:
    return (*offset[:-1], offset[-1] // 2) if form.packed else tuple(offset)


def check_memory(form: BlockFormat, name: str, to: Destination) -> None:
    """Raises ArgumentError or TypeError unless memory can hold a format.

    Args:
        form: the format.
        name: of the weight, for errors; may be empty.
        to: where payload and scales go.
    """
    of = f" of {name!r}" if name else ""
    payload, whole = to.payload.local, to.whole
    _check_one(f"the payload{of}", payload, form, form.payload_dtypes)
    if to.scales is not None:
        _check_one(f"the scales{of}", to.scales.local, form, tuple(form.scale_dtypes))
    if whole is not None:
        _check_one(f"the factor{of} as a whole", whole, form, (torch.float32,))
        if whole.numel() != 1:
            raise ArgumentError(
                f"the factor{of} as a whole is one number, not a tensor of {tuple(whole.shape)}"
            )
    _check_together(f"the payload{of}", to.tensors, form)


def _check_together(what: str, tensors: Sequence[Tensor], form: BlockFormat) -> None:
    """Raises ArgumentError for tensors on several devices, or that overlap in memory."""
    devices = sorted({str(one.device) for one in tensors})
    if len(devices) > 1:
        raise ArgumentError(
            f"{what} and the scales of {form} are on {' and '.join(devices)}: move one"
        )
    if overlapping_anywhere([one for one in tensors if not one.is_meta]) is not None:
        raise ArgumentError(f"{what} and the scales in {form} share memory: give each its own")


def _check_one(what: str, tensor: Tensor, form: BlockFormat, dtypes: Sequence[torch.dtype]) -> None:
    if type(tensor) not in PLAIN_TYPES and not isinstance(tensor, FakeTensor):
        raise TypeError(f"{what} must be a plain tensor, not {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        said = " or ".join(str(dtype) for dtype in dtypes)
        raise TypeError(f"{what} in {form} is {said}, not {tensor.dtype}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"{what} must be strided, not {tensor.layout}")
    if tensor.numel() and is_in_memory(tensor):
        checks.check_target(tensor)
