"""Fills what lies here of parts of parameters: of DTensors, and of plain shards."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from torchinit.fill.door import ElementwiseFill
from torchinit.fill.positional import PATTERNS
from torchinit.fill.sharded import begin_sharded, count_write
from torchinit.orthogonal import fill_orthogonal
from torchinit.placement.distributed import Sharded
from torchinit.rules.fragments import as_cuts, copy_fragments, copy_view, fragments_of, is_whole
from torchinit.rules.part import (
    Computed,
    Function,
    Kept,
    Matrix,
    Part,
    Region,
    Shape,
    Values,
    draw_in,
)
from torchinit.rules.whole import fill_whole
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.keys import Stream


def fill_sharded_part(
    tensor: Tensor, part: Part, stream: Stream, wholes: dict[str, Tensor]
) -> list[ElementwiseFill]:
    """Fills what lies here of a part of a DTensor; returns the fills of values drawn one by one."""
    region, values = part
    if isinstance(values, Kept) or tensor.is_meta:
        return []
    is_called = isinstance(values, Function) or _is_sparse(values)
    sharded, key, by_torch = begin_sharded(
        tensor,
        stream,
        is_random=is_called or takes_key(values),
        by_torch=is_called,
    )
    count_write(tensor, sharded.local)
    cut: Region | None = region
    strides = tuple(tensor.stride())
    if region.geometry is not None:
        cut = as_cuts(region, sharded.global_shape, strides)
    return fill_here(sharded, part, cut, key, wholes, strides, by_whole=by_torch)


def fill_here(
    sharded: Sharded,
    part: Part,
    cut: Region | None,
    key: Stream,
    wholes: dict[str, Tensor],
    strides: Shape | None = None,
    *,
    by_whole: bool = False,
) -> list[ElementwiseFill]:
    """Fills what lies here of a part.

    Args:
        sharded: what lies here of the parameter.
        part: of it.
        cut: the part's region as one of cuts alone; None if it is none.
        key: of the part; or where torch draws from, if that fills it.
        wholes: what was made as a whole before, by name; this one is added.
        strides: of the parameter; None if it is contiguous.
        by_whole: whether the whole is to be made, and cut.

    Returns:
        The fills of values drawn one by one, which are still to be done.
    """
    region, values = part
    by_shape = isinstance(values, Matrix | Call) and cut is not None and cut.shape != region.shape
    if cut is None or by_shape or by_whole or _is_made_whole(values):
        whole = values if isinstance(values, Tensor) else wholes.get(region.name)
        if whole is None:
            whole = torch.empty(
                region.shape, dtype=sharded.local.dtype, device=sharded.local.device
            )
            fill_whole(whole, values, key)
            if not isinstance(values, Computed):  # which are of one parameter each
                wholes[region.name] = whole
        if cut is None:
            copy_view(whole, sharded, region, strides)
        else:
            copy_fragments(whole.reshape(cut.shape), fragments_of(sharded, cut))
        return []
    fragments = fragments_of(sharded, cut)
    if isinstance(values, Computed):
        for view, box in fragments:
            values.make_box(box.offset, view.detach())
    elif isinstance(values, Matrix):
        for view, box in fragments:
            fill_orthogonal(view, values.gain, key, box)
    elif isinstance(values, Call):
        with torch.no_grad():
            for view, box in fragments:
                PATTERNS[values.name](view, box, **values.arguments)
    else:
        draw = cast(Draw, values)
        return [
            ElementwiseFill(draw, one.view, key, None if is_whole(one) else one.box)
            for one in fragments
        ]
    return []


def takes_key(values: Values) -> bool:
    """Whether values take a key: those of callables, and of ``sparse_``, draw what torch draws."""
    draw = draw_in(values)
    return isinstance(values, Matrix) or (draw is not None and draw[0] != CONSTANT)


def _is_sparse(values: Values) -> bool:
    return isinstance(values, Call) and values.name == "sparse_"


def _is_made_whole(values: Values) -> bool:
    """Whether values cannot be made for a part alone."""
    if isinstance(values, Computed):
        return not values.in_boxes
    return isinstance(values, Function | Tensor) or _is_sparse(values)
