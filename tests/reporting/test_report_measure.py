"""Moments, counts, norms and laws of values, against NumPy, SciPy and torch in float64."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from torchinit.reporting.goodness_of_fit import (
    LIMIT,
    clipped,
    deviance,
    fit_distribution,
    normal,
    resolution_of,
    survival_of,
    truncated,
    uniform,
)
from torchinit.reporting.measure import (
    CHUNK,
    gram_matrix,
    grid,
    measure,
    measure_matrix,
    orthogonality_error,
    spectral_norm,
)
from torchinit.reporting.measure import LANCZOS_STEPS as LANCZOS
from torchinit.schemes.distributions import law_of, normal_draw, truncated_draw, uniform_draw
from torchinit.schemes.law import law_of_orthogonal

THREADS = ThreadPoolExecutor(2)


def made(dtype, count=3 * CHUNK + 17, mean=0.0, std=0.02, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    return (values * std + mean).to(dtype)


def assert_measured(tensors, tolerance=5e-6):
    """Within a part of the std, and of the values; counts exactly but for what is at an edge."""
    found = measure(tensors, THREADS)
    values = np.concatenate([tensor.double().numpy().ravel() for tensor in tensors])
    finite = values[np.isfinite(values)]
    std = finite.std()
    assert found.numel == len(values)
    assert found.finite == len(finite)
    assert found.zeros == (finite == 0).sum()
    assert found.nans == np.isnan(values).sum()
    assert found.infinities == np.isinf(values).sum()
    assert (found.low, found.high) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), abs=tolerance * std)
    assert found.std == pytest.approx(std, rel=tolerance)
    assert found.skewness == pytest.approx(stats.skew(finite), abs=20 * tolerance)
    assert found.kurtosis == pytest.approx(stats.kurtosis(finite, fisher=False), rel=20 * tolerance)
    distances = np.abs(finite - finite.mean()) / std
    slack = 1e-5 * (1 + np.abs(found.mean) / std)
    for point, beyond in zip(grid().tolist(), found.beyond.tolist(), strict=True):
        least, most = (distances >= point + slack).sum(), (distances >= point - slack).sum()
        assert least <= beyond <= most


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn,
    torch.float8_e5m2,
])  # fmt: skip
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_moments(dtype, mean):
    assert_measured([made(dtype, mean=mean)])


@pytest.mark.parametrize(("mean", "std"), [(1e3, 1e-3), (0, 1e-25), (0, 1e25), (-1e20, 1e18)])
def test_moments_that_float32_could_not_hold(mean, std):
    assert_measured([made(torch.float64, mean=mean, std=std)])
    assert_measured([made(torch.float32, 5000, mean=mean, std=std)])


def test_integers():
    assert_measured([torch.randint(-100, 100, (50_000,), dtype=torch.int8)])
    assert_measured([torch.randint(-(2**40), 2**40, (5_000,), dtype=torch.int64)])
    assert_measured([torch.rand(5000) < 0.3])


def test_complex_values_are_measured_by_their_parts():
    values = torch.complex(made(torch.float32), made(torch.float32, seed=1))
    found, parts = measure([values], THREADS), measure([torch.view_as_real(values)], THREADS)
    assert found[:-1] == parts[:-1]
    assert found.numel == 2 * values.numel()


@pytest.mark.parametrize("view", [
    lambda x: x.T, lambda x: x[:, ::3], lambda x: x[5:, 7:11], lambda x: x[:, :0],
    lambda x: x.expand(3, *x.shape), lambda x: x[0, 0],
])  # fmt: skip
def test_views(view):
    tensor = view(made(torch.float32, 700 * 300).view(700, 300))
    found = measure([tensor], THREADS)
    again = measure([tensor.contiguous().clone()], THREADS)
    assert found.numel == tensor.numel()
    if tensor.numel() > 1:
        assert found.mean == pytest.approx(again.mean, abs=1e-6 * again.std)
        assert found.std == pytest.approx(again.std, rel=1e-6)
        assert found.low == again.low


def test_several_are_measured_as_one():
    assert_measured([made(torch.float32, 1000), made(torch.float32, 70_000, mean=0.1)])


def test_values_that_are_not_finite():
    values = made(torch.float32)
    values[[0, 5, 40_000]] = torch.nan
    values[[7, 50_000]] = torch.inf
    values[8] = -torch.inf
    values[100:200] = 0
    assert_measured([values])
    values.fill_(torch.nan)
    found = measure([values], THREADS)
    assert (found.nans, found.finite) == (len(values), 0)
    assert math.isnan(found.mean)


@pytest.mark.parametrize("scale", [1e-310, 1e-200, 1e200, 3e307])
def test_values_whose_squares_float64_cannot_hold(scale):
    values = made(torch.float64, 10_000, std=1.0)
    near, found = measure([values], THREADS), measure([values * scale], THREADS)
    assert found.std / scale == pytest.approx(near.std, rel=1e-6)
    assert found.mean / scale == pytest.approx(near.mean, rel=1e-6)
    assert found.kurtosis == pytest.approx(near.kurtosis, rel=1e-6)
    assert found.low == float((values * scale).min())


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e30])
def test_equal_values(value):
    found = measure([torch.full((100_000,), value)], THREADS)
    assert found.mean == found.low == found.high == torch.tensor(value).item()
    assert found.std == found.kurtosis == found.extent == 0
    assert found.zeros == (100_000 if value == 0 else 0)


def test_empty_and_one():
    assert measure([torch.empty(0)], THREADS).numel == 0
    assert measure([], THREADS).numel == 0
    one = measure([torch.tensor(3.0)], THREADS)
    assert (one.numel, one.mean, one.std) == (1, 3.0, 0.0)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (1000, 7), (7, 1000), (2, 2)])
def test_spectral_norm(shape):
    """Of a random matrix 2.5% too small at most, as its largest singular values lie together."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    found = spectral_norm(list(matrix.split(90)), 1.0, THREADS)
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
    tolerance = 1e-5 if min(shape) < LANCZOS - 1 else 0.025
    assert exact * (1 - tolerance) <= found <= exact * (1 + 1e-5)
    norm, _ = measure_matrix(list(matrix.split(90)), 1.0, THREADS, is_orthogonal=False)
    assert norm == pytest.approx(exact, rel=1e-6)


