"""Random orthogonal matrices without a factorisation: products of random Householder reflectors.

The Q of a Gaussian matrix's QR factorisation, with R's diagonal made positive, is uniform over the
orthogonal group (Mezzadri 2007). It is a product of Householder reflectors whose vectors are
themselves independent Gaussians of shrinking length (Stewart 1980, SIAM J. Numer. Anal. 17), so the
factorisation is skipped: the vectors are drawn, and Q is formed from them, a block of reflectors at
a time. A block is H_1 ... H_b = I - V T V^T, where the inverse of T is the upper triangle of V^T V
with half its diagonal (Puglisi 1992).

A wide matrix is the transpose of a tall one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from torchinit.dtypes import working_dtype
from torchinit.fill.fallback import copy_rounded
from torchinit.native import calls, load
from torchinit.orthogonal import reflectors

# Draws (vectors, half_norms, signs) of the reflectors from a number on: see reflectors.py.
DrawReflectors = Callable[[Tensor, Tensor, Tensor, int], None]

# Up to so many elements reflectors are applied one by one, on the CPU.
_SMALL = 2**14
# Up to so many elements matrices of one shape share batched products; a CPU is busy with fewer.
_BATCHED = {"cpu": 2**18, "cuda": 2**22}
_BATCH_ELEMENTS = 2**24  # of the copy that a batch of separate tensors is made in
# Gains up to this, and down to its inverse, enter the products.
_MODERATE_GAIN = {torch.float32: 2.0**64, torch.float64: 2.0**512}


def form(tensors: Sequence[Tensor] | Tensor, keys: Tensor, gain: float) -> None:
    """Makes each tensor (semi-)orthogonal over the flattening (shape[0], rest), times gain.

    Args:
        tensors: of one shape, dtype and device, in plain memory, with elements; or a stack of such.
        keys: one for each, int64, on the CPU.
        gain: factor.
    """
    rows, columns = matrix_shape(tensors[0])
    limit = _MODERATE_GAIN[working_dtype(tensors[0].dtype)]
    # A gain near the ends of the range would overflow, or lose digits, within the products.
    factor = gain if gain == 0 or 1 / limit <= abs(gain) <= limit else 1.0
    rest = gain / factor if factor else 1.0

    with torch.no_grad():
        if tensors[0].device.type != "cuda" and rows * columns <= _SMALL:
            if rest != 1 or not _fill_small_in_place(tensors, keys, gain):
                with calls.serial_if_forked():
                    in_batches(tensors, _filling_small(keys, factor), rest)
            return
        with products_alone(tensors[0].device), calls.serial_if_forked():
            in_batches(tensors, _filling_by_blocks(keys, factor), rest)


def _filling_small(keys: Tensor, gain: float) -> Callable[[Tensor, int], None]:
    def fill(q: Tensor, first: int) -> None:
        reflectors.fill_small(q.unbind(), keys[first : first + len(q)], gain)

    return fill


def _filling_by_blocks(keys: Tensor, gain: float) -> Callable[[Tensor, int], None]:
    def fill(q: Tensor, first: int) -> None:
        some = keys[first : first + len(q)]

        def draw(vectors: Tensor, half_norms: Tensor, signs: Tensor, number: int) -> None:
            reflectors.fill_reflectors(vectors, half_norms, signs, some, number)

        form_by_blocks(q, draw, gain)

    return fill


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Rows and columns of a tensor of at least two dimensions, flattened to a matrix."""
    rows = tensor.shape[0]
    return rows, math.prod(tensor.shape[1:])


