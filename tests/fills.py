"""Every distribution and every transform of it (csrc/plan.h), dtypes, and equality of bits."""

from __future__ import annotations

import math

import pytest
import torch

from torchinit.fill import operators as ops

KEY = torch.tensor(-0x123456789ABCDEF)
UNSIGNED_KEY = int(KEY) % 2**64
NARROW = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = (torch.float64, torch.float32, *NARROW)
INF = math.inf
GUARD = 64  # a value that every dtype has

FILLS = {
    "uniform": (ops.uniform_, (-1.0, 1.3)),
    "uniform far from zero": (ops.uniform_, (1000.0, 1001.0)),
    "normal": (ops.normal_, (0.1, 2.0)),
    "uniform, very short": (ops.uniform_, (0.0, 1e-30)),
    "truncated within 2 std": (ops.trunc_normal_, (0.0, 0.02, -0.04, 0.04)),
    "truncated within 3 std": (ops.trunc_normal_, (0.1, 1.0, 0.3, 2.5)),
    "truncated, two tails": (ops.trunc_normal_, (0.0, 1.0, -4.0, 5.0)),
    "truncated, one tail": (ops.trunc_normal_, (0.0, 1.0, -INF, -1.0)),
    "truncated, not at all": (ops.trunc_normal_, (0.0, 0.01, -2.0, 2.0)),
    "truncated, remote": (ops.trunc_normal_, (0.0, 1.0, 8.0, 10.0)),
    "truncated, narrow": (ops.trunc_normal_, (0.0, 1.0, 1.0, 1.001)),
    "truncated, very remote": (ops.trunc_normal_, (0.0, 1.0, -INF, -50.0)),
    "truncated, flat": (ops.trunc_normal_, (0.0, 1.0, 1.0, 1.0 + 1e-8)),
}
WORDS = {"words": (ops.random_words_, ())}


def fits(fill, dtype):
    """Whether the bounds of a uniform are within the dtype's range."""
    return fill[0] is not ops.uniform_ or max(fill[1]) <= torch.finfo(dtype).max


def cases():
    for name, fill in FILLS.items():
        for dtype in DTYPES:
            if not fits(fill, dtype):
                continue
            yield pytest.param(fill, dtype, id=f"{name}-{dtype}".replace("torch.", ""))
    for dtype in (torch.int32, torch.int64):
        yield pytest.param(WORDS["words"], dtype, id=f"words-{dtype}".replace("torch.", ""))


each_fill = pytest.mark.parametrize(("fill", "dtype"), list(cases()))


def make(fill, dtype, shape, start=None, whole=None, device=None):
    """A new contiguous tensor, filled; a box of `whole` if that is given."""
    operator, parameters = fill
    tensor = torch.empty(shape, dtype=dtype, device=device)
    operator(tensor, KEY, *parameters, whole, start)
    return tensor


def bits(tensor):
    """The tensor as integers, so that equality means the same bits (zeros and NaN included)."""
    return tensor.view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def assert_same_bits(got, expected):
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert torch.equal(bits(got.contiguous()), bits(expected.contiguous()))
