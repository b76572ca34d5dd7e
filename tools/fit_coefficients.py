"""Fit the coefficients of csrc/math/coefficients.h.

    python tools/fit_coefficients.py > csrc/math/coefficients.h
    python tools/fit_coefficients.py --check    # measure the errors of the present header again
    python tools/fit_coefficients.py --scan     # minimax errors of the degrees considered

Needs mpmath and numpy. The fits minimise the largest relative error (Remez exchange at 40 digits on
a fine grid) and have the lowest degree that meets a bound. Rounding the coefficients to float32
costs accuracy; a search over neighbouring floats recovers part of it. Errors are then measured
twice: in exact arithmetic, and in the arithmetic of the format, with the fused multiply-add
emulated exactly. Only IEEE operations and mpmath decide the output, so all machines agree on it.
"""

from __future__ import annotations

import argparse
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
from mpmath import mp, mpf

mp.dps = 40

HEADER = Path(__file__).resolve().parent.parent / "csrc" / "math" / "coefficients.h"

GRID_POINTS = 2000
SAMPLES = 100_000
HIGHEST_DEGREE = 16

Array = Any  # a numpy array of float32, of float64, or of mpf
Number = Any  # one of these, or an array
Coefficients = list[list[Any]]
Fit = tuple[Coefficients, mpf]
Fma = Callable[[Any, Any, Any], Any]
Real = Callable[[mpf], mpf]


# Minimax fits.


def chebyshev_grid(low: mpf, high: mpf, count: int = GRID_POINTS) -> list[mpf]:
    """Points that crowd towards both ends of an interval and leave out the ends and the middle."""
    half_step = mp.pi / (2 * count)
    cosines = (mp.cos((2 * k + 1) * half_step) for k in reversed(range(count)))
    return [(low + high) / 2 + (high - low) / 2 * c for c in cosines]


def polynomial(coefficients: list[Any], x: Number, fma: Fma) -> Number:
    """Horner's rule, lowest power first."""
    total = 0 * x + coefficients[-1]
    for c in reversed(coefficients[:-1]):
        total = fma(total, x, c)
    return total


def exact_fma(a: Number, b: Number, c: Number) -> Number:
    """Multiply and add in the arithmetic of the arguments."""
    return a * b + c


@dataclass(frozen=True)
class Target:
    """A function to fit, on a grid, and the weight that turns its error into the relative one."""

    grid: list[mpf]
    values: list[mpf]
    weights: list[mpf]

    @staticmethod
    def tabulate(function: Real, weight: Real, low: mpf, high: mpf) -> Target:
        """Values between two ends."""
        grid = chebyshev_grid(low, high)
        return Target(grid, [function(x) for x in grid], [abs(weight(x)) for x in grid])


def minimax(target: Target, numerator: int, denominator: int = 0) -> Fit:
    """Remez exchange for a rational function with denominator 1 + q_1 x + ...

    Returns the coefficients of both polynomials (of one, if the denominator is constant) and the
    largest weighted error. Raises ArithmeticError where the exchange does not converge.
    """
    count = numerator + denominator + 2
    fitted, level = least_squares(target, numerator, denominator), mpf(0)
    errors = weighted_errors(target, fitted)
    for _ in range(40):
        nodes = alternating_extremes(errors, count)
        fitted, level = level_error(target, nodes, fitted, level)
        errors = weighted_errors(target, fitted)
        worst = max(abs(e) for e in errors)
        if worst <= abs(level) * mpf("1.0001"):
            return (fitted if denominator else fitted[:1]), worst
    raise ArithmeticError("no convergence")


def weighted_errors(target: Target, fitted: Coefficients) -> list[mpf]:
    """The error at every point of the grid."""
    p, q = fitted
    errors = []
    for x, value, weight in zip(target.grid, target.values, target.weights, strict=True):
        below = polynomial(q, x, exact_fma)
        if below <= 0:
            raise ArithmeticError("pole in the interval")
        errors.append(weight * (polynomial(p, x, exact_fma) / below - value))
    return errors


