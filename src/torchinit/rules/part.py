"""A part: a region of a parameter, and what it is filled with under which name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, cast

from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.placement.box import Box
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import Draw

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


class Matrix(NamedTuple):
    """One (semi-)orthogonal matrix, times gain."""

    gain: float


class Function(NamedTuple):
    """A callable that fills the tensor it is given, and that nothing is known of."""

    function: Callable[[Tensor], object]


class Computed:
    """Values that follow from a computation.

    Attributes:
        in_boxes: whether any part of them can be made alone.
    """

    in_boxes = False

    def make(self) -> Tensor:
        """All of them, on the CPU."""
        raise NotImplementedError

    def make_box(self, offset: Sequence[int], into: Tensor) -> None:
        """Writes those from an index on, if they can be made in boxes."""
        raise NotImplementedError

    def describe(self) -> Iterator[bytes]:
        """What decides them, for two computations to be told apart by."""
        raise NotImplementedError


class Kept(NamedTuple):
    """What is there stays."""


# Values drawn one by one; a matrix; a function of torch.nn.init that is torch's everywhere (eye_,
# dirac_, sparse_); any other callable; values that follow from a computation, or that are there
# already; nothing.
Values: TypeAlias = Draw | Matrix | Call | Function | Computed | Tensor | Kept


def draw_in(values: Values) -> Draw | None:
    """The draw, if that is what the values are."""
    return cast(Draw, values) if type(values) is tuple else None


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
