"""Every distribution and every transform of it (csrc/job/plan.h), dtypes, and equality of bits."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch

import torchinit  # noqa: F401  # defines the operators
from torchinit.dtypes import ALL_DTYPES
from torchinit.schemes.distributions import DISTRIBUTIONS, Distribution

ops = torch.ops.torchinit

KEY = torch.tensor(-0x123456789ABCDEF)
UNSIGNED_KEY = int(KEY) % 2**64
NARROW = tuple(dtype for dtype in ALL_DTYPES if dtype.itemsize <= 2)
DTYPES = (torch.float64, torch.float32, *NARROW)
INF = math.inf
GUARD = 64  # a value that every dtype has


def _read():
    """The table that the C++ tests read too; the operators for its distributions."""
    rows = {one.name.lower(): row for one in Distribution if (row := DISTRIBUTIONS[one]).is_random}
    path = Path(__file__).parents[1] / "data" / "fills.csv"
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if kind := rows.get(row["distribution"]):
                parameters = [float(row[f"p{i}"]) for i in range(len(kind.parameters))]
                yield row["name"], (getattr(ops, f"{kind.name}_"), tuple(parameters))


_ALL = dict(_read())
# At least one for every transform.
FILLS = {
    name: _ALL[name]
    for name in (
        "uniform", "uniform-far-from-zero", "uniform-short", "normal", "truncated-2-scaled",
        "truncated-3-right", "truncated-4", "truncated-below", "truncated-plain",
        "truncated-plain-narrow", "truncated-8", "truncated-short", "truncated-tail",
        "truncated-flat",
    )
}  # fmt: skip
WORDS = {"words": _ALL["words"]}


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
