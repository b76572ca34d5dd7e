"""A region of a parameter: as a view, as cuts, and its fragments in a local shard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from torchinit.fill.sharded import view_of
from torchinit.placement.box import Box, cut_out
from torchinit.placement.distributed import Sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.schemes.distributions import CONSTANT
from torchinit.streams.named_keys import KeyOfName
from torchinit.values.kinds import Values

Shape: TypeAlias = tuple[int, ...]
# Sizes, strides and offset of a view of a parameter; None for the parameter as it is.
Geometry: TypeAlias = "tuple[Shape, Shape, int] | None"


class Region(NamedTuple):
    """The elements of a parameter that a scheme fills, and their position in a logical tensor.

    Attributes:
        name: the name from which the key is derived.
        shape: of the logical tensor.
        stacked: the number of leading stack dimensions, which are excluded from fans.
        cuts: (dim, start, length) of each ``narrow`` that leads from the parameter to the region.
        number: the index of a matrix in a stack, if the region is one.
        offset: index of the region's first element in the logical tensor; None if the region is
            the full logical tensor.
        geometry: the view of the parameter to which all the other attributes refer.
    """

    name: str
    shape: Shape
    stacked: int = 0
    cuts: tuple[tuple[int, int, int], ...] = ()
    number: int | None = None
    offset: Shape | None = None
    geometry: Geometry = None

    @property
    def matrix_shape(self) -> Shape:
        """The shape from which fans are computed."""
        return self.shape[self.stacked :]

    def of(self, tensor: Tensor) -> Tensor:
        """The region as a view of a parameter."""
        if self.geometry is not None:
            sizes, steps, first = self.geometry
            tensor = tensor.as_strided(sizes, steps, int(tensor.storage_offset()) + first)
        for dim, start, length in self.cuts:
            tensor = tensor.narrow(dim, start, length)
        return tensor if self.number is None else tensor.select(0, self.number)

    @property
    def box(self) -> Box | None:
        """The region's box in its logical tensor; None if it is the full one."""
        return None if self.offset is None else Box(self.shape, self.offset)


class Part(NamedTuple):
    """A region and its values."""

    region: Region
    values: Values

    def key(self, key_of_name: KeyOfName) -> int:
        """The key of its values; constants have none."""
        draw = self.values.draw
        return 0 if draw and draw[0] == CONSTANT else key_of_name(self.region.name)


def part_name(name: str, part: str) -> str:
    """The name that a part of a fused parameter has in an unfused model.

    The part's name replaces the component before ``weight`` or ``bias``, or else the last one.

    >>> part_name("layers.0.wqkv.weight", "wq")
    'layers.0.wq.weight'
    """
    components = name.split(".")
    has_attribute = len(components) > 1 and components[-1] in ("weight", "bias")
    components[-2 if has_attribute else -1] = part
    return ".".join(components)


class Fragment(NamedTuple):
    """The elements of a region in one piece of a local shard.

    Attributes:
        view: a view of the local shard.
        box: its position in the region's logical tensor.
    """

    view: Tensor
    box: Box


def fragments_of(sharded: Sharded, region: Region) -> list[Fragment]:
    """The fragments of a region that is made of cuts; ``as_cuts`` converts views to those."""
    rank = len(sharded.global_shape)
    begin, size = [0] * rank, list(sharded.global_shape)
    for dim, start, length in region.cuts:
        begin[dim] += start
        size[dim] = length
    if region.number is not None:
        begin[0] += region.number
        size[0] = 1
    dropped = 0 if region.number is None else 1
    offset = region.offset or (0,) * (rank - dropped)
    found = []
    for piece in sharded.pieces:
        low = [max(b, o) for b, o in zip(begin, piece.offset, strict=True)]
        high = [
            min(b + s, o + e)
            for b, s, o, e in zip(begin, size, piece.offset, piece.size, strict=True)
        ]
        if any(a >= b for a, b in zip(low, high, strict=True)):
            continue
        starts = [s + a - o for s, a, o in zip(piece.start, low, piece.offset, strict=True)]
        held = tuple(b - a for a, b in zip(low, high, strict=True))
        view = view_of(sharded.local, ShardPiece(tuple(starts), tuple(low), held))
        if region.number is not None:
            view = view.select(0, 0)
        place = [o + a - b for o, a, b in zip(offset, low[dropped:], begin[dropped:], strict=True)]
        found.append(Fragment(view, Box(region.shape, place)))
    return found


