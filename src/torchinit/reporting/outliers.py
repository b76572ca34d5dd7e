"""Which parameters are outliers: by the rules, or compared with their siblings at other depths.

Each test rejects correct values with probability 5.7e-7: five standard errors, two-sided, or an
exact bound at that probability. A parameter is tested at most three times (mean, std, shape), so
that a correct model of n parameters has an outlier with probability at most 1.7e-6 n.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from torchinit.reporting.goodness_of_fit import (
    ALPHA,
    LIMIT,
    SIGMAS,
    deviance,
    resolution_of,
    survival_of,
)
from torchinit.reporting.rows import ReportRow
from torchinit.schemes.law import Law

# Tests of one parameter.
COMPARISONS = 3
# The fewest siblings that tell what is usual.
_ENOUGH = 3
# The std of a normal is so many times its median absolute deviation.
_MAD = 1.4826
# The deviance of an outlier's shape, in median deviances of its siblings'.
_APART = 9.0
# Parameters with fewer values are not compared with their siblings.
_FEW = 16


class Problem(NamedTuple):
    """What is wrong: in full, and short enough for a label of the picture."""

    text: str
    short: str


class Outlier(NamedTuple):
    """A parameter, or part of one, whose values are not as intended, or unlike its siblings'.

    Attributes:
        name: of the row.
        problems: what is wrong.
        short: the same in a few characters.
    """

    name: str
    problems: list[str]
    short: str

    def __str__(self) -> str:
        return f"{self.name}: {'; '.join(self.problems)}"


def find_outliers(rows: Sequence[ReportRow]) -> list[Outlier]:
    """The outliers, in the order of the model."""
    problems: dict[int, list[Problem]] = defaultdict(list)
    for number, row in enumerate(rows):
        problems[number] += _not_finite(row)
        if _intended(row) is not None:
            problems[number] += _by_distribution(row)
    for group in _siblings(rows):
        for number, said in _by_siblings([(number, rows[number]) for number in group]):
            problems[number].append(said)
    return [
        Outlier(
            rows[number].name,
            [problem.text for problem in found],
            ", ".join(dict.fromkeys(problem.short for problem in found)),
        )
        for number, found in sorted(problems.items())
        if found
    ]


def _not_finite(row: ReportRow) -> Iterator[Problem]:
    moments = row.moments
    for count, what in ((moments.nans, "NaN"), (moments.infinities, "infinite")):
        if count:
            yield Problem(f"{count:,} of {moments.numel:,} values {what}", what)


def _intended(row: ReportRow) -> Law | None:
    return None if row.intended is None else row.intended.law


def _by_distribution(row: ReportRow) -> Iterator[Problem]:
    """What is wrong with a parameter whose distribution is known."""
    wanted, moments = _intended(row), row.moments
    if wanted is None or not moments.finite:
        return
    eps = torch.finfo(row.dtype).eps if row.dtype.is_floating_point else 0.0
    if not wanted.std > 0:
        if max(abs(moments.low - wanted.mean), abs(moments.high - wanted.mean)) > eps * abs(
            wanted.mean
        ):
            said = f"values from {moments.low:.4g} to {moments.high:.4g}"
            yield Problem(f"{said}, all {wanted.mean:.4g} intended", f"not {wanted.mean:.3g}")
        return
    if moments.low == moments.high:
        if moments.finite > 1:
            said = f"all values {moments.low:.4g}, std {wanted.std:.4g} intended"
            yield Problem(said, "constant")
        return
    resolution = resolution_of(row.dtype, wanted.std) if eps else 0.0
    bound = eps * max(map(abs, (wanted.mean, wanted.std))) + resolution * wanted.std
    if moments.low < wanted.low - bound or moments.high > wanted.high + bound:
        yield Problem(
            f"values from {moments.low:.4g} to {moments.high:.4g}, within {wanted.low:.4g} and "
            f"{wanted.high:.4g} intended",
            "out of bounds",
        )
    error = SIGMAS * max(wanted.std, moments.std) / math.sqrt(moments.finite)
    if abs(moments.mean - wanted.mean) > error + eps * (wanted.mean_shift + abs(wanted.mean)):
        said = f"mean {moments.mean:.4g}, {wanted.mean:.4g} ± {error:.2g} intended"
        yield Problem(said, f"mean {moments.mean:.2g}")
    off = _off(moments.std / wanted.std, moments.finite, wanted.kurtosis, resolution)
    if abs(off) > SIGMAS:
        ratio = moments.std / wanted.std
        said = f"std {moments.std:.4g}, {wanted.std:.4g} intended ({ratio:.3g} times, {off:+.0f}σ)"
        yield Problem(said, f"×{ratio:.3g}")
    survival, has_edge = survival_of(wanted), math.isfinite(wanted.high - wanted.low)
    if survival is not None and (
        deviance(moments, survival, resolution, has_edge=has_edge) > LIMIT
    ):
        words = row.intended.words if row.intended is not None else ""
        yield Problem(f"{_shape(row)}, {words} intended", _shape(row))
    yield from _by_orthogonality(row, eps)


def _by_orthogonality(row: ReportRow, eps: float) -> Iterator[Problem]:
    if row.intended is None or not row.intended.orthogonal or row.orthogonality is None:
        return
    if row.orthogonality > max(1e-3, 8 * eps):
        said = f"orthogonality error {row.orthogonality:.2g}"
        yield Problem(said, "not orthogonal")


def _off(ratio: float, count: int, kurtosis: float, resolution: float) -> float:
    """How many standard errors a std is off, by the transform of Wilson and Hilferty.

    Args:
        ratio: of the std to the intended one.
        count: of values.
        kurtosis: of their distribution: the variance of n values has the degrees of freedom of
            2 n / (kurtosis - 1) normal ones.
        resolution: in std; its square is about what rounding adds to the variance.
    """
    part = kurtosis - 1
    if part <= 1e-9:
        return (
            0.0 if abs(ratio - 1) <= max(resolution, 1e-6) else math.copysign(math.inf, ratio - 1)
        )
    spread = 2 / (9 * max(2 * count / part, 1.0))
    squared = ratio**2
    slack = resolution**2
    squared += min(max(1 - squared, -slack), slack)
    return float((squared ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def _siblings(rows: Sequence[ReportRow]) -> list[list[int]]:
    """Groups of rows without a known distribution that differ in their depth alone."""
    groups: dict[tuple[str, int, int], list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if _intended(row) is None and row.moments.finite and row.place.depth:
            groups[row.place.pattern, row.fan_in, len(row.shape)].append(number)
    return [group for group in groups.values() if len(group) >= _ENOUGH]


def _by_siblings(group: Sequence[tuple[int, ReportRow]]) -> Iterator[tuple[int, Problem]]:
    """What is wrong with parameters that are expected to be alike."""
    constant = [(n, row) for n, row in group if row.moments.low == row.moments.high]
    varied = [(n, row) for n, row in group if row.moments.low < row.moments.high]
    if 2 * len(constant) > len(group):
        values = [row.moments.mean for _, row in constant]
        usual = max(values, key=values.count)
        if 2 * values.count(usual) <= len(group):
            return  # they differ by design, such as scales that fall with depth
        for number, row in constant:
            if row.moments.mean != usual:
                value = row.moments.mean
                said = f"all values {value:.4g}, its siblings {usual:.4g}"
                yield number, Problem(said, f"all {value:.3g}")
        for number, row in varied:
            moments = row.moments
            said = f"values from {moments.low:.4g} to {moments.high:.4g}"
            yield number, Problem(f"{said}, its siblings all {usual:.4g}", f"not {usual:.3g}")
        return
    for number, row in constant:
        if row.moments.finite > 1:
            said = f"constant {row.moments.mean:.4g}, its siblings are not"
            yield number, Problem(said, "constant")
    alike = [(n, row) for n, row in varied if row.moments.finite >= _FEW and row.moments.std > 0]
    if len(alike) >= _ENOUGH:
        yield from _by_std(alike)
        yield from _by_mean(alike)
        yield from _by_shape(alike)


def _by_std(group: Sequence[tuple[int, ReportRow]]) -> Iterator[tuple[int, Problem]]:
    """Off by more than five standard errors, and by more than five times the siblings' spread."""
    logs = [math.log(row.moments.std) for _, row in group]
    centre = median(logs)
    spread = _MAD * median(abs(log - centre) for log in logs)
    usual, kurtosis = math.exp(centre), median(row.moments.kurtosis for _, row in group)
    for (number, row), log in zip(group, logs, strict=True):
        off = _off(math.exp(log - centre), row.moments.finite, kurtosis, row.resolution)
        if abs(off) > SIGMAS * _of_median(group) and abs(log - centre) > SIGMAS * spread:
            ratio = math.exp(log - centre)
            said = f"std {row.moments.std:.4g}, its siblings {usual:.4g} ({ratio:.3g} times)"
            yield number, Problem(said, f"×{ratio:.3g}")


