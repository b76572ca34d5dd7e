"""The picture of a report: std sqrt(fan_in) of every parameter over depth, and the tails.

Colours are those of Okabe and Ito (2008), safe for colour-blind readers; each role also has a
marker, for print in grey. Only matplotlib's Figure is used: the caller's ``pyplot``, backend and
settings are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchinit.reporting.goodness_of_fit import SIGMAS, normal, survival_of
from torchinit.reporting.measure import grid
from torchinit.reporting.outliers import ReportResults
from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow
from torchinit.untrusted import printable

# The colour and the marker of each role.
_BLACK, _GREY, _BLUE, _SKY = "#000000", "#7F7F7F", "#0072B2", "#56B4E9"
_GREEN, _PURPLE, _ORANGE, _YELLOW = "#009E73", "#CC79A7", "#E69F00", "#D6C400"
_STYLES = {
    "embedding": (_BLACK, "*"), "q": (_BLUE, "o"), "k": (_SKY, "v"), "v": (_GREEN, "^"),
    "qkv": (_BLUE, "o"), "o": (_PURPLE, "D"), "up": (_ORANGE, "s"), "gate": (_YELLOW, "P"),
    "gate_up": (_YELLOW, "P"), "down": (_BLACK, "X"), "router": (_GREY, ">"),
    "conv": (_GREEN, "h"), "norm": (_GREY, "d"), "bias": (_GREY, "_"), "head": (_BLACK, "p"),
    "other": (_GREY, "<"),
}  # fmt: skip
_RED = "#C1121F"
_SETTINGS = {
    "font.family": "DejaVu Sans", "font.size": 8.0, "axes.linewidth": 0.6,
    "axes.spines.top": False, "axes.spines.right": False, "grid.color": "#E6E6E6",
    "grid.linewidth": 0.5, "xtick.major.width": 0.6, "ytick.major.width": 0.6,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5, "ytick.minor.size": 2.5,
    "svg.fonttype": "none", "pdf.fonttype": 42,
}  # fmt: skip
# In points: the width of the depth axis, the largest marker; the smallest, relative to it.
_WIDTH, _MARKER, _SMALLEST = 330.0, 5.2, 0.45
# Beyond so many layers lines replace markers, but for so many of this size on each line.
_DENSE, _MARKED, _SPARSE = 64, 10, 0.75
# The part of a layer's width over which its roles are spread.
_SPREAD = 0.8
# The smallest gain on the axis.
_LEAST = 1e-200
# A curve that ends with more values than this was cut off, and falls.
_LAST = 8
# Characters of the longest title; labelled outliers, as the table names all.
_TITLE, _NAMED = 30, 12
# Where a label is tried: distances from its point, in points, and directions.
_DISTANCES = (8.0, 14.0, 21.0, 29.0, 38.0, 48.0, 60.0, 74.0, 90.0, 108.0)
_DIRECTIONS = (
    (1.0, 0.5), (-1.0, 0.5), (1.0, -0.5), (-1.0, -0.5), (0.0, 1.0), (0.0, -1.0), (0.5, 1.0),
    (-0.5, 1.0), (0.5, -1.0), (-0.5, -1.0),
)  # fmt: skip


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
    with style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(7.2, 4.3), dpi=200)
        FigureCanvasAgg(figure)
        draw(results, figure)
        figure.savefig(path)


def draw(results: ReportResults, figure: Any) -> None:
    """Draws a report into an empty matplotlib figure: three axes, gain, foot and survival."""
    places = figure.add_gridspec(
        2, 2, width_ratios=(4.1, 1.3), height_ratios=(6.2, 1.0), left=0.085, right=0.985,
        bottom=0.115, top=0.835, wspace=0.20, hspace=0.06,
    )  # fmt: skip
    gain = figure.add_subplot(places[0, 0], label="gain")
    foot = figure.add_subplot(places[1, 0], label="foot", sharex=gain)
    _draw_gains(results, gain, foot)
    _draw_survival(results, figure.add_subplot(places[:, 1], label="survival"))
    _draw_legend(results, figure)
    title, count = _clip(results.title), len(results.outliers)
    values = f", {_count(sum(row.moments.numel for row in results.rows))} values"
    if results.against is not None:
        title, values = f"{title} (filled), {_clip(results.against.title)} (hollow)", ""
    figure.text(
        0.085, 0.965, title, fontsize=10.0 if len(title) <= _TITLE else 7.5, fontweight="bold",
        va="center", parse_math=False,
    )  # fmt: skip
    outliers = "1 offender" if count == 1 else f"{count or 'no'} offenders"
    said = f"{len(results.rows)} parameters{values}, {outliers}"
    figure.text(0.985, 0.965, said, va="center", ha="right", color="#444444")


def _clip(title: str) -> str:
    title = printable(title)
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…"


def _count(number: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


# Gains over depth.


class DepthAxis(NamedTuple):
    """The axis of depth.

    Attributes:
        x: of each row.
        ticks: x and text of each label.
        edges: x of the lines between stacks.
        layers: the number of all layers.
        apart: the distance of neighbouring roles of a layer, as a part of the axis.
    """

    x: list[float]
    ticks: list[tuple[float, str]]
    edges: list[float]
    layers: int
    apart: float


def depth_axis(rows: Sequence[ReportRow]) -> DepthAxis:
    """Places rows: layers by their numbers, stack after stack; other rows to the left or right."""
    depths: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        if row.place.depth:
            depths.setdefault(row.place.stack, set()).add(row.place.depth)
    layers: dict[tuple[str, tuple[int, ...]], float] = {}
    ticks: list[tuple[float, str]] = []
    edges: list[float] = []
    after = 0.0
    for stack, found in depths.items():
        if layers:
            edges.append(after)
            after += 1
        name = f"\n{printable(_short(stack, list(depths)))}" if len(depths) > 1 else ""
        # A label every so many layers: at most nine in a stack, at round numbers.
        steps = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 10**9)
        every = next(step for step in steps if len(found) <= 9 * step)
        for i, depth in enumerate(sorted(found)):
            layers[stack, depth] = after + i
            if i % every == 0:
                ticks.append((after + i, ".".join(map(str, depth)) + ("" if i else name)))
        after += len(found)
    # Rows without a spread are in an axes of their own, the foot: roles are spread in each.
    roles = {
        varies: sorted(
            {row.role for row in rows if row.place.depth and _varies(row) == varies},
            key=ROLES.index,
        )
        for varies in (True, False)
    }
    margin = max(len(layers) / 24, 1.0)
    left, right = -margin, max(after - 1, 0.0) + margin
    first = next((i for i, row in enumerate(rows) if row.place.depth), len(rows))
    x = []
    for i, row in enumerate(rows):
        if row.place.depth:
            beside = roles[_varies(row)]
            part = beside.index(row.role) / (len(beside) - 1) - 0.5 if len(beside) > 1 else 0.0
            x.append(layers[row.place.stack, row.place.depth] + _SPREAD * part)
        elif row.role in ("embedding", "head"):
            x.append(left if row.role == "embedding" else right)
        else:
            x.append(left if i < first else right)
    ticks += [(end, said) for end, said in ((left, "in"), (right, "out")) if end in x]
    places = [*x, *(place for place, _ in ticks)]
    width = max(places, default=0.0) - min(places, default=0.0) + 1.0
    apart = _SPREAD / max(len(roles[True]) - 1, 1) / width
    return DepthAxis(x, sorted(ticks), edges, len(layers), apart)


def _varies(row: ReportRow) -> bool:
    return row.moments.std > 0


def _short(stack: str, stacks: Sequence[str]) -> str:
    """The part of a stack's name that tells it from the others."""
    split = [name.split(".") for name in stacks]
    components = stack.split(".")
    while len(components) > 1 and all(other[:1] == components[:1] for other in split):
        components, split = components[1:], [other[1:] for other in split]
    return ".".join(components[:2])


