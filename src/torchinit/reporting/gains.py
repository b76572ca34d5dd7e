"""The left of a report's picture: std sqrt(fan_in) of every parameter over depth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from torchinit.reporting.depth_axis import DepthAxis, depth_axis
from torchinit.reporting.goodness_of_fit import SIGMAS
from torchinit.reporting.outliers import ReportResults
from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow
from torchinit.reporting.style import MARKER, Style

# The smallest marker, relative to the largest; the longest line of an intended gain, in points.
_SMALLEST, _DASH = 0.5, 9.0
# Beyond so many layers lines replace markers, but for so many of this size on each line.
_DENSE, _MARKED, _SPARSE = 64, 10, 0.75
# The smallest gain on the axis; the largest is its inverse, and float64 has their ratio.
_LEAST = 1e-150
# The gains that every axis shows, and how far it reaches beyond what it has to.
_ALWAYS, _BEYOND = (0.215, 1.0), 1.06
# Where the number of an outlier is tried: beside its point, in points.
_BESIDE = tuple(
    (dx, dy) for dy in (7.0, -7.0, 14.0, -14.0, 21.0, -21.0, 28.0, 35.0) for dx in (0.0, 5.0, -5.0)
)


class Point(NamedTuple):
    """A row in the picture: its axes and place, bar, intended gain, the other model's, its number.

    The number is 0 unless the row is an outlier.
    """

    row: ReportRow
    axes: Any
    x: float
    y: float
    low: float
    high: float
    intended: float | None
    other: float | None
    number: int


def draw_gains(
    results: ReportResults, gain: Any, foot: Any, numbers: dict[str, int], style: Style
) -> None:
    """Draws the gains, and below them what has none.

    Args:
        results: rows and outliers.
        gain, foot: axes.
        numbers: of outliers, by their names; 0 is not written.
        style: the colours.
    """
    axis = depth_axis(results.rows)
    points = list(_points(results, axis, gain, foot, numbers))
    _dress(gain, foot, axis, points, style)
    layer = _points_of(gain, axis)
    apart = axis.apart * layer
    width = min(axis.apart, _DASH / layer)
    size = min(1.0, max(_SMALLEST, 1.05 * apart / MARKER))
    for role in ROLES:
        alike = [point for point in points if point.row.role == role]
        fine = [point for point in alike if point.row.name not in numbers]
        varied = [point for point in fine if point.axes is gain]
        if axis.layers > _DENSE:
            _draw_lines(gain, role, varied, style)
        else:
            _draw_bars(gain, varied, color=style.colour(role), lw=0.3 + 0.6 * size, alpha=0.6)
            _draw_intended(gain, varied, width, style.soft)
            _draw_marks(gain, role, [(p.x, p.y) for p in varied], size, style)
        _draw_marks(foot, role, [(p.x, p.y) for p in fine if p.axes is foot], 0.9 * size, style)
        _draw_other(gain, role, [p for p in alike if p.other is not None], size, style)
    outliers = [point for point in points if point.row.name in numbers]
    for point in outliers:
        _draw_outlier(point, max(size, 0.7), width, style)
    _write_numbers([point for point in outliers if point.number], points, style)


def _points(
    results: ReportResults, axis: DepthAxis, gain: Any, foot: Any, numbers: dict[str, int]
) -> Iterator[Point]:
    others = {} if results.against is None else {row.name: row for row in results.against.rows}
    for row, x in zip(results.rows, axis.x, strict=True):
        other, varies = others.get(row.name), row.moments.std > 0
        error = 1 + SIGMAS * row.moments.std_error
        y = _shown(row.gain) if varies else _level(row)
        yield Point(
            row, gain if varies else foot, x, y, y / error, y * error,
            _shown(row.intended_gain) if row.intended_gain else None,
            _shown(other.gain) if other is not None and other.moments.std > 0 else None,
            numbers.get(row.name, 0),
        )  # fmt: skip


def _shown(gain: float) -> float:
    """A gain, within what a logarithmic axis can show."""
    return min(max(gain, _LEAST), 1 / _LEAST)


def _level(row: ReportRow) -> float:
    """The height in the foot: zeros low, other constants high, non-finite in the middle."""
    mean = row.moments.mean
    return 0.5 if not math.isfinite(mean) else 0.25 if mean == 0 else 0.75


def _dress(gain: Any, foot: Any, axis: DepthAxis, points: Sequence[Point], style: Style) -> None:
    """Sets scales, ticks, grids and labels."""
    import matplotlib.ticker as ticker

    seen = [*_ALWAYS]  # the gains shown
    for point in points:
        if point.axes is gain:
            extent = point.low, point.high, point.intended, point.other
            seen += [y for y in extent if y is not None]
    low, high = _round(min(seen) / _BEYOND, down=True), _round(max(seen) * _BEYOND, down=False)
    decades = math.log10(high / low)
    every = (1.0, 2.0, 5.0) if decades < 3.5 else (1.0,)
    gain.set_yscale("log")
    gain.set_ylim(low, high)
    gain.axhline(1.0, color=style.ink, lw=0.7, zorder=0)
    for axes, edge in product((gain, foot), axis.edges):
        axes.axvline(edge, color=style.soft, alpha=0.5, lw=0.6, ls=(0, (4, 3)), zorder=0)
    gain.set_ylabel("gain, std · √(fan in)")  # mathtext's root breaks in SVG files
    gain.yaxis.set_major_locator(ticker.LogLocator(subs=every, numticks=12))
    if decades < 6:
        gain.yaxis.set_major_formatter(
            ticker.FuncFormatter(lambda y, _: f"{y:.9f}".rstrip("0.") if y < 1 else f"{y:.0f}")
        )
    gain.minorticks_off()
    gain.grid(axis="y", which="major", zorder=-1)
    gain.tick_params(axis="x", length=0, labelbottom=False)
    gain.spines["bottom"].set_visible(False)
    gain.set_xlim(*axis.limits)
    foot.set_ylim(0, 1)
    foot.set_yticks([0.25, 0.75], ["all 0", "constant"], fontsize=6.5)
    foot.tick_params(axis="y", length=0)
    foot.set_facecolor(style.shade)
    places = [place for place, _ in axis.ticks] or [0.0]
    foot.set_xticks(places, [label for _, label in axis.ticks] or [""], parse_math=False)
    foot.set_xlabel("depth (layer)", labelpad=12 if axis.stacks else 2)
    for first, last, name in axis.stacks:
        room = int((last - first) * _points_of(foot, axis) / 4.3)  # characters
        foot.annotate(
            name if len(name) <= room else f"{name[: room - 1]}…" if room > 3 else "",
            ((first + last) / 2, 0), (0, -21), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", va="center", fontsize=7, parse_math=False,
            annotation_clip=False,
        )  # fmt: skip


def _points_of(axes: Any, axis: DepthAxis) -> float:
    """The points that a layer is wide."""
    pixels = axes.get_window_extent().width / (axis.limits[1] - axis.limits[0])
    return float(pixels / axes.figure.dpi * 72)


def _round(gain: float, *, down: bool) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, below or above."""
    power = 10.0 ** math.floor(math.log10(gain))
    steps = [step * power for step in (1, 2, 5, 10)]
    return max(s for s in steps if s <= gain) if down else min(s for s in steps if s >= gain)


