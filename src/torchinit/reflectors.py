"""The operators of orthogonal initialisation: schema, checks, and the implementations.

``reflectors_(vectors, halves, signs, keys, first)`` draws Householder vectors: reflector
``first + j`` of matrix i is row j of ``vectors[i]``, made of elements (first + j) (m + 1) to
(first + j + 1) m - 1 of the N(0, 1) fill of ``keys[i]``, where m = first + vectors.shape[2] is the
length of a column. The first j elements of row j are 0, the next is 1. ``halves`` are half the
squared norms of the vectors, ``signs`` are +1 or -1.

``small_orthogonal_(self, keys, gain)`` fills a batch of matrices of few elements, rows >= columns,
by such reflectors one at a time: the same bits on every instruction set. CPU only.

``invert_triangles_(grams)`` replaces square matrices by the inverses of their upper triangles;
below are zeros. CPU only.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from torchinit import kernels, native, ops

_DTYPES = {torch.float64: 0, torch.float32: 1}


def _check(tensor: Tensor, keys: Tensor | None = None, first: int = 0) -> None:
    if tensor.dtype not in _DTYPES or tensor.dim() != 3:
        raise TypeError(
            f"expected float32 or float64 matrices of shape (batch, rows, columns), "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if keys is not None and (
        keys.dtype != torch.int64 or keys.shape != tensor.shape[:1] or not keys.is_cpu
    ):
        raise TypeError(
            f"keys must be int64 on the CPU, of shape {tuple(tensor.shape[:1])}, "
            f"got {keys.dtype} of shape {tuple(keys.shape)} on {keys.device}"
        )
    if first < 0:
        raise ValueError(f"first={first} must not be negative")


def _check_tall(self: Tensor, keys: Tensor) -> None:
    _check(self, keys)
    if self.shape[1] < self.shape[2]:
        raise ValueError(f"self of shape {tuple(self.shape)} must have rows >= columns")


def _check_block(vectors: Tensor, halves: Tensor, signs: Tensor, keys: Tensor, first: int) -> None:
    _check(vectors, keys, first)
    batch, count, width = vectors.shape
    if not vectors.is_contiguous() or count > width:
        raise ValueError(
            f"vectors must be contiguous with no more rows than columns, got shape "
            f"{tuple(vectors.shape)} and strides {vectors.stride()}"
        )
    for name, each in (("halves", halves), ("signs", signs)):
        if each.shape != (batch, count) or each.dtype != vectors.dtype or not each.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous {vectors.dtype} of shape {(batch, count)}, "
                f"got {each.dtype} of shape {tuple(each.shape)}"
            )


def _reflectors_cpu(
    vectors: Tensor, halves: Tensor, signs: Tensor, keys: Tensor, first: int
) -> None:
    _check_block(vectors, halves, signs, keys, first)
    batch, count, width = vectors.shape
    _module().fill_reflectors(
        _DTYPES[vectors.dtype],
        keys.contiguous().data_ptr(),
        batch,
        first,
        count,
        first + width,
        vectors.data_ptr(),
        halves.data_ptr(),
        signs.data_ptr(),
        torch.get_num_threads(),
    )
    _count_writes(vectors, halves, signs)


def _reflectors_cuda(
    vectors: Tensor, halves: Tensor, signs: Tensor, keys: Tensor, first: int
) -> None:
    _check_block(vectors, halves, signs, keys, first)
    batch, count, width = vectors.shape
    module = native.cuda
    if module is None:
        raise RuntimeError(f"torchinit has no CUDA module: {native.cuda_reason}")
    with torch.cuda.device(vectors.device):
        module.fill_reflectors(
            _DTYPES[vectors.dtype],
            keys.contiguous().data_ptr(),
            batch,
            first,
            count,
            first + width,
            vectors.data_ptr(),
            halves.data_ptr(),
            signs.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    _count_writes(vectors, halves, signs)


def _invert_triangles_cpu(grams: Tensor) -> None:
    _check(grams)
    if not grams.is_contiguous() or grams.shape[1] != grams.shape[2]:
        raise ValueError(
            f"grams must be contiguous square matrices, got shape {tuple(grams.shape)} "
            f"and strides {grams.stride()}"
        )
    _module().invert_triangles(
        _DTYPES[grams.dtype], *grams.shape[:2], grams.data_ptr(), torch.get_num_threads()
    )
    _count_writes(grams)


def _small_orthogonal_cpu(self: Tensor, keys: Tensor, gain: float) -> None:
    _check_tall(self, keys)
    fill_small(self.unbind(), keys, gain)


def fill_small(matrices: Sequence[Tensor], keys: Tensor, gain: float) -> None:
    """Does what the operator ``small_orthogonal_`` does, on memory that is not one batch.

    For matrices (m, n), m >= n, that are known to have one shape, dtype and strides.
    """
    like = matrices[0]
    _module().fill_small_orthogonal(
        _DTYPES[like.dtype],
        keys.contiguous().data_ptr(),
        [matrix.data_ptr() for matrix in matrices],
        *like.shape,
        gain,
        *like.stride(),
        torch.get_num_threads(),
    )
    _count_writes(*matrices)


def _module() -> ModuleType:
    if native.module is None:
        raise RuntimeError(f"torchinit has no native module: {native.reason}")
    return native.module


def _count_writes(*tensors: Tensor) -> None:
    for tensor in tensors:
        kernels.count_write(tensor)


def _fake_block(vectors: Tensor, halves: Tensor, signs: Tensor, keys: Tensor, first: int) -> None:
    _check_block(vectors, halves, signs, keys, first)


def _fake_small(self: Tensor, keys: Tensor, gain: float) -> None:  # noqa: ARG001
    _check_tall(self, keys)


def _fake_invert(grams: Tensor) -> None:
    _check(grams)


_LIBRARY = ops.LIBRARY
_LIBRARY.define(
    "reflectors_(Tensor(a!) vectors, Tensor(b!) halves, Tensor(c!) signs, Tensor keys, int first)"
    " -> ()"
)
_LIBRARY.define("small_orthogonal_(Tensor(a!) self, Tensor keys, float gain) -> ()")
_LIBRARY.define("invert_triangles_(Tensor(a!) grams) -> ()")
for _name in ("reflectors_", "small_orthogonal_", "invert_triangles_"):
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
_LIBRARY.impl("reflectors_", _reflectors_cpu, "CPU")
_LIBRARY.impl("reflectors_", _reflectors_cuda, "CUDA")
_LIBRARY.impl("small_orthogonal_", _small_orthogonal_cpu, "CPU")
_LIBRARY.impl("invert_triangles_", _invert_triangles_cpu, "CPU")
torch.library.register_fake("torchinit::reflectors_", _fake_block, lib=_LIBRARY)
torch.library.register_fake("torchinit::small_orthogonal_", _fake_small, lib=_LIBRARY)
torch.library.register_fake("torchinit::invert_triangles_", _fake_invert, lib=_LIBRARY)

reflectors_ = torch.ops.torchinit.reflectors_.default
small_orthogonal_ = torch.ops.torchinit.small_orthogonal_.default
invert_triangles_ = torch.ops.torchinit.invert_triangles_.default
