"""The values of a parameter or buffer: any range of them, without the rest where that can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

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
from torchinit.rules.fragments import as_cuts
from torchinit.rules.here import fill_here
from torchinit.rules.part import Part, Region, draw_in
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.named_keys import KeyOfName


class Values:
    """Values in the order of their logical index.

    Attributes:
        dtype: theirs.
        is_whole: whether they are made as a whole, by ``make``, and otherwise in any range.
    """

    is_whole = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def fill(self, memory: Tensor, first: int) -> None:
        """Fills a contiguous vector with the values from an index on."""
        raise NotImplementedError

    def make(self) -> Tensor:
        """All values, in new memory or memory that is there; in the shape of the parameter."""
        raise NotImplementedError


class Ready(Values):
    """Values that are there: of a buffer."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor.dtype)
        self.shape = tuple(tensor.shape)
        self._flat = tensor.detach().cpu().contiguous().view(-1)

    def fill(self, memory: Tensor, first: int) -> None:
        """Copies."""
        memory.copy_(self._flat[first : first + memory.numel()])

    def make(self) -> Tensor:
        """The tensor, flattened."""
        return self._flat


class Made(Values):
    """Values that can only be made together."""

    is_whole = True

    def __init__(self, dtype: torch.dtype, make: Callable[[], Tensor]) -> None:
        super().__init__(dtype)
        self._make = make

    def make(self) -> Tensor:
        """Makes them."""
        return self._make()


class Drawn(Values):
    """Values drawn one by one, and rows of padding.

    Args:
        one: with a draw of all of it.
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


class Assembled(Values):
    """Values of parts, each drawn one by one as a box of a logical tensor of its own.

    Args:
        one: whose parts are all drawn, and made of cuts.
        parts: its parts, and the keys of their names.
    """

    def __init__(self, one: Assignment, parts: Sequence[tuple[Part, int]]) -> None:
        super().__init__(one.dtype)
        self._shape = tuple(one.named.tensor.shape)
        self._parts = parts
        self._pads = one.pads

    def fill(self, memory: Tensor, first: int) -> None:
        """Fills the boxes that a range of the flattened parameter is made of."""
        done = 0
        fills: list[Any] = []
        for offset, size in boxes_of_range(self._shape, first, memory.numel()):
            count = math.prod(size)
            local = memory[done : done + count].view(size)
            here = Sharded(local, self._shape, [ShardPiece((0,) * len(size), offset, size)])
            for part, key in self._parts:
                fills += fill_here(here, part, part.region, key, {})
            done += count
        if fills:
            fill_all(fills)
        _zero_rows(memory, first, math.prod(self._shape[1:]), self._pads)


def _zero_rows(memory: Tensor, first: int, row: int, rows: Sequence[int]) -> None:
    for number in rows:
        begin, end = number * row - first, (number + 1) * row - first
        if end > 0 and begin < memory.numel():
            memory[max(begin, 0) : end].zero_()


def values_of(one: Assignment, key_of_name: KeyOfName, make: Callable[[], Tensor]) -> Values:
    """The values that a parameter was assigned.

    Args:
        one: of a plain parameter on the meta device.
        key_of_name: under the seed.
        make: makes all of them.
    """
    parts = _cut_parts(one)
    if parts is None or not _can_fill(one.dtype, parts):
        return Made(one.dtype, make)
    if one.draw is not None:
        return Drawn(one, _key(parts[0], key_of_name))
    return Assembled(one, [(part, _key(part, key_of_name)) for part in parts])


def _cut_parts(one: Assignment) -> list[Part] | None:
    """The parts of a parameter as drawn values of cuts; None if they are not."""
    tensor = one.named.tensor
    if one.draw is not None:
        return [Part(Region(one.named.name, tuple(tensor.shape)), one.draw)]
    if not one.parts or not tensor.is_contiguous():
        return None
    first = one.parts[0].region.geometry
    if first is not None and math.prod(first[0]) < tensor.numel():
        return None  # what they leave is found when all of it is made
    parts: list[Part] = []
    for region, values in one.parts:
        cut = region
        if region.geometry is not None:
            found = as_cuts(region, tuple(tensor.shape), tuple(tensor.stride()))
            if found is None:
                return None
            cut = found
        if draw_in(values) is None:
            return None
        parts.append(Part(cut, values))
    return parts


def _can_fill(dtype: torch.dtype, parts: Sequence[Part]) -> bool:
    """Whether the kernels fill any box of such values; torch makes the whole of what it draws."""
    if dtype not in ALL_DTYPES:
        return False
    return load.module is not None or all(_is_constant(part) for part in parts)


def _is_constant(part: Part) -> bool:
    draw = draw_in(part.values)
    return draw is not None and draw[0] == CONSTANT


def _key(part: Part, key_of_name: KeyOfName) -> int:
    return 0 if _is_constant(part) else key_of_name(part.region.name)
