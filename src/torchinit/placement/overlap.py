"""Whether tensors of one storage overlap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.native.torch_private import FakeTensor, storage_number


class _Bytes(NamedTuple):
    """The bytes that a tensor takes of its storage: runs at regular distances.

    Attributes:
        begin, end: of the first byte, and past the last one.
        run: bytes in each run.
        dims: (distance, count) of the runs, then of groups of them, innermost first.
        number: of the tensor.
    """

    begin: int
    end: int
    run: int
    dims: tuple[tuple[int, int], ...]
    number: int


def overlapping_anywhere(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """``overlapping`` of dense tensors of any storages; fake ones, which have none, never do."""
    by_storage: dict[int, list[int]] = {}
    for number, one in enumerate(tensors):
        if one.numel() and not isinstance(one, FakeTensor):
            by_storage.setdefault(storage_number(one), []).append(number)
    for numbers in by_storage.values():
        pair = overlapping([tensors[number] for number in numbers]) if len(numbers) > 1 else None
        if pair is not None:
            return numbers[pair[0]], numbers[pair[1]]
    return None


def overlapping(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """The numbers of two dense tensors of one storage that share memory; None if there are none.

    Exact for any strides. It takes as long as sorting the tensors; only where views with gaps lie
    among others does it also visit every element, as filling them all would.
    """
    found = sorted(_bytes_of(one, number) for number, one in enumerate(tensors) if one.numel())
    for together in _groups(found):
        pair = _in_runs([one for one in together if not one.dims])
        if pair is None and any(one.dims for one in together):
            pair = _by_marks(together)
        if pair is not None:
            return min(pair), max(pair)
    return None


def _bytes_of(tensor: Tensor, number: int) -> _Bytes:
    size = tensor.element_size()
    begin = int(tensor.storage_offset()) * size
    if tensor.is_contiguous():
        return _Bytes(begin, begin + tensor.nbytes, tensor.nbytes, (), number)
    run, end = size, begin + size
    dims: list[tuple[int, int]] = []
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    for distance, count in sorted((step * size, count) for step, count in steps):
        if count == 1 or distance == 0:
            continue
        end += distance * (count - 1)
        if not dims and distance == run:
            run *= count
        elif dims and distance == dims[-1][0] * dims[-1][1]:
            dims[-1] = (dims[-1][0], dims[-1][1] * count)
        else:
            dims.append((distance, count))
    return _Bytes(begin, end, run, tuple(dims), number)


def _groups(found: Sequence[_Bytes]) -> Iterator[list[_Bytes]]:
    """Groups of tensors whose ranges overlap; the tensors are sorted by their beginnings."""
    group: list[_Bytes] = []
    end = 0
    for one in found:
        if group and one.begin >= end:
            yield group
            group = []
        group.append(one)
        end = max(end, one.end)
    if group:
        yield group


def _in_runs(found: Sequence[_Bytes]) -> tuple[int, int] | None:
    """Two tensors that overlap, if none has gaps; they are sorted by their beginnings."""
    for one, other in itertools.pairwise(found):
        if other.begin < one.end:
            return one.number, other.number
    return None


def _by_marks(found: Sequence[_Bytes]) -> tuple[int, int] | None:
    """Two tensors that overlap, of any layout: each marks the memory that it takes."""
    begin, end = found[0].begin, max(one.end for one in found)
    unit = math.gcd(*(one.begin - begin for one in found), *(one.run for one in found))
    unit = math.gcd(unit, *(distance for one in found for distance, _ in one.dims))
    marks = torch.zeros((end - begin) // unit, dtype=torch.bool, device="cpu")
    views = [_view(marks, one, begin, unit) for one in found]
    for last, view in enumerate(views):
        if view.any():
            marks.zero_()
            view.fill_(True)
            first = next(number for number in range(last) if views[number].any())
            return found[first].number, found[last].number
        view.fill_(True)
    return None


def _view(marks: Tensor, one: _Bytes, begin: int, unit: int) -> Tensor:
    sizes = [one.run // unit, *(count for _, count in one.dims)]
    strides = [1, *(distance // unit for distance, _ in one.dims)]
    return marks.as_strided(sizes, strides, (one.begin - begin) // unit)
