"""Laws: the distribution that a fill's values should have, from theory, not from the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Law:
    """The statistics of a fill's values, before they are rounded to a dtype.

    Attributes:
        mean, std: of the values; a std of 0 means that all values are equal.
        kurtosis: fourth central moment over std^4; 3 for a normal.
        low, high: bounds that no value exceeds.
        density: the probability density; None if all values are equal.
        mean_shift: how far rounding alone may shift the mean, in units of the dtype's eps. Only
            uniform fills by torch need it, whose values are multiples of eps / 2 of the width,
            rounded down.
    """

    mean: float
    std: float
    kurtosis: float = 0.0
    low: float = -math.inf
    high: float = math.inf
    density: Callable[[float], float] | None = None
    mean_shift: float = 0.0


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