def in_batches(
    tensors: Sequence[Tensor] | Tensor, fill: Callable[[Tensor, int], None], factor: float = 1.0
) -> None:
    """Calls fill(matrices, first) for all tensors, as tall (batch, m, n) float32 or float64.

    The matrices are multiplied by the factor then.

    In the tensors' own memory where a batch can be viewed so, else in a copy.
    """
    like = tensors[0]
    rows, columns = matrix_shape(like)
    dtype = working_dtype(like.dtype)
    size = 1
    if rows * columns <= _BATCHED.get(like.device.type, 0):
        size = max(1, min(len(tensors), _BATCH_ELEMENTS // (rows * columns)))
    for first in range(0, len(tensors), size):
        some = tensors[first : first + size]
        if like.dtype != dtype:
            matrices = None
        elif len(some) == 1:
            matrices = _as_matrix(some[0])
        else:
            stack = some if isinstance(some, Tensor) else None
            matrices = stack.detach() if stack is not None and stack.is_contiguous() else None
        if matrices is not None:
            fill(_tall(matrices.view(-1, rows, columns)), first)
            if factor != 1:
                matrices.mul_(factor)
            continue
        matrices = torch.empty((len(some), rows, columns), dtype=dtype, device=like.device)
        fill(_tall(matrices), first)
        if factor != 1:
            matrices.mul_(factor)
        for tensor, matrix in zip(some, matrices, strict=True):
            copy_rounded(tensor, matrix.view(tensor.shape))


def _tall(matrices: Tensor) -> Tensor:
    return matrices if matrices.shape[-2] >= matrices.shape[-1] else matrices.mT


def _as_matrix(tensor: Tensor) -> Tensor | None:
    """A view of the tensor as a matrix that products can be written to, if there is one."""
    tensor = tensor.detach()
    if tensor.dim() > 2:
        return tensor.flatten(1) if tensor.is_contiguous() else None
    rows, columns = tensor.shape
    down, across = tensor.stride()
    fits = (across == 1 and down >= columns) or (down == 1 and across >= rows)
    return tensor if fits else None


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
    wide = like.shape[0] < like.shape[1]
    reflectors.fill_small([tensor.t() for tensor in tensors] if wide else tensors, keys, gain)
    return True


def _block_size(m: int, n: int, batch: int) -> int:
    """Reflectors a block: many for fast products, few for little memory beside a large matrix."""
    if batch > 1:
        return min(n, 64)
    if m * n < 2**20:
        return n if n <= 256 else 128
    # Vectors, products and V^T V of a block: at most 8, 2.5 and 1% of the matrix, 10% where n is
    # small. What libraries take besides counts most for the smallest of these matrices.
    return max(1, min(192, n // 12 // 16 * 16 or n // 10))


def form_by_blocks(q: Tensor, draw: DrawReflectors, gain: float) -> None:
    """Fills (batch, m, n), m >= n, with products of the reflectors that are drawn.

    From the last block to the first, Q = (I - V T V^T) Q. Columns are taken a panel at a time, so
    that the products need little memory. All memory is taken before anything is written.
    """
    batch, m, n = q.shape
    block = _block_size(m, n, batch)
    panel = n if batch > 1 or m * n < 2**20 else max(2 * block, n // 4)
    vector_memory = q.new_empty(batch * block * m)
    product_memory = q.new_empty(batch * block * panel)
    gram_memory = q.new_empty(batch * block * block)
    norm_memory, sign_memory = q.new_empty(2, batch * block)
    if batch == 1:
        q = q[0]  # products of two matrices are quicker than of batches of one
    lead = q.shape[:-2]
    # torch solves the systems of a batch one by one.
    inverts = batch > 1 and q.device.type == "cpu" and load.module is not None
    q.zero_()
    diagonal = q.diagonal(dim1=-2, dim2=-1)

    for first in reversed(range(0, n, block)):
        b = min(block, n - first)
        vectors = vector_memory[: batch * b * (m - first)].view(*lead, b, m - first)
        half_norms = norm_memory[: batch * b].view(*lead, b)
        signs = sign_memory[: batch * b].view(*lead, b)
        gram = gram_memory[: batch * b * b].view(*lead, b, b)
        draw(
            vectors.view(batch, b, m - first),
            half_norms.view(batch, b),
            signs.view(batch, b),
            first,
        )
        _multiply(vectors, vectors.mT, gram)
        gram.diagonal(dim1=-2, dim2=-1).copy_(half_norms)  # more exact than the product's
        if inverts:
            reflectors.invert_triangles(gram)
        after = first + b
        diagonal[..., first:after].copy_(signs.mul_(gain))
        for start in range(first, n, panel):
            stop = min(n, start + panel)
            size = (*lead, b, stop - start)
            product = product_memory[: math.prod(size)].view(size)
            # V^T Q. Q's upper rows are still those of the identity, times signs and gain.
            own = max(0, after - start)
            if own:
                torch.mul(vectors[..., :b], signs.unsqueeze(-2), out=product[..., :own])
            if start + own < stop:
                columns = q[..., after:, start + own : stop]
                _multiply(vectors[..., b:], columns, product[..., own:])
            if inverts:
                product = torch.bmm(gram, product)
            else:
                torch.linalg.solve_triangular(gram, product, upper=True, out=product)
            _subtract_product(q[..., first:, start:stop], vectors.mT, product)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    if out.dim() == 2:
        torch.mm(a, b, out=out)
    elif out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))


def _subtract_product(c: Tensor, a: Tensor, b: Tensor) -> None:
    if c.dim() == 2:
        c.addmm_(a, b, alpha=-1)
    elif c.is_cuda or c.is_contiguous():
        c.baddbmm_(a, b, alpha=-1)
    else:
        c.sub_(torch.bmm(a, b))  # baddbmm_ would take these matrices one by one


@contextlib.contextmanager
def products_alone(device: torch.device) -> Iterator[None]:
    """Keeps products in their dtype, whatever autocast and ``allow_tf32`` say."""
    backends: Any = torch.backends
    backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    precision = backend.fp32_precision
    with contextlib.ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if precision not in ("none", "ieee"):
            backend.fp32_precision = "ieee"
            stack.callback(setattr, backend, "fp32_precision", precision)
        yield
