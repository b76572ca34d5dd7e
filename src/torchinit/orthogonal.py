"""Orthogonal matrices: products of random reflectors, not drawn element by element.

They have their own door, with the same dispatch as elementwise fills. Compilers, tracers and
transforms see one operator, ``torchinit::orthogonal_(self, key, gain)``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError
from torchinit.fill import checks, operators
from torchinit.fill.route import PLAIN_TYPES, Ways, dispatch, is_direct, is_native_memory
from torchinit.fill.sharded import begin_sharded, copy_pieces, count_write, fill_sharded, view_of
from torchinit.fill.torch_fallback import copy_rounded, generator_of
from torchinit.fill.via_host import memory_for_kernels
from torchinit.native import kernels
from torchinit.placement.box import Box, check_box, cut_out
from torchinit.placement.distributed import Sharded, is_dtensor
from torchinit.placement.mesh import ShardPiece
from torchinit.schemes.distributions import check_finite
from torchinit.streams.keys import Stream, draw_key, draw_key_number, draw_keys


def fill_orthogonal(
    tensor: Tensor, gain: float, stream: Stream = None, box: Box | None = None
) -> None:
    """Makes one tensor (semi-)orthogonal over the flattening (shape[0], rest), times gain.

    Args:
        tensor: at least two dimensions; of a DTensor this rank's part is filled.
        gain: factor.
        stream: where the key is drawn from, or the key.
        box: the tensor's position in a larger matrix. That matrix is then orthogonal, and the
            tensor gets its values there.

    Raises:
        ValueError: fewer than two dimensions.
        ArgumentError: gain not finite, an impossible box, a tensor that cannot be written to.
            Nothing has been drawn or written then.
    """
    _check_arguments(tensor, gain, box)
    dispatch(_WAYS, tensor, gain, stream, box)


def _form_in_memory(tensor: Tensor, gain: float, stream: Stream, box: Box | None) -> None:
    checks.check_target(tensor)
    _form_one(tensor, draw_key_number(stream), gain, box)


def _form_one(tensor: Tensor, key: int, gain: float, box: Box | None) -> None:
    if tensor.numel():
        with memory_for_kernels(tensor) as memory:
            kernels.run_orthogonal([memory], [key], gain, box)
    kernels.count_write(tensor)


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
            raise ArgumentError(
                f"a stack of matrices needs 3 or more dimensions, got shape {tuple(tensors.shape)}"
            )
        _check_arguments(tensors, gain)
        if is_dtensor(tensors):
            _fill_sharded_stack(tensors, gain, stream)
            return
        if is_direct(tensors):
            checks.check_target(tensors)
            keys = draw_keys(tensors.shape[0], stream).tolist()
            if tensors.numel():
                kernels.run_orthogonal(tensors, keys, gain)
            kernels.count_write(tensors)
            return
    matrices = list(tensors)
    for matrix in matrices:
        _check_arguments(matrix, gain)
    for matrix in matrices:
        if is_native_memory(matrix):
            checks.check_target(matrix)
    are_direct = list(map(is_direct, matrices))
    direct = list(itertools.compress(matrices, are_direct))
    if len(direct) == len(matrices):
        keys = draw_keys(len(direct), stream).tolist()
    else:
        keys = []
        for matrix, waits in zip(matrices, are_direct, strict=True):
            if waits:
                keys.append(draw_key_number(stream))
            else:
                fill_orthogonal(matrix, gain, stream)
    for numbers in _groups(direct):
        some = [direct[i] for i in numbers]
        if some[0].numel():
            kernels.run_orthogonal(some, [keys[i] for i in numbers], gain)
        for matrix in some:
            kernels.count_write(matrix)


def _fill_sharded_stack(stack: Tensor, gain: float, stream: Stream) -> None:
    """Fills this rank's part of a DTensor that is a stack; every rank draws all keys."""
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


def _fill_stack(
    view: Tensor, gain: float, keys: Tensor, sharded: Sharded, piece: ShardPiece
) -> None:
    """Fills the matrices of a stack, or the same box of each."""
    shape = sharded.global_shape[1:]
    box = None if piece.size[1:] == shape else Box(shape, piece.offset[1:])
    if view.numel() and is_direct(view):
        kernels.run_orthogonal(view, keys.tolist(), gain, box)
        return
    for matrix, key in zip(view, keys, strict=True):
        fill_orthogonal(matrix, gain, key, box)


def _groups(matrices: Sequence[Tensor]) -> list[list[int]]:
    """Groups the numbers of matrices that can be formed together: alike, and disjoint in memory."""
    ranges = sorted(
        (matrix.data_ptr(), matrix.data_ptr() + checks.extent(matrix))
        for matrix in matrices
        if matrix.numel()
    )
    if any(end > begin for (_, end), (begin, _) in itertools.pairwise(ranges)):
        return [[i] for i in range(len(matrices))]  # tied or overlapping: one after another
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, matrix in enumerate(matrices):
        kind = (matrix.shape, matrix.stride(), matrix.dtype, matrix.device)
        groups.setdefault(kind, []).append(i)
    return list(groups.values())


def _check_arguments(tensor: Tensor, gain: float, box: Box | None = None) -> None:
    if tensor.dim() < 2:
        raise ArgumentError(
            f"Only tensors with 2 or more dimensions are supported, got shape {tuple(tensor.shape)}"
        )
    check_finite(gain=gain)
    if box is not None:
        check_box(tensor.shape, box)


def _form_dtensor(tensor: Tensor, gain: float, stream: Stream, _box: Box | None) -> None:
    fill_sharded(
        tensor,
        stream,
        lambda piece, key, box: fill_orthogonal(piece, gain, key, box),
        lambda full, source: fill_orthogonal(full, gain, source),
    )


def _form_by_operator(tensor: Tensor, gain: float, stream: Stream, box: Box | None) -> None:
    operators.call_operator(_ORTHOGONAL, tensor, draw_key(stream), gain, *(box or ()))


def _form_by_torch(tensor: Tensor, gain: float, stream: Stream, box: Box | None) -> None:
    orthogonal_by_torch(tensor, gain, generator_of(stream, tensor.device), box)


_WAYS = Ways(
    kernel=_form_in_memory,
    via_host=_form_in_memory,
    operator=_form_by_operator,
    torch=_form_by_torch,
    sharded=_form_dtensor,
    nothing=lambda *_: None,
)


def orthogonal_by_torch(
    tensor: Tensor, gain: float, generator: Generator | None, box: Box | None = None
) -> Tensor:
    """Fills one matrix by ``torch.nn.init.orthogonal_``; a box is copied from the full matrix.

    torch's function does not take 16-bit and 8-bit dtypes, so they are rounded from float32; except
    for tensor subclasses, whose values may be elsewhere (a DTensor's, on other ranks).
    """
    if box is not None:
        whole = torch.empty(tuple(box.global_shape), dtype=tensor.dtype, device=tensor.device)
        orthogonal_by_torch(whole, gain, generator)
        with torch.no_grad():
            return tensor.copy_(cut_out(whole, box.offset, tensor.shape))
    is_narrow = tensor.dtype in ALL_DTYPES and tensor.dtype.itemsize <= 2
    if not is_narrow or tensor.is_meta or type(tensor) not in PLAIN_TYPES:
        return torch_init.orthogonal_(tensor, gain, generator)
    single = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    torch_init.orthogonal_(single, gain, generator)
    return copy_rounded(tensor, single)


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
    """The vmap rule: with randomness "different" every example has its own key.

    With "same", or for boxes, all examples are copies of one matrix.
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
