"""A sum that tells the values of a tensor, and that those of its boxes add up to.

A value is taken as words of 16 bits (or one of 8). The sum is over all words of a tensor, each
times a weight that depends on its logical index, modulo 2^61 - 1: a universal hash (Carter and
Wegman, 1979). The weight is the product of one for the row and one for the column, where the
columns are the fewest last dimensions that have at least 1,024 values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from itertools import product
from operator import mul

import torch
from torch import Tensor

from torchinit.check.tensors_of import PlainPart
from torchinit.placement.box import cut_out
from torchinit.placement.mesh import ShardPiece
from torchinit.reporting.measure import CHUNK

PRIME = 2**61 - 1
_COLUMNS = 1024
# Columns at a time: fewer products of a word and a weight of 31 bits than an int64 has room for,
# and than torch uses threads for.
_MOST = 2**13 - 16
_TASK = 2**21  # values in a task of one thread


def sum_of(part: PlainPart, memory: Tensor, threads: Executor) -> tuple[int, int]:
    """The sum of what this process has of a tensor, and how many values that are.

    Args:
        part: of the tensor.
        memory: of the part.
        threads: share the work.
    """
    shape, pieces = part.shape, part.pieces
    if pieces is None:
        start = (0,) * len(shape)
        pieces = [ShardPiece(start, start, shape)]
    tail = memory.shape[len(shape) :]  # real and imaginary parts
    total = held = 0
    for piece in pieces:
        view, offset = cut_out(memory, piece.start, piece.size), (*piece.offset, *(0 for _ in tail))
        total += _sum_of_box(view, offset, (*shape, *tail), threads)
        held += math.prod(piece.size)
    return total % PRIME, held


def _sum_of_box(
    view: Tensor, offset: Sequence[int], shape: Sequence[int], threads: Executor
) -> int:
    """The sum of the weighted words of a tensor that lies at an offset in one of this shape."""
    cut = max((i for i in range(len(shape)) if math.prod(shape[i:]) >= _COLUMNS), default=0)
    size = view.shape
    matrix = view.reshape(math.prod(size[:cut]), math.prod(size[cut:]))

    def sum_of_task(task: tuple[range, range]) -> int:
        rows, columns = task
        of_rows = _mixed(_positions(rows, size[:cut], offset[:cut], shape[:cut]) - 2**62).tolist()
        at = _positions(columns, size[cut:], offset[cut:], shape[cut:])
        return _sum_of_rows(matrix[:, columns.start : columns.stop], rows, of_rows, at)

    step = max(_TASK // min(max(matrix.shape[1], 1), _MOST), 1)
    tasks = product(_ranges(len(matrix), step), _ranges(matrix.shape[1], _MOST))
    return sum(threads.map(sum_of_task, tasks))


def _sum_of_rows(matrix: Tensor, rows: range, of_rows: Sequence[int], columns: Tensor) -> int:
    """The sum over some rows of a matrix, with their weights, and the positions of the columns."""
    narrow, words = (
        (torch.uint8, 1) if matrix.itemsize == 1 else (torch.int16, matrix.itemsize // 2)
    )
    at = torch.stack([columns * words + word for word in range(words)], 1).view(-1)
    weights = ((_mixed(at) >> 33) & (2**31 - 1) | 1).to(matrix.device)
    sums: list[int] = []
    for some in matrix[rows.start : rows.stop].split(max(CHUNK // len(at), 1)):
        values = some.contiguous().view(narrow).long()
        sums += values.mul_(weights).sum(1).tolist()
    return sum(map(mul, of_rows, sums))


def _ranges(count: int, step: int) -> Iterator[range]:
    return (range(first, min(first + step, count)) for first in range(0, count, step))


def _positions(
    numbers: range, size: Sequence[int], offset: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """The flat indices in a tensor of this shape of some elements of a box, counted in the box."""
    left = torch.arange(numbers.start, numbers.stop, device="cpu")
    found, stride = torch.zeros_like(left), 1
    for length, first, whole in zip(reversed(size), reversed(offset), reversed(shape), strict=True):
        found += (left % length + first) * stride
        left, stride = left // length, stride * whole
    return found


def _mixed(numbers: Tensor) -> Tensor:
    """64 bits for each number (the finaliser of SplitMix64, but for signed shifts)."""
    mixed = (numbers + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    mixed = (mixed ^ (mixed >> 27)) * -0x6B2FB644ECCEEE15
    return mixed ^ (mixed >> 31)
