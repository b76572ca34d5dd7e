"""The picture of a report: std sqrt(fan_in) of every parameter over depth, and the tails.

Colours are those of Okabe and Ito (2008), safe for colour-blind readers; each role also has a
marker, for print in grey. Only matplotlib's Figure is used: the caller's ``pyplot``, backend and
settings are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchinit.reporting.goodness_of_fit import SIGMAS, normal, survival_of
from torchinit.reporting.measure import grid
from torchinit.reporting.outliers import ReportResults
from torchinit.reporting.picture_layout import DepthAxis, depth_axis, place_labels
from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow


class _Style(NamedTuple):
    colour: str
    marker: str
    title: str


_BLUE, _SKY, _GREEN, _ORANGE = "#0072B2", "#56B4E9", "#009E73", "#E69F00"
_PURPLE, _YELLOW, _BLACK, _GREY = "#CC79A7", "#D6C400", "#000000", "#7F7F7F"
_STYLES = {
    "embedding": _Style(_BLACK, "*", "embedding"),
    "q": _Style(_BLUE, "o", "q"),
    "k": _Style(_SKY, "v", "k"),
    "v": _Style(_GREEN, "^", "v"),
    "qkv": _Style(_BLUE, "o", "qkv"),
    "o": _Style(_PURPLE, "D", "o"),
    "up": _Style(_ORANGE, "s", "up"),
    "gate": _Style(_YELLOW, "P", "gate"),
    "gate_up": _Style(_YELLOW, "P", "gate, up"),
    "down": _Style(_BLACK, "X", "down"),
    "router": _Style(_GREY, ">", "router"),
    "conv": _Style(_GREEN, "h", "conv"),
    "norm": _Style(_GREY, "d", "norm"),
    "bias": _Style(_GREY, "_", "bias"),
    "head": _Style(_BLACK, "p", "head"),
    "other": _Style(_GREY, "<", "other"),
}
_RED = "#C1121F"
_FONT = {
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
# In points: the width of the depth axis, the largest marker; the smallest, relative to it.
_WIDTH, _MARKER, _SMALLEST = 330.0, 5.2, 0.45
# Beyond so many layers lines replace markers, but for a few of this size.
_DENSE, _SPARSE = 64, 0.75
# Marked layers of each line.
_MARKED = 10
# The smallest gain on the axis.
_LEAST = 1e-200
# A curve that ends with more values than this was cut off, and falls.
_LAST = 8
# Characters of the longest title.
_TITLE = 30
# Labelled outliers; the table names all.
_NAMED = 12


def save_picture(results: ReportResults, path: Path) -> None:
    """Draws a report into a file.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'torchinit[report]'") from None
    with style.context(["default", _FONT]):
        figure = Figure(figsize=(7.2, 4.3), dpi=200)
        FigureCanvasAgg(figure)
        draw(results, figure)
        figure.savefig(path)


def draw(results: ReportResults, figure: Any) -> None:
    """Draws a report into an empty matplotlib figure: three axes, gain, foot and survival."""
    grid = figure.add_gridspec(
        2, 2, width_ratios=(4.1, 1.3), height_ratios=(6.2, 1.0), left=0.085, right=0.985,
        bottom=0.115, top=0.835, wspace=0.20, hspace=0.06,
    )  # fmt: skip
    gain = figure.add_subplot(grid[0, 0], label="gain")
    foot = figure.add_subplot(grid[1, 0], label="foot", sharex=gain)
    survival = figure.add_subplot(grid[:, 1], label="survival")
    _draw_gains(results, gain, foot)
    _draw_survival(results, survival)
    _draw_legend(results, figure)
    title = _clip(results.title)
    if results.against is not None:
        title = f"{title} (filled), {_clip(results.against.title)} (hollow)"
    size = 10.0 if len(title) <= _TITLE else 7.5
    figure.text(
        0.085, 0.965, title, fontsize=size, fontweight="bold", va="center", parse_math=False
    )
    figure.text(0.985, 0.965, _summary(results), va="center", ha="right", color="#444444")


def _clip(title: str) -> str:
    """A title, shortened to leave room for another."""
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…"


def _summary(results: ReportResults) -> str:
    values = sum(row.moments.numel for row in results.rows)
    said = f"{len(results.rows)} parameters, {_count(values)} values"
    wrong = len(results.offenders)
    if results.against is not None:
        said = f"{len(results.rows)} parameters"
    return f"{said}, {wrong or 'no'} offender{'' if wrong == 1 else 's'}"


