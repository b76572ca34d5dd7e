"""Bounds and ranges, for parameters near the limits of the dtypes (docs/streams.md, 2 and 3)."""

from __future__ import annotations

import math
import random

import pytest
import torch

native = pytest.importorskip("torchinit.native._native", reason="tests the native module")

INF = math.inf
NORMAL, TRUNCATED = 2, 3
NUMBERS = {
    torch.float64: 0,
    torch.float32: 1,
    torch.float16: 2,
    torch.bfloat16: 3,
    torch.float8_e4m3fn: 6,
    torch.float8_e5m2: 7,
}
NARROW = list(NUMBERS)[2:]
LARGEST = {dtype: torch.finfo(dtype).max for dtype in NUMBERS}


def transform(dtype, kind, *parameters):
    return native.transform(kind, NUMBERS[dtype], *parameters, *[0.0] * (4 - len(parameters)))


def filled(dtype, kind, *parameters, count=1 << 14, key=7):
    memory = torch.zeros(count * dtype.itemsize, dtype=torch.uint8).view(dtype)
    padded = (*parameters, *[0.0] * (4 - len(parameters)))
    native.fill(kind, NUMBERS[dtype], *padded, key, memory.data_ptr(), count, 1)
    return memory


def test_float32_decides_for_the_narrower_dtypes():
    parameters = (0.0, 0.3, -1.98, 1.98)
    assert transform(torch.float32, TRUNCATED, *parameters) == "normal"
    single = filled(torch.float32, TRUNCATED, *parameters)
    assert torch.equal(single, filled(torch.float32, NORMAL, 0.0, 0.3))
    assert transform(torch.float8_e4m3fn, TRUNCATED, *parameters) == "clamped-normal"


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("b", [1.98, 1.9721, 1.975])
def test_narrow_values_are_those_of_float32_rounded(dtype, b):
    values = filled(dtype, TRUNCATED, 0.0, 0.3, -b, b, count=1 << 20).float()
    single = filled(torch.float32, TRUNCATED, 0.0, 0.3, -b, b, count=1 << 20)
    assert values.abs().max() <= b
    assert torch.equal(values, single.to(dtype).float())


@pytest.mark.parametrize("dtype", NARROW)
def test_every_tie_goes_to_the_even_neighbour(dtype):
    """The middle of any two neighbours, subnormal ones too: random words seldom hit one."""
    codes = torch.arange(1 << (8 * dtype.itemsize - 1)).to(
        torch.uint8 if dtype.itemsize == 1 else torch.int16
    )
    values = codes.view(dtype).double()
    values = values[values.isfinite()]
    ties = ((values[:-1] + values[1:]) / 2).tolist()
    memory = torch.zeros(len(ties) * dtype.itemsize, dtype=torch.uint8).view(dtype)
    for i, tie in enumerate(ties):
        address = memory.data_ptr() + i * dtype.itemsize
        native.fill(4, NUMBERS[dtype], tie, 0.0, 0.0, 0.0, 0, address, 1, 1)
    even = torch.arange(len(ties)) + torch.arange(len(ties)) % 2
    assert torch.equal(memory.double(), values[even])


def test_a_value_that_rounding_leads_out_of_the_bounds_is_kept_inside():
    """Element 387,327,825 of key 7 has 6.11 standard deviations: one of 10^9 goes so far."""
    std, b = 0.19, 1.2485  # beyond float32's reach, and below the next float8_e5m2, 1.25
    place = ([1], [1], [1 << 40], [387_327_825])
    values = {}
    for dtype in (torch.float32, torch.float8_e5m2):
        memory = torch.zeros(dtype.itemsize, dtype=torch.uint8).view(dtype)
        parameters = (0.0, std, -b, b)
        native.fill_box(3, NUMBERS[dtype], *parameters, 7, memory.data_ptr(), *place, 1)
        values[dtype] = float(memory)
    assert values[torch.float32] > 1.125
    assert float(torch.tensor(values[torch.float32]).to(torch.float8_e5m2)) == 1.25
    assert values[torch.float8_e5m2] == 1


