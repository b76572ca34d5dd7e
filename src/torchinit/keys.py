"""Keys of random streams: the only code that touches a generator's state.

A key is 64 bits, kept as a 0-dimensional int64 tensor on the CPU: unlike a Python number it can be
drawn inside a traced graph, and the operators read it on the host without waiting for a device.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

_LOWEST = -(2**63)


def draw_key(generator: Generator | None = None) -> Tensor:
    """Draws one key.

    Args:
        generator: where to draw from. None is torch's default CPU generator, whatever the device of
            the tensor to be filled, so ``torch.manual_seed`` governs every fill. A generator on a
            device works too and costs one synchronisation with it.

    Returns:
        A 0-dimensional int64 tensor on the CPU: all 64 bits of one ``random_(-2**63, None)``.
    """
    if generator is None:
        return torch.empty((), dtype=torch.int64, device="cpu").random_(_LOWEST, None)
    key = torch.empty((), dtype=torch.int64, device=generator.device)
    return key.random_(_LOWEST, None, generator=generator).cpu()
