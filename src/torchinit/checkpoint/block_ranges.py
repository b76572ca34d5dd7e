"""Quantised weights in files: payload and scales, of which threads fill any ranges in one pass.

A row of blocks is made at a time. What makes its payload makes its scales, which are kept until the
file has them; they come after the payload, so whoever writes them finds them made. Those that are
not, as of payload that an earlier run has written, are made alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.placement.box import Box
from torchinit.quantised.fill import Weight, fill_box, largest_of
from torchinit.quantised.formats import BlockFormat, whole_factor


class StoredDtypes(NamedTuple):
    """How a file stores the parts of a quantised weight.

    Attributes:
        payload, scales: their dtypes.
        inverse: whether the factor of the whole tensor is stored as its reciprocal.
    """

    payload: torch.dtype
    scales: torch.dtype
    inverse: bool


class QuantisedSource:
    """Makes a weight, or any of its blocks.

    Args:
        weigh: what it is filled with.
        dtypes: how it is stored.
    """

    def __init__(self, weigh: Callable[[], Weight], dtypes: StoredDtypes) -> None:
        self._weigh = weigh
        self.dtypes = dtypes
        self._found: tuple[Weight, float] | None = None
        self._lock = threading.Lock()

    def _weight(self) -> tuple[Weight, float]:
        """The weight, and its largest magnitude."""
        with self._lock:
            if self._found is None:
                weight = self._weigh()
                self._found = weight, largest_of(weight)
            return self._found

    def make(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of it: payload, scales and the factor of the whole tensor."""
        weight = self._weigh()
        form, shape, largest = weight.format, weight.shape, largest_of(weight)
        payload = torch.empty(form.payload_shape(shape), dtype=self.dtypes.payload)
        scales = torch.empty(form.scales_shape(shape), dtype=self.dtypes.scales)
        fill_box(weight, Box(shape, (0,) * len(shape)), shape, payload, scales, largest)
        bits = whole_factor(largest, inverse=self.dtypes.inverse)
        factor = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        return payload, scales, factor

    def fill_factor(self, memory: Tensor, first: int) -> None:  # noqa: ARG002
        """Fills one value with the factor of the whole tensor."""
        bits = whole_factor(self._weight()[1], inverse=self.dtypes.inverse)
        memory.view(torch.int32).fill_(bits)

    def fill(
        self, offset: Sequence[int], size: Sequence[int], payload: Tensor | None,
        scales: Tensor | None,
    ) -> None:  # fmt: skip
        """Fills a box, given in values, with its payload and the scales of its blocks."""
        weight, largest = self._weight()
        fill_box(weight, Box(weight.shape, offset), size, payload, scales, largest)


