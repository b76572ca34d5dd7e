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
from typing import NamedTuple, TypeAlias

import torch

from torchinit.reporting.goodness_of_fit import (
    ALPHA,
    LIMIT,
    SIGMAS,
    deviance,
    survival_of,
)
from torchinit.reporting.rows import ReportRow
from torchinit.schemes.law import Law

# The probability that a correct row is an outlier, at most: three tests.
FALSE_ALARMS = 3 * ALPHA
# The fewest siblings that tell what is usual, and the fewest values of each.
_ENOUGH, _FEW = 3, 16
# The std of a normal is so many times its median absolute deviation.
_MAD = 1.4826
# The deviance of an outlier's shape, in median deviances of its siblings'.
_APART = 9.0


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


class ReportResults(NamedTuple):
    """What the table and the picture show: rows, the outliers among them, another model's."""

    title: str
    rows: Sequence[ReportRow]
    outliers: Sequence[Outlier]
    against: ReportResults | None


# What is wrong: in full, and short enough for a label of the picture.
Problem: TypeAlias = "tuple[str, str]"
# A row and its number in the report.
NumberedRow: TypeAlias = "tuple[int, ReportRow]"


def find_outliers(rows: Sequence[ReportRow]) -> list[Outlier]:
    """The outliers, in the order of the model."""
    problems: list[list[Problem]] = []
    siblings: dict[tuple[str, tuple[int, ...]], list[NumberedRow]] = defaultdict(list)
    for number, row in enumerate(rows):
        problems.append([(fault, "codes") for fault in row.faults])
        problems[-1] += _not_finite(row)
        law = None if row.intended is None else row.intended.law
        if not row.moments.finite:
            continue
        if law is not None:
            problems[-1] += _by_law(row, law)
        elif row.place.depth:
            # Both fans may decide a matrix's std; a vector has none.
            shape = row.shape if len(row.shape) > 1 else ()
            siblings[row.place.pattern, shape].append((number, row))
    for group in siblings.values():
        if len(group) >= _ENOUGH:
            for number, problem in _by_siblings(group):
                problems[number].append(problem)
    return [
        Outlier(
            row.name, [text for text, _ in found], ", ".join(dict.fromkeys(s for _, s in found))
        )
        for row, found in zip(rows, problems, strict=True)
        if found
    ]


def _not_finite(row: ReportRow) -> Iterator[Problem]:
    moments = row.moments
    for count, what in ((moments.nans, "NaN"), (moments.infinities, "infinite")):
        if count:
            yield f"{count:,} of {moments.numel:,} values {what}", what


def _by_law(row: ReportRow, law: Law) -> Iterator[Problem]:
    """What is wrong with a parameter whose distribution is known."""
    moments = row.moments
    values = f"values from {moments.low:.4g} to {moments.high:.4g}"
    eps = row.eps
    if not law.std > 0:
        if max(abs(moments.low - law.mean), abs(moments.high - law.mean)) > eps * abs(law.mean):
            yield f"{values}, all {law.mean:.4g} intended", f"not {law.mean:.3g}"
        return
    if moments.low == moments.high:
        if moments.finite > 1:
            yield f"all values {moments.low:.4g}, std {law.std:.4g} intended", "constant"
        return
    resolution = row.resolution_at(law.std) if eps else 0.0
    slack = eps * max(abs(law.mean), abs(law.std)) + resolution * law.std
    if moments.low < law.low - slack or moments.high > law.high + slack:
        yield f"{values}, within {law.low:.4g} and {law.high:.4g} intended", "out of bounds"
    error = SIGMAS * max(law.std, moments.std) / math.sqrt(moments.finite)
    if abs(moments.mean - law.mean) > error + eps * (law.mean_shift + abs(law.mean)):
        said = f"mean {moments.mean:.4g}, {law.mean:.4g} ± {error:.2g} intended"
        yield said, f"mean {moments.mean:.2g}"
    ratio = moments.std / law.std
    off = _off(ratio, moments.finite, law.kurtosis, resolution)
    if abs(off) > SIGMAS:
        said = f"std {moments.std:.4g}, {law.std:.4g} intended ({ratio:.3g} times, {off:+.0f}σ)"
        yield said, f"×{ratio:.3g}"
    survival, has_edge = survival_of(law), math.isfinite(law.high - law.low)
    if survival is not None and (
        deviance(moments, survival, resolution, has_edge=has_edge) > LIMIT
    ):
        words = "" if row.intended is None else row.intended.words
        yield f"{_shape(row)}, {words} intended", _shape(row)
    is_orthogonal = row.intended is not None and row.intended.orthogonal
    if is_orthogonal and row.orthogonality is not None and row.orthogonality > max(1e-3, 8 * eps):
        yield f"orthogonality error {row.orthogonality:.2g}", "not orthogonal"


