"""Which parts of a logical tensor a device of a mesh holds, computed from numbers alone.

A pure function of shapes, the mesh's shape and placements: it uses nothing of ``torch.distributed``
and needs no process group.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

# Consecutive indices of a dimension: (first, count).
Interval: TypeAlias = tuple[int, int]


class Cut(NamedTuple):
    """How a dimension of a mesh cuts a tensor; None stands for one that does not (Replicate).

    Attributes:
        dim: the dimension of the tensor that is cut.
        split_factor: into how many parts mesh dimensions further right have already cut it
            (``_StridedShard``); 1 if none have.
    """

    dim: int
    split_factor: int = 1


class ShardPiece(NamedTuple):
    """A box of a logical tensor, and its position in the local tensor that holds it.

    Attributes:
        start: index of the box's first element in the local tensor.
        offset: index of the same element in the logical tensor.
        size: of the box.
    """

    start: tuple[int, ...]
    offset: tuple[int, ...]
    size: tuple[int, ...]


def pieces_of(
    global_shape: Sequence[int],
    mesh_shape: Sequence[int],
    coordinate: Sequence[int],
    cuts: Sequence[Cut | None],
) -> list[ShardPiece]:
    """The pieces that the device at a coordinate of a mesh holds: one in nearly every layout.

    A dimension that is cut more than once is cut in the order given by the split factors, as
    ``fully_shard`` over tensor parallelism stores it. Where they give none (placements that result
    from a view), it is cut from left to right, and a device may hold several intervals.

    Args:
        global_shape: of the logical tensor.
        mesh_shape: of the mesh.
        coordinate: of the device in the mesh.
        cuts: one for each dimension of the mesh.

    Returns:
        The pieces in the order of the logical tensor; none if the device holds no element.

    >>> pieces_of((5, 3), (2,), (1,), [Cut(0)])
    [ShardPiece(start=(0, 0), offset=(3, 0), size=(2, 3))]
    """
    return pieces_in(intervals_of(global_shape, mesh_shape, coordinate, cuts))


def pieces_in(held: Sequence[Sequence[Interval]]) -> list[ShardPiece]:
    """The pieces made by intervals of each dimension."""
    if all(len(intervals) == 1 for intervals in held):
        offset, size = zip(*(intervals[0] for intervals in held), strict=True) if held else ((), ())
        return [ShardPiece((0,) * len(held), offset, size)]
    placed = [_with_starts(intervals) for intervals in held]
    return [
        ShardPiece(*(tuple(numbers) for numbers in zip(*each, strict=True)))
        for each in itertools.product(*placed)
    ]


def intervals_of(
    global_shape: Sequence[int],
    mesh_shape: Sequence[int],
    coordinate: Sequence[int],
    cuts: Sequence[Cut | None],
) -> list[list[Interval]]:
    """The intervals of each dimension that the device holds, for ``pieces_of``; none is empty."""
    held: list[list[Interval]] = [[(0, size)] if size else [] for size in global_shape]
    for dim in {cut.dim for cut in cuts if cut is not None}:
        of_dim = [number for number, cut in enumerate(cuts) if cut is not None and cut.dim == dim]
        order = _order(of_dim, mesh_shape, cuts)
        if order is not None:
            for number in order:
                held[dim] = _chunk(held[dim], mesh_shape[number], coordinate[number])
            continue
        for number in of_dim:
            cut = cuts[number]
            assert cut is not None
            parts = (_chunk(held[dim], cut.split_factor, i) for i in range(cut.split_factor))
            chunks = (_chunk(part, mesh_shape[number], coordinate[number]) for part in parts)
            held[dim] = _merged(itertools.chain.from_iterable(chunks))
    return held


def local_shape_of(held: Sequence[Sequence[Interval]]) -> tuple[int, ...]:
    """The shape of a local tensor that holds these intervals of each dimension."""
    return tuple(sum(length for _, length in intervals) for intervals in held)


def _order(
    numbers: Sequence[int], mesh_shape: Sequence[int], cuts: Sequence[Cut | None]
) -> list[int] | None:
    """The order in which dimensions of the mesh cut a dimension of the tensor; None if unknown.

    A split factor is the product of the sizes of those further right that cut earlier.
    """
    order: list[int] = []
    for number in reversed(numbers):
        cut = cuts[number]
        assert cut is not None
        before = 1
        for place in range(len(order) + 1):
            if before == cut.split_factor:
                order.insert(place, number)
                break
            if place < len(order):
                before *= mesh_shape[order[place]]
        else:
            return None
    return order


def _chunk(intervals: Sequence[Interval], count: int, index: int) -> list[Interval]:
    """The part with this index of the `count` that ``torch.chunk`` would cut the indices into."""
    total = sum(length for _, length in intervals)
    step = -(-total // count)
    begin, end = min(index * step, total), min((index + 1) * step, total)
    found, before = [], 0
    for first, length in intervals:
        low, high = max(begin - before, 0), min(end - before, length)
        if low < high:
            found.append((first + low, high - low))
        before += length
    return found


def _merged(intervals: Iterable[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for first, length in intervals:
        if merged and merged[-1][0] + merged[-1][1] == first:
            merged[-1] = merged[-1][0], merged[-1][1] + length
        else:
            merged.append((first, length))
    return merged


def _with_starts(intervals: Sequence[Interval]) -> list[tuple[int, int, int]]:
    """(start in the local tensor, offset, length) of each interval."""
    placed, start = [], 0
    for first, length in intervals:
        placed.append((start, first, length))
        start += length
    return placed
