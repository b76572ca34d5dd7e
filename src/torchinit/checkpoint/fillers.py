"""What fills a tensor of a checkpoint: any range of its values, without the rest where possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.dtypes import ALL_DTYPES
from torchinit.fill.door import fill, fill_all
from torchinit.models.assign import Assignment
from torchinit.models.init_shard import boxes_of_range
from torchinit.native import load
from torchinit.placement.box import Box
from torchinit.placement.distributed import Sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.named_keys import KeyOfName
from torchinit.values.apply import fill_local
from torchinit.values.region import Part, as_cuts


class Filler:
    """Fills memory with values of a parameter or buffer, in row-major order.

    Attributes:
        dtype: of the values.
        is_whole: whether the values can only be made all at once, by ``make``.
    """

    is_whole = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def fill(self, memory: Tensor, first: int) -> None:
        """Fills a contiguous vector with the values from an index on."""
        raise NotImplementedError

    def make(self) -> Tensor:
        """All values."""
        raise NotImplementedError


class CopyFiller(Filler):
    """Copies a tensor that is in memory: a buffer."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.dtype)
        self.shape = tuple(tensor.shape)
        self._flat = tensor.detach().cpu().contiguous().view(-1)

    def fill(self, memory: Tensor, first: int) -> None:
        """Copies a range."""
        memory.copy_(self._flat[first : first + memory.numel()])

    def make(self) -> Tensor:
        """The tensor, flattened."""
        return self._flat


class WholeFiller(Filler):
    """Values that can only be made all at once."""

    is_whole = True

    def __init__(self, dtype: torch.dtype, make: Callable[[], Tensor]) -> None:
        super().__init__(dtype)
        self._make = make

    def make(self) -> Tensor:
        """Makes them, in the shape of the parameter."""
        return self._make()


class DrawFiller(Filler):
    """Values drawn independently from one distribution, with zeros in padding rows.

    Args:
        one: assigns one draw to the whole parameter.
        key: of its name.
    """

    def __init__(self, one: Assignment, key: int) -> None:
        super().__init__(one.dtype)
        assert one.draw is not None
        self._draw: Draw = one.draw
        self._key = key
        shape = one.named.tensor.shape
        self._numel = math.prod(shape)
        self._row = math.prod(shape[1:])
        self._pads = one.pads

    def fill(self, memory: Tensor, first: int) -> None:
        """Fills a range of the flattened parameter."""
        fill(self._draw, memory, self._key, Box((self._numel,), (first,)))
        _zero_rows(memory, first, self._row, self._pads)


class PartsFiller(Filler):
    """Parts side by side, each drawn independently with its own key.

    Args:
        one: assigns draws to parts that are made of cuts.
        parts: the parts, and the keys of their names.
    """

    def __init__(self, one: Assignment, parts: Sequence[tuple[Part, int]]) -> None:
        super().__init__(one.dtype)
        self._shape = tuple(one.named.tensor.shape)
        self._parts = parts
        self._pads = one.pads

    def fill(self, memory: Tensor, first: int) -> None:
        """Fills the boxes that a range of the flattened parameter consists of."""
        done = 0
        fills: list[Any] = []
        for offset, size in boxes_of_range(self._shape, first, memory.numel()):
            count = math.prod(size)
            local = memory[done : done + count].view(size)
            here = Sharded(local, self._shape, [ShardPiece((0,) * len(size), offset, size)])
            for part, key in self._parts:
                fills += fill_local(here, part, part.region, key, {})
            done += count
        fill_all(fills)
        _zero_rows(memory, first, math.prod(self._shape[1:]), self._pads)


def _zero_rows(memory: Tensor, first: int, row: int, rows: Sequence[int]) -> None:
    for number in rows:
        begin, end = number * row - first, (number + 1) * row - first
        if end > 0 and begin < memory.numel():
            memory[max(begin, 0) : end].zero_()


def filler_of(one: Assignment, key_of_name: KeyOfName, make: Callable[[], Tensor]) -> Filler:
    """The filler of what a parameter was assigned.

    Args:
        one: of a plain parameter on the meta device.
        key_of_name: gives the key of a name under the seed.
        make: makes all values.
    """
    parts = _cut_parts(one)
    if parts is None or not _can_fill(one.dtype, parts):
        return WholeFiller(one.dtype, make)
    if one.draw is not None:
        return DrawFiller(one, parts[0].key(key_of_name))
    return PartsFiller(one, [(part, part.key(key_of_name)) for part in parts])


def _cut_parts(one: Assignment) -> list[Part] | None:
    """The parts of a parameter if all are cuts that are drawn independently; else None."""
    tensor = one.named.tensor
    if one.draw is not None:
        return list(one.all_parts)
    if not one.parts or not tensor.is_contiguous():
        return None
    first = one.parts[0].region.geometry
    if first is not None and math.prod(first[0]) < tensor.numel():
        return None  # values outside the parts are known only when all are made
    parts: list[Part] = []
    for region, values in one.parts:
        cut = region
        if region.geometry is not None:
            found = as_cuts(region, tuple(tensor.shape), tuple(tensor.stride()))
            if found is None:
                return None
            cut = found
        if values.draw is None:
            return None
        parts.append(Part(cut, values))
    return parts


def _can_fill(dtype: torch.dtype, parts: Sequence[Part]) -> bool:
    """Whether the kernels can fill any box of it. Without them torch draws it all at once."""
    if dtype not in ALL_DTYPES:
        return False
    return load.module is not None or all(_is_constant(part) for part in parts)


def _is_constant(part: Part) -> bool:
    draw = part.values.draw
    return draw is not None and draw[0] == CONSTANT


class FileTensor(NamedTuple):
    """A tensor of a checkpoint file: all of a parameter or buffer, or a view of it.

    Attributes:
        name: in the file.
        shape: in the file.
        filler: of the parameter or buffer.
        of: the name of the parameter or buffer.
        first: index of the view's first value in it.
        strides: of a view that is not contiguous, for which all values are made; else None.
    """

    name: str
    shape: tuple[int, ...]
    filler: Filler
    of: str
    first: int
    strides: tuple[int, ...] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self.filler.dtype

    @property
    def numel(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize

    @property
    def needs_whole(self) -> bool:
        """Whether all values of the parameter are made for it."""
        return self.numel > 0 and (self.filler.is_whole or self.strides is not None)
