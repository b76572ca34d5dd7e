"""Fills the parts of parameters: the elementwise ones in one call of the kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor

from torchinit import functional
from torchinit.fill.fill import fill, fill_list
from torchinit.fill.route import obstacle
from torchinit.orthogonal.orthogonal import fill_orthogonal
from torchinit.placement.box import Box
from torchinit.rules.part import Function, Kept, Matrix, Part, Region
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.keys import Stream, draw_key_number


def fill_parts(parts: Sequence[tuple[Tensor, Part]], streams: Sequence[Stream]) -> None:
    """Fills parts, each of a parameter.

    Args:
        parts: a parameter, and a part of it.
        streams: where the key of each is drawn from, or the key itself.

    Raises:
        ArgumentError, RuntimeError: as ``fill`` and ``fill_orthogonal``.
    """
    elementwise: list[tuple[Draw, Tensor, Stream, Box | None]] = []
    others: list[tuple[Tensor, Part, Stream]] = []
    for (tensor, part), stream in zip(parts, streams, strict=True):
        region, values = part
        if isinstance(values, Matrix | Call | Function | Tensor):
            others.append((tensor, part, stream))
        elif not isinstance(values, Kept):
            view = region.of(tensor)
            if region.offset is not None and obstacle(view):
                others.append((tensor, part, stream))  # torch knows no boxes
                continue
            elementwise.append((values, view, _usable(stream, view, values), region.box))
    if elementwise:
        fill_list(*zip(*elementwise, strict=True))
    wholes: dict[str, Tensor] = {}
    for tensor, part, stream in others:
        _fill_other(tensor, part, stream, wholes)


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