def _of_median(group: Sequence[object]) -> float:
    """The standard error of the difference from a group's median, in standard errors of one."""
    return math.sqrt(1 + math.pi / (2 * len(group)))


def _by_mean(group: Sequence[tuple[int, ReportRow]]) -> Iterator[tuple[int, Problem]]:
    means = [row.moments.mean for _, row in group]
    centre = median(means)
    spread = _MAD * median(abs(mean - centre) for mean in means)
    for (number, row), mean in zip(group, means, strict=True):
        error = row.moments.std / math.sqrt(row.moments.finite) * _of_median(group)
        slack = row.resolution * abs(centre)
        if abs(mean - centre) > SIGMAS * max(error, spread) + slack:
            said = f"mean {mean:.4g}, its siblings {centre:.4g}"
            yield number, Problem(said, f"mean {mean:.2g}")


def _by_shape(group: Sequence[tuple[int, ReportRow]]) -> Iterator[tuple[int, Problem]]:
    """The survival function, tested against the siblings' median."""
    shares = torch.stack([row.moments.beyond / row.moments.finite for _, row in group])
    usual = _floor(shares.median(0).values, sum(row.moments.finite for _, row in group))
    found = [deviance(row.moments, usual, row.resolution, has_edge=True) for _, row in group]
    among = median(found)
    inflation = _of_median(group) ** 2
    for (number, row), one in zip(group, found, strict=True):
        if one > max(LIMIT * inflation, _APART * among):
            others = [other.law for _, other in group if other is not row]
            usual_fit = max(set(others), key=lambda x: [o.kind for o in others].count(x.kind))
            yield number, Problem(f"{_shape(row)}, its siblings {usual_fit}", _shape(row))


def _shape(row: ReportRow) -> str:
    said = str(row.law)
    return said if row.law.kind != "other" else f"kurtosis {row.moments.kurtosis:.3g}"


def _floor(survival: Tensor, count: int) -> Tensor:
    """A survival function of counts, with at least one of so many values everywhere."""
    return survival.clamp(min=1 / count)


class ReportResults(NamedTuple):
    """What the table and the picture show.

    Attributes:
        title: what was measured.
        rows: one for each parameter or part of one, in the model's order.
        offenders: the outliers among them.
        against: of the other model to show; None without one.
    """

    title: str
    rows: Sequence[ReportRow]
    offenders: Sequence[Outlier]
    against: ReportResults | None

    @property
    def false_alarm_rate(self) -> float:
        """The probability that a correct model has an outlier, at most: the sum over all tests."""
        return COMPARISONS * ALPHA * len(self.rows)
