"""Spectral norm and orthogonality of matrices that are read in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import TypeAlias

import torch
from torch import Tensor

from torchinit.reporting.measure import CHUNK, each, room

# A matrix: rows side by side in memory, of one width.
MatrixBlocks: TypeAlias = "Sequence[Tensor]"

# Lanczos steps. Of a matrix of independent values the norm comes out 1% to 2.5% too small, as the
# edge of the Marchenko-Pastur law has it; of one with a large singular value, exact.
STEPS = 8
_SEED = 20240607  # of the start, a generator of its own
# Up to so many multiplications the Gram matrix is always made; and values of a piece of it.
_CHEAP = 2**24
_WIDE = 2**20
# How far the norm of an orthogonal matrix may be from that of its columns, in squares.
_SUSPECT = 1.02
_TASK = 2**21


def spectral_norm(blocks: MatrixBlocks, scale: float, threads: Executor) -> float:
    """The largest singular value, by Golub, Kahan and Lanczos with full reorthogonalisation.

    Args:
        blocks: rows of a matrix (m, n) of finite values, in shares.
        scale: the size of its values, by which they are divided.
        threads: that the work is shared out among.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> round(spectral_norm([torch.diag(torch.tensor([3.0, 1.0]))], 1.0, ThreadPoolExecutor(1)), 5)
    3.0
    """
    columns, dtype = blocks[0].shape[1], _working_dtype(blocks, scale)
    generator = torch.Generator().manual_seed(_SEED)
    vector = torch.randn(columns, dtype=torch.float64, generator=generator)
    vector /= vector.norm()
    shares = [share for block in blocks for share in block.split(_rows(block, _TASK))]

    def squared(vector: Tensor) -> Tensor:
        """W^T W v."""
        narrow = (vector / scale).to(dtype)
        found = each(lambda share: _multiply(share, narrow, scale), shares, threads)
        return sum(found, start=torch.zeros(columns, dtype=torch.float64))

    return scale * math.sqrt(max(_largest_eigenvalue(squared, vector), 0.0))


def _largest_eigenvalue(multiply: Callable[[Tensor], Tensor], vector: Tensor) -> float:
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(STEPS, len(vector))):
        basis.append(vector)
        image = multiply(vector)
        diagonal.append(float(vector @ image))
        known = torch.stack(basis)
        for _twice in range(2):
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        if length <= 1e-6 * diagonal[0]:
            break
        beside.append(length)
        vector = image / length
    beside = beside[: len(diagonal) - 1]
    middle = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    upper = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
    return float(torch.linalg.eigvalsh(middle + upper + upper.T)[-1])


def _rows(block: Tensor, values: int) -> int:
    return max(values // max(block.shape[1], 1), 1)


def _multiply(share: Tensor, vector: Tensor, scale: float) -> Tensor:
    rows = _rows(share, CHUNK)
    wide = torch.empty(rows, len(vector), dtype=vector.dtype)
    total = torch.zeros_like(vector)
    for chunk in share.split(rows):
        matrix = room(wide, chunk).copy_(chunk)
        total.addmv_(matrix.T, matrix @ vector)
    return total.double() / scale


def may_be_orthogonal(norm: float, rms: float, shape: tuple[int, int]) -> bool:
    """Whether the singular values may all be equal: the largest is their root mean square."""
    return (norm / rms) ** 2 <= _SUSPECT * max(shape)


def is_cheap(shape: tuple[int, int]) -> bool:
    """Whether the Gram matrix costs next to nothing."""
    return min(shape) ** 2 * max(shape) <= _CHEAP


def _working_dtype(blocks: MatrixBlocks, scale: float) -> torch.dtype:
    """Of values of such a size, and one over it."""
    is_narrow = blocks[0].dtype != torch.float64 and 1e-30 < scale < 1e30
    return torch.float32 if is_narrow else torch.float64


def gram_matrix(blocks: MatrixBlocks, scale: float) -> Tensor:
    """W^T W, or W W^T of a matrix that is wider than high, in float64.

    Args:
        blocks: rows of a matrix (m, n), in shares.
        scale: the size of its values, by which they are divided.
    """
    rows, columns = sum(map(len, blocks)), blocks[0].shape[1]
    size = min(rows, columns)
    is_small = is_cheap((rows, columns))
    dtype = torch.float64 if is_small else _working_dtype(blocks, scale)
    gram = torch.zeros(size, size, dtype=torch.float64)
    if rows >= columns:
        for block in blocks:
            for chunk in block.split(_rows(block, _WIDE)):
                wide = chunk.to("cpu", dtype) / scale
                gram += wide.T @ wide
        return gram
    width = max(_WIDE // rows, 1)
    for start in range(0, columns, width):
        wide = torch.cat([block[:, start : start + width].to("cpu", dtype) for block in blocks])
        wide /= scale
        gram += wide @ wide.T
    return gram


def norm_of(gram: Tensor) -> float:
    """The largest singular value of the matrix that a Gram matrix is of, over its scale."""
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))


def orthogonality_error(gram: Tensor) -> float:
    """The largest entry of ``|Q^T Q - I|``, where Q is a matrix over its gain.

    The gain is that of the trace: the root mean square of the singular values. Of a matrix that is
    wider than high it is Q Q^T.

    Args:
        gram: of the matrix; the error is NaN where it is 0.

    >>> orthogonality_error(gram_matrix([2 * torch.eye(3)], scale=1.0))
    0.0
    """
    square = float(gram.trace()) / len(gram)
    if not square > 0:
        return math.nan
    return float((gram / square - torch.eye(len(gram), dtype=torch.float64)).abs().max())