def is_whole(fragment: Fragment) -> bool:
    """Whether a fragment is its full logical tensor."""
    return tuple(fragment.view.shape) == tuple(fragment.box.global_shape)


def as_cuts(region: Region, shape: Shape, strides: Shape) -> Region | None:
    """Converts a region with a geometry to one made of cuts, in the same order of elements.

    Args:
        region: the region of a view, as recorded.
        shape, strides: of the parameter.

    Returns:
        A region with the parameter's dimensions, in which dimensions dropped by the view have size
        1; None if cuts cannot express the view.
    """
    assert region.geometry is not None
    sizes, steps, first = region.geometry
    found = _range_of(sizes, steps, first, shape, strides) or _narrowed(
        sizes, steps, first, shape, strides
    )
    if found is None:
        return None
    begin, held = found
    cuts = tuple(
        (dim, begin[dim], held[dim]) for dim in range(len(shape)) if held[dim] != shape[dim]
    )
    return region._replace(shape=tuple(held), cuts=cuts, geometry=None)


_Found = tuple[Sequence[int], Sequence[int]]


def _range_of(
    sizes: Shape, steps: Shape, first: int, shape: Shape, strides: Shape
) -> _Found | None:
    """(begin, sizes) of a contiguous view that is a range along one dimension; None otherwise."""
    if not (_is_contiguous(sizes, steps) and _is_contiguous(shape, strides)):
        return None
    count = math.prod(sizes)
    begin, held = [0] * len(shape), [1] * len(shape)
    for dim, (size, stride) in enumerate(zip(shape, strides, strict=True)):
        if count % stride == 0 and first % stride == 0:
            begin[dim], held[dim] = first // stride, count // stride
            if begin[dim] + held[dim] > size:
                return None
            held[dim + 1 :] = shape[dim + 1 :]
            return begin, held
        begin[dim], first = divmod(first, stride)
    return None


def _narrowed(
    sizes: Shape, steps: Shape, first: int, shape: Shape, strides: Shape
) -> _Found | None:
    """(begin, sizes) of a view that narrows or selects dimensions in order; None otherwise."""
    begin, held = [0] * len(shape), [1] * len(shape)
    for dim in sorted(range(len(shape)), key=lambda dim: -strides[dim]):
        if shape[dim] > 1:
            begin[dim], first = divmod(first, strides[dim])
    after = 0
    for size, step in zip(sizes, steps, strict=True):
        if size == 1:
            continue
        dim = next((d for d in range(after, len(shape)) if strides[d] == step and shape[d] > 1), -1)
        if dim < 0:
            return None
        held[dim], after = size, dim + 1
    if first or any(b + h > s for b, h, s in zip(begin, held, shape, strict=True)):
        return None
    return begin, held


def _is_contiguous(sizes: Shape, steps: Shape) -> bool:
    expected = [math.prod(sizes[dim + 1 :]) for dim in range(len(sizes))]
    return all(
        size == 1 or step == dense for size, step, dense in zip(sizes, steps, expected, strict=True)
    )


def copy_fragments(whole: Tensor, fragments: Sequence[Fragment]) -> None:
    """Copies the values of fragments from a region's full tensor."""
    with torch.no_grad():
        for view, box in fragments:
            view.copy_(cut_out(whole, box.offset, view.shape))


def copy_view(
    values: Tensor, sharded: Sharded, region: Region, strides: Shape | None = None
) -> None:
    """Copies the values of any view of a parameter to its local shard.

    Args:
        values: the values of the view.
        sharded: the parameter's local shard.
        region: the region of the view.
        strides: of the parameter; None if it is contiguous.
    """
    shape, device = sharded.global_shape, values.device
    strides = torch.empty(shape, device="meta").stride() if strides is None else strides
    whole = torch.empty_strided(shape, strides, dtype=values.dtype, device=device)
    is_written = torch.empty_strided(shape, strides, dtype=torch.bool, device=device).zero_()
    with torch.no_grad():
        region.of(whole).copy_(values)
        region.of(is_written).fill_(True)
        for piece in sharded.pieces:
            view = view_of(sharded.local, piece)
            part, mask = (cut_out(each, piece.offset, piece.size) for each in (whole, is_written))
            view.copy_(torch.where(mask, part, view))
