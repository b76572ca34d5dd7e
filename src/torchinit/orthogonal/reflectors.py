"""Calls of the kernels of orthogonal initialisation, on tensors in plain memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from torchinit.native.calls import cpu_module, cuda_module
from torchinit.native.numbers import DTYPE_NUMBERS

_DTYPES = {dtype: DTYPE_NUMBERS[dtype] for dtype in (torch.float64, torch.float32)}


def fill_reflectors(
    vectors: Tensor, half_norms: Tensor, signs: Tensor, keys: Tensor, first: int
) -> None:
    """Draws Householder vectors.

    Reflector ``first + j`` of matrix i is row j of ``vectors[i]``, made of elements
    (first + j) (m + 1) to (first + j + 1) m - 1 of the N(0, 1) fill of ``keys[i]``, where
    m = first + vectors.shape[2] is the length of a column. The first j elements of row j are 0,
    the next is 1.

    Args:
        vectors: (batch, count, m - first), count <= m - first; contiguous, or on the CPU columns of
            contiguous matrices (m - first, any).
        half_norms: (batch, count); become half the squared norms of the vectors.
        signs: (batch, count); become +1 or -1.
        keys: (batch,) int64 on the CPU.
        first: number of the first reflector.
    """
    _check_block(vectors, half_norms, signs, keys, first)
    batch, count, width = vectors.shape
    numbers = (
        _DTYPES[vectors.dtype],
        keys.contiguous().data_ptr(),
        batch,
        first,
        count,
        first + width,
        vectors.data_ptr(),
        half_norms.data_ptr(),
        signs.data_ptr(),
    )
    if vectors.is_cpu:
        step = 0 if vectors.is_contiguous() else vectors.stride(2)
        cpu_module().fill_reflectors(*numbers, torch.get_num_threads(), step)
    else:
        module = cuda_module()
        with torch.cuda.device(vectors.device):
            module.fill_reflectors(*numbers, torch.cuda.current_stream().cuda_stream)


def fill_small(matrices: Sequence[Tensor], keys: Tensor, gain: float) -> None:
    """Fills matrices of few elements by reflectors one at a time, on the CPU.

    The same bits on every instruction set.

    Args:
        matrices: (m, n), m >= n, float32 or float64, all of one shape, dtype and strides.
        keys: one for each, int64, on the CPU.
        gain: factor.
    """
    like = matrices[0]
    check_keys(keys, len(matrices))
    if like.dtype not in _DTYPES or like.dim() != 2 or like.shape[0] < like.shape[1]:
        raise ValueError(
            f"matrices must be float32 or float64 with rows >= columns, got {like.dtype} of shape "
            f"{tuple(like.shape)}"
        )
    cpu_module().fill_small_orthogonal(
        _DTYPES[like.dtype],
        keys.contiguous().data_ptr(),
        [matrix.data_ptr() for matrix in matrices],
        *like.shape,
        gain,
        *like.stride(),
        torch.get_num_threads(),
    )


def invert_triangles(grams: Tensor) -> None:
    """Replaces square matrices on the CPU by the inverses of their upper triangles.

    Below are zeros then.

    Args:
        grams: (batch, n, n), contiguous, float32 or float64.
    """
    _check_matrices(grams)
    if not grams.is_contiguous() or grams.shape[1] != grams.shape[2]:
        raise ValueError(
            f"grams must be contiguous square matrices, got shape {tuple(grams.shape)} "
            f"and strides {grams.stride()}"
        )
    cpu_module().invert_triangles(
        _DTYPES[grams.dtype], *grams.shape[:2], grams.data_ptr(), torch.get_num_threads()
    )


def check_keys(keys: Tensor, count: int) -> None:
    """Raises TypeError unless keys are so many int64 on the CPU."""
    if keys.dtype != torch.int64 or keys.shape != (count,) or not keys.is_cpu:
        raise TypeError(
            f"keys must be int64 on the CPU, of shape {(count,)}, "
            f"got {keys.dtype} of shape {tuple(keys.shape)} on {keys.device}"
        )


def _check_matrices(tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES or tensor.dim() != 3:
        raise TypeError(
            f"expected float32 or float64 matrices of shape (batch, rows, columns), "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


def _check_block(
    vectors: Tensor, half_norms: Tensor, signs: Tensor, keys: Tensor, first: int
) -> None:
    _check_matrices(vectors)
    check_keys(keys, len(vectors))
    if first < 0:
        raise ValueError(f"first={first} must not be negative")
    batch, count, width = vectors.shape
    step = vectors.stride(2)
    columns = vectors.is_cpu and vectors.stride(1) == 1 and step >= count
    if batch > 1:
        columns = columns and vectors.stride(0) == width * step
    if not (vectors.is_contiguous() or columns) or count > width:
        raise ValueError(
            f"vectors must be contiguous, or columns, and no longer than many; got shape "
            f"{tuple(vectors.shape)} and strides {vectors.stride()}"
        )
    for name, each in (("half_norms", half_norms), ("signs", signs)):
        if each.shape != (batch, count) or each.dtype != vectors.dtype or not each.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {vectors.dtype} of shape {(batch, count)}, "
                f"got {each.dtype} of shape {tuple(each.shape)}"
            )
