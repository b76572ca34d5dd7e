"""Where a matrix that is formed in panels goes: all of it, or a box of it, in any memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from torchinit.dtypes import working_dtype
from torchinit.fill.fallback import copy_rounded
from torchinit.orthogonal.panels import Range
from torchinit.placement.box import Box, cut_out


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of at least two dimensions, flattened to a matrix."""
    return shape[0], math.prod(shape[1:])


def is_wide(shape: Sequence[int]) -> bool:
    """Whether a matrix is formed as the transpose of a tall one; square ones are."""
    rows, columns = matrix_shape(shape)
    return rows <= columns


class Target:
    """A tensor that holds a box of a logical matrix."""

    def __init__(self, tensor: Tensor, box: Box) -> None:
        """The tensor has elements."""
        self.tensor = tensor.detach()
        self.box = box
        self.wide = is_wide(box.global_shape)
        # The box within the tall matrix, if a view of the tensor has its rows and columns.
        self.view = self._as_tall()

    def columns(self) -> Range:
        """The columns of the tall matrix that the tensor has elements of, and those between."""
        if self.wide:
            return Range(self.box.offset[0], self.box.offset[0] + self.tensor.shape[0])
        sizes = self.box.global_shape[1:]
        ends = [
            first + size - 1 for first, size in zip(self.box.offset, self.tensor.shape, strict=True)
        ]
        return Range(_flat(self.box.offset[1:], sizes), _flat(ends[1:], sizes) + 1)

    def memory(self, panel: Range) -> Tensor | None:
        """A panel of the tall matrix in the tensor's own memory, if it can be formed there.

        That is, whole, in the working dtype, and columns after columns of a wide matrix's
        transpose, else rows after rows: products of other layouts round otherwise.
        """
        if self.view is None or self.tensor.dtype != working_dtype(self.tensor.dtype):
            return None
        _, column, view = self.view
        m = matrix_shape(self.box.global_shape)[1 if self.wide else 0]
        start = panel.start - column
        down, across = view.stride()
        if not (
            view.shape[0] == m
            and start >= 0
            and start + panel.size <= view.shape[1]
            and panel.size > 1
            and (down == 1 and across >= m if self.wide else across == 1 and down >= panel.size)
        ):
            return None
        return view[:, start : start + panel.size]

    def copy(self, panel: Range, values: Tensor) -> None:
        """Copies the tensor's part of a panel of the tall matrix."""
        if self.view is not None:
            row, column, view = self.view
            start, stop = max(panel.start, column), min(panel.stop, column + view.shape[1])
            part = values[row : row + view.shape[0], start - panel.start : stop - panel.start]
            copy_rounded(view[:, start - column : stop - column], part)
        elif self.wide:
            first, size = self.box.offset[0], self.tensor.shape[0]
            start, stop = max(panel.start, first), min(panel.stop, first + size)
            part = values.mT[start - panel.start : stop - panel.start]
            part = part.unflatten(1, list(self.box.global_shape[1:]))
            own = self.tensor[start - first : stop - first]
            copy_rounded(own, cut_out(part, (0, *self.box.offset[1:]), own.shape))
        else:
            first, size = self.box.offset[0], self.tensor.shape[0]
            for column, view in self._runs():
                start, stop = max(panel.start, column), min(panel.stop, column + view.shape[1])
                if start < stop:
                    part = values[first : first + size, start - panel.start : stop - panel.start]
                    copy_rounded(view[:, start - column : stop - column], part)

    def _as_tall(self) -> tuple[int, int, Tensor] | None:
        tensor, (shape, offset) = self.tensor, self.box
        if tensor.dim() > 2:
            # Columns are neighbours if at most the first of their dimensions is cut.
            if not tensor.is_contiguous() or tuple(tensor.shape[2:]) != tuple(shape[2:]):
                return None
            tensor = tensor.flatten(1)
        row, column = offset[0], offset[1] * math.prod(shape[2:])
        return (column, row, tensor.t()) if self.wide else (row, column, tensor)

    def _runs(self) -> Iterator[tuple[int, Tensor]]:
        """Neighbouring columns, with their first's number."""
        for index in itertools.product(*map(range, self.tensor.shape[1:-1])):
            place = [first + i for first, i in zip(self.box.offset[1:], (*index, 0), strict=True)]
            rows = self.tensor.movedim(0, -2)  # (..., rows, neighbours)
            yield _flat(place, self.box.global_shape[1:]), rows[index]


def _flat(index: Sequence[int], shape: Sequence[int]) -> int:
    flat = 0
    for i, size in zip(index, shape, strict=True):
        flat = flat * size + i
    return flat