def _draw_lines(axes: Any, role: str, points: Sequence[Point], style: Style) -> None:
    """Draws a role in many layers: a line with a band of five standard errors, and few markers."""
    stacks: dict[str, list[Point]] = {}
    for point in points:
        stacks.setdefault(point.row.place.pattern, []).append(point)
    marked: list[Point] = []
    colour = style.colour(role)
    for line in stacks.values():
        x, intended = [point.x for point in line], [point.intended for point in line]
        if len(line) > _MARKED:
            axes.fill_between(
                x, [p.low for p in line], [p.high for p in line], color=colour, lw=0, alpha=0.18,
                zorder=1,
            )  # fmt: skip
            axes.plot(x, [p.y for p in line], color=colour, lw=0.6, alpha=0.9, zorder=2)
            if None not in intended:
                axes.plot(x, intended, color=style.soft, lw=0.5, zorder=3)
        every = max(len(line) // _MARKED, 1)
        start = min(every * ROLES.index(role) // len(ROLES), len(line) - 1)
        marked += line[start::every]
    _draw_marks(axes, role, [(p.x, p.y) for p in marked], _SPARSE, style)


def _draw_bars(axes: Any, points: Sequence[Point], **how: Any) -> None:
    """Draws five standard errors on either side."""
    x, low, high = [p.x for p in points], [p.low for p in points], [p.high for p in points]
    axes.vlines(x, low, high, **{"zorder": 2, **how})


def _draw_intended(axes: Any, points: Sequence[Point], width: float, colour: str) -> None:
    """Draws the intended gains, as lines as wide as the place of a parameter."""
    there = [(p.x, p.intended) for p in points if p.intended is not None]
    axes.hlines(
        [y for _, y in there], [x - 0.6 * width for x, _ in there],
        [x + 0.6 * width for x, _ in there], color=colour, lw=1.0, zorder=1, gid="intended",
    )  # fmt: skip


def _draw_marks(
    axes: Any, role: str, places: Sequence[tuple[float, float | None]], size: float, style: Style,
    **how: Any,
) -> None:  # fmt: skip
    axes.plot(
        [x for x, _ in places], [y for _, y in places],
        **{"gid": role, "zorder": 4, **style.marker(role, size), **how},
    )  # fmt: skip


def _draw_outlier(point: Point, size: float, width: float, style: Style) -> None:
    axes, intended, red = point.axes, point.intended, style.outlier
    if point.row.moments.std > 0:
        _draw_bars(axes, [point], color=red, lw=0.9, zorder=5)
        if intended is not None:
            _draw_intended(axes, [point], width, red)
            axes.plot([point.x] * 2, [point.y, intended], color=red, lw=0.6, ls=":", zorder=3)
    axes.plot(point.x, point.y, zorder=6, gid="outlier", **style.marker(point.row.role, size, red))


def _draw_other(gain: Any, role: str, points: Sequence[Point], size: float, style: Style) -> None:
    """Draws the other model's gains of a role hollow, with lines to this one's."""
    moved = [point for point in points if point.axes is gain]
    colour = style.colour(role)
    gain.vlines(
        [p.x for p in moved], [p.y for p in moved], [p.other for p in moved], color=colour, lw=0.4,
        zorder=1,
    )  # fmt: skip
    _draw_marks(
        gain, role, [(p.x, p.other) for p in points], size, style, zorder=3, gid="against",
        mfc="none", mec=colour, mew=0.3 + 0.4 * size,
    )  # fmt: skip


def _write_numbers(numbered: Sequence[Point], points: Sequence[Point], style: Style) -> None:
    """Writes the numbers of outliers beside their points, each where it hides the least."""
    from matplotlib.patheffects import withStroke

    marks = [(*_at(point), 2.0) for point in points]
    taken: list[tuple[float, float, float]] = []
    for point in numbered:
        x, y = _at(point)
        half = 2.3 * len(str(point.number)) + 0.5
        tried = [(x + dx, y + dy, half) for dx, dy in _BESIDE]
        best = min(tried, key=lambda one: (_hidden(one, taken, 6.5), _hidden(one, marks, 5.0)))
        taken.append(best)
        point.axes.annotate(
            str(point.number), (point.x, point.y), (best[0] - x, best[1] - y), ha="center",
            va="center", textcoords="offset points", color=style.outlier, fontsize=6.5,
            fontweight="bold", zorder=7, annotation_clip=False,
            path_effects=[withStroke(linewidth=1.6, foreground=style.ground)],
        )  # fmt: skip


def _at(point: Point) -> tuple[float, float]:
    """Where a point is in the figure, in points."""
    x, y = point.axes.transData.transform((point.x, point.y)) / point.axes.figure.dpi * 72
    return float(x), float(y)


def _hidden(
    one: tuple[float, float, float], others: Sequence[tuple[float, float, float]], height: float
) -> int:
    """How many others a number hides; each is x, y and half a width."""
    x, y, half = one
    return sum(abs(x - u) < half + wide and abs(y - v) < height for u, v, wide in others)