def test_spectral_norm_of_one_large_value():
    matrix = 0.02 * torch.randn(300, 200, generator=torch.Generator().manual_seed(1)) + 0.1
    exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
    assert spectral_norm([matrix], 0.1, THREADS) == pytest.approx(exact, rel=1e-5)


def error_of(blocks):
    return orthogonality_error(gram_matrix(blocks, 1.0, torch.float64))


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (50, 50)])
def test_orthogonality(shape):
    matrix = 3 * torch.nn.init.orthogonal_(torch.empty(shape))
    assert error_of(list(matrix.split(16))) < 1e-5
    matrix[0, 0] += 0.3
    assert error_of(list(matrix.split(16))) > 1e-3
    assert math.isnan(error_of([torch.zeros(shape)]))


@pytest.mark.parametrize(
    ("name", "draw"),
    [
        ("normal", lambda n: stats.norm.rvs(size=n, random_state=1)),
        ("uniform", lambda n: stats.uniform.rvs(size=n, random_state=1)),
        ("trunc ±2.0", lambda n: stats.truncnorm.rvs(-2, 2, size=n, random_state=1)),
        ("trunc ±1.0", lambda n: stats.truncnorm.rvs(-1, 1, size=n, random_state=1)),
        ("clipped ±1.0", lambda n: stats.norm.rvs(size=n, random_state=1).clip(-1, 1)),
        ("other", lambda n: stats.laplace.rvs(size=n, random_state=1)),
        ("other", lambda n: stats.expon.rvs(size=n, random_state=1)),
        ("other", lambda n: stats.t.rvs(5, size=n, random_state=1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_laws(name, draw, dtype):
    values = torch.tensor(draw(100_000) * 0.02).to(dtype)
    moments = measure([values], THREADS)
    assert str(fit_distribution(moments, resolution_of(dtype, moments.std), None)) == name


def test_laws_without_a_spread_and_of_few():
    for values, kind in [
        (torch.zeros(9), "zeros"), (torch.ones(9), "ones"), (torch.full((9,), 3.0), "constant"),
        (torch.empty(0), "empty"), (torch.full((9,), torch.nan), "not finite"),
        (torch.randn(9, generator=torch.Generator().manual_seed(0)), "undecided"),
    ]:  # fmt: skip
        moments = measure([values], THREADS)
        assert fit_distribution(moments, 1e-7, None).kind == kind


def test_survival_functions():
    for ours, theirs, std in [
        (normal(), stats.norm, 1.0),
        (uniform(), stats.uniform(-1, 2), 1 / math.sqrt(3)),
        (truncated(2.0), stats.truncnorm(-2, 2), stats.truncnorm(-2, 2).std()),
    ]:
        expected = torch.tensor(2 * theirs.sf(grid().numpy() * std))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert float(clipped(1.0)[int(16 * 1.38)]) > 0.3
    for draw, shape in [
        (normal_draw(0.1, 0.02), normal()),
        (uniform_draw(-1.0, 3.0), uniform()),
        (truncated_draw(0.0, 0.5, -1.0, 1.0), truncated(2.0)),
    ]:
        torch.testing.assert_close(survival_of(law_of(draw)), shape, rtol=0, atol=1e-6)
    large = survival_of(law_of_orthogonal(4096, 64, 2.0))
    torch.testing.assert_close(large, normal(), rtol=0, atol=1e-3)
    assert survival_of(law_of(normal_draw(1.0, 0.0))) is None


def test_values_of_a_law_are_seldom_refused():
    """At most one in 1.7 million is, by a bound that is no approximation: none of 400."""
    generator = torch.Generator().manual_seed(5)
    worst = 0.0
    for count in [20, 200, 2000, 20_000] * 100:
        values = torch.randn(count, generator=generator)
        worst = max(worst, deviance(measure([values], THREADS), normal(), 1e-7))
    assert LIMIT / 10 < worst < LIMIT


def test_the_bound_on_false_alarms_is_of_all_points_and_both_sides():
    """At each of the points of the grid, a side is at the limit with probability exp(-LIMIT)."""
    assert 2 * len(grid()) * math.exp(-LIMIT) == pytest.approx(5.733e-7, rel=1e-3)
