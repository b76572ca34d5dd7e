"""The right of a report's picture: how many values lie far from the mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from torchinit.reporting.goodness_of_fit import normal, survival_of
from torchinit.reporting.measure import grid
from torchinit.reporting.outliers import ReportResults
from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow
from torchinit.reporting.style import Style

# How the curves of a normal and of other intended distributions are dashed.
NORMAL_DASHES, OTHER_DASHES = (0, (1, 1.2)), (0, (4, 1.5))
# A curve that ends with more values than this was cut off, and falls.
_LAST = 8


def draw_survival(results: ReportResults, axes: Any, style: Style) -> None:
    """Draws the share of values beyond so many std: for each role, and for each outlier."""
    wrong = {outlier.name for outlier in results.outliers}
    right = [row for row in results.rows if row.name not in wrong]
    smallest = _draw_roles(right, axes, style, "-")
    if results.against is not None:
        other = _draw_roles(results.against.rows, axes, style, (0, (2, 1.5)))
        smallest = min(smallest, other)
    for row in results.rows:
        if row.name in wrong and row.moments.std > 0:
            count = _draw_curve(axes, [row], color=style.outlier, lw=0.9, zorder=5)
            smallest = min(smallest, 1 / count)
    for number, survival in enumerate(distributions(results.rows)):
        axes.plot(
            grid(), survival.where(survival > 0, math.nan), color=style.ink, lw=0.9, zorder=6,
            ls=OTHER_DASHES if number else NORMAL_DASHES,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(max(smallest / 3, 1e-9), 2.0)
    axes.set_xlim(0, 6)
    axes.set_xticks(range(0, 7, 2))
    axes.set_xlabel(r"$x$", labelpad=2)
    axes.set_ylabel(r"fraction of values farther than $x$ std from the mean", labelpad=3)
    axes.grid()
    axes.minorticks_off()


def _draw_roles(rows: Sequence[ReportRow], axes: Any, style: Style, dashes: Any) -> float:
    """Draws a curve for each role; returns the smallest share of a single value."""
    smallest = 0.1
    for role in ROLES:
        if alike := [row for row in rows if row.role == role and row.moments.std > 0]:
            count = _draw_curve(axes, alike, color=style.colour(role), lw=0.75, ls=dashes, zorder=3)
            smallest = min(smallest, 1 / count)
    return smallest


def _draw_curve(axes: Any, rows: Sequence[ReportRow], **how: Any) -> int:
    """Draws the survival function of rows taken together; returns how many values they have."""
    count = sum(row.moments.finite for row in rows)
    beyond = torch.stack([row.moments.beyond for row in rows]).sum(0)
    last = int((beyond > 0).sum())
    points, shown = grid()[:last].tolist(), (beyond / count)[:last].tolist()
    if last < len(grid()) and beyond[last - 1] > _LAST:  # the values end here
        points.append(points[-1])
        shown.append(1e-12)
    axes.plot(points, shown, **how)
    return count


def distributions(rows: Iterable[ReportRow]) -> list[torch.Tensor]:
    """The survival functions of a normal and of other intended distributions, four at most."""
    found = [normal()]
    for row in rows:
        if row.intended is None or row.intended.law is None or len(found) > 3:
            continue
        one = survival_of(row.intended.law)
        if one is not None and all(float((one - known).abs().max()) > 1e-3 for known in found):
            found.append(one)
    return found