class _Point(NamedTuple):
    """A row in the picture: its axes and place, bar and ring, the other model's gain, its label."""

    row: ReportRow
    axes: Any
    x: float
    y: float
    low: float
    high: float
    intended: float | None
    other: float | None
    label: str | None


def _draw_gains(results: ReportResults, gain: Any, foot: Any) -> None:
    wrong = {outlier.name: outlier.short for outlier in results.outliers}
    others = {} if results.against is None else {row.name: row for row in results.against.rows}
    axis = depth_axis(results.rows)
    points = []
    for row, x in zip(results.rows, axis.x, strict=True):
        other = others.get(row.name)
        error = 1 + SIGMAS * row.moments.std_error
        y = _shown(row.gain) if _varies(row) else _level(row)
        points.append(_Point(
            row, gain if _varies(row) else foot, x, y, y / error, y * error,
            _shown(row.intended_gain) if row.intended_gain else None,
            _shown(other.gain) if other is not None and _varies(other) else None,
            printable(f"{_name(row)}  {wrong[row.name]}") if row.name in wrong else None,
        ))  # fmt: skip
    _dress(gain, foot, axis, points)
    size = min(1.0, max(_SMALLEST, 1.05 * _WIDTH * axis.apart / _MARKER))
    for role in ROLES:
        alike = [point for point in points if point.row.role == role]
        fine = [point for point in alike if point.label is None]
        varied = [point for point in fine if point.axes is gain]
        if axis.layers > _DENSE:
            _draw_lines(gain, role, varied)
        else:
            colour = _STYLES[role][0]
            _draw_bars(gain, varied, color=colour, lw=0.3 + 0.6 * size, alpha=0.6, zorder=2)
            _draw_rings(gain, varied, size, mec="#808080", mew=0.25 + 0.3 * size)
            _draw_marks(gain, role, [(p.x, p.y) for p in varied], size)
        _draw_marks(foot, role, [(p.x, p.y) for p in fine if p.axes is foot], 0.9 * size)
        _draw_other(gain, role, [p for p in alike if p.other is not None], size)
    outliers = [point for point in points if point.label is not None]
    for point in outliers:
        _draw_outlier(point, max(size, 0.7))
    _write_labels(outliers[:_NAMED], points, (gain, foot))
    if len(outliers) > _NAMED:
        gain.text(
            0.99, 0.985, f"and {len(outliers) - _NAMED} more", color=_RED, ha="right", va="top",
            fontsize=6.5, transform=gain.transAxes,
        )  # fmt: skip