class BlockRange(NamedTuple):
    """The rows of blocks of a weight that a tensor of a file has, in order.

    Attributes:
        format: of the weight.
        shape: of the weight, in values.
        first: the first row of values, counted over all matrices.
        rows: of values here.
        begin: the first row of blocks, counted likewise.
        block_rows: how many there are.
    """

    format: BlockFormat
    shape: tuple[int, ...]
    first: int
    rows: int
    begin: int
    block_rows: int

    @property
    def payload_width(self) -> int:
        """Elements in a row of the payload."""
        return self.format.payload_shape(self.shape)[-1]

    @property
    def scales_width(self) -> int:
        """Scales in a row of blocks."""
        return self.format.scales_shape(self.shape)[-1]

    @property
    def blocks_a_matrix(self) -> int:
        """Rows of blocks in a matrix."""
        return -(-self.shape[-2] // self.format.rows)

    def scales_shape(self, held: Sequence[int]) -> tuple[int, ...]:
        """The shape of the scales of a view of a shape."""
        matrices = max(1, math.prod(held[:-2]))
        return *held[:-2], self.block_rows // matrices, self.scales_width

    def rows_of(self, begin: int, end: int) -> tuple[int, int]:
        """(begin, end) of the rows of values of some rows of blocks of one matrix.

        Rows of blocks are counted over all matrices, rows of values from the first one here.
        """
        matrix, block = divmod(begin, self.blocks_a_matrix)
        start = matrix * self.shape[-2] - self.first
        last = (block + end - begin) * self.format.rows
        return start + block * self.format.rows, start + min(last, self.shape[-2])

    def block_of(self, row: int) -> int:
        """The row of blocks that has a row of values, counted from the first one here."""
        matrix, inner = divmod(self.first + row, self.shape[-2])
        return matrix * self.blocks_a_matrix + inner // self.format.rows

    def stretches(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """(begin, end) of the rows of blocks with payload from one index to another.

        Neighbours in one matrix come together, but for those at the ends with other payload too.
        """
        width = self.payload_width
        begin, stop = self.block_of(first // width), self.block_of((end - 1) // width) + 1
        while begin < stop:
            after = begin + 1
            if self.rows_of(begin, after)[0] * width >= first:
                most = min(stop, (begin // self.blocks_a_matrix + 1) * self.blocks_a_matrix)
                is_cut = self.rows_of(begin, most)[1] * width > end
                after = max(after, most - is_cut)
            yield begin, after
            begin = after


def range_of(
    form: BlockFormat, shape: tuple[int, ...], held: Sequence[int], first: int, name: str
) -> BlockRange:
    """The rows of blocks that a view of a weight consists of.

    Args:
        form: of the weight.
        shape: of the weight, a matrix or several.
        held: the shape of the view, which is contiguous.
        first: index of its first value.
        name: of the tensor, for the error.

    Raises:
        ArgumentError: if it cuts blocks.
    """
    width, high = max(1, shape[-1]), max(1, shape[-2])
    rows = math.prod(held) // width
    start, after = first // width % high, (first // width + rows) % high
    is_cut = first % width or held[-1] != shape[-1] or start % form.rows or after % form.rows
    if is_cut or (len(held) > 1 and rows > high and (start or held[-2] != shape[-2])):
        raise ArgumentError(
            f"{name!r} is stored as values {first} to {first + math.prod(held)} of a parameter of "
            f"shape {shape}, which cuts blocks of {form}"
        )
    blocks = -(-high // form.rows)
    matrix, inner = divmod(first // width, high)
    begin = matrix * blocks + inner // form.rows
    matrix, inner = divmod(first // width + rows, high)
    end = matrix * blocks + inner // form.rows
    return BlockRange(form, shape, first // width, rows, begin, end - begin)


_NONE, _RUNNING, _MADE = range(3)


class RangeFiller:
    """Fills ranges of the payload and of the scales of some rows of blocks, from any thread."""

    def __init__(self, source: QuantisedSource, blocks: BlockRange) -> None:
        self._source = source
        self._blocks = blocks
        self._scales: Tensor | None = None  # of all rows of blocks
        self._states = bytearray(blocks.block_rows)
        self._left = blocks.block_rows * blocks.scales_width  # scales that no file has yet
        self._changed = threading.Condition()

    def fill_payload(self, memory: Tensor, first: int) -> None:
        """Fills a contiguous vector with the payload from an index on."""
        width, end = self._blocks.payload_width, first + memory.numel()
        for begin, after in self._blocks.stretches(first, end):
            low, high = (row * width for row in self._blocks.rows_of(begin, after))
            if first <= low and high <= end:
                self._make(begin, after, memory[low - first : high - first])
                continue
            made = torch.empty(high - low, dtype=memory.dtype)
            self._make(begin, after, made)
            start, stop = max(first, low), min(end, high)
            memory[start - first : stop - first] = made[start - low : stop - low]

    def fill_scales(self, memory: Tensor, first: int) -> None:
        """Fills a contiguous vector with the scales from an index on."""
        width, end = self._blocks.scales_width, first + memory.numel()
        begin, after = first // width, -(-end // width)
        with self._changed:
            while _RUNNING in self._states[begin:after]:
                self._changed.wait()
            lacking = [row for row in range(begin, after) if self._states[row] == _NONE]
            scales = self._memory()
        assert scales is not None
        for one, other in _runs(lacking):
            for low, high in self._matrices(self._blocks.begin + one, self._blocks.begin + other):
                self._make(low, high, None)
        memory.view(torch.uint8).copy_(scales.view(-1)[first:end].view(torch.uint8))
        with self._changed:
            self._left -= memory.numel()
            if not self._left:
                self._scales = None

    def _matrices(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Rows of blocks by the matrix that they are of."""
        step = self._blocks.blocks_a_matrix
        while begin < end:
            after = min(end, (begin // step + 1) * step)
            yield begin, after
            begin = after

    def _memory(self) -> Tensor | None:
        """Where scales are kept; None if the file has them all. Called with the lock held."""
        if self._scales is None and self._left:
            shape = self._blocks.block_rows, self._blocks.scales_width
            self._scales = torch.empty(shape, dtype=self._source.dtypes.scales)
        return self._scales

    def _make(self, begin: int, end: int, payload: Tensor | None) -> None:
        """Makes rows of blocks of one matrix: the scales, and payload if there is memory for it."""
        blocks = self._blocks
        here = slice(begin - blocks.begin, end - blocks.begin)
        with self._changed:
            scales = self._memory()
            claimed = [row for row in range(here.start, here.stop) if self._states[row] == _NONE]
            for row in claimed:
                self._states[row] = _RUNNING
        state = _NONE
        try:
            lead, width = blocks.shape[:-2], blocks.shape[-1]
            low, high = (blocks.first + row for row in blocks.rows_of(begin, end))
            matrix, row = divmod(low, blocks.shape[-2])
            index: list[int] = []
            for size in reversed(lead):
                matrix, one = divmod(matrix, size)
                index.insert(0, one)
            ones = [1] * len(lead)
            self._source.fill(
                (*index, row, 0), (*ones, high - low, width),
                None if payload is None else payload.view(*ones, high - low, -1),
                None if scales is None else scales[here].view(*ones, end - begin, -1),
            )  # fmt: skip
            state = _MADE
        finally:
            with self._changed:
                for row in claimed:
                    self._states[row] = state
                self._changed.notify_all()


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of runs of consecutive numbers."""
    begin = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            yield numbers[begin], numbers[place - 1] + 1
            begin = place
