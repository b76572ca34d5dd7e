"""``eye_`` and ``dirac_`` of a box: values that depend only on position."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from torchinit.placement.box import Box


def fill_eye(tensor: Tensor, box: Box) -> None:
    """Fills a box of the identity matrix."""
    row, column = box.offset
    tensor.zero_()
    _ones(tensor, row - column)


def fill_dirac(tensor: Tensor, box: Box, groups: int) -> None:
    """Fills a box of a convolution's weight with the Dirac delta, as ``torch.nn.init.dirac_``."""
    tensor.zero_()
    first_row, first_column, *kernel = box.offset
    for size, offset in zip(box.global_shape[2:], kernel, strict=True):
        centre = size // 2 - offset
        if not 0 <= centre < tensor.shape[2]:
            return
        tensor = tensor.select(2, centre)
    rows = box.global_shape[0] // groups
    ones = min(rows, box.global_shape[1])
    width = min(tensor.shape[1], ones - first_column)
    if width <= 0:
        return
    for group in range(groups):
        begin = max(0, group * rows - first_row)
        end = min(tensor.shape[0], group * rows + ones - first_row)
        if begin < end:
            place = first_row + begin - group * rows
            _ones(tensor[begin:end, :width], place - first_column)


def _ones(matrix: Tensor, diagonal: int) -> None:
    if -matrix.shape[0] < diagonal < matrix.shape[1]:
        matrix.diagonal(diagonal).fill_(1)


# By the name of torch.nn.init's function, with whose arguments after the tensor they are called.
PATTERNS: dict[str, Callable[..., None]] = {"eye_": fill_eye, "dirac_": fill_dirac}