def _count(number: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _draw_gains(results: ReportResults, gain: Any, foot: Any) -> None:
    short = {outlier.name: outlier.short for outlier in results.offenders}
    layout = depth_axis(results.rows)
    apart = _WIDTH * layout.apart / layout.width / _MARKER
    points = [
        _point(row, x, other, short.get(row.name))
        for row, x, other in zip(results.rows, layout.x, _matched(results), strict=True)
    ]
    size = min(1.0, max(_SMALLEST, 1.05 * apart))
    is_dense = layout.layers > _DENSE
    _dress(gain, foot, layout, *_range(points))
    for role in ROLES:
        alike = [point for point in points if point.row.role == role and point.varies]
        _draw_role(gain, _STYLES[role], [p for p in alike if not p.short], size, is_dense=is_dense)
        flat = [point for point in points if point.row.role == role and not point.varies]
        _marks(foot, _STYLES[role], [p for p in flat if not p.short], 0.9 * size)
    labels = []
    marks = [(gain if point.varies else foot, point.x, point.y) for point in points]
    for point, mark in zip(points, marks, strict=True):
        if point.short is not None:
            _draw_outlier(mark[0], point, max(size, 0.7))
            labels.append((*mark, f"{_name(point.row)}  {point.short}"))
    _draw_others(gain, points, size)
    place_labels(labels[:_NAMED], marks, (gain, foot), _RED)
    if len(labels) > _NAMED:
        gain.text(
            0.99, 0.985, f"and {len(labels) - _NAMED} more", color=_RED, ha="right", va="top",
            fontsize=6.5, transform=gain.transAxes,
        )  # fmt: skip


class _Point(NamedTuple):
    """A row in the picture: its place, bar and ring, and the other model's gain."""

    row: ReportRow
    x: float
    y: float
    varies: bool
    low: float
    high: float
    intended: float | None
    other: float | None
    short: str | None


def _point(row: ReportRow, x: float, other: ReportRow | None, short: str | None) -> _Point:
    varies, error = row.moments.std > 0, 1 + SIGMAS * row.moments.std_error
    y = _shown(row.gain) if varies else _level(row)
    their = _shown(other.gain) if other is not None and other.moments.std > 0 else None
    intended = _shown(row.intended_gain) if row.intended_gain else None
    return _Point(row, x, y, varies, y / error, y * error, intended, their, short)


def _shown(gain: float) -> float:
    """A gain, within what a logarithmic axis can show."""
    return min(max(gain, _LEAST), 1 / _LEAST)


def _range(points: Sequence[_Point]) -> tuple[float, float]:
    """The smallest and largest gain shown, with 1."""
    seen = [1.0]
    for point in points:
        seen += [point.low, point.high] if point.varies else []
        seen += [y for y in (point.intended, point.other) if y is not None]
    return min(seen), max(seen)


def _level(row: ReportRow) -> float:
    """The height in the foot: zeros low, other constants high, non-finite in the middle."""
    mean = row.moments.mean
    return 0.5 if not math.isfinite(mean) else 0.25 if mean == 0 else 0.75


def _draw_role(
    axes: Any, style: _Style, points: Sequence[_Point], size: float, *, is_dense: bool
) -> None:
    """Draws one role: markers with bars and rings; in many layers lines and a few markers."""
    few = points
    if is_dense:
        stacks: dict[str, list[_Point]] = {}
        for point in points:
            stacks.setdefault(point.row.place.pattern, []).append(point)
        few = []
        for line in stacks.values():
            if len(line) > _MARKED:
                _draw_line(axes, style, line)
            every = max(len(line) // _MARKED, 1)
            start = min(every * ROLES.index(line[0].row.role) // len(ROLES), len(line) - 1)
            few += line[start::every]
        size = _SPARSE
    else:
        axes.vlines(
            [p.x for p in points], [p.low for p in points], [p.high for p in points],
            color=style.colour, lw=0.3 + 0.6 * size, alpha=0.6, zorder=2,
        )  # fmt: skip
    ringed = [(p.x, p.intended) for p in few if p.intended is not None]
    axes.plot(
        [x for x, _ in ringed], [y for _, y in ringed], ls="", marker="o", mfc="none", zorder=3,
        ms=_MARKER * size + 2.2, mec="#808080", mew=0.25 + 0.3 * size, gid="intended",
    )  # fmt: skip
    _marks(axes, style, few, size)


def _draw_line(axes: Any, style: _Style, points: Sequence[_Point]) -> None:
    """A role in many layers: a line, a band of five standard errors, and the intended gain."""
    x = [point.x for point in points]
    axes.fill_between(
        x, [p.low for p in points], [p.high for p in points], color=style.colour, lw=0, alpha=0.18,
        zorder=1,
    )  # fmt: skip
    axes.plot(x, [p.y for p in points], color=style.colour, lw=0.6, alpha=0.9, zorder=2)
    if all(point.intended is not None for point in points):
        axes.plot(x, [p.intended for p in points], color="#606060", lw=0.5, zorder=3)


def _marks(axes: Any, style: _Style, points: Sequence[_Point], size: float) -> None:
    axes.plot(
        [p.x for p in points], [p.y for p in points], gid=style.title, zorder=4,
        **_marker(style, style.colour, size),
    )  # fmt: skip


def _marker(style: _Style, colour: str, size: float) -> dict[str, Any]:
    """Arguments of matplotlib's plot for a marker; thin ones have no white edge."""
    edge = colour if style.marker in "_*X" or size < 0.9 else "white"
    scale = {"*": 1.6, "d": 0.9, "_": 1.1}.get(style.marker, 1.0)
    return {
        "ls": "", "marker": style.marker, "ms": _MARKER * size * scale, "mfc": colour, "mec": edge,
        "mew": 0.9 if style.marker == "_" else 0.3 if edge == "white" else 0.0,
    }  # fmt: skip


def _draw_outlier(axes: Any, point: _Point, size: float) -> None:
    style = _STYLES[point.row.role]
    if point.varies:
        axes.vlines(point.x, point.low, point.high, color=_RED, lw=0.9, zorder=5)
        if point.intended is not None:
            axes.plot(
                point.x, point.intended, ls="", marker="o", mfc="none", mec=_RED, zorder=3,
                ms=_MARKER * size + 2.2, mew=0.55, gid="intended",
            )  # fmt: skip
            axes.plot(
                [point.x] * 2, [point.y, point.intended], color=_RED, lw=0.6, ls=":", zorder=3
            )
    axes.plot(point.x, point.y, zorder=6, gid="offender", **_marker(style, _RED, size))


def _draw_others(axes: Any, points: Sequence[_Point], size: float) -> None:
    """Draws the other model's gains hollow, with lines to this one's."""
    for role in ROLES:
        alike = [p for p in points if p.row.role == role and p.other is not None]
        if not alike:
            continue
        style = _STYLES[role]
        x, others = [p.x for p in alike], [p.other for p in alike]
        moved = [p for p in alike if p.varies]
        axes.vlines(
            [p.x for p in moved], [p.y for p in moved], [p.other for p in moved],
            color=style.colour, lw=0.4, zorder=1,
        )  # fmt: skip
        marker = {**_marker(style, style.colour, size), "mfc": "none", "mec": style.colour}
        axes.plot(x, others, zorder=3, gid="against", **{**marker, "mew": 0.3 + 0.4 * size})


def _matched(results: ReportResults) -> list[ReportRow | None]:
    """The other model's row of the same name, for each row."""
    if results.against is None:
        return [None] * len(results.rows)
    others = {row.name: row for row in results.against.rows}
    return [others.get(row.name) for row in results.rows]


def _name(row: ReportRow) -> str:
    """A short name: depth and last component."""
    rest = (row.place.rest if row.place.depth else row.name).removesuffix(".weight")
    atoms = rest.split(".")
    depth = ".".join(map(str, row.place.depth))
    return f"{depth} {'.'.join(atoms[-2:] if atoms[-1] == 'bias' else atoms[-1:])}".strip()


def _dress(gain: Any, foot: Any, layout: DepthAxis, low: float, high: float) -> None:
    """Sets scales, ticks, grids and labels."""
    import matplotlib.ticker as ticker

    gain.set_yscale("log")
    span = max(math.log10(high / low), 0.6)
    gain.set_ylim(low / 10 ** (0.10 * span), high * 10 ** (0.16 * span))
    gain.axhline(1.0, color="black", lw=0.7, zorder=0)
    for edge in layout.edges:
        gain.axvline(edge, color="#BBBBBB", lw=0.6, ls=(0, (4, 3)), zorder=0)
        foot.axvline(edge, color="#BBBBBB", lw=0.6, ls=(0, (4, 3)), zorder=0)
    gain.set_ylabel(r"gain  std $\cdot\,\sqrt{\mathrm{fan\ in}}$")
    gain.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if span < 1.7 else (1.0,)))
    gain.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    gain.yaxis.set_minor_formatter(ticker.NullFormatter())
    gain.grid(axis="y", which="major", color="#E6E6E6", lw=0.5, zorder=-1)
    gain.tick_params(axis="x", length=0, labelbottom=False)
    gain.tick_params(axis="y", which="both", length=2.5)
    places = [place for place, _ in layout.ticks] or [0.0]
    left, right = min([*layout.x, *places]), max([*layout.x, *places])
    pad = max((right - left) * 0.025, 0.5)
    gain.set_xlim(left - pad, right + pad)
    foot.set_ylim(0, 1)
    foot.set_yticks([0.25, 0.75], ["all 0", "constant"], fontsize=6.5)
    foot.tick_params(axis="y", length=0)
    foot.set_facecolor("#F5F5F5")
    foot.set_xticks(places, [label for _, label in layout.ticks], parse_math=False)
    foot.tick_params(axis="x", length=2.5)
    foot.set_xlabel("depth (layer)", labelpad=2)
    for axes in (gain, foot):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    gain.spines["bottom"].set_visible(False)


def _draw_survival(results: ReportResults, axes: Any) -> None:
    """Draws the share of values beyond so many std: for each role, and for each outlier."""
    wrong = {outlier.name for outlier in results.offenders}
    fine = [row for row in results.rows if row.name not in wrong]
    smallest = _draw_roles(fine, axes, "-")
    if results.against is not None:
        smallest = min(smallest, _draw_roles(results.against.rows, axes, (0, (2, 1.5))))
    for row in results.rows:
        if row.name in wrong and row.moments.std > 0:
            _curve(axes, row.moments.beyond, row.moments.finite, _RED, lw=0.9, zorder=5)
    for number, survival in enumerate(_distributions(results)):
        axes.plot(
            grid(), survival.where(survival > 0, math.nan), color="black", lw=0.9, zorder=6,
            ls=(0, (1, 1.2)) if not number else (0, (4, 1.5)),
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(max(smallest / 3, 1e-9), 2.0)
    axes.set_xlim(0, 6)
    axes.set_xticks(range(0, 7, 2))
    axes.set_xlabel(r"$|x - \mathrm{mean}|\,/\,\mathrm{std}$", labelpad=2)
    axes.set_title("share of values beyond", fontsize=8, pad=4)
    axes.grid(color="#E6E6E6", lw=0.5)
    axes.tick_params(length=2.5)
    axes.minorticks_off()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _draw_roles(rows: Sequence[ReportRow], axes: Any, dashes: Any) -> float:
    """Draws a curve for each role; returns the smallest share of a single value."""
    smallest = 0.1
    for role in ROLES:
        alike = [row for row in rows if row.role == role and row.moments.std > 0]
        if not alike:
            continue
        count = sum(row.moments.finite for row in alike)
        beyond = torch.stack([row.moments.beyond for row in alike]).sum(0)
        _curve(axes, beyond, count, _STYLES[role].colour, lw=0.75, ls=dashes, zorder=3)
        smallest = min(smallest, 1 / count)
    return smallest


def _curve(axes: Any, beyond: torch.Tensor, count: int, colour: str, **style: Any) -> None:
    share = beyond / count
    last = int((share > 0).sum())
    shown = share[:last].tolist()
    points = grid()[:last].tolist()
    if last < len(grid()) and beyond[last - 1] > _LAST:  # the values end here
        points.append(points[-1])
        shown.append(1e-12)
    axes.plot(points, shown, color=colour, **style)


def _distributions(results: ReportResults) -> list[torch.Tensor]:
    """The survival functions of a normal and of other intended distributions, four at most."""
    found = [normal()]
    for row in results.rows:
        if row.intended is None or row.intended.law is None or len(found) > 3:
            continue
        one = survival_of(row.intended.law)
        if one is not None and all(float((one - known).abs().max()) > 1e-3 for known in found):
            found.append(one)
    return found


def _draw_legend(results: ReportResults, figure: Any) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Any:
        return Line2D([], [], ls=style.pop("ls", ""), label=label, **style)

    present = {row.role for row in results.rows}
    entries = [
        entry(style.title, **_marker(style, style.colour, 1.0))
        for role, style in _STYLES.items()
        if role in present
    ]
    if any(row.intended_gain for row in results.rows):
        entries.append(entry("intended", marker="o", mfc="none", mec="#888888", ms=8, mew=0.7))
    entries.append(entry("measured ± 5σ", marker="|", mec="#555555", ms=8, mew=1.0))
    if results.offenders:
        entries.append(entry("offender", marker="o", mfc=_RED, mec="white", ms=5.2))
    entries.append(entry("normal", ls=(0, (1, 1.2)), color="black", lw=1.0))
    figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(0.075, 0.945), frameon=False,
        ncols=(len(entries) + 1) // 2 if len(entries) > 9 else len(entries), fontsize=7,
        handletextpad=0.15, columnspacing=1.1, handlelength=1.4, borderpad=0.2, labelspacing=0.35,
    )  # fmt: skip
