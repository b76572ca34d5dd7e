"""Looks at every element of a tensor for marks and NaN, and says how many there are and where."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchinit.check import marks
from torchinit.check.uninitialized import CANNOT_TELL, NAN, UNWRITTEN
from torchinit.placement.mesh import ShardPiece

_CHUNK = 1 << 18  # elements that are looked at together
_RARE = 1e-4  # one byte of one element holds both marks by chance in 1.5e-5 of cases


@dataclass(frozen=True)
class Left:
    """Elements of a tensor without values.

    Attributes:
        what: as in a row of ``Uninitialized``.
        count: how many.
        low, high: the first and the last index in each dimension.
        held: for each element in the order of memory, whether it holds its mark; None where one
            look is enough.
        rest: the sum of the other elements' bits, by which a second run is known to be the same.
    """

    what: str
    count: int
    low: tuple[int, ...]
    high: tuple[int, ...]
    held: Tensor | None = None
    rest: int = 0


def look_at(
    memory: Tensor,
    *,
    pairs: bool = False,
    again: bool = False,
    alone: bool = True,
    first: Left | None = None,
) -> list[Left]:
    """What is left of the marks of a tensor, and what else of it is NaN.

    Args:
        memory: plain and strided, of real numbers.
        pairs: whether its last dimension has the two parts of complex numbers, which are counted.
        again: whether the marks are those of a second run.
        alone: whether this look must decide. Otherwise every small integer counts that holds its
            mark, also by chance, and what is left has ``held`` for the second run.
        first: what was left in the first run, if this is after the second one.
    """
    once = marks.once(memory)
    is_large = once.numel() > _CHUNK
    if not is_large and marks.is_clear(once):
        return []
    search = _Search(once, pairs, again, alone, first)
    if is_large and not search.is_all_marked and marks.is_clear(once):
        return []
    found = search.left()
    return found if once is memory else [_expanded(left, once, memory) for left in found]


def _expanded(left: Left, once: Tensor, memory: Tensor) -> Left:
    """What is left, of a tensor that repeats its elements."""
    sizes = zip(left.high, once.shape, memory.shape, strict=False)
    high = tuple(last if size == whole else whole - 1 for last, size, whole in sizes)
    return replace(left, count=left.count * (memory.numel() // once.numel()), high=high)


class _Search:
    def __init__(
        self, memory: Tensor, pairs: bool, again: bool, alone: bool, first: Left | None
    ) -> None:
        self._dtype, self._again, self._first = memory.dtype, again, first
        self._rest = 0
        self._each = 2 if pairs else 1
        self._is_sure = marks.is_certain(memory.dtype)
        # Of integers, how many elements have to hold their marks together.
        self._together = 1 if self._is_sure or not alone else marks.WORD // memory.itemsize
        self._keeps = not self._is_sure and not alone and first is None
        # The elements in the order of memory; one without gaps is not copied.
        bits = memory.view(marks.BITS[memory.itemsize])
        dims, steps = range(memory.dim() - pairs), memory.stride()
        self._order = sorted(dims, key=lambda d: (-steps[d], d))
        order = [*self._order, *range(len(dims), memory.dim())]
        self._shape = [memory.shape[d] for d in self._order]
        begin = int(memory.storage_offset())
        is_dense = marks.is_dense(memory)
        if is_dense:
            size = memory.itemsize
            self._bits = marks.memory_of(memory, bits.dtype, begin * size, memory.numel())
        else:
            self._bits = bits.permute(order).reshape(-1)
        self._step = 0 if is_dense or self._is_sure else 1
        if self._step:
            self._marks = marks.expected_of(memory, again).permute(order).reshape(-1)
        else:
            few = min(_CHUNK, memory.numel())
            self._marks = marks.elements_of(memory.dtype, begin, few, again).to(memory.device)
        self._whole_words = self._step == 0 and begin * memory.itemsize % marks.WORD == 0

    def left(self) -> list[Left]:
        count = self._bits.numel()
        unwritten, nan = _Tally(self._shape), _Tally(self._shape)
        if self.is_all_marked:
            unwritten.add_range(0, count // self._each)
        else:
            self._look(unwritten, nan)
        kept = self._kept if unwritten.count and self._keeps else None
        is_byte = count * self._dtype.itemsize == 1 and not self._is_sure
        what = CANNOT_TELL if is_byte and self._together > 1 else UNWRITTEN
        is_other = self._first is not None and self._first.rest != self._rest
        if is_other and _may_be_chance(unwritten.count, count, self._dtype.itemsize):
            what = CANNOT_TELL
        found = [unwritten.left(what, self._order, kept, self._rest), nan.left(NAN, self._order)]
        return [one for one in found if one.count]

    @functools.cached_property
    def is_all_marked(self) -> bool:
        """Whether nothing was written, if that can be told at once."""
        bits = self._bits
        if self._keeps or self._first is not None:
            return False
        if bits.nbytes % marks.WORD or not self._whole_words:
            return False
        word = marks.word_of(self._dtype, self._again)
        words = bits.view(torch.int64)
        return bool(words[0] == word) and [int(one) for one in words.aminmax()] == [word, word]

    def _look(self, unwritten: _Tally, nan: _Tally) -> None:
        is_wide = self._dtype.is_floating_point and self._dtype.itemsize > 1
        kept = []
        before = True  # whether the elements before an incomplete word hold their marks
        for begin in range(0, self._bits.numel(), _CHUNK):
            bits = self._bits[begin : begin + _CHUNK]
            if is_wide and marks.is_clear(bits.view(self._dtype)):
                continue
            at = begin * self._step
            held = bits == self._marks[at : at + bits.numel()]
            within = held
            if self._first is not None and self._first.held is not None:
                within = self._first.held[begin : begin + _CHUNK].to(held.device)
                held &= within
            if self._keeps or self._first is not None:
                self._rest += int(bits[~within].sum(dtype=torch.int64))
            if self._keeps:
                kept.append(held.cpu())
            nans = marks.nans_of(bits, self._dtype)
            if nans is not None:
                self._add(nan, nans & ~held, begin)
            if self._together > 1:
                before = _only_together(held, self._together, before)
            self._add(unwritten, held, begin)
        self._kept = torch.cat(kept) if kept else None

    def _add(self, tally: _Tally, these: Tensor, begin: int) -> None:
        if self._each > 1:
            these = these.view(-1, self._each).any(1)
        tally.add(these, begin // self._each)


def _may_be_chance(held: int, count: int, itemsize: int) -> bool:
    """Whether so many elements may hold their marks after two runs that drew different values.

    By chance one in 2^(16 itemsize) holds both; the Poisson law has the probability of more.
    """
    mean = count / 2.0 ** (16 * itemsize)
    if not held or held > 20 + 10 * mean:
        return False
    term = math.exp(held * math.log(mean) - mean - math.lgamma(held + 1))
    total, number = 0.0, held
    while term > 0 and number < held + 1000:
        total, number = total + term, number + 1
        term *= mean / number
    return total > _RARE


def _only_together(held: Tensor, count: int, before: bool) -> bool:
    """Clears what is held alone: by chance 1 in 256 bytes holds its mark, but not eight in a row.

    Args:
        held: which elements hold their marks; changed.
        count: of elements in a row.
        before: whether the elements before these hold their marks.

    Returns:
        Whether the last of the complete rows do.
    """
    rows = held.numel() // count
    whole = held[: rows * count].view(rows, count)
    whole &= whole.all(1, keepdim=True)
    if rows:
        before = bool(whole[-1, 0])
    rest = held[rows * count :]
    rest &= rest.all() & before
    return before


def _rows(these: Tensor, before: int, size: int) -> Tensor:
    """A mask as rows of a dimension, of which it may begin and end within one."""
    after = -(before + these.numel()) % size
    if before or after:
        these = torch.nn.functional.pad(these, (before, after))
    return these.view(-1, size)


def _ends(these: Tensor) -> tuple[int, int]:
    """The first and the last index that a mask names, which names some."""
    bits = these.view(torch.uint8)
    return int(bits.argmax()), bits.numel() - 1 - int(bits.flip(0).argmax())


class _Tally:
    """Counts elements, and the smallest box that has them all; in the order of memory."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.count = 0
        self._shape = shape
        self._low = list(shape)
        self._high = [-1] * len(shape)

    def add(self, these: Tensor, begin: int) -> None:
        """Adds those that a mask of consecutive elements names."""
        count = int(these.sum())
        if count == these.numel():
            self.add_range(begin, begin + count)
        elif count:
            self.count += count
            for dim in reversed(range(len(self._shape))):
                size = self._shape[dim]
                begin, before = divmod(begin, size)
                if before + these.numel() <= size:
                    low, high = _ends(these)
                    self._include(dim, before + low, before + high)
                    these = these[low : low + 1]
                else:
                    rows = _rows(these, before, size)
                    self._include(dim, *_ends(rows.any(0)))
                    these = rows.any(1)

    def add_range(self, begin: int, end: int) -> None:
        """Adds consecutive elements."""
        self.count += end - begin
        first, last = begin, end - 1
        for dim in reversed(range(len(self._shape))):
            size = self._shape[dim]
            (first, low), (last, high) = divmod(first, size), divmod(last, size)
            self._include(dim, *((low, high) if first == last else (0, size - 1)))

    def _include(self, dim: int, low: int, high: int) -> None:
        self._low[dim] = min(self._low[dim], low)
        self._high[dim] = max(self._high[dim], high)

    def left(
        self, what: str, order: Sequence[int], held: Tensor | None = None, rest: int = 0
    ) -> Left:
        """What was counted, in the tensor's own order of dimensions."""
        back = [order.index(dim) for dim in range(len(order))]
        low, high = (tuple(side[i] for i in back) for side in (self._low, self._high))
        return Left(what, self.count, low, high, held, rest)


