"""Fills the parts of parameters: the elementwise ones in one call of the kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
from torch import Generator, Tensor

from torchinit import functional
from torchinit.fill.fill import fill, fill_list
from torchinit.fill.patterns import fill_dirac, fill_eye
from torchinit.fill.route import obstacle
from torchinit.fill.sharded import begin_sharded, count_write
from torchinit.orthogonal.orthogonal import fill_orthogonal
from torchinit.placement.box import Box
from torchinit.placement.distributed import Sharded, is_dtensor
from torchinit.rules.fragments import as_cuts, copy_fragments, copy_view, fragments_of, is_whole
from torchinit.rules.part import Function, Kept, Matrix, Part, Region, Values, draw_in
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.keys import Stream, draw_key_number


def fill_parts(parts: Sequence[tuple[Tensor, Part]], streams: Sequence[Stream]) -> None:
    """Fills parts, each of a parameter; of a DTensor, what lies here of each.

    Args:
        parts: a parameter, and a part of it.
        streams: where the key of each is drawn from, or the key itself.

    Raises:
        ArgumentError, RuntimeError: as ``fill`` and ``fill_orthogonal``.
    """
    elementwise: list[_Fill] = []
    others: list[tuple[Tensor, Part, Stream]] = []
    wholes: dict[str, Tensor] = {}
    for (tensor, part), stream in zip(parts, streams, strict=True):
        region, values = part
        if is_dtensor(tensor):
            elementwise += _fill_sharded(tensor, part, stream, wholes)
        elif isinstance(values, Matrix | Call | Function | Tensor):
            others.append((tensor, part, stream))
        elif not isinstance(values, Kept):
            view = region.of(tensor)
            if region.offset is not None and obstacle(view):
                others.append((tensor, part, stream))  # torch makes the whole: once for all shares
                continue
            elementwise.append((values, view, _usable(stream, view, values), region.box))
    if elementwise:
        fill_list(*zip(*elementwise, strict=True))
    for tensor, part, stream in others:
        _fill_other(tensor, part, stream, wholes)


# A fill of values drawn one by one.
_Fill: TypeAlias = tuple[Draw, Tensor, Stream, Box | None]


def _fill_sharded(
    tensor: Tensor, part: Part, stream: Stream, wholes: dict[str, Tensor]
) -> list[_Fill]:
    """Fills what lies here of a part of a DTensor; returns the fills of values drawn one by one."""
    region, values = part
    if isinstance(values, Kept) or tensor.is_meta:
        return []
    sharded, key, by_torch = begin_sharded(tensor, stream, is_random=is_random(values))
    count_write(tensor, sharded.local)
    cut: Region | None = region
    if region.geometry is not None:
        cut = as_cuts(region, sharded.global_shape, tuple(tensor.stride()))
    return fill_here(sharded, part, cut, key, wholes, by_whole=by_torch)


def fill_here(
    sharded: Sharded,
    part: Part,
    cut: Region | None,
    key: Stream,
    wholes: dict[str, Tensor],
    *,
    by_whole: bool = False,
) -> list[_Fill]:
    """Fills what lies here of a part.

    Args:
        sharded: what lies here of the parameter.
        part: of it.
        cut: the part's region as one of cuts alone; None if it is none.
        key: of the part; or where torch draws from, if that fills it.
        wholes: what was made as a whole before, by name; this one is added.
        by_whole: whether the whole is to be made, and cut.

    Returns:
        The fills of values drawn one by one, which are still to be done.
    """
    region, values = part
    by_shape = isinstance(values, Matrix | Call) and cut is not None and cut.shape != region.shape
    if cut is None or by_shape or by_whole or _is_made_whole(values):
        whole = values if isinstance(values, Tensor) else wholes.get(region.name)
        if whole is None:
            whole = wholes[region.name] = torch.empty(
                region.shape, dtype=sharded.local.dtype, device=sharded.local.device
            )
            _fill_whole(whole, values, key)
        if cut is None:
            copy_view(whole, sharded, region)
        else:
            copy_fragments(whole.reshape(cut.shape), fragments_of(sharded, cut))
        return []
    fragments = fragments_of(sharded, cut)
    if isinstance(values, Matrix):
        for view, box in fragments:
            fill_orthogonal(view, values.gain, key, box)
    elif isinstance(values, Call):
        with torch.no_grad():
            for view, box in fragments:
                if values.name == "eye_":
                    fill_eye(view, box)
                else:
                    fill_dirac(view, box, values.arguments["groups"])
    else:
        draw = cast(Draw, values)
        return [(draw, one.view, key, None if is_whole(one) else one.box) for one in fragments]
    return []


def is_random(values: Values) -> bool:
    """Whether values take a key."""
    if isinstance(values, Matrix | Function):
        return True
    if isinstance(values, Call):
        return values.name == "sparse_"
    draw = draw_in(values)
    return draw is not None and draw[0] != CONSTANT


def _is_made_whole(values: Values) -> bool:
    """Whether values cannot be made for a part alone."""
    return isinstance(values, Function | Tensor) or (
        isinstance(values, Call) and values.name == "sparse_"
    )


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
        _fill_whole(view, values, stream)
        return
    # A share of a matrix: the matrix is formed once, and cut.
    whole = wholes.get(region.name)
    if whole is None:
        whole = wholes[region.name] = torch.empty(
            region.shape, dtype=tensor.dtype, device=tensor.device
        )
        _fill_whole(whole, values, stream)
    _copy_share(view, whole, region)


def _copy_share(view: Tensor, whole: Tensor, region: Region) -> None:
    for dim, (start, length) in enumerate(zip(region.offset or (), view.shape, strict=True)):
        whole = whole.narrow(dim, start, length)
    with torch.no_grad():
        view.copy_(whole)


def _fill_whole(view: Tensor, values: Any, stream: Stream) -> None:
    if isinstance(values, Matrix):
        fill_orthogonal(view, values.gain, _usable(stream, view))
    elif isinstance(values, Call):
        # sparse_ draws from torch's default generator alone, whatever it is given (torch 2.13).
        with seeded(stream if values.name == "sparse_" else None, view.device):
            getattr(functional, values.name)(view, **values.arguments)
    elif isinstance(values, Tensor):
        with torch.no_grad():
            view.copy_(values)
    elif isinstance(values, Function):
        values.function(view)
    else:
        fill(values, view, _usable(stream, view, values))


@contextmanager
def seeded(key: Stream, device: torch.device) -> Iterator[None]:
    """Seeds torch's default generators with a key within a block; does nothing without a key."""
    if not isinstance(key, int):
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


def _usable(stream: Stream, tensor: Tensor, draw: Draw | None = None) -> Stream:
    """A key as torch can use it where it is torch that fills: as the seed of a generator."""
    if not isinstance(stream, int) or (draw is not None and draw[0] == CONSTANT):
        return stream
    if tensor.is_meta or not obstacle(tensor):
        return stream
    return torch.Generator(tensor.device).manual_seed(stream)
