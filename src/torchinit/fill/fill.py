"""The door: every fill of values drawn one by one comes through here, and forks here alone.

``fill(draw, tensor, stream, box)`` is what the four questions come to: what values (schemes), which
stream of random words (streams), where in the logical tensor (placement). It is then done by the
kernel at once, collected by an open batch, done by an operator where torch wants to see one, or by
``torch.nn.init``.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Sequence
from operator import attrgetter
from sys import modules

from torch import Tensor, get_num_threads
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from torchinit.fill import checks, fallback, operators, staged
from torchinit.fill.batch import Batch, open_batch
from torchinit.fill.checks import LEAST_ADDRESS
from torchinit.fill.route import FLOAT_NUMBERS, PLAIN_TYPES, find_road
from torchinit.fill.sharded import fill_sharded
from torchinit.native import calls, load
from torchinit.native.numbers import DTYPE_NUMBERS
from torchinit.native.torch_private import (
    count_writes,
    dispatch_modes,
    dual_level,
    innermost_transform,
    jit_trace,
    level_is_known,
)
from torchinit.placement.box import Box, check_box
from torchinit.placement.distributed import FSDP, check_no_flat_piece
from torchinit.schemes.distributions import CONSTANT, DISTRIBUTIONS, Draw, check_draw
from torchinit.streams.keys import Stream, draw_key, draw_key_number, make_scratch

_dtype = attrgetter("dtype")


def fill(draw: Draw, tensor: Tensor, stream: Stream = None, box: Box | None = None) -> Tensor:
    """Fills a tensor in place, outside autograd; leaves meta tensors alone.

    Args:
        draw: the distribution and its parameters.
        tensor: any shape; a dtype, device or layout that is not native goes to ``torch.nn.init``.
            Of a DTensor what lies here is filled.
        stream: where the key is drawn from (a generator, or None for torch's default CPU
            generator), or the key itself. Constants draw none.
        box: the tensor's place in a larger logical one; None for a tensor that is whole. Where only
            ``torch.nn.init`` can fill, it fills the whole, and the box is copied from that.

    Returns:
        tensor.

    Raises:
        ArgumentError: parameters or a box that cannot be, or a tensor that cannot be written to.
            Nothing has been drawn or written then.
    """
    module = load.module
    if FSDP in modules and not is_dynamo_compiling():
        check_no_flat_piece(tensor)
    if (
        not is_dynamo_compiling()
        and module is not None
        and box is None
        and module.quick_fill(draw, tensor, stream)
    ):
        return tensor
    return _fill_by_road(draw, tensor, stream, box)


def fill_list(
    draws: Sequence[Draw],
    tensors: Sequence[Tensor],
    streams: Sequence[Stream],
    boxes: Sequence[Box | None] | None = None,
) -> None:
    """Fills many tensors as ``fill`` does each in turn, in one call of the kernels.

    Args:
        draws, tensors, streams, boxes: one for each fill; boxes may be None for whole tensors.

    Raises:
        ArgumentError, RuntimeError: as ``fill``. Of the native fills nothing has been written then.
    """
    with Batch(discards=True):
        for draw, tensor, stream, box in zip(
            draws, tensors, streams, boxes or [None] * len(tensors), strict=True
        ):
            fill(draw, tensor, stream, box)


def fill_fresh(draws: Sequence[Draw], tensors: Sequence[Tensor], keys: Sequence[int]) -> bool:
    """Fills tensors that the caller has just allocated: whole, contiguous, plain, nobody else's.

    What could be wrong with any other tensor is not asked; the draws have been checked.

    Args:
        draws, tensors, keys: one for each fill, all on one device; constants take no notice of
            their key, and are of type float.

    Returns:
        False if it cannot be done at once, and nothing is.
    """
    if not tensors:
        return True
    dtypes = list(map(_dtype, tensors))
    kinds = dict(zip(dtypes, tensors, strict=True)).values()
    if not all(find_road(tensor) == "now" for tensor in kinds):
        return False
    numbers = list(map(DTYPE_NUMBERS.__getitem__, dtypes))
    addresses, sizes = list(map(Tensor.data_ptr, tensors)), list(map(Tensor.numel, tensors))
    calls.fill_list(draws, numbers, keys, tensors, addresses, sizes)
    return True


def _fill_by_road(draw: Draw, tensor: Tensor, stream: Stream, box: Box | None) -> Tensor:
    road = find_road(tensor)
    if road == "torch":
        if box is not None:
            check_box(tensor.shape, box)
        return fallback.fill(draw, tensor, stream, box)
    if road == "now":
        return _fill_now(draw, tensor, stream, box)
    if road == "staged":
        return _fill_staged(draw, tensor, stream, box)
    if road == "nothing":
        check_draw(draw, tensor.dtype)
        return tensor
    if road == "sharded":
        if tensor.dtype in FLOAT_NUMBERS:
            check_draw(draw, tensor.dtype)
        fill_sharded(
            tensor,
            stream,
            lambda piece, key, place: fill(draw, piece, key, place),
            lambda whole, key: fill(draw, whole, key),
            is_random=DISTRIBUTIONS[draw[0]].is_random,
        )
        return tensor
    operators.fill(draw, tensor, lambda: draw_key(stream), box)
    return tensor


def _fill_now(draw: Draw, tensor: Tensor, stream: Stream, box: Box | None) -> Tensor:
    """Fills a tensor in memory of any layout, on any device that has kernels."""
    if box is not None:
        check_box(tensor.shape, box)
    collector = open_batch.get()
    number = DTYPE_NUMBERS[tensor.dtype]
    if collector is not None and collector.collect(draw, number, tensor, stream, box):
        return tensor
    check_draw(draw, tensor.dtype)
    checks.check_target(tensor)
    key = 0 if draw[0] == CONSTANT else draw_key_number(stream)
    place = calls.place_of(tensor, box)
    if tensor.numel():
        calls.fill(tensor, draw, key, place)
    calls.count_write(tensor)
    return tensor


def _fill_staged(draw: Draw, tensor: Tensor, stream: Stream, box: Box | None) -> Tensor:
    """Fills a tensor of a device without kernels, at once also where a batch is open."""
    if box is not None:
        check_box(tensor.shape, box)
    check_draw(draw, tensor.dtype)
    checks.check_writable(tensor)
    key = 0 if draw[0] == CONSTANT else draw_key_number(stream)
    if tensor.numel():
        staged.fill(draw, tensor, key, box)
    calls.count_write(tensor)
    return tensor


def _set_up_quick_fill() -> None:
    """Hands over to the native module what its quick path asks (csrc/python/quick_fill.h)."""
    if load.module is None:
        return
    load.module.set_up_quick_fill(
        {
            "plain_types": PLAIN_TYPES,
            "dtype_numbers": FLOAT_NUMBERS,
            "dispatch_modes": dispatch_modes,
            "innermost_transform": innermost_transform,
            "jit_trace": jit_trace,
            "dual_level": forward_ad if level_is_known else dual_level,
            "count_writes": count_writes,
            "get_num_threads": get_num_threads,
            "check_draw": check_draw,
            "draw_key_number": draw_key_number,
            "make_scratch": make_scratch,
            "open_batch": open_batch,
            "running_loop": _get_running_loop,
            "least_address": LEAST_ADDRESS,
        }
    )


_set_up_quick_fill()
