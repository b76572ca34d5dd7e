"""Orthogonal matrices that ``torch.nn.init`` makes: where the kernels cannot serve."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init

from torchinit.dtypes import ALL_DTYPES
from torchinit.fill.fallback import copy_rounded
from torchinit.fill.route import PLAIN_TYPES
from torchinit.placement.box import Box, cut_out


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
    is_narrow = tensor.dtype in ALL_DTYPES and tensor.dtype.itemsize <= 2
    if not is_narrow or tensor.is_meta or type(tensor) not in PLAIN_TYPES:
        return torch_init.orthogonal_(tensor, gain, generator)
    single = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    torch_init.orthogonal_(single, gain, generator)
    return copy_rounded(tensor, single)
