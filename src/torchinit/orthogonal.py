"""Random orthogonal matrices: the QR factorisation of a Gaussian matrix, signs fixed.

References: Saxe et al. 2014 (initialisation); Mezzadri 2007 (with R's diagonal made positive, Q is
uniform over the orthogonal group).
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import init as torch_init

from torchinit import ops


def fill_orthogonal(tensor: Tensor, key: Tensor, gain: float) -> None:
    """Makes a tensor (semi-)orthogonal over the flattening (shape[0], rest), times gain.

    The Gaussian matrix is the normal fill of the key, in float32 for the dtypes narrower than that
    and in the tensor's dtype otherwise; the result is rounded to the tensor's dtype.
    """
    rows = tensor.shape[0]
    columns = tensor.numel() // rows if rows else 0
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    gaussian = torch.empty((rows, columns), dtype=dtype, device=tensor.device)
    ops.normal_(gaussian, key, 0.0, 1.0)
    q, r = torch.linalg.qr(gaussian.t() if rows < columns else gaussian)
    q = q * (r.diagonal().sign() * gain)
    tensor.copy_((q.t() if rows < columns else q).reshape(tensor.shape))


def orthogonal_by_torch(tensor: Tensor, gain: float, generator: Generator | None) -> Tensor:
    """``torch.nn.init.orthogonal_``, which knows no 16-bit dtypes: for them by way of float32."""
    if tensor.dtype not in (torch.float16, torch.bfloat16) or tensor.is_meta:
        return torch_init.orthogonal_(tensor, gain, generator)
    single = torch.empty(tensor.shape, dtype=torch.float32, device=tensor.device)
    torch_init.orthogonal_(single, gain, generator)
    with torch.no_grad():
        return tensor.copy_(single)