def _shown(gain: float) -> float:
    """A gain, within what a logarithmic axis can show."""
    return min(max(gain, _LEAST), 1 / _LEAST)


def _level(row: ReportRow) -> float:
    """The height in the foot: zeros low, other constants high, non-finite in the middle."""
    mean = row.moments.mean
    return 0.5 if not math.isfinite(mean) else 0.25 if mean == 0 else 0.75


def _name(row: ReportRow) -> str:
    """A short name: depth and last component."""
    rest = (row.place.rest if row.place.depth else row.name).removesuffix(".weight")
    components = rest.split(".")
    last = components[-2:] if components[-1] == "bias" else components[-1:]
    return f"{'.'.join(map(str, row.place.depth))} {'.'.join(last)}".strip()


def _dress(gain: Any, foot: Any, axis: DepthAxis, points: Sequence[_Point]) -> None:
    """Sets scales, ticks, grids and labels."""
    import matplotlib.ticker as ticker

    seen = [1.0]  # the gains shown
    for point in points:
        seen += [point.low, point.high] if point.axes is gain else []
        seen += [y for y in (point.intended, point.other) if y is not None]
    low, high = min(seen), max(seen)
    span = max(math.log10(high / low), 0.6)
    gain.set_yscale("log")
    gain.set_ylim(low / 10 ** (0.10 * span), high * 10 ** (0.16 * span))
    gain.axhline(1.0, color="black", lw=0.7, zorder=0)
    for axes, edge in product((gain, foot), axis.edges):
        axes.axvline(edge, color="#BBBBBB", lw=0.6, ls=(0, (4, 3)), zorder=0)
    gain.set_ylabel(r"gain  std $\cdot\,\sqrt{\mathrm{fan\ in}}$")
    gain.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0) if span < 1.7 else (1.0,)))
    gain.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    gain.yaxis.set_minor_formatter(ticker.NullFormatter())
    gain.grid(axis="y", which="major", zorder=-1)
    gain.tick_params(axis="x", length=0, labelbottom=False)
    gain.spines["bottom"].set_visible(False)
    places = [place for place, _ in axis.ticks] or [0.0]
    left, right = min([*axis.x, *places]), max([*axis.x, *places])
    pad = max((right - left) * 0.025, 0.5)
    gain.set_xlim(left - pad, right + pad)
    foot.set_ylim(0, 1)
    foot.set_yticks([0.25, 0.75], ["all 0", "constant"], fontsize=6.5)
    foot.tick_params(axis="y", length=0)
    foot.set_facecolor("#F5F5F5")
    foot.set_xticks(places, [label for _, label in axis.ticks], parse_math=False)
    foot.set_xlabel("depth (layer)", labelpad=2)


