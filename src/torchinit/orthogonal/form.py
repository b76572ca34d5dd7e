"""Forms orthogonal matrices in tensors: one or many, whole or a box of one, small or large.

A wide or square matrix is the transpose of a tall one, which is formed panel by panel of its
columns (products.py). What is not in a tensor is not formed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from torchinit.dtypes import working_dtype
from torchinit.fill.fallback import copy_rounded
from torchinit.native import calls
from torchinit.orthogonal import reflectors
from torchinit.orthogonal.panels import Range, grid_of
from torchinit.orthogonal.products import DrawReflectors, Panel, form_panels, products_alone
from torchinit.orthogonal.sharing import Task, carry_out, one_blas_thread
from torchinit.orthogonal.target import Target, is_wide, matrix_shape
from torchinit.placement.box import Box, cut_out

# Up to so many elements reflectors are applied one by one, on the CPU.
_SMALL = 2**14
# Up to so many elements matrices of one shape share batched products; a CPU is busy with fewer.
_BATCHED = {"cpu": 2**18, "cuda": 2**22}
# Products of batches of smaller matrices round otherwise than those of single ones.
_LEAST_BATCHED = 16
# Elements of a batch: on a CPU, caches hold them.
_BATCH_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
_COPIED = 2**24  # elements of the copy that small matrices are made in
# Multiplications, from which on threads are started for one matrix.
_WORTH_THREADS = 2**26
# Gains up to this, and down to its inverse, enter the products.
_MODERATE_GAIN = {torch.float32: 2.0**64, torch.float64: 2.0**512}


def form(
    tensors: Sequence[Tensor] | Tensor, keys: Tensor, gain: float, box: Box | None = None
) -> None:
    """Makes each tensor (semi-)orthogonal over the flattening (shape[0], rest), times gain.

    Args:
        tensors: of one shape, dtype and device, in plain memory, with elements; or a stack of such.
        keys: one for each, int64, on the CPU.
        gain: factor.
        box: the place of the one tensor in a larger one, which has been checked.
    """
    like = tensors[0]
    shape = tuple(like.shape if box is None else box.global_shape)
    rows, columns = matrix_shape(shape)
    limit = _MODERATE_GAIN[working_dtype(like.dtype)]
    # A gain near the ends of the range would overflow, or lose digits, within the products.
    factor = gain if gain == 0 or 1 / limit <= abs(gain) <= limit else 1.0
    rest = gain / factor if factor else 1.0

    with torch.no_grad():
        if like.device.type != "cuda" and rows * columns <= _SMALL:
            if rest != 1 or box is not None or not _fill_small_in_place(tensors, keys, gain):
                with calls.serial_if_forked():
                    _fill_small(tensors, keys, factor, rest, box)
            return
        with products_alone(like.device), one_blas_thread() as threads:
            if like.device.type == "cuda":
                threads = 1
            is_large = rows * columns > _BATCHED.get(like.device.type, 0)
            if len(tensors) == 1 or is_large or min(rows, columns) < _LEAST_BATCHED:
                for i, tensor in enumerate(tensors):
                    draw = _drawing(keys[i : i + 1])
                    form_matrix(tensor, draw, factor, rest, box, threads=threads)
            else:
                _form_batches(tensors, keys, factor, rest, threads)


def _drawing(keys: Tensor) -> DrawReflectors:
    def draw(vectors: Tensor, half_norms: Tensor, signs: Tensor, number: int) -> None:
        reflectors.fill_reflectors(vectors, half_norms, signs, keys, number)

    return draw


def form_matrix(
    tensor: Tensor,
    draw: DrawReflectors,
    gain: float,
    factor: float = 1.0,
    box: Box | None = None,
    *,
    threads: int = 1,
    at_once: bool = False,
) -> None:
    """Makes one tensor a matrix, or a box of one, times gain; it is multiplied by factor then.

    Panels are formed in the tensor's own memory where they can be, else in a copy. Of boxes few
    panels are copies at a time, so that vectors are drawn several times.

    Args:
        tensor: with elements.
        draw, gain, threads, at_once: as for ``form_panels``.
        factor: for gains that products cannot take.
        box: the tensor's place in the whole; None if it is that.
    """
    shape = tuple(tensor.shape if box is None else box.global_shape)
    target = Target(tensor, box or Box(shape, [0] * len(shape)))
    n, m = sorted(matrix_shape(shape))
    grid = grid_of(m, n, tensor.device.type, wide=target.wide)
    threads = min(threads, len(grid.panels) + 1) if m * n * n >= _WORTH_THREADS else 1
    dtype = working_dtype(tensor.dtype)

    def multiply(memory: Tensor) -> None:
        if factor != 1:
            memory.mul_(factor)

    def copy(columns: Range, memory: Tensor) -> None:
        multiply(memory)
        target.copy(columns, memory[0])

    own = target.columns()
    here, copied = [], []
    for columns in grid.panels[grid.panel_of(own.start) : grid.panel_of(own.stop - 1) + 1]:
        memory = target.memory(columns)
        if memory is None:
            copied.append(columns)
        else:
            memory = memory.unsqueeze(0)
            here.append(Panel(columns, memory, partial(multiply, memory)))
    few = len(copied)
    if box is not None and few:
        few = max(2, tensor.nbytes // (4 * m * copied[0].size * dtype.itemsize))
    size = m * max((columns.size for columns in copied), default=0)
    memories = [tensor.new_empty(size, dtype=dtype) for _ in copied[:few]]
    kept: dict[int, Tensor] | None = {} if few < len(copied) else None
    copied.reverse()  # those that need most vectors together
    while here or copied:
        for columns, flat in zip(copied[:few], memories, strict=False):
            memory = _panel_of(flat, m, columns.size, target.wide)
            here.append(Panel(columns, memory, partial(copy, columns, memory)))
        form_panels(
            grid, here, draw, gain, wide=target.wide, threads=threads, at_once=at_once, kept=kept
        )
        here, copied = [], copied[few:]


def _panel_of(memory: Tensor, m: int, size: int, wide: bool) -> Tensor:
    some = memory[: m * size]
    return some.view(1, size, m).mT if wide else some.view(1, m, size)


def _form_batches(
    tensors: Sequence[Tensor] | Tensor, keys: Tensor, gain: float, factor: float, threads: int
) -> None:
    """Makes matrices of tensors by products of batches, which threads share out."""
    like = tensors[0]
    shape, wide = matrix_shape(like.shape), is_wide(like.shape)
    n, m = sorted(shape)
    grid = grid_of(m, n, like.device.type, wide=wide)
    most = _BATCH_ELEMENTS[like.device.type] // (m * n)
    size = min(max(1, most), -(-len(tensors) // threads))

    def form_some(first: int, _: int) -> None:
        with _as_stack(tensors[first : first + size], tuple(like.shape), factor) as stack:
            tall = stack.mT if wide else stack
            panels = [Panel(each, tall[..., each.start : each.stop]) for each in grid.panels]
            form_panels(grid, panels, _drawing(keys[first : first + size]), gain, wide=wide)

    tasks = [Task(partial(form_some, first), ()) for first in range(0, len(tensors), size)]
    carry_out(tasks, min(threads, len(tasks)))


def _fill_small(
    tensors: Sequence[Tensor] | Tensor, keys: Tensor, gain: float, factor: float, box: Box | None
) -> None:
    """Makes matrices of few elements, reflector by reflector, that tensors are or are a box of."""
    shape = tuple(tensors[0].shape if box is None else box.global_shape)
    size = max(1, _COPIED // math.prod(shape))
    for first in range(0, len(tensors), size):
        with _as_stack(tensors[first : first + size], shape, factor, box) as stack:
            tall = stack.mT if is_wide(shape) else stack
            reflectors.fill_small(tall.unbind(), keys[first : first + size], gain)


@contextlib.contextmanager
def _as_stack(
    tensors: Sequence[Tensor] | Tensor,
    shape: tuple[int, ...],
    factor: float,
    box: Box | None = None,
) -> Iterator[Tensor]:
    """Contiguous (batch, rows, columns) of the working dtype for whole tensors, or a box of one.

    It is the tensors' own memory where that is such, else copied to them at the end; multiplied by
    factor first.
    """
    dtype = working_dtype(tensors[0].dtype)
    stack = None
    if isinstance(tensors, Tensor) and box is None and tensors.dtype == dtype:
        stack = tensors.detach().flatten(2) if tensors.is_contiguous() else None
    is_copy = stack is None
    if stack is None:
        stack = tensors[0].new_empty((len(tensors), *matrix_shape(shape)), dtype=dtype)
    yield stack
    if factor != 1:
        stack.mul_(factor)
    if is_copy:
        for tensor, matrix in zip(tensors, stack, strict=True):
            whole = matrix.view(shape)
            copy_rounded(tensor, whole if box is None else cut_out(whole, box.offset, tensor.shape))


def _fill_small_in_place(tensors: Sequence[Tensor] | Tensor, keys: Tensor, gain: float) -> bool:
    """Fills separate matrices at once if their memory allows it; returns whether it did."""
    like = tensors[0]
    if (
        isinstance(tensors, Tensor)
        or like.dim() != 2
        or like.dtype not in (torch.float32, torch.float64)
        or any(tensor.stride() != like.stride() for tensor in tensors)
    ):
        return False
    tall = [tensor.t() for tensor in tensors] if is_wide(like.shape) else tensors
    reflectors.fill_small(tall, keys, gain)
    return True