def _off(ratio: float, count: int, kurtosis: float, resolution: float) -> float:
    """How many standard errors a std is off, by the transform of Wilson and Hilferty.

    Args:
        ratio: of the std to the intended one.
        count: of values.
        kurtosis: of their distribution: the variance of n values has the degrees of freedom of
            2 n / (kurtosis - 1) normal ones.
        resolution: in std; its square is about what rounding adds to the variance.
    """
    if kurtosis - 1 <= 1e-9:
        is_right = abs(ratio - 1) <= max(resolution, 1e-6)
        return 0.0 if is_right else math.copysign(math.inf, ratio - 1)
    spread = 2 / (9 * max(2 * count / (kurtosis - 1), 1.0))
    squared, slack = ratio * ratio, resolution * resolution  # not **, which raises for infinity
    squared += min(max(1 - squared, -slack), slack)
    return float((squared ** (1 / 3) - (1 - spread)) / math.sqrt(spread))


def _shape(row: ReportRow) -> str:
    return f"kurtosis {row.moments.kurtosis:.3g}" if row.law.kind == "other" else str(row.law)


def _by_siblings(group: Sequence[NumberedRow]) -> Iterator[tuple[int, Problem]]:
    """What is wrong with parameters that are expected to be alike."""
    constant = [(n, row) for n, row in group if row.moments.low == row.moments.high]
    varied = [(n, row) for n, row in group if row.moments.low < row.moments.high]
    if 2 * len(constant) > len(group):
        values = [row.moments.mean for _, row in constant]
        usual = max(values, key=values.count)
        if 2 * values.count(usual) <= len(group):
            return  # they differ by design, such as scales that fall with depth
        for number, row in constant:
            if (value := row.moments.mean) != usual:
                said = f"all values {value:.4g}, its siblings {usual:.4g}"
                yield number, (said, f"all {value:.3g}")
        for number, row in varied:
            said = f"values from {row.moments.low:.4g} to {row.moments.high:.4g}"
            yield number, (f"{said}, its siblings all {usual:.4g}", f"not {usual:.3g}")
        return
    for number, row in constant:
        if row.moments.finite > 1:
            said = f"constant {row.moments.mean:.4g}, its siblings are not"
            yield number, (said, "constant")
    alike = [(n, row) for n, row in varied if row.moments.finite >= _FEW and row.moments.std > 0]
    if len(alike) >= _ENOUGH:
        yield from _by_std(alike)
        yield from _by_mean(alike)
        yield from _by_shape(alike)


def _of_median(group: Sequence[object]) -> float:
    """The standard error of the difference from a group's median, in standard errors of one."""
    return math.sqrt(1 + math.pi / (2 * len(group)))


def _centre(values: Sequence[float]) -> tuple[float, float]:
    """Median and spread, which outliers among the values do not move."""
    centre = median(values)
    return centre, _MAD * median(abs(value - centre) for value in values)


def _by_std(group: Sequence[NumberedRow]) -> Iterator[tuple[int, Problem]]:
    """Off by more than five standard errors, and by more than five times the siblings' spread."""
    logs = [math.log(row.moments.std) for _, row in group]
    centre, spread = _centre(logs)
    usual, kurtosis = math.exp(centre), median(row.moments.kurtosis for _, row in group)
    for (number, row), log in zip(group, logs, strict=True):
        ratio = math.exp(min(log - centre, 700.0))
        off = _off(ratio, row.moments.finite, kurtosis, row.resolution)
        if abs(off) > SIGMAS * _of_median(group) and abs(log - centre) > SIGMAS * spread:
            said = f"std {row.moments.std:.4g}, its siblings {usual:.4g} ({ratio:.3g} times)"
            yield number, (said, f"×{ratio:.3g}")


def _by_mean(group: Sequence[NumberedRow]) -> Iterator[tuple[int, Problem]]:
    means = [row.moments.mean for _, row in group]
    centre, spread = _centre(means)
    for (number, row), mean in zip(group, means, strict=True):
        error = row.moments.std / math.sqrt(row.moments.finite) * _of_median(group)
        slack = row.resolution * abs(centre)
        if abs(mean - centre) > SIGMAS * max(error, spread) + slack:
            yield number, (f"mean {mean:.4g}, its siblings {centre:.4g}", f"mean {mean:.2g}")


def _by_shape(group: Sequence[NumberedRow]) -> Iterator[tuple[int, Problem]]:
    """The survival function, tested against the siblings' median."""
    shares = torch.stack([row.moments.beyond / row.moments.finite for _, row in group])
    count = sum(row.moments.finite for _, row in group)
    usual = shares.median(0).values.clamp(min=1 / count)  # one value at least lies anywhere
    found = [deviance(row.moments, usual, row.resolution, has_edge=True) for _, row in group]
    limit = max(LIMIT * _of_median(group) ** 2, _APART * median(found))
    for (number, row), one in zip(group, found, strict=True):
        if one > limit:
            others = [other.law for _, other in group if other is not row]
            kinds = [law.kind for law in others]
            usual_fit = max(dict.fromkeys(others), key=lambda law: kinds.count(law.kind))
            yield number, (f"{_shape(row)}, its siblings {usual_fit}", _shape(row))
