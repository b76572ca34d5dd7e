"""Fills of DTensors: each process fills its own shard, with the same key and no communication.

Every piece is filled as a box of the full tensor, so the values are those of the full tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.compiler import is_compiling

from torchinit.fill import checks
from torchinit.fill.batch import open_batch
from torchinit.fill.route import KNOWN_TYPES, is_native, needs_operator
from torchinit.native import kernels
from torchinit.placement.box import Box, cut_out
from torchinit.placement.distributed import Sharded, read_sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.streams.keys import Stream, draw_key, draw_key_number, draw_keys

# Fills one piece by a key, as a box; as the full tensor if there is no box.
FillPiece: TypeAlias = Callable[[Tensor, Stream, Box | None], object]
# Fills a plain tensor of the global shape from a stream.
FillWhole: TypeAlias = Callable[[Tensor, Stream], object]


class Begun(NamedTuple):
    """A fill that has been checked.

    Attributes:
        sharded: this rank's part of the DTensor.
        stream: the key; or where torch draws from, if torch fills.
        by_torch: whether ``torch.nn.init`` fills, since kernels do not support the local tensor.
    """

    sharded: Sharded
    stream: Stream
    by_torch: bool


def fill_sharded(
    tensor: Tensor,
    stream: Stream,
    fill_piece: FillPiece,
    fill_whole: FillWhole | None,
    *,
    is_random: bool = True,
) -> None:
    """Fills this rank's part of a DTensor; does nothing on the meta device.

    Args:
        tensor: a DTensor.
        stream: where the key is drawn from, on every rank, even one that holds no element.
        fill_piece: fills a piece.
        fill_whole: fills the full tensor, where torch draws and cannot fill a piece alone.
        is_random: whether a key is drawn.

    Raises:
        ArgumentError: for placements, or a local tensor, that cannot be filled.
        TypeError: for a local tensor of a class that is not known.
    """
    if tensor.is_meta:
        return
    begun = begin_sharded(tensor, stream, is_random=is_random)
    sharded = begun.sharded
    if begun.by_torch and is_random:
        assert fill_whole is not None
        _cut_from_whole(sharded, begun.stream, fill_whole)
    else:
        for piece in sharded.pieces:
            is_whole = piece.size == sharded.global_shape
            box = None if is_whole else Box(sharded.global_shape, piece.offset)
            fill_piece(view_of(sharded.local, piece), begun.stream, box)
    count_write(tensor, sharded.local)


def fill_by_whole(tensor: Tensor, stream: Stream, fill_whole: FillWhole) -> None:
    """Fills a DTensor from the full tensor, which torch fills on every rank."""
    if tensor.is_meta:
        return
    begun = begin_sharded(tensor, stream, by_torch=True)
    _cut_from_whole(begun.sharded, begun.stream, fill_whole)
    count_write(tensor, begun.sharded.local)


def view_of(local: Tensor, piece: ShardPiece) -> Tensor:
    """The view of a piece in a local tensor."""
    return cut_out(local.detach(), piece.start, piece.size)


def copy_pieces(whole: Tensor, local: Tensor, pieces: Sequence[ShardPiece]) -> None:
    """Copies to a local tensor its pieces of the full tensor."""
    with torch.no_grad():
        for piece in pieces:
            view_of(local, piece).copy_(cut_out(whole, piece.offset, piece.size))


def begin_sharded(
    tensor: Tensor,
    stream: Stream,
    *,
    is_random: bool = True,
    by_torch: bool = False,
    keys: int | None = None,
) -> Begun:
    """Does what has to be done before the first write: checks the tensor, and draws the key.

    Args:
        tensor, stream, is_random: as for ``fill_sharded``; the tensor is not on the meta device.
        by_torch: whether torch fills even where kernels could.
        keys: how many keys to draw, as one tensor; None for one key.

    Raises:
        ArgumentError, TypeError: as ``fill_sharded``.
    """
    sharded = read_sharded(tensor)
    native, as_operator = is_native(sharded.local), needs_operator(sharded.local)
    if not native and type(sharded.local) not in KNOWN_TYPES:
        raise TypeError(
            f"the local tensor of a DTensor is a {type(sharded.local).__name__}, whose values may "
            "lie anywhere: fill it with that class's own functions"
        )
    if native and not as_operator and sharded.pieces:
        checks.check_target(sharded.local)
    by_torch = by_torch or not native
    if is_random and not by_torch:
        if keys is not None:
            stream = draw_keys(keys, stream)
        else:
            stream = draw_key(stream) if as_operator else draw_key_number(stream)
    return Begun(sharded, stream, by_torch)


def _cut_from_whole(sharded: Sharded, stream: Stream, fill_whole: FillWhole) -> None:
    local = sharded.local
    whole = torch.empty(sharded.global_shape, dtype=local.dtype, device=local.device)
    fill_whole(whole, stream)
    copy_pieces(whole, local, sharded.pieces)


def count_write(tensor: Tensor, local: Tensor) -> None:
    """Increases the version of a DTensor whose local tensor was written; or has the batch do so."""
    if is_compiling():
        return
    batch = open_batch.get()
    if batch is not None and batch.collects():
        batch.own(tensor, local)
    else:
        kernels.count_write(tensor)
