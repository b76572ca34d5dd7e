"""The operators of orthogonal initialisation: schema, checks, and the implementations.

``reflectors_(vectors, signs, keys, first)`` draws Householder vectors: reflector ``first + j`` of
matrix i is row j of ``vectors[i]``, made of elements (first + j) (m + 1) to (first + j + 1) m - 1
of the N(0, 1) fill of ``keys[i]``, where m = first + vectors.shape[2] is the length of a column.
Its first j elements are 0, and its norm is the square root of 2. ``signs`` are +1 and -1.

``small_orthogonal_(self, keys, gain)`` fills a batch of matrices of few elements, rows >= columns,
by such reflectors one at a time: the same bits on every instruction set. CPU only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchinit import native, ops

_DTYPES = {torch.float64: 0, torch.float32: 1}


def _check(tensor: Tensor, keys: Tensor, first: int = 0) -> None:
    if tensor.dtype not in _DTYPES or tensor.dim() != 3:
        raise TypeError(
            f"expected float32 or float64 matrices of shape (batch, rows, columns), "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != tensor.shape[:1] or not keys.is_cpu:
        raise TypeError(
            f"keys must be int64 on the CPU, of shape {tuple(tensor.shape[:1])}, "
            f"got {keys.dtype} of shape {tuple(keys.shape)} on {keys.device}"
        )
    if first < 0:
        raise ValueError(f"first={first} must not be negative")


def _check_block(vectors: Tensor, signs: Tensor, keys: Tensor, first: int) -> None:
    _check(vectors, keys, first)
    batch, count, width = vectors.shape
    if not vectors.is_contiguous() or count > width:
        raise ValueError(
            f"vectors must be contiguous with no more rows than columns, got shape "
            f"{tuple(vectors.shape)} and strides {vectors.stride()}"
        )
    if signs.shape != (batch, count) or signs.dtype != vectors.dtype or not signs.is_contiguous():
        raise ValueError(
            f"signs must be contiguous {vectors.dtype} of shape {(batch, count)}, "
            f"got {signs.dtype} of shape {tuple(signs.shape)}"
        )


def _reflectors_cpu(vectors: Tensor, signs: Tensor, keys: Tensor, first: int) -> None:
    _check_block(vectors, signs, keys, first)
    batch, count, width = vectors.shape
    module = native.module
    if module is None:
        raise RuntimeError(f"torchinit has no native module: {native.reason}")
    module.fill_reflectors(
        _DTYPES[vectors.dtype],
        keys.contiguous().data_ptr(),
        batch,
        first,
        count,
        first + width,
        vectors.data_ptr(),
        signs.data_ptr(),
        torch.get_num_threads(),
    )
    _count_writes(vectors, signs)


def _reflectors_cuda(vectors: Tensor, signs: Tensor, keys: Tensor, first: int) -> None:
    _check_block(vectors, signs, keys, first)
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
            signs.data_ptr(),
            torch.cuda.current_stream().cuda_stream,
        )
    _count_writes(vectors, signs)


def fill_small(self: Tensor, keys: Tensor, gain: float) -> None:
    """What the operator ``small_orthogonal_`` does, without torch's dispatcher."""
    _check(self, keys)
    batch, rows, columns = self.shape
    if rows < columns:
        raise ValueError(f"self of shape {tuple(self.shape)} must have rows >= columns")
    module = native.module
    if module is None:
        raise RuntimeError(f"torchinit has no native module: {native.reason}")
    module.fill_small_orthogonal(
        _DTYPES[self.dtype],
        keys.contiguous().data_ptr(),
        batch,
        rows,
        columns,
        gain,
        self.data_ptr(),
        self.stride(),
        torch.get_num_threads(),
    )
    _count_writes(self)


def _count_writes(*tensors: Tensor) -> None:
    for tensor in tensors:
        ops.count_write(tensor)


def _fake_block(vectors: Tensor, signs: Tensor, keys: Tensor, first: int) -> None:
    _check_block(vectors, signs, keys, first)


def _fake_small(self: Tensor, keys: Tensor, gain: float) -> None:  # noqa: ARG001
    _check(self, keys)


_LIBRARY = ops.LIBRARY
_LIBRARY.define("reflectors_(Tensor(a!) vectors, Tensor(b!) signs, Tensor keys, int first) -> ()")
_LIBRARY.define("small_orthogonal_(Tensor(a!) self, Tensor keys, float gain) -> ()")
for _name in ("reflectors_", "small_orthogonal_"):
    _LIBRARY.impl(_name, torch.library.fallthrough_kernel, "Autograd")
_LIBRARY.impl("reflectors_", _reflectors_cpu, "CPU")
_LIBRARY.impl("reflectors_", _reflectors_cuda, "CUDA")
_LIBRARY.impl("small_orthogonal_", fill_small, "CPU")
torch.library.register_fake("torchinit::reflectors_", _fake_block, lib=_LIBRARY)
torch.library.register_fake("torchinit::small_orthogonal_", _fake_small, lib=_LIBRARY)

reflectors_ = torch.ops.torchinit.reflectors_.default
small_orthogonal_ = torch.ops.torchinit.small_orthogonal_.default
