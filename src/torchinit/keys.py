"""Keys of random streams: the only code that touches a generator's state.

A key is one draw of 64 bits. The operators take it as a 0-dimensional int64 tensor on the CPU:
unlike a Python number it can be drawn inside a traced graph, and they read it on the host without
waiting for a device. Where nothing is traced a number does, and is quicker.
"""

from __future__ import annotations

import ctypes
import threading

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
        if torch.compiler.is_compiling():
            # Not every tracer knows random_ with these bounds: there the draw is an operator.
            return torch.ops.torchinit.draw_key.default()  # type: ignore[no-any-return]
        return torch.empty((), dtype=torch.int64, device="cpu").random_(_LOWEST, None)
    key = torch.empty((), dtype=torch.int64, device=generator.device)
    return key.random_(_LOWEST, None, generator=generator).cpu()


def draw_keys(count: int, generator: Generator | None = None) -> Tensor:
    """Draws the keys that as many calls of ``draw_key`` would, as one tensor."""
    device = "cpu" if generator is None else generator.device
    keys = torch.empty(count, dtype=torch.int64, device=device)
    return keys.random_(_LOWEST, None, generator=generator).cpu()


def draw_key_numbers(count: int, generator: Generator | None = None) -> list[int]:
    """Draws the keys that ``draw_keys`` would, as signed 64-bit numbers."""
    if count == 1:
        return [draw_key_number(generator)]
    numbers: list[int] = draw_keys(count, generator).tolist()
    return numbers


class _Scratch(threading.local):
    """One tensor a thread to draw into, and its value: new ones would double the time of a draw."""

    def __init__(self) -> None:
        self.key = torch.empty((), dtype=torch.int64, device="cpu")
        self.number = ctypes.c_int64.from_address(self.key.data_ptr())


_scratch = _Scratch()


def draw_key_number(generator: Generator | None = None) -> int:
    """Draws the key that ``draw_key`` would, as a signed 64-bit number."""
    if generator is None:
        _scratch.key.random_(_LOWEST, None)
        return _scratch.number.value
    return int(draw_key(generator).item())
