"""The door of orthogonal matrices, beside that of fills: which road each tensor takes.

The operator ``torchinit::orthogonal_(self, key, gain)`` is one fill to compilers, tracers and
transforms.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError
from torchinit.fill import checks, operators
from torchinit.fill.fallback import generator_of
from torchinit.fill.route import find_road, is_native_memory, why_staged
from torchinit.fill.sharded import begin_sharded, copy_pieces, count_write, fill_sharded, view_of
from torchinit.native import calls
from torchinit.orthogonal.fallback import orthogonal_by_torch
from torchinit.placement.box import Box, check_box
from torchinit.placement.distributed import Sharded, is_dtensor
from torchinit.placement.pieces import Piece
from torchinit.schemes.distributions import check_finite
from torchinit.streams.keys import Stream, draw_key, draw_key_number, draw_keys


def fill_orthogonal(
    tensor: Tensor, gain: float, stream: Stream = None, box: Box | None = None
) -> None:
    """Makes one tensor (semi-)orthogonal over the flattening (shape[0], rest), times gain.

    Args:
        tensor: at least two dimensions; of a DTensor what lies here is filled.
        gain: factor.
        stream: where the key is drawn from, or the key.
        box: the tensor's place in a larger one, which is what is orthogonal then: the tensor gets
            the bits that a fill of the whole has there.

    Raises:
        ValueError: fewer than two dimensions.
        ArgumentError: gain not finite, a box that cannot be, a tensor that cannot be written to.
            Nothing has been drawn or written then.
    """
    _check_arguments(tensor, gain, box)
    road = find_road(tensor)
    if road in ("now", "staged"):
        checks.check_target(tensor)
        _form_one(tensor, draw_key_number(stream), gain, box)
    else:
        _fill_by_road(road, tensor, gain, stream, box)


def _form_one(tensor: Tensor, key: int, gain: float, box: Box | None) -> None:
    if tensor.numel():
        if why_staged(tensor.device.type):
            matrix = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            calls.fill_orthogonal([matrix], [key], gain, box)
            with torch.no_grad():
                tensor.copy_(matrix)
        else:
            calls.fill_orthogonal([tensor], [key], gain, box)
    calls.count_write(tensor)


def fill_orthogonal_batch(
    tensors: Sequence[Tensor] | Tensor, gain: float, stream: Stream = None
) -> None:
    """Makes each of many tensors (semi-)orthogonal, as ``fill_orthogonal`` on each in turn.

    Args:
        tensors: a sequence, or a stack of at least three dimensions.
        gain: factor.
        stream: where the keys are drawn from, one for each in order.

    Raises:
        ValueError: a tensor of fewer than two dimensions, a stack of fewer than three.
        ArgumentError: as ``fill_orthogonal``.
    """
    if isinstance(tensors, Tensor):
        if tensors.dim() < 3:
            raise ValueError(
                f"a stack of matrices needs 3 or more dimensions, got shape {tuple(tensors.shape)}"
            )
        _check_arguments(tensors, gain)
        if is_dtensor(tensors):
            _fill_sharded_stack(tensors, gain, stream)
            return
        if find_road(tensors) == "now":
            checks.check_target(tensors)
            keys = draw_keys(tensors.shape[0], stream).tolist()
            if tensors.numel():
                calls.fill_orthogonal(tensors, keys, gain)
            calls.count_write(tensors)
            return
    matrices = list(tensors)
    for matrix in matrices:
        _check_arguments(matrix, gain)
    roads = [find_road(matrix) for matrix in matrices]
    for matrix, road in zip(matrices, roads, strict=True):
        if road in ("now", "staged") or is_native_memory(matrix):
            checks.check_target(matrix)
    here = [matrix for matrix, road in zip(matrices, roads, strict=True) if road == "now"]
    if len(here) == len(matrices):
        keys = draw_keys(len(here), stream).tolist()
    else:
        keys = []
        for matrix, road in zip(matrices, roads, strict=True):
            if road == "now":
                keys.append(draw_key_number(stream))
            else:
                _fill_by_road(road, matrix, gain, stream)
    for places in _groups(here):
        some = [here[i] for i in places]
        if some[0].numel():
            calls.fill_orthogonal(some, [keys[i] for i in places], gain)
        for matrix in some:
            calls.count_write(matrix)


def _fill_sharded_stack(stack: Tensor, gain: float, stream: Stream) -> None:
    """Fills what lies here of a DTensor that is a stack; every rank draws the keys of all."""
    if stack.is_meta:
        return
    sharded, source, by_torch = begin_sharded(stack, stream, keys=stack.shape[0])
    if by_torch:
        local = sharded.local
        whole = torch.empty(sharded.global_shape, dtype=local.dtype, device=local.device)
        fill_orthogonal_batch(whole, gain, source)
        copy_pieces(whole, local, sharded.pieces)
    else:
        assert isinstance(source, Tensor)
        for piece in sharded.pieces:
            keys = source[piece.offset[0] : piece.offset[0] + piece.size[0]]
            _fill_stack(view_of(sharded.local, piece), gain, keys, sharded, piece)
    count_write(stack, sharded.local)


def _fill_stack(view: Tensor, gain: float, keys: Tensor, sharded: Sharded, piece: Piece) -> None:
    """Fills matrices of a stack, or the same box of each."""
    shape = sharded.global_shape[1:]
    box = None if piece.size[1:] == shape else Box(shape, piece.offset[1:])
    if view.numel() and find_road(view) == "now":
        calls.fill_orthogonal(view, keys.tolist(), gain, box)
        return
    for matrix, key in zip(view, keys, strict=True):
        fill_orthogonal(matrix, gain, key, box)


def _groups(matrices: Sequence[Tensor]) -> list[list[int]]:
    """The places of matrices that can be formed together: of one kind, and apart in memory."""
    ranges = sorted(
        (matrix.data_ptr(), matrix.data_ptr() + checks.extent(matrix))
        for matrix in matrices
        if matrix.numel()
    )
    if any(end > begin for (_, end), (begin, _) in itertools.pairwise(ranges)):
        return [[i] for i in range(len(matrices))]  # tied or overlapping: one after the other
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        kind = (matrix.shape, matrix.stride(), matrix.dtype, matrix.device)
        groups.setdefault(kind, []).append(i)
    return list(groups.values())


def _check_arguments(tensor: Tensor, gain: float, box: Box | None = None) -> None:
    if tensor.dim() < 2:
        raise ValueError(
            f"Only tensors with 2 or more dimensions are supported, got shape {tuple(tensor.shape)}"
        )
    check_finite(gain=gain)
    if box is not None:
        check_box(tensor.shape, box)


def _fill_by_road(
    road: str, tensor: Tensor, gain: float, stream: Stream, box: Box | None = None
) -> None:
    if road == "torch":
        orthogonal_by_torch(tensor, gain, generator_of(stream, tensor.device), box)
    elif road == "sharded":
        fill_sharded(
            tensor,
            stream,
            lambda piece, key, place: fill_orthogonal(piece, gain, key, place),
            lambda whole, source: fill_orthogonal(whole, gain, source),
        )
    elif road == "staged":
        fill_orthogonal(tensor, gain, stream, box)
    elif road == "operator":
        operators.fill_by(_ORTHOGONAL, tensor, draw_key(stream), gain, *(box or ()))


def _check(tensor: Tensor, key: Tensor, gain: float, *bounds: Any) -> Box | None:
    """Checks the arguments of the operator; returns the box, if its bounds were given."""
    if tensor.dtype not in ALL_DTYPES:
        raise TypeError(
            f"self has dtype {tensor.dtype}, expected one of {sorted(map(str, ALL_DTYPES))}"
        )
    global_shape, offset = (*bounds, None, None)[:2]
    if (global_shape is None) != (offset is None):
        raise ArgumentError(f"{global_shape=} and {offset=} must be given together")
    box = None if global_shape is None else Box(global_shape, offset)
    _check_arguments(tensor, gain, box)
    operators.check_key(key)
    checks.check_writable(tensor)
    return box


def _on_fake(tensor: Tensor, key: Tensor, gain: float, *bounds: Any) -> None:
    _check(tensor, key, gain, *bounds)


def _on_memory(tensor: Tensor, key: Tensor, gain: float, *bounds: Any) -> None:
    box = _check(tensor, key, gain, *bounds)
    checks.check_memory(tensor)
    _form_one(tensor, int(key.item()), gain, box)


def _on_batched(info: Any, examples: Tensor, key: Tensor, gain: float, *bounds: Any) -> None:
    """Under vmap: with randomness "different" every example has a key of its own.

    With "same" every example is a copy of the one matrix, as is every box.
    """
    keys = torch.empty(info.batch_size, dtype=torch.int64, device="cpu")
    operators.random_words_(keys, key)

    def fill(some: Tensor) -> None:
        if some.dim() < examples.dim():
            _ORTHOGONAL.writes(some, key, gain, *bounds)
            return
        for example, own_key in zip(some, keys, strict=True):
            _ORTHOGONAL.writes(example, own_key, gain, *bounds)

    is_box = any(bound is not None for bound in bounds)
    operators.fill_batched(info, examples, fill, same=info.randomness == "same" or is_box)


_ORTHOGONAL = operators.define(
    "orthogonal_", f"Tensor key, float gain, {operators._BOX}", _on_memory, _on_fake, _on_batched
)