def linear_rows(
    target: Target, points: list[int], shifts: list[mpf], numerator: int, denominator: int
) -> list[list[mpf]]:
    """Rows of P - (value + shift) (Q - 1) in the coefficients of P and Q."""
    rows = []
    for i, shift in zip(points, shifts, strict=True):
        powers = [target.grid[i] ** k for k in range(max(numerator, denominator) + 1)]
        shifted = target.values[i] + shift
        rows.append(powers[: numerator + 1] + [-shifted * x for x in powers[1 : denominator + 1]])
    return rows


def least_squares(target: Target, numerator: int, denominator: int) -> Coefficients:
    """A start for the exchange: repeated linear fits, each weighted by the last denominator."""
    points = list(range(0, len(target.grid), 25))
    rows = linear_rows(target, points, [mpf(0)] * len(points), numerator, denominator)
    below = [mpf(1)] * len(points)
    for _ in range(6 if denominator else 1):
        weights = [target.weights[i] / b for i, b in zip(points, below, strict=True)]
        matrix = mp.matrix([[w * a for a in row] for w, row in zip(weights, rows, strict=True)])
        right = mp.matrix([w * target.values[i] for w, i in zip(weights, points, strict=True)])
        solution = list(mp.lu_solve(matrix, right))
        q = [mpf(1), *solution[numerator + 1 :]]
        below = [polynomial(q, target.grid[i], exact_fma) for i in points]
    return [solution[: numerator + 1], q]


def level_error(target: Target, nodes: list[int], start: Coefficients, level: mpf) -> Fit:
    """The rational function whose error has one size and alternating signs at the nodes.

    Newton's method on P - (value +- level) Q = 0, from a neighbouring function and its level.
    """
    p, q = start
    units = [(-1) ** i / target.weights[node] for i, node in enumerate(nodes)]
    for _ in range(30):
        shifts = [unit * level for unit in units]
        slopes = [
            u * polynomial(q, target.grid[i], exact_fma) for i, u in zip(nodes, units, strict=True)
        ]
        rows = linear_rows(target, nodes, shifts, len(p) - 1, len(q) - 1)
        rows = [[*row, -slope] for row, slope in zip(rows, slopes, strict=True)]
        right = [
            target.values[node] + (unit - slope) * level
            for node, unit, slope in zip(nodes, units, slopes, strict=True)
        ]
        solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix(right)))
        p, q = solution[: len(p)], [mpf(1), *solution[len(p) : -1]]
        previous, level = level, solution[-1]
        if len(q) == 1 or abs(level - previous) <= abs(level) * mpf("1e-8"):
            return [p, q], level
    raise ArithmeticError("no level found")


def alternating_extremes(errors: list[mpf], count: int) -> list[int]:
    """The largest errors of the runs of one sign, less the smallest at the ends."""
    extremes = [0]
    for i, e in enumerate(errors):
        if (e > 0) != (errors[extremes[-1]] > 0):
            extremes.append(i)
        elif abs(e) > abs(errors[extremes[-1]]):
            extremes[-1] = i
    if len(extremes) < count:
        raise ArithmeticError("too few alternations")
    while len(extremes) > count:
        extremes.pop(0 if abs(errors[extremes[0]]) < abs(errors[extremes[-1]]) else -1)
    return extremes


