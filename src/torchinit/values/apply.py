"""Writes the values of parts, all independent draws in one call of the kernels.

Of a DTensor or a plain shard, only the local shard of each part is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from torchinit.fill.door import ElementwiseFill, fill_all
from torchinit.fill.route import is_native
from torchinit.fill.sharded import begin_sharded, count_write
from torchinit.placement.box import cut_out
from torchinit.placement.distributed import Sharded, is_dtensor
from torchinit.streams.keys import Stream, draw_key_number
from torchinit.values.kinds import Values
from torchinit.values.region import (
    Part,
    Region,
    Shape,
    as_cuts,
    copy_fragments,
    copy_view,
    fragments_of,
    is_whole,
)


def fill_parts(parts: Sequence[tuple[Tensor, Part]], streams: Sequence[Stream]) -> None:
    """Fills parts of parameters; of a DTensor, the local shard.

    Args:
        parts: pairs of a parameter and one of its parts.
        streams: the key of each part, or the generator to draw it from.

    Raises:
        ArgumentError, RuntimeError: as ``fill`` and ``fill_orthogonal``.
    """
    drawn: list[ElementwiseFill] = []
    others: list[tuple[Tensor, Part, Stream]] = []
    full: dict[str, Tensor] = {}
    for (tensor, part), stream in zip(parts, streams, strict=True):
        region, values = part
        if values.keeps:
            continue
        if values.draw is None:
            others.append((tensor, part, stream))
        elif is_dtensor(tensor):
            drawn += _fill_dtensor(tensor, part, stream, full)
        else:
            view = region.of(tensor)
            if region.offset is not None and not is_native(view):
                others.append((tensor, part, stream))  # torch fills all of it, once for all shares
                continue
            drawn.append(ElementwiseFill(values.draw, view, stream, region.box))
    fill_all(drawn)
    for tensor, part, stream in others:
        if is_dtensor(tensor):
            _fill_dtensor(tensor, part, stream, full)
        else:
            _fill_plain(tensor, part, stream, full)


def filling_order(parts: Sequence[Part]) -> list[int]:
    """The order in which ``fill_parts`` draws keys: independent draws come first."""
    return sorted(range(len(parts)), key=lambda i: parts[i].values.draw is None)


def streams_of(parts: Iterable[Part], generator: Generator | None) -> list[Stream]:
    """One stream for each part; shares of one full tensor have the same key."""
    shares = Counter(region.name for region, _ in parts if region.offset is not None)
    keys: dict[str, Stream] = {}
    streams: list[Stream] = []
    for region, values in parts:
        if region.name in shares and not values.keeps:
            if region.name not in keys:
                keys[region.name] = draw_key_number(generator)
            streams.append(keys[region.name])
        else:
            streams.append(generator)
    return streams


def _fill_plain(tensor: Tensor, part: Part, stream: Stream, full: dict[str, Tensor]) -> None:
    region, values = part
    view = region.of(tensor)
    if region.offset is None:
        values.fill(view, stream)
        return
    # A share of a full tensor, which is filled once and cut.
    whole = full.get(region.name)
    if whole is None:
        whole = full[region.name] = _full_tensor(values, region, tensor, stream)
    with torch.no_grad():
        view.copy_(cut_out(whole, region.offset, view.shape))


def _fill_dtensor(
    tensor: Tensor, part: Part, stream: Stream, full: dict[str, Tensor]
) -> list[ElementwiseFill]:
    """Fills the local shard of a part; returns the fills of values drawn independently."""
    region, values = part
    if values.keeps or tensor.is_meta:
        return []
    is_called = values.function is not None
    sharded, key, by_torch = begin_sharded(
        tensor,
        stream,
        is_random=is_called or values.takes_key,
        by_torch=is_called,
    )
    count_write(tensor, sharded.local)
    cut: Region | None = region
    strides = tuple(tensor.stride())
    if region.geometry is not None:
        cut = as_cuts(region, sharded.global_shape, strides)
    return fill_local(sharded, part, cut, key, full, strides, from_full=by_torch)


def fill_local(
    sharded: Sharded,
    part: Part,
    cut: Region | None,
    key: Stream,
    full: dict[str, Tensor],
    strides: Shape | None = None,
    *,
    from_full: bool = False,
) -> list[ElementwiseFill]:
    """Fills the local shard of a part.

    Args:
        sharded: the parameter's local shard.
        part: a part of the parameter.
        cut: the part's region expressed as cuts; None if that is impossible.
        key: the part's key, or the generator if torch fills it.
        full: cache of full tensors by name, to which this part's is added.
        strides: of the parameter; None if it is contiguous.
        from_full: whether to fill the full tensor and cut the shard from it.

    Returns:
        The part's fills of independent draws, still to be executed.
    """
    region, values = part
    other_shape = values.by_shape and cut is not None and cut.shape != region.shape
    if cut is None or other_shape or from_full or not values.has_boxes:
        whole = full.get(region.name)
        if whole is None:
            whole = _full_tensor(values, region, sharded.local, key)
            if values.is_shared:
                full[region.name] = whole
        if cut is None:
            copy_view(whole, sharded, region, strides)
        else:
            copy_fragments(whole.reshape(cut.shape), fragments_of(sharded, cut))
        return []
    fragments = fragments_of(sharded, cut)
    if values.draw is not None:
        draw = values.draw
        return [
            ElementwiseFill(draw, one.view, key, None if is_whole(one) else one.box)
            for one in fragments
        ]
    for view, box in fragments:
        values.fill_box(view, box, key)
    return []


def _full_tensor(values: Values, region: Region, like: Tensor, stream: Stream) -> Tensor:
    made = torch.empty(region.shape, dtype=like.dtype, device=like.device)
    values.fill(made, stream)
    return made