def index_of(
    left: Left, shape: Sequence[int], pieces: Sequence[ShardPiece] | None, local: Sequence[int]
) -> str:
    """The box of what is left as an index of the whole tensor; empty if it is all of it.

    Args:
        left: found in plain memory.
        shape: of the whole tensor.
        pieces: of a DTensor, of which the memory is the local tensor; none if its placements do not
            tell, and then the index is one of the local tensor.
        local: the shape of the memory.
    """
    box = [(low, high + 1) for low, high in zip(left.low, left.high, strict=True)]
    before = ""
    if pieces is not None and not pieces:
        shape, before = local, "local "
    elif pieces is not None:
        box = _in_whole(box, pieces)
    if left.count == math.prod(shape) or not box:
        return ""
    said = [
        ":" if (low, high) == (0, size) else f"{low}:{high}"
        for (low, high), size in zip(box, shape, strict=True)
    ]
    return "" if set(said) == {":"} else f"{before}[{', '.join(said)}]"


def _in_whole(
    box: Sequence[tuple[int, int]], pieces: Sequence[ShardPiece]
) -> list[tuple[int, int]]:
    found: list[list[tuple[int, int]]] = [[] for _ in box]
    for piece in pieces:
        sides = []
        for (low, high), start, offset, size in zip(box, *piece, strict=True):
            low, high = max(low, start), min(high, start + size)
            sides.append((low - start + offset, high - start + offset))
        if all(low < high for low, high in sides):
            for all_of, side in zip(found, sides, strict=True):
                all_of.append(side)
    return [(min(low for low, _ in some), max(high for _, high in some)) for some in found]