def test_float16_has_no_infinity_that_its_bounds_have_not():
    parameters = (0.0, 1e5, 0.0)
    values = filled(torch.float16, TRUNCATED, *parameters, 1e5)
    assert values.max() == 65504
    assert values.min() >= 0
    assert filled(torch.float16, TRUNCATED, *parameters, INF).max() == INF
    assert filled(torch.float16, TRUNCATED, 0.0, 1e5, -2e5, -1e5).unique().tolist() == [-65504]


@pytest.mark.parametrize(
    ("dtype", "largest"), [(torch.float8_e4m3fn, 448), (torch.float8_e5m2, 57344)]
)
@pytest.mark.parametrize("bounds", [(-INF, -134266.0), (-INF, INF), (1e5, INF), (0.0, 1e300)])
def test_float8_saturates(dtype, largest, bounds):
    values = filled(dtype, TRUNCATED, 0.0, 1e7, *bounds).float()
    assert values.abs().max() == largest


@pytest.mark.parametrize(("dtype", "std"), [(torch.float32, 1e38), (torch.float64, 1e308)])
def test_a_normal_is_infinite_only_beyond_the_range(dtype, std):
    count = 1 << 20
    scale = 2.0**-20
    exact = filled(dtype, NORMAL, 0.0, std * scale, count=count)  # no overflow here
    expected = exact * 2.0**20
    values = filled(dtype, NORMAL, 0.0, std, count=count)
    assert torch.equal(values, expected)
    assert 0 < values.isinf().sum() < 0.1 * count
    assert transform(dtype, NORMAL, 0.0, std) == "clamped-normal"
    assert transform(dtype, NORMAL, 0.0, std / 8) == "normal"


def test_a_normal_of_any_parameters_is_no_nan():
    for mean in (0.0, 1.0, -3e38, 4e38, 1e300, -1.7e308):
        for std in (0.0, 1e-300, 1.0, 5.1e37, 5.2e37, 3.5e38, 1e80, 1.7e308):
            for dtype in NUMBERS:
                values = filled(dtype, NORMAL, mean, std, count=1 << 12).double()
                assert not values.isnan().any(), (dtype, mean, std)
                if mean == 0 and std > 1e40 and dtype == torch.float32:
                    assert values.isinf().double().mean() > 0.95


def random_parameters(numbers):
    """Mean, std, a, b of all magnitudes, a < b."""

    def real(largest):
        return numbers.choice([-1, 1]) * 10 ** numbers.uniform(-10, largest)

    mean = numbers.choice([0.0, real(45), real(5)])
    std = 10 ** numbers.uniform(-10, 45)
    if numbers.random() < 0.5:  # about the mean
        a, b = sorted([mean + std * real(1.5), mean + std * real(1.5)])
    else:
        a, b = sorted([real(45), real(45)])
    return mean, std, numbers.choice([a, a, -INF]), numbers.choice([b, b, INF])


def test_truncated_normals_never_leave_their_bounds():
    numbers = random.Random(1)
    tried = 0
    for _ in range(1500):
        mean, std, a, b = random_parameters(numbers)
        if not a < b:
            continue
        for dtype in NUMBERS:
            values = filled(dtype, TRUNCATED, mean, std, a, b, count=257).double()
            where = (dtype, mean, std, a, b)
            assert not values.isnan().any(), where
            assert not (values.isinf().any() and a > -INF and b < INF), where
            largest = LARGEST[dtype]
            if dtype in NARROW[2:]:
                assert values.abs().max() <= largest, where
            low, high = max(a, -largest), min(b, largest)
            steps = values[(values < low) | (values > high)].unique()
            steps = steps[~steps.isinf()]
            # Outside only if there is no value inside, and then always the same.
            assert len(steps) == 0 or len(values.unique()) == 1, where
            tried += 1
    assert tried > 5000
