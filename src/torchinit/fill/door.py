"""The door: every elementwise fill comes through here.

The arguments of ``fill(draw, tensor, stream, box)`` say what values (schemes), which stream of
random words (streams), and where in the logical tensor (placement). ``route.dispatch`` then chooses
a kernel, now or at the end of the open batch; an operator, if torch has to see one; or
``torch.nn.init``.
"""

from __future__ import annotations

from asyncio import _get_running_loop
from collections.abc import Iterable, Sequence
from operator import attrgetter
from sys import modules
from typing import NamedTuple

from torch import Tensor, get_num_threads
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

from torchinit.fill import checks, via_host
from torchinit.fill.batch import Batch, open_batch
from torchinit.fill.checks import LEAST_ADDRESS
from torchinit.fill.operators import fill_by_operator
from torchinit.fill.route import FLOAT_NUMBERS, PLAIN_TYPES, Ways, dispatch, is_direct
from torchinit.fill.sharded import fill_sharded
from torchinit.fill.torch_fallback import fill_by_torch
from torchinit.native import kernels, load
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
from torchinit.schemes.distributions import DISTRIBUTIONS, Draw, check_draw
from torchinit.streams.keys import Stream, draw_key, draw_key_number, make_scratch

_dtype = attrgetter("dtype")


class ElementwiseFill(NamedTuple):
    """The arguments of ``fill``, for lists of fills."""

    draw: Draw
    tensor: Tensor
    stream: Stream = None
    box: Box | None = None


def fill(draw: Draw, tensor: Tensor, stream: Stream = None, box: Box | None = None) -> Tensor:
    """Fills a tensor in place, outside autograd; leaves meta tensors alone.

    Args:
        draw: the distribution and its parameters.
        tensor: any shape; a dtype or layout that kernels do not support goes to ``torch.nn.init``.
            Of a DTensor this rank's part is filled.
        stream: where the key is drawn from (a generator, or None for torch's default CPU
            generator), or the key itself. Constants draw none.
        box: the tensor's position in a larger logical one; None for a full tensor. If only
            ``torch.nn.init`` can fill, it fills a full tensor, from which the box is copied.

    Returns:
        tensor.

    Raises:
        ArgumentError: invalid parameters, an impossible box, or a tensor that cannot be written to.
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
    dispatch(_WAYS, tensor, draw, stream, box)
    return tensor


def fill_all(fills: Iterable[ElementwiseFill]) -> None:
    """Fills many tensors as ``fill`` does each in turn, in one call of the kernels.

    Raises:
        ArgumentError, RuntimeError: as ``fill``. None of those that kernels fill has been written
            then.
    """
    with Batch(discards=True):
        for one in fills:
            fill(*one)


def fill_fresh(draws: Sequence[Draw], tensors: Sequence[Tensor], keys: Sequence[int]) -> bool:
    """Fills full tensors that the caller has just allocated, contiguous and not shared.

    They are not checked; the draws have been.

    Args:
        draws, tensors, keys: one for each fill, all on one device; the key of a constant is not
            used, and its value is a float.

    Returns:
        False, with nothing filled, if kernels cannot do it directly.
    """
    if not tensors:
        return True
    dtypes = list(map(_dtype, tensors))
    kinds = dict(zip(dtypes, tensors, strict=True)).values()
    if not all(map(is_direct, kinds)):
        return False
    numbers = list(map(DTYPE_NUMBERS.__getitem__, dtypes))
    addresses, sizes = list(map(Tensor.data_ptr, tensors)), list(map(Tensor.numel, tensors))
    kernels.run_fills(draws, numbers, keys, tensors, addresses, sizes)
    return True


def _fill_directly(tensor: Tensor, draw: Draw, stream: Stream, box: Box | None) -> None:
    batch = open_batch.get()
    _fill_memory(tensor, draw, stream, box, batch if batch and batch.collects(tensor) else None)


def _fill_via_host(tensor: Tensor, draw: Draw, stream: Stream, box: Box | None) -> None:
    _fill_memory(tensor, draw, stream, box, None)  # no batch collects it


def _fill_memory(
    tensor: Tensor, draw: Draw, stream: Stream, box: Box | None, batch: Batch | None
) -> None:
    """Fills a tensor in memory of any layout on any device, or has a batch collect it."""
    if box is not None:
        check_box(tensor.shape, box)
    check_draw(draw, tensor.dtype)
    if batch is None:
        checks.check_target(tensor)
    key = draw_key_number(stream) if DISTRIBUTIONS[draw[0]].is_random else 0
    if batch is None:
        via_host.write(draw, tensor, key, box)
    else:
        batch.collect(draw, tensor, key, box)


def _fill_seen(tensor: Tensor, draw: Draw, stream: Stream, box: Box | None) -> None:
    fill_by_operator(draw, tensor, lambda: draw_key(stream), box)


def _fill_unsupported(tensor: Tensor, draw: Draw, stream: Stream, box: Box | None) -> None:
    if box is not None:
        check_box(tensor.shape, box)
    fill_by_torch(draw, tensor, stream, box)


def _fill_dtensor(tensor: Tensor, draw: Draw, stream: Stream, _box: Box | None) -> None:
    if tensor.dtype in FLOAT_NUMBERS:
        check_draw(draw, tensor.dtype)
    fill_sharded(
        tensor,
        stream,
        lambda piece, key, box: fill(draw, piece, key, box),
        lambda full, key: fill(draw, full, key),
        is_random=DISTRIBUTIONS[draw[0]].is_random,
    )


def _check_alone(tensor: Tensor, draw: Draw, _stream: Stream, _box: Box | None) -> None:
    check_draw(draw, tensor.dtype)


_WAYS = Ways(
    kernel=_fill_directly,
    via_host=_fill_via_host,
    operator=_fill_seen,
    torch=_fill_unsupported,
    sharded=_fill_dtensor,
    nothing=_check_alone,
)


def _set_up_quick_fill() -> None:
    """Gives the native module the functions of its quick path (csrc/python/quick_fill.h)."""
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
