"""A region of a parameter, and a part: the region, and its values."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.placement.box import Box
from torchinit.values.kinds import Values

Shape: TypeAlias = tuple[int, ...]
# Sizes, strides and offset of a view of a parameter; None for the parameter as it is.
Geometry: TypeAlias = "tuple[Shape, Shape, int] | None"


class Region(NamedTuple):
    """Where a scheme is to put its values: a logical tensor, and what of it lies where.

    Attributes:
        name: whose key the values take.
        shape: of the logical tensor.
        stacked: how many dimensions at the front count matrices, and have no part in fans.
        cuts: (dim, start, length) of each ``narrow`` that leads from the parameter to the region.
        number: of the one matrix of a stack that the region is, if it is one.
        offset: index in the logical tensor of the region's first element; None if all of the
            logical tensor lies there.
        geometry: of the view of the parameter that everything else refers to.
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
        """The shape that fans are counted of."""
        return self.shape[self.stacked :]

    def of(self, tensor: Tensor) -> Tensor:
        """The region of a parameter, as a view."""
        if self.geometry is not None:
            sizes, steps, first = self.geometry
            tensor = tensor.as_strided(sizes, steps, int(tensor.storage_offset()) + first)
        for dim, start, length in self.cuts:
            tensor = tensor.narrow(dim, start, length)
        return tensor if self.number is None else tensor.select(0, self.number)

    @property
    def box(self) -> Box | None:
        """The region's place in its logical tensor."""
        return None if self.offset is None else Box(self.shape, self.offset)


class Part(NamedTuple):
    """A region and its values."""

    region: Region
    values: Values


def part_name(name: str, part: str) -> str:
    """The name that a part of a fused parameter has where it is not fused.

    The part's name replaces the atom before ``weight`` or ``bias``, or else the last one.

    >>> part_name("layers.0.wqkv.weight", "wq")
    'layers.0.wq.weight'
    """
    atoms = name.split(".")
    atoms[-2 if len(atoms) > 1 and atoms[-1] in ("weight", "bias") else -1] = part
    return ".".join(atoms)


def check_whole(region: Region, what: str) -> None:
    """Raises ArgumentError where a scheme that cuts is given a share of a logical tensor."""
    if region.offset is not None:
        raise ArgumentError(f"{what} cannot stand in Blocks with groups: there it gets a share")
