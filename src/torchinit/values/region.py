"""A region of a parameter, and a part: a region with its values."""

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


def part_name(name: str, part: str) -> str:
    """The name that a part of a fused parameter has in an unfused model.

    The part's name replaces the component before ``weight`` or ``bias``, or else the last one.

    >>> part_name("layers.0.wqkv.weight", "wq")
    'layers.0.wq.weight'
    """
    atoms = name.split(".")
    atoms[-2 if len(atoms) > 1 and atoms[-1] in ("weight", "bias") else -1] = part
    return ".".join(atoms)


def check_whole(region: Region, what: str) -> None:
    """Raises ArgumentError if a scheme that cuts is given only a share of a logical tensor."""
    if region.offset is not None:
        raise ArgumentError(
            f"{what} cannot be used in Blocks with groups, which give it only a share"
        )
