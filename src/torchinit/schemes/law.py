"""Laws: the distribution that a fill's values should have, from theory, not from the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

# Gauss-Legendre quadrature with five points, on [-1, 1].
_NODES = (-0.9061798459386640, -0.5384693101056831, 0.0, 0.5384693101056831, 0.9061798459386640)
_WEIGHTS = (
    0.2369268850561891, 0.4786286704993665, 0.5688888888888889, 0.4786286704993665,
    0.2369268850561891,
)  # fmt: skip
# A truncated normal is integrated where its density is above exp(-_REACH) of the largest.
_REACH, _CELLS = 40.0, 64


@dataclass(frozen=True)
class Law:
    """The statistics of a fill's values, before they are rounded to a dtype.

    Attributes:
        mean, std: of the values; a std of 0 means that all values are equal.
        kurtosis: fourth central moment over std^4; 3 for a normal.
        low, high: bounds that no value exceeds.
        density: the probability density, which can be pickled; None if all values are equal.
        mean_shift: how far rounding alone may shift the mean, in units of the dtype's eps. Only
            uniform fills by torch need it, whose values are multiples of eps / 2 of the width,
            rounded down.
    """

    mean: float
    std: float
    kurtosis: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    density: Callable[[float], float] | None = field(default=None, repr=False, compare=False)
    mean_shift: float = field(default=0.0, repr=False)


def law_of_constant(value: float) -> Law:
    """The law of a constant."""
    return Law(mean=value, std=0.0, low=value, high=value)


def law_of_orthogonal(rows: int, columns: int, gain: float) -> Law:
    """The law of one element of a uniformly distributed (semi-)orthogonal matrix times gain.

    It is one coordinate of a uniformly distributed point on the sphere in n = max(rows, columns)
    dimensions; its square is Beta(1/2, (n - 1) / 2).
    """
    n, radius = max(rows, columns, 1), abs(gain)
    if radius == 0:
        return law_of_constant(0.0)
    return Law(
        mean=0.0,
        std=radius / math.sqrt(n),
        kurtosis=3 * n / (n + 2),
        low=-radius,
        high=radius,
        density=partial(_orthogonal_density, n, radius) if n > 1 else None,
    )


def _orthogonal_density(n: int, radius: float, x: float) -> float:
    rest = 1 - (x / radius) ** 2
    if rest <= 0:
        return 0.0
    log_scale = math.lgamma(n / 2) - math.lgamma((n - 1) / 2)
    power = (n - 3) / 2 * math.log(rest)
    return math.exp(log_scale + power) / (math.sqrt(math.pi) * radius)


def truncated_std(cut: float) -> float:
    """The standard deviation of N(0, 1) truncated to [-cut, cut]."""
    mass = math.erf(cut / math.sqrt(2))
    if cut < 1e-3:  # the difference below has no digits left; nearly uniform
        return cut / math.sqrt(3)
    density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / mass)


def law_of_truncated_normal(mean: float, std: float, a: float, b: float) -> Law:
    """The law of N(mean, std^2) truncated to [a, b], wherever the interval lies."""
    if std == 0 or a == b:
        return law_of_constant(min(max(mean, a), b))
    low, high = (a - mean) / std, (b - mean) / std
    peak = max(0.0, low, -high)  # distance of the density's maximum from the mean, in std
    reach = 2 * _REACH / (peak + math.sqrt(peak**2 + 2 * _REACH))
    start, stop = max(low, -peak - reach), min(high, peak + reach)

    # Centred on a point in the interval, so that narrow and remote intervals keep their digits.
    origin = min(max(0.0, start), stop)
    points = [
        (x, weight * _relative(peak, origin + x))
        for x, weight in quadrature(start - origin, stop - origin, _CELLS)
    ]
    mass = math.fsum(weight for _, weight in points)
    first = math.fsum(weight * x for x, weight in points) / mass
    variance = math.fsum(weight * (x - first) ** 2 for x, weight in points) / mass
    fourth = math.fsum(weight * (x - first) ** 4 for x, weight in points) / mass
    return Law(
        mean=mean + std * (origin + first),
        std=std * math.sqrt(variance),
        kurtosis=fourth / variance**2,
        low=a,
        high=b,
        density=partial(_truncated_density, mean, std, a, b, peak, mass),
    )


def _relative(peak: float, z: float) -> float:
    """The density of N(0, 1), relative to that at the peak."""
    return math.exp((peak - z) * (peak + z) / 2)


def _truncated_density(
    mean: float, std: float, a: float, b: float, peak: float, mass: float, x: float
) -> float:
    return _relative(peak, (x - mean) / std) / (mass * std) if a <= x <= b else 0.0


def quadrature(start: float, stop: float, cells: int = 1) -> Iterator[tuple[float, float]]:
    """Points and weights to integrate with over [start, stop], five in each cell."""
    half = (stop - start) / (2 * cells)
    for cell in range(cells):
        middle = start + (2 * cell + 1) * half
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            yield middle + half * node, half * weight
