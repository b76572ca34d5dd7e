"""A box: the part of a logical tensor that a tensor holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    for name, given in (("global_shape", global_shape), ("offset", offset)):
        if len(given) != len(shape):
            raise ArgumentError(
                f"{name}={shown(list(given))} must have one number for each of the {len(shape)} "
                f"dimensions of a tensor of shape {tuple(shape)}"
            )
    if any(
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


def boxes_of_range(
    shape: Sequence[int], first: int, count: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(offset, size) of the boxes that make up a range of a flattened tensor, in order.

    >>> list(boxes_of_range((3, 4), 2, 7))
    [((0, 2), (1, 2)), ((1, 0), (1, 4)), ((2, 0), (1, 1))]
    """
    if count <= 0:
        return
    if not shape:
        yield (), ()
        return
    row = math.prod(shape[1:])
    index, inner = divmod(first, row)
    if not inner and count >= row:  # full rows
        done = count // row * row
        yield (index, *(0 for _ in shape[1:])), (count // row, *shape[1:])
    else:
        done = min(count, row - inner)
        for offset, size in boxes_of_range(shape[1:], inner, done):
            yield (index, *offset), (1, *size)
    yield from boxes_of_range(shape, first + done, count - done)