def fits(target: Target, total: int, rational: bool) -> Iterator[tuple[mpf, Coefficients]]:
    """The minimax fits of one total degree, rational ones of similar degrees, with their errors."""
    for denominator in range((total - 1) // 2, total // 2 + 2) if rational else [0]:
        try:
            fitted, error = minimax(target, total - denominator, denominator)
        except ArithmeticError:
            continue
        yield error, fitted


# Arithmetic of the formats.


def two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The sum and its rounding error."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The product in float64 and its rounding error (Dekker 1971)."""
    splitter = 2.0**27 + 1
    a_high = a * splitter - (a * splitter - a)
    b_high = b * splitter - (b * splitter - b)
    a_low, b_low = a - a_high, b - b_high
    total = a * b
    return total, ((a_high * b_high - total) + a_high * b_low + a_low * b_high) + a_low * b_low


def sum_to_odd(a: Array, b: Array) -> Array:
    """The sum in float64, an inexact one rounded to the neighbour with an odd last bit."""
    total, error = two_sum(a, b)
    even = (total.view(np.int64) & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & even, np.nextafter(total, towards), total)


def fma32(a: Array, b: Array, c: Array) -> Array:
    """The fused multiply-add of float32 (Boldo and Melquiond 2008)."""
    a, b, c = (np.asarray(x, np.float64) for x in np.broadcast_arrays(a, b, c))
    return sum_to_odd(a * b, c).astype(np.float32)


def fma64(a: Array, b: Array, c: Array) -> Array:
    """The fused multiply-add of float64 (Boldo and Melquiond 2008)."""
    a, b, c = (np.array(x, np.float64) for x in np.broadcast_arrays(a, b, c))
    high, low = two_product(a, b)
    middle_high, middle_low = two_sum(c, low)
    top, rest = two_sum(high, middle_high)
    return top + sum_to_odd(rest, middle_low)


FMA: dict[type, Fma] = {np.float32: fma32, np.float64: fma64}


# The inverse normal.

# Wichura 1988, Algorithm AS 241, PPND16: numerator and denominator of each of the three ranges.
WICHURA_CENTRE = [
    """3.3871328727963666080e0  1.3314166789178437745e2  1.9715909503065514427e3
    1.3731693765509461125e4  4.5921953931549871457e4  6.7265770927008700853e4
    3.3430575583588128105e4  2.5090809287301226727e3""",
    """1  4.2313330701600911252e1  6.8718700749205790830e2  5.3941960214247511077e3
    2.1213794301586595867e4  3.9307895800092710610e4  2.8729085735721942674e4
    5.2264952788528545610e3""",
]
WICHURA_MIDDLE = [
    """1.42343711074968357734e0  4.63033784615654529590e0  5.76949722146069140550e0
    3.64784832476320460504e0  1.27045825245236838258e0  2.41780725177450611770e-1
    2.27238449892691845833e-2  7.74545014278341407640e-4""",
    """1  2.05319162663775882187e0  1.67638483018380384940e0  6.89767334985100004550e-1
    1.48103976427480074590e-1  1.51986665636164571966e-2  5.47593808499534494600e-4
    1.05075007164441684324e-9""",
]
WICHURA_FAR = [
    """6.65790464350110377720e0  5.46378491116411436990e0  1.78482653991729133580e0
    2.96560571828504891230e-1  2.65321895265761230930e-2  1.24266094738807843860e-3
    2.71155556874348757815e-5  2.01033439929228813265e-7""",
    """1  5.99832206555887937690e-1  1.36929880922735805310e-1  1.48753612908506148525e-2
    7.86869131145613259100e-4  1.84631831751005468180e-5  1.42151175831644588870e-7
    2.04426310338993978564e-15""",
]


def published(text: list[str]) -> Coefficients:
    """Decimal coefficients as numbers."""
    return [[mpf(word) for word in part.split()] for part in text]


def ratio(coefficients: Coefficients, x: Array, fma: Fma) -> Array:
    """P(x) / Q(x)."""
    p, q = coefficients
    return polynomial(p, x, fma) / polynomial(q, x, fma)


def wichura_tail(r: float) -> float:
    """-Phi^-1(exp(-r r)) in double precision, r at least 1.6."""
    shift, text = (1.6, WICHURA_MIDDLE) if r <= 5 else (5.0, WICHURA_FAR)
    plain = [[float(c) for c in part] for part in published(text)]
    return float(ratio(plain, r - shift, exact_fma))


def normal_density(x: mpf) -> mpf:
    """The density of the standard normal distribution."""
    return mp.exp(-x * x / 2) / mp.sqrt(2 * mp.pi)


def newton(start: float, step: Real) -> mpf:
    """Newton's method until a further step would not matter."""
    x = mpf(start)
    for _ in range(20):
        change = step(x)
        x -= change
        if abs(change) <= abs(x) * mpf("1e-13"):
            return x
    raise ArithmeticError("no convergence")


@cache
def inverse_normal_centre(q: mpf) -> mpf:
    """Phi^-1(1/2 + q), 0 < q < 1/2."""
    if q <= mpf("0.425"):
        plain = [[float(c) for c in part] for part in published(WICHURA_CENTRE)]
        start = float(q) * ratio(plain, 0.180625 - float(q) ** 2, exact_fma)
    else:
        start = wichura_tail(float(mp.sqrt(-mp.log(mpf(0.5) - q))))
    return newton(start, lambda x: (mp.erf(x / mp.sqrt(2)) / 2 - q) / normal_density(x))


@cache
def inverse_normal_tail(r: mpf) -> mpf:
    """-Phi^-1(exp(-r r)), r at least 1.6."""

    def step(x: mpf) -> mpf:
        tail = mp.erfc(x / mp.sqrt(2)) / 2
        return -(mp.log(tail) + r * r) * tail / normal_density(x)

    return newton(wichura_tail(float(r)), step)


# Approximations.


@dataclass(frozen=True)
class Approximation:
    """One function of the header: how it is written, evaluated, fitted and measured."""

    names: tuple[str, ...]
    formula: str
    interval: str
    dtype: type
    ends: tuple[mpf, mpf]
    reference: Real
    evaluate: Callable[[Coefficients, Array, Fma], Array]
    target: Callable[[], Target] | None = None  # what to fit; none for published coefficients
    bits: float = 0  # the fit's relative error must be below 2^-bits
    text: list[str] | None = None
    offset: int = 0  # arguments are floats of the format less this number
    samples: int = SAMPLES

    def coefficients(self) -> Coefficients:
        """Coefficients rounded to the format."""
        if self.target is None:
            return rounded(published(self.text or []), self.dtype)
        fitted = lowest_fit(self.target(), self.bits, rational=len(self.names) == 2)
        start = rounded(fitted, self.dtype)
        return neighbour_search(self, start) if self.dtype is np.float32 else start

    def arguments(self) -> Array:
        """Well spread arguments (a Weyl sequence), all of them numbers of the format."""
        low, high = (float(end) + self.offset for end in self.ends)
        fractions = (np.arange(1, self.samples + 1) * 0.6180339887498949) % 1
        return (low + (high - low) * fractions).astype(self.dtype) - self.dtype(self.offset)

    def approximation_error(self, coefficients: Coefficients) -> float:
        """The largest relative error in exact arithmetic."""
        exact = [[mpf(float(c)) for c in part] for part in coefficients]
        grid = chebyshev_grid(*self.ends)
        values = self.evaluate(exact, np.array(grid, dtype=object), exact_fma)
        errors = (abs(v / self.reference(x) - 1) for x, v in zip(grid, values, strict=True))
        return float(max(errors))

    def ulp_error(self, coefficients: Coefficients) -> float:
        """The largest error over the samples in the arithmetic of the format, in ulp."""
        x = self.arguments()
        values = self.evaluate(coefficients, x, FMA[self.dtype])
        if values.dtype != self.dtype:
            raise TypeError(f"{self.names} evaluates to {values.dtype}")
        truths = [self.reference(mpf(a)) if a else mpf(0) for a in x.tolist()]
        high = np.array([float(t) for t in truths])
        low = np.array([float(t - h) for t, h in zip(truths, high.tolist(), strict=True)])
        ulp = np.ldexp(1.0, np.frexp(high)[1] - 1 - np.finfo(self.dtype).nmant)
        return float(np.max(np.abs((values.astype(np.float64) - high) - low) / ulp))


def rounded(coefficients: Coefficients, dtype: type) -> Coefficients:
    """Every coefficient to the nearest number of a format."""
    return [[dtype(float(c)) for c in part] for part in coefficients]


def lowest_fit(target: Target, bits: float, rational: bool) -> Coefficients:
    """The best fit of the lowest total degree whose error is below 2^-bits."""
    for total in range(1, HIGHEST_DEGREE):
        error, fitted = min(fits(target, total, rational), default=(mp.inf, []))
        if error < mpf(2) ** -bits:
            return fitted
    raise ArithmeticError("no fit")


def neighbour_search(which: Approximation, start: Coefficients) -> Coefficients:
    """Move coefficients to nearby floats, one or two at a time, while that reduces the error.

    The leading 1 of a denominator stays.
    """
    x = np.array([float(a) for a in chebyshev_grid(*which.ends, count=GRID_POINTS // 2)])
    truth = np.array([float(which.reference(mpf(a))) for a in x.tolist()])

    def cost(coefficients: Coefficients) -> float:
        wide = [[float(c) for c in part] for part in coefficients]
        errors = which.evaluate(wide, x, exact_fma) / truth - 1
        return float(np.max(np.abs(errors))) + 1e-3 * math.sqrt(math.fsum(errors * errors) / len(x))

    places = [(i, k) for i, part in enumerate(start) for k in range(i, len(part))]
    moves: list[tuple[tuple[tuple[int, int], int], ...]]
    moves = [((place, step),) for place in places for step in (-3, -2, -1, 1, 2, 3)]
    moves += [
        ((one, step), (other, other_step))
        for one, other in combinations(places, 2)
        for step, other_step in product((-2, -1, 1, 2), repeat=2)
    ]
    best, best_cost, improved = start, cost(start), True
    while improved:
        improved = False
        for move in moves:
            trial = [list(part) for part in best]
            for (i, k), step in move:
                trial[i][k] += np.spacing(trial[i][k]) * np.float32(step)
            trial_cost = cost(trial)
            if trial_cost < best_cost:
                best, best_cost, improved = trial, trial_cost, True
    return best


# The functions of the header.


def sine(x: mpf) -> mpf:
    """sin(pi x / 4)."""
    return mp.sin(mp.pi / 4 * x)


def cosine(x: mpf) -> mpf:
    """cos(pi x / 4)."""
    return mp.cos(mp.pi / 4 * x)


def log_series(c: Coefficients, f: Array, fma: Fma) -> Array:
    """The formula of LogF32."""
    return fma(f * f, polynomial(c[0], f, fma), f)


def log_ratio(c: Coefficients, f: Array, fma: Fma) -> Array:
    """The formula of LogF64."""
    s = f / (f + 2)
    z = s * s
    return fma(s, 2, s * z * polynomial(c[0], z, fma))


def odd_series(c: Coefficients, x: Array, fma: Fma) -> Array:
    """The formula of SinF32 and SinF64."""
    return x * polynomial(c[0], x * x, fma)


def even_series(c: Coefficients, x: Array, fma: Fma) -> Array:
    """The formula of CosF32 and CosF64."""
    z = x * x
    return fma(z, polynomial(c[0], z, fma), 1)


def centre_ratio(c: Coefficients, q: Array, fma: Fma) -> Array:
    """The formula of InverseNormalWithin3F32: errors of the quotient weigh a half at most."""
    d = fma(-q, q, 0.25)
    return fma(q, 3, q * ratio(c, d, fma))


def tail_ratio(c: Coefficients, r: Array, fma: Fma) -> Array:
    """The formula of InverseNormalTailF32: the quotient is small beside its other term."""
    return fma(r, 1.5, ratio(c, r, fma))


def wichura_centre_ratio(c: Coefficients, q: Array, fma: Fma) -> Array:
    """The formula of InverseNormalCentreF64."""
    d = fma(-q, q, 0.180625)
    return q * polynomial(c[0], d, fma) / polynomial(c[1], d, fma)


def wichura_middle_ratio(c: Coefficients, r: Array, fma: Fma) -> Array:
    """The formula of InverseNormalMiddleF64."""
    return ratio(c, r - 1.6, fma)


def wichura_far_ratio(c: Coefficients, r: Array, fma: Fma) -> Array:
    """The formula of InverseNormalFarF64."""
    return ratio(c, r - 5, fma)


def log_target() -> Target:
    """Q of LogF32."""
    third = mpf(1) / 3
    return Target.tabulate(
        lambda f: (mp.log1p(f) - f) / (f * f), lambda f: f * f / mp.log1p(f), -third, third
    )


def log_ratio_target() -> Target:
    """L of LogF64."""
    return Target.tabulate(
        lambda z: (mp.atanh(mp.sqrt(z)) / mp.sqrt(z) - 1) * 2 / z,
        lambda z: z * mp.sqrt(z) / mp.atanh(mp.sqrt(z)) / 2,
        mpf(0),
        mpf(1) / 25,
    )


def sine_target() -> Target:
    """S of SinF32 and SinF64."""
    return Target.tabulate(
        lambda z: sine(mp.sqrt(z)) / mp.sqrt(z),
        lambda z: mp.sqrt(z) / sine(mp.sqrt(z)),
        mpf(0),
        mpf(1),
    )


def cosine_target() -> Target:
    """C of CosF32 and CosF64."""
    return Target.tabulate(
        lambda z: (cosine(mp.sqrt(z)) - 1) / z, lambda z: z / cosine(mp.sqrt(z)), mpf(0), mpf(1)
    )


def centre_target(end: mpf) -> Target:
    """P / Q of InverseNormalWithin2F32 and InverseNormalWithin3F32, for |q| up to an end."""

    def slope(d: mpf) -> mpf:
        q = mp.sqrt(mpf(0.25) - d)
        return inverse_normal_centre(q) / q

    return Target.tabulate(
        lambda d: slope(d) - 3,
        lambda d: 1 / slope(d),
        mpf(0.25) - end**2,
        mpf(0.25),
    )


def tail_target() -> Target:
    """P / Q of InverseNormalTailF32."""
    return Target.tabulate(
        lambda r: inverse_normal_tail(r) - mpf(1.5) * r,
        lambda r: 1 / inverse_normal_tail(r),
        *TAIL_ENDS,
    )


WITHIN_2_END = mpf("0.4773")  # Phi(2) - 1/2 = 0.4772499...
WITHIN_3_END = mpf("0.49866")  # Phi(3) - 1/2 = 0.4986501...
TAIL_ENDS = (mpf("2.56"), mpf("9.36"))  # p from 0.00137 down to 1e-38
LOG_ENDS = (-mpf(1) / 3, mpf(1) / 3)
UNIT_ENDS = (mpf(0), mpf(1))

CENTRE_F64 = ("InverseNormalCentreF64P", "InverseNormalCentreF64Q")
MIDDLE_F64 = ("InverseNormalMiddleF64P", "InverseNormalMiddleF64Q")
FAR_F64 = ("InverseNormalFarF64P", "InverseNormalFarF64Q")

APPROXIMATIONS = [
    Approximation(
        names=("LogF32",),
        formula="log(1 + f) = fma(f f, LogF32(f), f)",
        interval="f = m - 1, m in [2/3, 4/3]",
        dtype=np.float32,
        ends=LOG_ENDS,
        reference=mp.log1p,
        evaluate=log_series,
        target=log_target,
        bits=25,
        offset=1,
    ),
    Approximation(
        names=("SinF32",),
        formula="sin(pi x / 4) = x SinF32(z), z = x x",
        interval="x in [-1, 1]",
        dtype=np.float32,
        ends=UNIT_ENDS,
        reference=sine,
        evaluate=odd_series,
        target=sine_target,
        bits=25.5,
    ),
    Approximation(
        names=("CosF32",),
        formula="cos(pi x / 4) = fma(z, CosF32(z), 1), z = x x",
        interval="x in [-1, 1]",
        dtype=np.float32,
        ends=UNIT_ENDS,
        reference=cosine,
        evaluate=even_series,
        target=cosine_target,
        bits=25.5,
    ),
    Approximation(
        names=("InverseNormalWithin2F32P", "InverseNormalWithin2F32Q"),
        formula="Phi^-1(1/2 + q) = fma(q, 3, q (P(d) / Q(d))), d = fma(-q, q, 1/4)",
        interval="q in [-0.4773, 0.4773]; in d, not q q, all terms of Q are positive",
        dtype=np.float32,
        ends=(mpf(0), WITHIN_2_END),
        reference=inverse_normal_centre,
        evaluate=centre_ratio,
        target=lambda: centre_target(WITHIN_2_END),
        bits=23.5,
    ),
    Approximation(
        names=("InverseNormalWithin3F32P", "InverseNormalWithin3F32Q"),
        formula="Phi^-1(1/2 + q) = fma(q, 3, q (P(d) / Q(d))), d = fma(-q, q, 1/4)",
        interval="q in [-0.49866, 0.49866]; in d, not q q, all terms of Q are positive",
        dtype=np.float32,
        ends=(mpf(0), WITHIN_3_END),
        reference=inverse_normal_centre,
        evaluate=centre_ratio,
        target=lambda: centre_target(WITHIN_3_END),
        bits=23.5,
    ),
    Approximation(
        names=("InverseNormalTailF32P", "InverseNormalTailF32Q"),
        formula="-Phi^-1(p) = fma(r, 1.5, P(r) / Q(r)), r = sqrt(-log(p))",
        interval="r in [2.56, 9.36], p in [1e-38, 0.00137]",
        dtype=np.float32,
        ends=TAIL_ENDS,
        reference=inverse_normal_tail,
        evaluate=tail_ratio,
        target=tail_target,
        bits=23.5,
    ),
    Approximation(
        names=("LogF64",),
        formula="log(1 + f) = fma(s, 2, (s z) LogF64(z)), s = f / (f + 2), z = s s",
        interval="f = m - 1, m in [2/3, 4/3]",
        dtype=np.float64,
        ends=LOG_ENDS,
        reference=mp.log1p,
        evaluate=log_ratio,
        target=log_ratio_target,
        bits=54,
        offset=1,
    ),
    Approximation(
        names=("SinF64",),
        formula="sin(pi x / 4) = x SinF64(z), z = x x",
        interval="x in [-1, 1]",
        dtype=np.float64,
        ends=UNIT_ENDS,
        reference=sine,
        evaluate=odd_series,
        target=sine_target,
        bits=54,
    ),
    Approximation(
        names=("CosF64",),
        formula="cos(pi x / 4) = fma(z, CosF64(z), 1), z = x x",
        interval="x in [-1, 1]",
        dtype=np.float64,
        ends=UNIT_ENDS,
        reference=cosine,
        evaluate=even_series,
        target=cosine_target,
        bits=54,
    ),
    Approximation(
        names=CENTRE_F64,
        formula="Phi^-1(1/2 + q) = (q P(d)) / Q(d), d = fma(-q, q, 0.180625)",
        interval="q in [-0.425, 0.425]",
        dtype=np.float64,
        ends=(mpf(0), mpf("0.425")),
        reference=inverse_normal_centre,
        evaluate=wichura_centre_ratio,
        text=WICHURA_CENTRE,
    ),
    Approximation(
        names=MIDDLE_F64,
        formula="-Phi^-1(p) = P(t) / Q(t), t = r - 1.6, r = sqrt(-log(p))",
        interval="r in [1.6, 5]",
        dtype=np.float64,
        ends=(mpf("1.6"), mpf(5)),
        reference=inverse_normal_tail,
        evaluate=wichura_middle_ratio,
        text=WICHURA_MIDDLE,
    ),
    Approximation(
        names=FAR_F64,
        formula="-Phi^-1(p) = P(t) / Q(t), t = r - 5, r = sqrt(-log(p))",
        interval="r in [5, 27]",
        dtype=np.float64,
        ends=(mpf(5), mpf(27)),
        reference=inverse_normal_tail,
        evaluate=wichura_far_ratio,
        text=WICHURA_FAR,
    ),
]


# The header.

PREAMBLE = """\
// Coefficients of the elementary functions. Generated: edit tools/fit_coefficients.py instead.
//
//     python tools/fit_coefficients.py > csrc/math/coefficients.h
//
// Lowest power first, for Horner's rule in fused multiply-adds. Above each set: the function as it
// is evaluated; the interval; the largest relative error of the approximation in exact arithmetic;
// the largest error found in the arithmetic of the format, in units in the last place of the true
// value, for exact arguments. All sets are minimax fits of the relative error, but for those of
// Wichura 1988 (Algorithm AS 241, PPND16).
#pragma once

#include "../base/platform.h"

// clang-format off: one coefficient a line
namespace torchinit::coefficients {
"""

POSTAMBLE = """
}  // namespace torchinit::coefficients
"""


def hexadecimal(x: Number) -> str:
    """A literal of C++17."""
    mantissa, exponent = float(x).hex().split("p")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}p{exponent}" + ("f" if isinstance(x, np.float32) else "")


def struct(name: str, values: list[Any]) -> str:
    """One set of coefficients in C++."""
    scalar = "float" if isinstance(values[0], np.float32) else "double"
    return "\n".join(
        [
            f"struct {name} {{",
            f"  static constexpr int degree = {len(values) - 1};",
            f"  TORCHINIT_CONSTEXPR {scalar} at(int k) {{",
            f"    constexpr {scalar} c[] = {{",
            *(f"        {hexadecimal(value)}," for value in values),
            "    };",
            "    return c[k];",
            "  }",
            "};",
        ]
    )


def section(which: Approximation, coefficients: Coefficients) -> str:
    """The comment of an approximation and its sets."""
    bits = math.floor(-100 * math.log2(which.approximation_error(coefficients))) / 100
    ulp = math.ceil(100 * which.ulp_error(coefficients)) / 100
    source = "" if which.target else " Wichura's."
    return "\n".join(
        [
            "",
            f"// {which.formula}",
            f"// {which.interval}",
            f"// relative error 2^-{bits:.2f}; evaluated, {ulp:.2f} ulp.{source}",
            *(struct(*pair) for pair in zip(which.names, coefficients, strict=True)),
            "",
        ]
    )


def header(sets: list[Coefficients]) -> str:
    """The whole file."""
    pairs = zip(APPROXIMATIONS, sets, strict=True)
    return PREAMBLE + "".join(section(which, c) for which, c in pairs) + POSTAMBLE


def parse(text: str) -> list[Coefficients]:
    """The coefficients of a header."""
    sets = {
        name: [float.fromhex(word) for word in re.findall(r"(-?0x[0-9a-f.]+p[-+]\d+)f?,", values)]
        for name, values in re.findall(r"struct (\w+) \{.*?c\[\] = \{(.*?)\};", text, re.DOTALL)
    }
    return [rounded([sets[n] for n in which.names], which.dtype) for which in APPROXIMATIONS]


def check() -> int:
    """Measure the coefficients of the present header; whether the file says the same."""
    present = HEADER.read_text()
    measured = header(parse(present))
    if measured == present:
        print(f"{HEADER.name}: every error is as stated")
        return 0
    lines = difflib.unified_diff(present.splitlines(), measured.splitlines(), "stated", "measured")
    print("\n".join(lines))
    return 1


def scan() -> None:
    """Print the minimax error of each degree up to the one in use."""
    for which in APPROXIMATIONS:
        if which.target is None:
            continue
        target = which.target()
        for total in range(2, HIGHEST_DEGREE):
            found = sorted(
                (float(-mp.log(error, 2)), [len(part) - 1 for part in fitted])
                for error, fitted in fits(target, total, rational=len(which.names) == 2)
            )
            if found:
                print(f"{which.names[0]}: 2^-{found[-1][0]:.2f} with degrees {found[-1][1]}")
            if found and found[-1][0] > which.bits:
                break


def main() -> int:
    """Print the header, or check it."""
    parser = argparse.ArgumentParser(description="Fit the coefficients of csrc/math/coefficients.h")
    parser.add_argument("--check", action="store_true", help="measure the present header again")
    parser.add_argument("--scan", action="store_true", help="print the errors of all degrees")
    options = parser.parse_args()
    if options.check:
        return check()
    if options.scan:
        scan()
    else:
        sys.stdout.write(header([which.coefficients() for which in APPROXIMATIONS]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
