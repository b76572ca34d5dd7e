"""Which distribution values follow, by the share of them beyond each distance from the mean.

A distribution is a survival function on the grid of ``measure``: the probability that
|x - mean| / std is at least so large. Counts are tested by the bound of Chernoff and Hoeffding,
which holds for any number of values: correct ones are rejected with probability ALPHA at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.reporting.measure import BINS, STEPS, Moments, grid
from torchinit.schemes.law import Law, quadrature, truncated_std

SIGMAS = 5.0
# Two-sided, of a standard normal: 5.7e-7.
ALPHA = math.erfc(SIGMAS / math.sqrt(2))
# The deviance (minus the log of a probability) above which counts are rejected.
LIMIT = math.log(2 * (BINS + 1) / ALPHA)


class Fit(NamedTuple):
    """The distribution that fits the values.

    Attributes:
        kind: zeros, ones, constant, normal, uniform, truncated normal, clipped normal, orthogonal;
            undecided if there are too few values to tell, other if none fits; empty; not finite.
        cut: of a truncated or clipped normal, in std of the normal; else None.
    """

    kind: str
    cut: float | None = None

    def __str__(self) -> str:
        short = {"truncated normal": "trunc", "clipped normal": "clipped"}.get(self.kind, self.kind)
        return short if self.cut is None else f"{short} ±{self.cut:.1f}"


def fit_distribution(moments: Moments, resolution: float, orthogonality: float | None) -> Fit:
    """The distribution that fits values.

    Args:
        moments: of the values.
        resolution: of their dtype, by ``resolution_of``.
        orthogonality: error of the matrix, if it was computed.
    """
    if not moments.numel:
        return Fit("empty")
    if not moments.finite:
        return Fit("not finite")
    if moments.low == moments.high:
        return Fit({0.0: "zeros", 1.0: "ones"}.get(moments.low, "constant"))
    if orthogonality is not None and orthogonality <= max(1e-4, min(3 * resolution, 0.15)):
        return Fit("orthogonal")
    if not moments.std > 0 or not _is_symmetric(moments):
        return Fit("other")
    fits = [
        kind
        for kind, survival in (("normal", normal()), ("uniform", uniform()))
        if deviance(moments, survival, resolution) <= LIMIT
    ]
    if fits:
        return Fit("undecided" if len(fits) == 2 else fits[0])
    for kind, family, std in (
        ("truncated normal", truncated, truncated_std), ("clipped normal", clipped, _clipped_std),
    ):  # fmt: skip
        cut = _cut(moments.extent, std)
        if cut is not None and deviance(moments, family(round(cut, 3)), resolution) <= LIMIT:
            return Fit(kind, cut)
    return Fit("other")


def _is_symmetric(moments: Moments) -> bool:
    """Whether the skewness is within five of the standard errors that a normal has."""
    return abs(moments.skewness) <= SIGMAS * math.sqrt(6 / moments.finite) + 1e-3


def resolution_of(dtype: torch.dtype, std: float) -> float:
    """How far rounding can move a value as large as std, in std."""
    if not dtype.is_floating_point:
        return 0.0 if dtype.is_complex else 1.0 / std if std > 0 else 0.0
    finfo = torch.finfo(dtype)
    return max(finfo.eps, finfo.smallest_normal * finfo.eps / std if std > 0 else 0.0)


def deviance(
    moments: Moments, survival: Tensor, resolution: float, *, has_edge: bool | None = None
) -> float:
    """How far counts are from a distribution at the worst point: minus the log of a probability.

    If each of n values lies beyond a point with probability p, a count at least this far from n p
    has probability at most exp(-n KL(count / n, p)) on either side (Hoeffding 1963, theorem 1).
    Rounding moves the survival function, and p is taken as near to the count as rounding allows.
    Where a bounded distribution ends, errors of the mean and the std are allowed for likewise;
    without an edge they only bring counts nearer.

    Args:
        moments: of the values.
        survival: of the distribution.
        resolution: of the dtype.
        has_edge: whether the distribution is bounded; None is whether its survival function is 0 at
            the end of the grid.
    """
    if has_edge is None:
        has_edge = not float(survival[-1]) > 0
    n = moments.finite
    error = SIGMAS * (1 / math.sqrt(n) + grid() * moments.std_error) if has_edge else 0.0
    width = resolution * grid().clamp(min=1.0) + error
    low, high = _at(survival, grid() + width), _at(survival, (grid() - width).clamp(min=0.0))
    share = moments.beyond / n
    p = torch.minimum(torch.maximum(share, low), high)
    beyond = torch.xlogy(share, share / p.clamp(min=1e-300))
    within = torch.xlogy(1 - share, (1 - share) / (1 - p).clamp(min=1e-300))
    return n * float((beyond + within).max())


def _at(survival: Tensor, points: Tensor) -> Tensor:
    """A survival function, interpolated between the points of the grid."""
    places = (points * STEPS).clamp(max=BINS)
    below = places.floor().long().clamp(max=BINS - 1)
    part = places - below
    return survival[below] * (1 - part) + survival[below + 1] * part


@lru_cache(maxsize=1)
def normal() -> Tensor:
    """The survival function of a normal."""
    survival: Tensor = torch.special.erfc(grid() / math.sqrt(2))
    return survival


@lru_cache(maxsize=1)
def uniform() -> Tensor:
    """The survival function of a uniform."""
    return (1 - grid() / math.sqrt(3)).clamp(min=0.0)


@lru_cache(maxsize=4096)
def truncated(cut: float) -> Tensor:
    """The survival function of a normal truncated at so many of its std on either side."""
    beyond = math.erfc(cut / math.sqrt(2))
    tail: Tensor = torch.special.erfc(grid() * truncated_std(cut) / math.sqrt(2)) - beyond
    return (tail / (1 - beyond)).clamp(min=0.0)


@lru_cache(maxsize=4096)
def clipped(cut: float) -> Tensor:
    """The survival function of a normal clamped to so many of its std on either side."""
    # The edge is one float: rounding must not put it outside.
    points = grid() * _clipped_std(cut)
    return torch.where(points <= cut + 1e-3, torch.special.erfc(points / math.sqrt(2)), 0.0)


def _clipped_std(cut: float) -> float:
    """The standard deviation of N(0, 1) clamped to [-cut, cut]."""
    mass = math.erf(cut / math.sqrt(2))
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(mass - 2 * cut * density + cut**2 * (1 - mass))


def _cut(extent: float, std: Callable[[float], float]) -> float | None:
    """The cut for which the largest value is so many std of the values; None outside 0.05 to 8."""
    low, high = 0.05, 8.0
    if not low / std(low) < extent < high / std(high):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if middle / std(middle) < extent else (low, middle)
    return low


def survival_of(law: Law) -> Tensor | None:
    """The survival function of |x - mean| / std; None if the density is unknown."""
    if law.density is None or not law.std > 0:
        return None
    # Kurtosis and bounds tell the standardised distributions apart.
    bounds = ((law.low - law.mean) / law.std, (law.high - law.mean) / law.std)
    key = tuple(f"{number:.12g}" for number in (law.kurtosis, *bounds))
    if key not in _KNOWN:
        if len(_KNOWN) >= 4096:
            _KNOWN.clear()
        _KNOWN[key] = _integrate(law, law.density)
    return _KNOWN[key]


_KNOWN: dict[tuple[str, ...], Tensor] = {}


def _integrate(law: Law, density: Callable[[float], float]) -> Tensor:
    inside = [0.0]
    for start, stop in itertools.pairwise(grid().tolist()):
        right = law.mean + law.std * start, law.mean + law.std * stop
        left = law.mean - law.std * stop, law.mean - law.std * start
        cell = sum(
            weight * density(point)
            for low, high in (left, right)
            if max(low, law.low) < min(high, law.high)
            for point, weight in quadrature(max(low, law.low), min(high, law.high))
        )
        inside.append(inside[-1] + cell)
    return (1 - torch.tensor(inside, dtype=torch.float64)).clamp(0.0, 1.0)
