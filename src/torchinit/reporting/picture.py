"""The gain plot: std sqrt(fan_in) of every parameter over depth, and how far values reach.

Colours are those of Okabe and Ito (2008), which the colour-blind tell apart; every role has a
marker of its own besides, for grey paper. Only matplotlib's Figure is used: what the caller has in
``pyplot``, its backend and its settings stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from torchinit.reporting.labels import place_labels
from torchinit.reporting.laws import SIGMAS, normal, survival_of
from torchinit.reporting.layout import Layout, lay_out
from torchinit.reporting.measure import GRID
from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow

if TYPE_CHECKING:
    from torchinit.reporting.report import ModelReport


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
# In points: the axis of depth, the largest marker, and the smallest as a part of it.
_WIDTH, _MARKER, _SMALLEST = 330.0, 5.2, 0.4
# Offenders that are named; the table names all.
_NAMED = 12


def save_picture(report: ModelReport, path: Path) -> None:
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
        draw(report, figure)
        figure.savefig(path)


def draw(report: ModelReport, figure: Any) -> None:
    """Draws a report into an empty figure of matplotlib: three axes, gain, foot and survival."""
    grid = figure.add_gridspec(
        2, 2, width_ratios=(4.1, 1.3), height_ratios=(6.2, 1.0), left=0.085, right=0.985,
        bottom=0.115, top=0.835, wspace=0.20, hspace=0.06,
    )  # fmt: skip
    gain = figure.add_subplot(grid[0, 0], label="gain")
    foot = figure.add_subplot(grid[1, 0], label="foot", sharex=gain)
    survival = figure.add_subplot(grid[:, 1], label="survival")
    _draw_gains(report, gain, foot)
    _draw_survival(report, survival)
    _draw_legend(report, figure)
    title = report.title if report.against is None else (
        f"{report.title} (filled) and {report.against.title} (hollow)"
    )  # fmt: skip
    figure.text(0.085, 0.965, title, fontsize=10, fontweight="bold", va="center")
    figure.text(0.985, 0.965, _summary(report), va="center", ha="right", color="#444444")


def _summary(report: ModelReport) -> str:
    values = sum(row.moments.count for row in report)
    said = f"{len(report)} parameters, {_count(values)} values"
    wrong = len(report.offenders)
    return f"{said}, {wrong or 'no'} offender{'' if wrong == 1 else 's'}"


def _count(number: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _draw_gains(report: ModelReport, gain: Any, foot: Any) -> None:
    wrong = {offender.name: offender.short for offender in report.offenders}
    layout = lay_out(report)
    size = min(1.0, max(_SMALLEST, 1.05 * _WIDTH * layout.apart / layout.width / _MARKER))
    others = _matched(report)
    labels: list[tuple[Any, float, float, str]] = []
    lows, highs = [1.0], [1.0]
    marks: list[tuple[Any, float, float]] = []
    for row, x, other in zip(report, layout.x, others, strict=True):
        style, is_wrong = _STYLES[row.role], row.name in wrong
        colour = _RED if is_wrong else style.colour
        varies = row.moments.std > 0
        if varies:
            y, error = row.gain, SIGMAS * row.std_error
            lows.append(y / (1 + error))
            highs.append(y * (1 + error))
            gain.plot(
                [x, x], [y / (1 + error), y * (1 + error)], color=colour, lw=0.7 * size + 0.25,
                alpha=0.55, zorder=2, solid_capstyle="butt",
            )  # fmt: skip
            _mark(gain, x, y, style, colour, _MARKER * size, is_wrong=is_wrong)
        else:
            y = _level(row)
            _mark(foot, x, y, style, colour, 0.9 * _MARKER * size, is_wrong=is_wrong)
        axes = gain if varies else foot
        marks.append((axes, x, y))
        intended = row.intended_gain
        if intended:
            lows.append(intended)
            highs.append(intended)
            gain.plot(
                x, intended, ls="", marker="o", ms=(_MARKER + 2.6) * size, mfc="none", zorder=1,
                mec=_RED if is_wrong else "#888888", mew=0.25 + 0.35 * size, gid="intended",
            )  # fmt: skip
            if is_wrong and varies and abs(math.log(row.gain / intended)) > 0.05:
                gain.plot([x, x], [row.gain, intended], color=_RED, lw=0.6, ls=":", zorder=1)
        if other is not None and other.moments.std > 0:
            lows.append(other.gain)
            highs.append(other.gain)
            gain.plot(
                x, other.gain, ls="", marker=style.marker, ms=(_MARKER + 0.6) * size, mfc="none",
                mec=style.colour, mew=0.6, zorder=3, gid="against",
            )  # fmt: skip
            if varies and abs(math.log(row.gain / other.gain)) > 0.02:
                gain.plot([x, x], [row.gain, other.gain], color=style.colour, lw=0.4, zorder=1)
        if is_wrong:
            labels.append((axes, x, y, f"{_name(row)}  {wrong[row.name]}"))
    _dress(gain, foot, layout, min(lows), max(highs))
    place_labels(labels[:_NAMED], marks, (gain, foot), _RED)
    if len(labels) > _NAMED:
        gain.text(
            0.99, 0.985, f"and {len(labels) - _NAMED} more", color=_RED, ha="right", va="top",
            fontsize=6.5, transform=gain.transAxes,
        )  # fmt: skip


def _level(row: ReportRow) -> float:
    """The height in the foot: zeros low, ones and other constants high, none in the middle."""
    mean = row.moments.mean
    return 0.5 if not math.isfinite(mean) else 0.25 if mean == 0 else 0.75


def _mark(
    axes: Any, x: float, y: float, style: _Style, colour: str, size: float, *, is_wrong: bool
) -> None:
    thin = style.marker == "_"
    axes.plot(
        x, y, ls="", marker=style.marker, ms=size * (1.5 if style.marker in "*" else 1.0),
        mfc=colour, mec=colour if thin else "white", mew=0.9 * size if thin else 0.3 * size,
        zorder=5 if is_wrong else 4, gid="offender" if is_wrong else style.title,
    )  # fmt: skip


def _matched(report: ModelReport) -> list[ReportRow | None]:
    """The row of the other model that goes by the same name."""
    if report.against is None:
        return [None] * len(report)
    others = {row.name: row for row in report.against}
    return [others.get(row.name) for row in report]


def _name(row: ReportRow) -> str:
    """What is left of a name where the depth tells the rest."""
    rest = (row.place.rest if row.place.depth else row.name).removesuffix(".weight")
    atoms = rest.split(".")
    depth = ".".join(map(str, row.place.depth))
    return f"{depth} {'.'.join(atoms[-2:] if atoms[-1] == 'bias' else atoms[-1:])}".strip()


def _dress(gain: Any, foot: Any, layout: Layout, low: float, high: float) -> None:
    """Everything but the data."""
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
    foot.set_xticks(places, [label for _, label in layout.ticks])
    foot.tick_params(axis="x", length=2.5)
    foot.set_xlabel("depth (layer)", labelpad=2)
    for axes in (gain, foot):
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    gain.spines["bottom"].set_visible(False)


def _draw_survival(report: ModelReport, axes: Any) -> None:
    """Shares of values beyond so many std: of each role together, of each offender alone."""
    wrong = {offender.name for offender in report.offenders}
    fine = [row for row in report if row.name not in wrong]
    smallest = _draw_roles(fine, axes, "-")
    if report.against is not None:
        smallest = min(smallest, _draw_roles(list(report.against), axes, (0, (2, 1.5))))
    for row in report:
        if row.name in wrong and row.moments.std > 0:
            _curve(axes, row.moments.beyond, row.moments.finite, _RED, lw=0.9, zorder=5)
    for number, law in enumerate(_laws(report)):
        axes.plot(
            GRID, law.where(law > 0, math.nan), color="black", lw=0.9, zorder=6,
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
    """A curve for each role; returns the smallest share that one value is."""
    smallest = 0.1
    for role in ROLES:
        alike = [row for row in rows if row.role == role and row.moments.std > 0]
        if not alike:
            continue
        count = sum(row.moments.finite for row in alike)
        beyond = torch.stack([row.moments.beyond for row in alike]).sum(0)
        _curve(axes, beyond, count, _STYLES[role].colour, lw=0.8, ls=dashes, zorder=3)
        smallest = min(smallest, 1 / count)
    return smallest


def _curve(axes: Any, beyond: torch.Tensor, count: int, colour: str, **style: Any) -> None:
    share = beyond / count
    last = int((share > 0).sum())
    shown = share[:last].tolist()
    points = GRID[:last].tolist()
    if last < len(GRID):  # where it ends, it falls
        points.append(points[-1])
        shown.append(1e-12)
    axes.plot(points, shown, color=colour, **style)


def _laws(report: ModelReport) -> list[torch.Tensor]:
    """The survival function of a normal, and of the intended laws that are others."""
    laws = [normal()]
    for row in report:
        if row.intended is None or row.intended.law is None or len(laws) > 3:
            continue
        law = survival_of(row.intended.law)
        if law is not None and all(float((law - known).abs().max()) > 1e-3 for known in laws):
            laws.append(law)
    return laws


def _draw_legend(report: ModelReport, figure: Any) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, **style: Any) -> Any:
        return Line2D([], [], ls=style.pop("ls", ""), label=label, **style)

    present = {row.role for row in report}
    entries = [
        entry(
            style.title, marker=style.marker, mfc=style.colour,
            mec=style.colour if style.marker == "_" else "white", mew=0.9 if style.marker == "_" else 0.3,
            ms=7 if style.marker == "*" else 5.2,
        )
        for role, style in _STYLES.items()
        if role in present
    ]  # fmt: skip
    if any(row.intended_gain for row in report):
        entries.append(entry("intended", marker="o", mfc="none", mec="#888888", ms=8, mew=0.7))
    entries.append(entry("measured ± 5σ", marker="|", mec="#555555", ms=8, mew=1.0))
    if report.offenders:
        entries.append(entry("offender", marker="o", mfc=_RED, mec="white", ms=5.2))
    entries.append(entry("normal", ls=(0, (1, 1.2)), color="black", lw=1.0))
    figure.legend(
        handles=entries, loc="upper left", bbox_to_anchor=(0.075, 0.945), frameon=False,
        ncols=(len(entries) + 1) // 2 if len(entries) > 9 else len(entries), fontsize=7,
        handletextpad=0.15, columnspacing=1.1, handlelength=1.4, borderpad=0.2, labelspacing=0.35,
    )  # fmt: skip
