"""Orthogonal matrices without the native module: the same method where it pays, else torch's."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init

from torchinit.dtypes import ALL_DTYPES
from torchinit.fill.fallback import copy_rounded
from torchinit.fill.route import PLAIN_TYPES, is_observed, is_plain
from torchinit.orthogonal.form import form_matrix
from torchinit.orthogonal.products import products_alone
from torchinit.orthogonal.sharing import one_blas_thread
from torchinit.orthogonal.target import matrix_shape
from torchinit.placement.box import Box, cut_out

# The same method starts to be faster than torch's QR at about this many columns.
_WORTH_REFLECTORS = 192


def orthogonal_by_torch(
    tensor: Tensor, gain: float, generator: Generator | None, box: Box | None = None
) -> Tensor:
    """Fills one matrix, or a box of one, from torch's own stream.

    Of a box the whole is made, and copied from.

    ``torch.nn.init.orthogonal_`` knows no 16- and 8-bit dtypes: they go by way of float32, but for
    subclasses, whose values may lie elsewhere (a DTensor's, on other ranks).
    """
    if box is not None:
        whole = torch.empty(tuple(box.global_shape), dtype=tensor.dtype, device=tensor.device)
        orthogonal_by_torch(whole, gain, generator)
        with torch.no_grad():
            return tensor.copy_(cut_out(whole, box.offset, tensor.shape))
    pays = (
        not torch.compiler.is_compiling()
        and not is_observed()
        and is_plain(tensor)
        and tensor.dim() >= 2
        and math.isfinite(gain)
        and min(matrix_shape(tensor.shape)) >= _WORTH_REFLECTORS
    )
    if pays:

        def draw(vectors: Tensor, half_norms: Tensor, signs: Tensor, _: int) -> None:
            draw_by_torch(vectors, half_norms, signs, generator)

        with torch.no_grad(), products_alone(tensor.device), one_blas_thread() as threads:
            threads = threads if tensor.is_cpu else 1
            form_matrix(tensor, draw, gain, threads=threads, at_once=True)
        return tensor
    is_narrow = tensor.dtype in ALL_DTYPES and tensor.dtype.itemsize <= 2
    if not is_narrow or tensor.is_meta or type(tensor) not in PLAIN_TYPES:
        return torch_init.orthogonal_(tensor, gain, generator)
    single = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    torch_init.orthogonal_(single, gain, generator)
    return copy_rounded(tensor, single)


def draw_by_torch(
    vectors: Tensor, half_norms: Tensor, signs: Tensor, generator: Generator | None
) -> None:
    """Reflectors in plain torch operations."""
    vectors.normal_(generator=generator).triu_()
    diagonal = vectors.diagonal(dim1=-2, dim2=-1)
    norms = torch.linalg.vector_norm(vectors, dim=-1)
    signs.copy_(torch.where(diagonal < 0, 1.0, -1.0))
    heads = diagonal - signs * norms
    half_norms.copy_(norms / heads.abs())
    vectors.div_(heads.unsqueeze(-1))
    diagonal.fill_(1)
