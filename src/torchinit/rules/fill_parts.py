"""Fills the parts of parameters: the elementwise ones in one call of the kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Generator, Tensor

from torchinit.fill.door import ElementwiseFill, fill_all
from torchinit.fill.route import is_native
from torchinit.placement.box import cut_out
from torchinit.placement.distributed import is_dtensor
from torchinit.rules.here import fill_sharded_part
from torchinit.rules.part import Computed, Function, Kept, Matrix, Part, draw_in
from torchinit.rules.whole import fill_whole
from torchinit.schemes.calls import Call
from torchinit.streams.keys import Stream, draw_key_number


def fill_parts(parts: Sequence[tuple[Tensor, Part]], streams: Sequence[Stream]) -> None:
    """Fills parts, each of a parameter; of a DTensor, what lies here of each.

    Args:
        parts: a parameter, and a part of it.
        streams: where the key of each is drawn from, or the key itself.

    Raises:
        ArgumentError, RuntimeError: as ``fill`` and ``fill_orthogonal``.
    """
    elementwise: list[ElementwiseFill] = []
    others: list[tuple[Tensor, Part, Stream]] = []
    wholes: dict[str, Tensor] = {}
    for (tensor, part), stream in zip(parts, streams, strict=True):
        region, values = part
        if isinstance(values, Matrix | Call | Function | Computed | Tensor):
            others.append((tensor, part, stream))
        elif is_dtensor(tensor):
            elementwise += fill_sharded_part(tensor, part, stream, wholes)
        elif not isinstance(values, Kept):
            view = region.of(tensor)
            if region.offset is not None and not is_native(view):
                others.append((tensor, part, stream))  # torch makes the whole: once for all shares
                continue
            elementwise.append(ElementwiseFill(values, view, stream, region.box))
    if elementwise:
        fill_all(elementwise)
    for tensor, part, stream in others:
        if is_dtensor(tensor):
            fill_sharded_part(tensor, part, stream, wholes)
        else:
            _fill_other(tensor, part, stream, wholes)


def filling_order(parts: Sequence[Part]) -> list[int]:
    """The order in which ``fill_parts`` draws keys: values drawn one by one come first."""
    return sorted(range(len(parts)), key=lambda i: draw_in(parts[i].values) is None)


def streams_of(parts: Iterable[Part], generator: Generator | None) -> list[Stream]:
    """A stream for every part: shares of one logical tensor have one key."""
    shares = Counter(region.name for region, _ in parts if region.offset is not None)
    keys: dict[str, Stream] = {}
    streams: list[Stream] = []
    for region, values in parts:
        if region.name in shares and not isinstance(values, Kept):
            if region.name not in keys:
                keys[region.name] = draw_key_number(generator)
            streams.append(keys[region.name])
        else:
            streams.append(generator)
    return streams


def _fill_other(tensor: Tensor, part: Part, stream: Stream, wholes: dict[str, Tensor]) -> None:
    region, values = part
    view = region.of(tensor)
    if region.offset is None:
        fill_whole(view, values, stream)
        return
    # A share of a matrix: the matrix is formed once, and cut.
    whole = wholes.get(region.name)
    if whole is None:
        whole = wholes[region.name] = torch.empty(
            region.shape, dtype=tensor.dtype, device=tensor.device
        )
        fill_whole(whole, values, stream)
    with torch.no_grad():
        view.copy_(cut_out(whole, region.offset, view.shape))