def _draw_lines(axes: Any, role: str, points: Sequence[_Point]) -> None:
    """Draws a role in many layers: a line with a band of five standard errors, and few markers."""
    stacks: dict[str, list[_Point]] = {}
    for point in points:
        stacks.setdefault(point.row.place.pattern, []).append(point)
    marked: list[_Point] = []
    colour = _STYLES[role][0]
    for line in stacks.values():
        x, intended = [point.x for point in line], [point.intended for point in line]
        if len(line) > _MARKED:
            axes.fill_between(
                x, [p.low for p in line], [p.high for p in line], color=colour, lw=0, alpha=0.18,
                zorder=1,
            )  # fmt: skip
            axes.plot(x, [p.y for p in line], color=colour, lw=0.6, alpha=0.9, zorder=2)
            if None not in intended:
                axes.plot(x, intended, color="#606060", lw=0.5, zorder=3)
        every = max(len(line) // _MARKED, 1)
        start = min(every * ROLES.index(role) // len(ROLES), len(line) - 1)
        marked += line[start::every]
    _draw_rings(axes, marked, _SPARSE, mec="#808080", mew=0.25 + 0.3 * _SPARSE)
    _draw_marks(axes, role, [(p.x, p.y) for p in marked], _SPARSE)


def _draw_bars(axes: Any, points: Sequence[_Point], **style: Any) -> None:
    """Draws five standard errors on either side."""
    axes.vlines([p.x for p in points], [p.low for p in points], [p.high for p in points], **style)


def _draw_rings(axes: Any, points: Sequence[_Point], size: float, **style: Any) -> None:
    """Draws the intended gains."""
    ringed = [(p.x, p.intended) for p in points if p.intended is not None]
    axes.plot(
        [x for x, _ in ringed], [y for _, y in ringed], ls="", marker="o", mfc="none", zorder=3,
        ms=_MARKER * size + 2.2, gid="intended", **style,
    )  # fmt: skip


def _draw_marks(
    axes: Any, role: str, places: Sequence[tuple[float, float | None]], size: float, **style: Any
) -> None:
    axes.plot(
        [x for x, _ in places], [y for _, y in places],
        **{"gid": _title(role), "zorder": 4, **_marker(role, size), **style},
    )  # fmt: skip


def _title(role: str) -> str:
    return role.replace("_", ", ")


def _marker(role: str, size: float, colour: str = "") -> dict[str, Any]:
    """Arguments of matplotlib's plot for the marker of a role; thin ones have no white edge."""
    own, marker = _STYLES[role]
    colour = colour or own
    edge = colour if marker in "_*X" or size < 0.9 else "white"
    scale = {"*": 1.6, "d": 0.9, "_": 1.1}.get(marker, 1.0)
    return {
        "ls": "", "marker": marker, "ms": _MARKER * size * scale, "mfc": colour, "mec": edge,
        "mew": 0.9 if marker == "_" else 0.3 if edge == "white" else 0.0,
    }  # fmt: skip


def _draw_outlier(point: _Point, size: float) -> None:
    axes, intended = point.axes, point.intended
    if _varies(point.row):
        _draw_bars(axes, [point], color=_RED, lw=0.9, zorder=5)
        if intended is not None:
            _draw_rings(axes, [point], size, mec=_RED, mew=0.55)
            axes.plot([point.x] * 2, [point.y, intended], color=_RED, lw=0.6, ls=":", zorder=3)
    axes.plot(point.x, point.y, zorder=6, gid="offender", **_marker(point.row.role, size, _RED))


def _draw_other(gain: Any, role: str, points: Sequence[_Point], size: float) -> None:
    """Draws the other model's gains of a role hollow, with lines to this one's."""
    if not points:
        return
    colour = _STYLES[role][0]
    moved = [point for point in points if point.axes is gain]
    gain.vlines(
        [p.x for p in moved], [p.y for p in moved], [p.other for p in moved], color=colour, lw=0.4,
        zorder=1,
    )  # fmt: skip
    _draw_marks(
        gain, role, [(p.x, p.other) for p in points], size, zorder=3, gid="against", mfc="none",
        mec=colour, mew=0.3 + 0.4 * size,
    )  # fmt: skip


def _write_labels(labelled: Sequence[_Point], points: Sequence[_Point], within: Any) -> None:
    """Writes labels beside their points, each where it hides the least, with a line to its point.

    Not by adjustText, which needs SciPy and imports pyplot.
    """
    from matplotlib.path import Path as Line
    from matplotlib.patheffects import withStroke
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure = within[0].figure
    renderer, pixels = figure.canvas.get_renderer(), figure.dpi / 72
    frame = Bbox.union([axes.get_window_extent(renderer) for axes in within])
    marks = [point.axes.transData.transform((point.x, point.y)) for point in points]
    rings = [(point.x, point.intended) for point in points if point.intended is not None]
    marks += [within[0].transData.transform(ring) for ring in rings]
    taken: list[Bbox] = []
    for point in sorted(labelled, key=lambda point: (point.x, -point.y)):
        label = point.axes.annotate(
            point.label, (point.x, point.y), (0.0, 0.0), textcoords="offset points", color=_RED,
            fontsize=6.5, va="center", zorder=7, annotation_clip=False, parse_math=False,
            path_effects=[withStroke(linewidth=1.6, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": _RED, "lw": 0.5, "shrinkA": 0.5,
                        "shrinkB": 2.5},
        )  # fmt: skip
        size = Text.get_window_extent(label, renderer).padded(1.5)  # without the line
        own = point.axes.transData.transform((point.x, point.y))
        tried: list[tuple[Any, ...]] = []
        for distance, (dx, dy) in product(_DISTANCES, _DIRECTIONS):
            x, y = own[0] + dx * distance * pixels, own[1] + dy * distance * pixels
            side = (dx > 0) - (dx < 0)
            left = x - size.width * (1 - side) / 2
            box = Bbox.from_bounds(left, y - size.height / 2, size.width, size.height)
            line = Line([own, (x, y)])
            is_inside = frame.contains(*box.min) and frame.contains(*box.max)
            cost = 1000 * box.count_overlaps(taken) + 100 * (not is_inside)
            cost += 10 * sum(line.intersects_bbox(other) for other in taken)
            cost += 20 * box.count_contains(marks)
            tried.append((cost, distance, len(tried), (dx * distance, dy * distance), side, box))
        *_, offset, side, box = min(tried, key=lambda one: one[:3])
        label.set_position(offset)
        label.set_horizontalalignment(("center", "left", "right")[side])
        taken.append(box)


# The tails.


def _draw_survival(results: ReportResults, axes: Any) -> None:
    """Draws the share of values beyond so many std: for each role, and for each outlier."""
    wrong = {outlier.name for outlier in results.outliers}
    smallest = _draw_roles([row for row in results.rows if row.name not in wrong], axes, "-")
    if results.against is not None:
        smallest = min(smallest, _draw_roles(results.against.rows, axes, (0, (2, 1.5))))
    for row in results.rows:
        if row.name in wrong and _varies(row):
            _draw_curve(axes, [row], color=_RED, lw=0.9, zorder=5)
    for number, survival in enumerate(_distributions(results.rows)):
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
    axes.grid()
    axes.minorticks_off()


def _draw_roles(rows: Sequence[ReportRow], axes: Any, dashes: Any) -> float:
    """Draws a curve for each role; returns the smallest share of a single value."""
    smallest = 0.1
    for role in ROLES:
        if alike := [row for row in rows if row.role == role and _varies(row)]:
            count = _draw_curve(axes, alike, color=_STYLES[role][0], lw=0.75, ls=dashes, zorder=3)
            smallest = min(smallest, 1 / count)
    return smallest


def _draw_curve(axes: Any, rows: Sequence[ReportRow], **style: Any) -> int:
    """Draws the survival function of rows taken together; returns how many values they have."""
    count = sum(row.moments.finite for row in rows)
    beyond = torch.stack([row.moments.beyond for row in rows]).sum(0)
    last = int((beyond > 0).sum())
    points, shown = grid()[:last].tolist(), (beyond / count)[:last].tolist()
    if last < len(grid()) and beyond[last - 1] > _LAST:  # the values end here
        points.append(points[-1])
        shown.append(1e-12)
    axes.plot(points, shown, **style)
    return count


def _distributions(rows: Iterable[ReportRow]) -> list[torch.Tensor]:
    """The survival functions of a normal and of other intended distributions, four at most."""
    found = [normal()]
    for row in rows:
        if row.intended is None or row.intended.law is None or len(found) > 3:
            continue
        one = survival_of(row.intended.law)
        if one is not None and all(float((one - known).abs().max()) > 1e-3 for known in found):
            found.append(one)
    return found


def _draw_legend(results: ReportResults, figure: Any) -> None:
    from matplotlib.lines import Line2D

    present = {row.role for row in results.rows}
    styles = {_title(role): _marker(role, 1.0) for role in ROLES if role in present}
    if any(row.intended_gain for row in results.rows):
        styles["intended"] = {"marker": "o", "mfc": "none", "mec": "#888888", "ms": 8, "mew": 0.7}
    styles["measured ± 5σ"] = {"marker": "|", "mec": "#555555", "ms": 8, "mew": 1.0}
    if results.outliers:
        styles["offender"] = {"marker": "o", "mfc": _RED, "mec": "white", "ms": 5.2}
    styles["normal"] = {"ls": (0, (1, 1.2)), "color": "black", "lw": 1.0}
    figure.legend(
        handles=[Line2D([], [], **{"ls": "", "label": s, **styles[s]}) for s in styles],
        ncols=(len(styles) + 1) // 2 if len(styles) > 9 else len(styles),
        loc="upper left", bbox_to_anchor=(0.075, 0.945), frameon=False, fontsize=7,
        handletextpad=0.15, columnspacing=1.1, handlelength=1.4, borderpad=0.2, labelspacing=0.35,
    )  # fmt: skip
