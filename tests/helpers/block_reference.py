"""Low-precision weights with scales of blocks in plain torch, written from docs/streams.md.

Every operation is one of float32, to nearest even; nothing is taken from the kernels. It
takes whole matrices, and is timed: tools/contract_reference.py has the same value by value.
"""

from __future__ import annotations

import torch

MAX = torch.finfo(torch.float32).max
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def largest_of_blocks(values, rows, columns):
    """The largest magnitude of each block of a matrix, as float32."""
    height, width = values.shape
    down, across = -(-height // rows), -(-width // columns)
    padded = torch.zeros(down * rows, across * columns)
    padded[:height, :width] = values.abs()
    return padded.view(down, rows, across, columns).amax((1, 3))


def spread(of_blocks, rows, columns, shape):
    """A number for each block as one for each value."""
    wide = of_blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return wide[: shape[0], : shape[1]]


def power_up(largest):
    """Codes of E8M0: the exponent of largest / 448 rounded up."""
    quotient = largest * torch.tensor(1 / 448, dtype=torch.float32)
    code = torch.zeros(largest.shape, dtype=torch.int32)
    for number in range(255):  # the least power of two that is not smaller
        code += (quotient > torch.tensor(2.0, dtype=torch.float64) ** (number - 127)).int()
    return code.clamp(max=254)


def power_of(code):
    return torch.tensor(2.0, dtype=torch.float64) ** (code.double() - 127)


def to_e4m3(values):
    """Codes, saturating."""
    return values.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)


def to_e2m1(values):
    """Codes, saturating, ties to the even code."""
    magnitude = values.abs().clamp(max=6).double()
    low = torch.searchsorted(E2M1.double(), magnitude, right=True) - 1
    high = (low + 1).clamp(max=7)
    below, above = magnitude - E2M1.double()[low], E2M1.double()[high] - magnitude
    up = (above < below) | ((above == below) & (high % 2 == 0))
    return torch.where(up, high, low).to(torch.uint8) | (values.signbit().to(torch.uint8) << 3)


def quantise(values, form, largest=0.0):
    """Payload and scales of a float32 matrix: (codes as uint8, scales as float64, as stored).

    Args:
        values: the matrix.
        form: (kind, rows, columns): kind is rceil, floor, float32, ue8m0 or nvfp4.
        largest: of the tensor, for nvfp4.
    """
    kind, rows, columns = form
    amax = largest_of_blocks(values, rows, columns)
    shape = values.shape
    if kind == "nvfp4":
        whole = torch.tensor(largest, dtype=torch.float32)
        encode = torch.minimum(torch.tensor(2688.0) / whole, torch.tensor(MAX))
        if whole == 0 or encode == 0:
            encode = torch.tensor(1.0)
        codes = to_e4m3(amax * (encode * torch.tensor(1 / 6, dtype=torch.float32)))
        scale = codes.view(torch.float8_e4m3fn).float()
        factor = (1 / (scale * (1 / encode))).clamp(max=MAX)  # reciprocals are divisions
        four = to_e2m1(values * spread(factor, rows, columns, shape))
        return four[:, ::2] | (four[:, 1::2] << 4), codes
    if kind in ("rceil", "floor"):
        code = power_up(amax) if kind == "rceil" else amax.view(torch.int32).bitwise_right_shift(23)
        code = code if kind == "rceil" else (code - 8).clamp(min=0)
        stored = code.to(torch.uint8)
        factor = (1 / power_of(code)).float()
    elif kind == "float32":
        one = torch.where(amax == 0, torch.tensor(448.0), amax)
        # A number over a tensor is that number times the tensor's reciprocal in torch.
        factor = torch.div(torch.full_like(one, 448.0), one).clamp(max=MAX)
        stored = torch.div(torch.ones_like(factor), factor)
    else:
        code = torch.where(amax == 0, 127, power_up(amax))
        factor, stored = (1 / power_of(code)).float(), code.to(torch.uint8)
    return to_e4m3(values * spread(factor, rows, columns, shape)), stored
