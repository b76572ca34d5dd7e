"""A box: the part of a logical tensor that a tensor holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from torchinit.errors import ArgumentError, shown


class Box(NamedTuple):
    """The position of a tensor in a larger one, whose elements from ``offset`` on it holds.

    Attributes:
        global_shape: shape of the logical tensor.
        offset: index of the tensor's first element in it, one number a dimension.
    """

    global_shape: Sequence[int]
    offset: Sequence[int]


def check_box(shape: Sequence[int], box: Box) -> None:
    """Raises ArgumentError unless a tensor of this shape lies within the logical one."""
    global_shape, offset = box
    if not len(global_shape) == len(offset) == len(shape) or any(
        first < 0 or first + size > whole
        for first, size, whole in zip(offset, shape, global_shape, strict=True)
    ):
        raise ArgumentError(
            f"a box of shape {tuple(shape)} at offset={shown(list(offset))} does not lie within "
            f"global_shape={shown(list(global_shape))}"
        )


def cut_out(whole: Tensor, offset: Sequence[int], size: Sequence[int]) -> Tensor:
    """The view of a tensor from an index on, of the given size in each dimension."""
    for dim, (first, length) in enumerate(zip(offset, size, strict=True)):
        if length != whole.shape[dim]:
            whole = whole.narrow(dim, first, length)
    return whole
