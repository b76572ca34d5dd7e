"""Laws: what the values of a draw promise, from first principles and not from the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchinit.schemes.draw import CONSTANT, NORMAL, TRUNCATED_NORMAL, UNIFORM, Draw

_STEPS = 2000  # of Simpson's rule, over an interval that holds all of the mass that counts
_REACH = 40.0  # log of what is left out beyond the interval, and more


@dataclass(frozen=True)
class Law:
    """What a fill promises of its values, before they are rounded to a dtype.

    Attributes:
        mean, std: of the values; a std of 0 means that all values are equal.
        kurtosis: fourth central moment over std^4; 3 for a normal.
        low, high: no value lies outside.
        density: of the values at a point; None where all values are equal.
        mean_shift: how far the mean may be off for the dtype's coarse values alone, in units of
            the dtype's eps. Only uniform fills by torch need it: their values are multiples of
            eps / 2 of the width, rounded down.
    """

    mean: float
    std: float
    kurtosis: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    density: Callable[[float], float] | None = None
    mean_shift: float = 0.0


def law_of(draw: Draw) -> Law:
    """The law of a draw.

    Raises:
        ValueError: for random words, which are no numbers.
    """
    distribution, p0, p1, p2, p3 = draw
    if distribution == CONSTANT:
        return _constant(p0)
    if distribution == UNIFORM:
        return _uniform(p0, p1)
    if distribution == NORMAL:
        return _normal(p0, p1)
    if distribution == TRUNCATED_NORMAL:
        return _truncated(p0, p1, p2, p3)
    raise ValueError(f"{draw} has no law")


def law_of_orthogonal(rows: int, columns: int, gain: float) -> Law:
    """The law of one element of a uniformly distributed (semi-)orthogonal matrix times gain.

    It is the coordinate of a uniform point of the sphere in n = max(rows, columns) dimensions:
    its square is Beta(1/2, (n - 1) / 2).
    """
    n, radius = max(rows, columns, 1), abs(gain)
    if radius == 0:
        return _constant(0.0)
    log_scale = math.lgamma(n / 2) - math.lgamma((n - 1) / 2) if n > 1 else 0.0

    def density(x: float) -> float:
        rest = 1 - (x / radius) ** 2
        if rest <= 0:
            return 0.0
        power = (n - 3) / 2 * math.log(rest)
        return math.exp(log_scale + power) / (math.sqrt(math.pi) * radius)

    return Law(
        mean=0.0,
        std=radius / math.sqrt(n),
        kurtosis=3 * n / (n + 2),
        low=-radius,
        high=radius,
        density=density if n > 1 else None,
    )


def _constant(value: float) -> Law:
    return Law(mean=value, std=0.0, low=value, high=value)


def _uniform(a: float, b: float) -> Law:
    if a == b:
        return _constant(a)
    return Law(
        mean=a + (b - a) / 2,
        std=(b - a) / math.sqrt(12),
        kurtosis=1.8,
        low=a,
        high=math.nextafter(b, -math.inf),
        density=lambda x: 1 / (b - a) if a <= x < b else 0.0,
        mean_shift=(b - a) / 4,
    )


def _normal(mean: float, std: float) -> Law:
    if std == 0:
        return _constant(mean)
    scale = 1 / (std * math.sqrt(2 * math.pi))
    return Law(
        mean, std, kurtosis=3.0, density=lambda x: scale * math.exp(-(((x - mean) / std) ** 2) / 2)
    )


def _truncated(mean: float, std: float, a: float, b: float) -> Law:
    if std == 0 or a == b:
        return _constant(min(max(mean, a), b))
    low, high = (a - mean) / std, (b - mean) / std
    near = max(0.0, low, -high)  # where the density is greatest, in standard deviations
    reach = _REACH / max(near, math.sqrt(_REACH))
    start, stop = max(low, -near - reach), min(high, near + reach)
    step = (stop - start) / _STEPS

    def relative(z: float) -> float:
        return math.exp((near - z) * (near + z) / 2)

    # Moments about a point within the interval, so that narrow and remote ones keep their digits.
    origin = min(max(0.0, start), stop)
    sums = [0.0] * 5
    for i in range(_STEPS + 1):
        z = start + i * step
        weight = (1 if i in (0, _STEPS) else 4 if i % 2 else 2) * relative(z)
        for k in range(5):
            sums[k] += weight * (z - origin) ** k
    mass = sums[0] * step / 3
    first, second, third, fourth = (total / sums[0] for total in sums[1:])
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    return Law(
        mean=mean + std * (origin + first),
        std=std * math.sqrt(variance),
        kurtosis=central / variance**2,
        low=a,
        high=b,
        density=lambda x: relative((x - mean) / std) / (mass * std) if a <= x <= b else 0.0,
    )
