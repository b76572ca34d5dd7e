"""Fills payload and scales of a weight, or of any box of one, in one pass.

A block that the box cuts has the scale of the whole block: the rest of its values are made too, and
dropped, so nothing is communicated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.errors import ArgumentError
from torchinit.fill.batch import without_batch
from torchinit.fill.door import fill_all
from torchinit.fill.sharded import view_of
from torchinit.fill.via_host import dense_memory_for_kernels, largest_magnitude
from torchinit.native import kernels
from torchinit.placement.box import Box, cut_out
from torchinit.placement.distributed import Sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.quantised.formats import NVFP4, BlockFormat, whole_factor
from torchinit.schemes.distributions import NORMAL, TRUNCATED_NORMAL, Draw, law_of
from torchinit.streams.keys import Stream
from torchinit.values.apply import fill_local
from torchinit.values.kinds import GivenValues, Values
from torchinit.values.region import Part, Region, as_cuts

_STRIPE = 1 << 21  # float32 values that are made at a time where kernels do not draw them
_NORMAL_REACH = 6.5556  # standard deviations, which no normal of docs/streams.md exceeds


class Weight(NamedTuple):
    """What a weight is filled with.

    Attributes:
        format: of its payload and scales.
        shape: of the whole, in values.
        parts: that fill it; callables have been run.
        keys: one for each part.
    """

    format: BlockFormat
    shape: tuple[int, ...]
    parts: Sequence[Part]
    keys: Sequence[Stream]

    @property
    def draw(self) -> Draw | None:
        """The one draw of all of it, if there is one."""
        if len(self.parts) != 1:
            return None
        region, values = self.parts[0]
        is_all = region.shape == self.shape and not region.cuts and region.offset is None
        return values.draw if is_all and region.number is None and not region.geometry else None


def fill_box(
    weight: Weight, box: Box, size: Sequence[int], payload: Tensor | None, scales: Tensor | None,
    largest: float,
) -> None:  # fmt: skip
    """Fills a box of a weight; all has been checked.

    Args:
        weight: what to fill with.
        box: its shape and the offset of the box, in values.
        size: of the box, in values.
        payload: plain, with the box's payload; None if it is not wanted.
        scales: plain, with the scales of all blocks that the box touches; None likewise.
        largest: as ``largest_of``.
    """
    if not math.prod(size):
        return
    with (
        dense_memory_for_kernels(payload) as payload_,
        dense_memory_for_kernels(scales) as scales_,
        _disable_current_modes(),
    ):
        _fill_memory(weight, tuple(box.offset), tuple(size), payload_, scales_, largest)
    for one in (payload, scales):
        if one is not None:
            kernels.count_write(one)


def _fill_memory(
    weight: Weight, offset: tuple[int, ...], size: tuple[int, ...], payload: Tensor | None,
    scales: Tensor | None, largest: float,
) -> None:  # fmt: skip
    form, draw = weight.format, weight.draw
    numbers = form.numbers(None if scales is None else scales.dtype)
    key = weight.keys[0]
    full: dict[str, Tensor] = {}
    blocks = form.blocks_of(offset, size)[0]
    for run in _calls(weight, offset, size, _is_striped(weight)):
        payload_part, scales_part = payload, scales
        if payload is not None:
            there = [a - b for a, b in zip(run.offset, offset, strict=True)]
            size_ = form.payload_shape(run.size)
            payload_part = cut_out(payload, form.payload_shape(there), size_)
        if scales is not None:
            first, count = form.blocks_of(run.offset, run.size)
            there = [a - b for a, b in zip(first, blocks, strict=True)]
            scales_part = cut_out(scales, there, count)
        values = None
        if draw is None:
            values = _made(weight, run, payload if scales is None else scales, full)
        kernels.run_quantised(
            kernels.QuantisedFill(
                draw, form.source, int(key) if draw is not None and isinstance(key, int) else 0,
                values, numbers, largest, run.matrix, run.numbers, payload_part, scales_part,
            )
        )  # fmt: skip


class _Call(NamedTuple):
    """Consecutive matrices, or some rows of one, that one call fills."""

    offset: tuple[int, ...]
    size: tuple[int, ...]
    matrix: tuple[int, int]
    numbers: tuple[int, int, int, int, int, int]


def _calls(
    weight: Weight, offset: tuple[int, ...], size: tuple[int, ...], in_stripes: bool
) -> Iterator[_Call]:
    """Cuts a box into calls of the kernels."""
    shape = weight.shape
    lead = max(0, len(shape) - 2)
    whole = (shape[-2] if len(shape) > 1 else 1, shape[-1])
    # Matrices follow each other in one leading dimension, and in those after it that are complete.
    # Stripes are made of one matrix at a time.
    inner = lead if in_stripes else max(0, lead - 1)
    while not in_stripes and inner > 0 and size[inner] == shape[inner]:
        inner -= 1
    for index in itertools.product(*map(range, size[:inner])):
        begin = (*(a + b for a, b in zip(index, offset, strict=False)), *offset[inner:])
        held = (*[1] * inner, *size[inner:])
        matrices = math.prod(held[:lead])
        first = 0
        for dim in range(lead):
            first = first * shape[dim] + begin[dim]
        for row, rows in _stripes(weight, begin, held, in_stripes):
            start, some = (
                (begin, held) if len(shape) < 2
                else ((*begin[:-2], row, begin[-1]), (*held[:-2], rows, held[-1]))
            )  # fmt: skip
            numbers = (first, matrices, row, rows, begin[-1], held[-1])
            yield _Call(start, some, whole, numbers)


def _is_striped(weight: Weight) -> bool:
    """Whether kernels do not draw the values, and any rows of them can be made alone."""
    kinds = [part.values for part in weight.parts]
    return weight.draw is None and all(one.has_boxes and not one.is_orthogonal for one in kinds)


def _stripes(
    weight: Weight, offset: Sequence[int], size: Sequence[int], in_stripes: bool
) -> Iterator[tuple[int, int]]:
    """(first, count) of the rows that are made together: complete blocks, but at the ends."""
    begin, count = (offset[-2], size[-2]) if len(size) > 1 else (0, 1)
    end, one = begin + count, weight.format.rows
    step = max(1, _STRIPE // size[-1] // one) * one if in_stripes else end
    while begin < end:
        after = min(end, (begin // step + 1) * step)
        yield begin, after - begin
        begin = after


def _made(weight: Weight, run: _Call, like: Tensor | None, full: dict[str, Tensor]) -> Tensor:
    """Float32 values of a run, extended to complete blocks."""
    form, shape = weight.format, weight.shape
    offset, size = form.values_of(*form.blocks_of(run.offset, run.size), shape)
    made = torch.empty(size, dtype=form.source, device="cpu" if like is None else like.device)
    _fill_values(weight, made, offset, full)
    values = made.float()
    if not values.isfinite().all():
        raise ArgumentError(_not_finite(weight))
    return values


def _not_finite(weight: Weight) -> str:
    said = ", ".join(dict.fromkeys(str(part.values) for part in weight.parts))
    return (
        f"values are NaN or, in float32, infinite ({said}), and {weight.format} has no scales for "
        "them"
    )


def _fill_values(
    weight: Weight, tensor: Tensor, offset: Sequence[int], full: dict[str, Tensor]
) -> None:
    piece = ShardPiece((0,) * len(offset), tuple(offset), tuple(tensor.shape))
    sharded = Sharded(tensor, weight.shape, [piece])
    if any(part.region.geometry is not None for part in weight.parts):
        tensor.fill_(math.nan)  # recorded views may leave gaps, which is then an error
    for part, key in zip(weight.parts, weight.keys, strict=True):
        region: Region | None = part.region
        if part.region.geometry is not None:
            strides = torch.empty(weight.shape, device="meta").stride()
            region = as_cuts(part.region, weight.shape, strides)
        fill_all(fill_local(sharded, part, region, key, full))


def check_values(weight: Weight) -> None:
    """Raises ArgumentError for values that cannot be quantised, as far as is known before."""
    for part in weight.parts:
        values, is_finite = part.values, True
        if values.keeps:
            raise ArgumentError(
                f"'keep' cannot be the rule of a part of a weight in {weight.format}"
            )
        if values.draw is not None:
            bound = _bound_of(values)
            is_finite = bound is None or bound <= torch.finfo(torch.float32).max
        elif isinstance(values, GivenValues):
            is_finite = bool(values.tensor.float().isfinite().all())
        if not is_finite:
            raise ArgumentError(_not_finite(weight))


def largest_of(weight: Weight, device: torch.device | None = None) -> float:
    """The largest magnitude of a whole weight, or a bound of it, if the format asks for it.

    Args:
        weight: what is filled.
        device: to find it on; None is the CPU.
    """
    form = weight.format
    if not isinstance(form, NVFP4):
        return 0.0
    if not isinstance(form.amax, str):
        return float(form.amax)
    if form.amax == "law":
        bounds = [_bound_of(part.values) for part in weight.parts]
        if None not in bounds:
            return max(map(float, bounds), default=0.0)  # type: ignore[arg-type]
    return _measured(weight, device or torch.device("cpu"))


def _bound_of(values: Values) -> float | None:
    """The largest magnitude that a law allows; None if there is none."""
    if values.draw is not None:
        distribution, mean, std, low, high = values.draw
        if distribution == NORMAL:
            low, high = -math.inf, math.inf
        elif distribution != TRUNCATED_NORMAL:
            law = law_of(values.draw)
            return max(abs(law.low), abs(law.high))
        bound = max(abs(low), abs(high))
        if low <= mean <= high:
            bound = min(bound, abs(mean) + _NORMAL_REACH * std)
        return bound if bound < math.inf else None
    bounded = values.statistics((1, 1))
    if bounded is None or math.isinf(bounded.high - bounded.low):
        return None
    return max(-bounded.low, bounded.high)


def _measured(weight: Weight, device: torch.device) -> float:
    form, draw = weight.format, weight.draw
    count = math.prod(weight.shape)
    key = weight.keys[0]
    if draw is not None and isinstance(key, int):
        return largest_magnitude(draw, form.source, key, count, device)
    zeros, largest = (0,) * len(weight.shape), 0.0
    if not count:
        return largest
    full: dict[str, Tensor] = {}
    for run in _calls(weight, zeros, weight.shape, _is_striped(weight)):
        largest = max(largest, _made(weight, run, None, full).abs().max().item())
    return largest


class Destination(NamedTuple):
    """Where a weight's payload and scales go, on this rank.

    Attributes:
        payload: its memory and the pieces of the whole payload in it.
        scales: the same of the scales; None if they are not wanted.
        whole: where NVFP4's factor of the tensor goes.
        inverse: whether its reciprocal is stored.
    """

    payload: Sharded
    scales: Sharded | None = None
    whole: Tensor | None = None
    inverse: bool = False

    @property
    def tensors(self) -> list[Tensor]:
        """The memory of all."""
        found = self.payload.local, self.scales and self.scales.local, self.whole
        return [one for one in found if one is not None]


@without_batch()
def fill_weight(weight: Weight, to: Destination) -> None:
    """Fills what this rank holds of a weight; all has been checked.

    Raises:
        ArgumentError: for values that may be NaN or infinite.
    """
    with kernels.serial_if_forked():
        _fill_weight(weight, to)


def _fill_weight(weight: Weight, to: Destination) -> None:
    with _disable_current_modes():
        largest = largest_of(weight, to.payload.local.device)
    held, blocks = list(to.payload.pieces), list(to.scales.pieces) if to.scales else []
    for one in held:
        offset, size = map(weight.format.values_shape, (one.offset, one.size))
        scales = None
        touched = weight.format.blocks_of(offset, size)
        for scale_piece in blocks:
            if (scale_piece.offset, scale_piece.size) == touched:
                assert to.scales is not None
                scales = view_of(to.scales.local, scale_piece)
                blocks.remove(scale_piece)
                break
        payload = view_of(to.payload.local, one)
        fill_box(weight, Box(weight.shape, offset), size, payload, scales, largest)
    for scale_piece in blocks:
        assert to.scales is not None
        offset, size = weight.format.values_of(scale_piece.offset, scale_piece.size, weight.shape)
        view = view_of(to.scales.local, scale_piece)
        fill_box(weight, Box(weight.shape, offset), size, None, view, largest)
    if to.whole is not None:
        with torch.no_grad():
            to.whole.view(torch.int32).fill_(whole_factor(largest, inverse=to.inverse))
