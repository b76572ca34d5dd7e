"""The picture of a report: gains over depth, tails, and the outliers by number.

Only matplotlib's Figure is used: the caller's ``pyplot``, backend and settings are left alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torchinit.errors import counted
from torchinit.reporting.gains import draw_gains
from torchinit.reporting.goodness_of_fit import SIGMAS
from torchinit.reporting.outliers import Outlier, ReportResults
from torchinit.reporting.roles import ROLES
from torchinit.reporting.style import DARK, LIGHT, Style
from torchinit.reporting.tails import (
    NORMAL_DASHES,
    OTHER_DASHES,
    distributions,
    draw_survival,
)
from torchinit.text_table import shortened
from torchinit.untrusted import printable

# In points: width, margins, and heights from the top to the bottom.
_WIDTH, _LEFT, _RIGHT = 518.0, 46.0, 8.0
_TOP, _LEGEND_LINE, _GAIN, _GAP, _FOOT, _BELOW, _KEY_LINE = 32.0, 11.0, 184.0, 7.0, 38.0, 31.0, 9.5
_TAILS, _BETWEEN = 112.0, 48.0
_ROOM = _WIDTH - _LEFT - _RIGHT
_LETTERS, _SMALL = 7.0, 6.5  # of the legend, of the outliers
# Standard errors, relative to the std, whose bars are longer than markers.
_VISIBLE = 0.06
# Outliers that have numbers, as the table names all; characters of their names.
_NUMBERED, _NAME = 12, 72


def save_picture(results: ReportResults, path: Path, *, dark: bool = False) -> None:
    """Draws a report into a file.

    Raises:
        ImportError: without matplotlib.
    """
    try:
        from matplotlib import style as styles
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install 'torchinit[report]'") from None
    style = DARK if dark else LIGHT
    with styles.context(["default", style.settings()]):
        figure = Figure(dpi=200)
        draw(results, figure, style)
        figure.savefig(path, facecolor="none" if dark else style.ground)


def draw(results: ReportResults, figure: Any, style: Style = LIGHT) -> None:
    """Draws a report into an empty matplotlib figure: three axes, gain, foot and survival."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # measures texts
    signs = _signs(results, style)
    key = _key(results.outliers)
    lines = -(-len(signs) // _columns(figure, signs, 24.0, _LETTERS))
    columns = -(-len(signs) // lines)
    legend = _LEGEND_LINE * lines + 8
    below = _BELOW + 10 * (len({row.place.stack for row in results.rows if row.place.depth}) > 1)
    key_columns = _columns(figure, key, 10.0, _SMALL)
    under = _KEY_LINE * -(-len(key) // key_columns) + 8 if key else 0.0
    height = _TOP + legend + _GAIN + _GAP + _FOOT + below + under
    figure.set_size_inches(_WIDTH / 72, height / 72)

    def axes(label: str, left: float, bottom: float, width: float, tall: float, **how: Any) -> Any:
        rectangle = left / _WIDTH, bottom / height, width / _WIDTH, tall / height
        return figure.add_axes(rectangle, label=label, **how)

    bottom, width = below + under, _ROOM - _BETWEEN - _TAILS
    gain = axes("gain", _LEFT, bottom + _FOOT + _GAP, width, _GAIN)
    foot = axes("foot", _LEFT, bottom, width, _FOOT, sharex=gain)
    tails = axes("survival", _WIDTH - _RIGHT - _TAILS, bottom, _TAILS, _FOOT + _GAP + _GAIN)
    numbers = {
        outlier.name: number if number <= _NUMBERED else 0
        for number, outlier in enumerate(results.outliers, 1)
    }
    draw_gains(results, gain, foot, numbers, style)
    draw_survival(results, tails, style)
    area = axes("legend", _LEFT, height - _TOP - legend + 8, _ROOM, legend - 8)
    _write(area, [*signs], columns, signs=[*signs.values()], fontsize=_LETTERS, color=style.ink)
    if key:
        area = axes("key", _LEFT, 4, _ROOM, under - 8)
        _write(area, key, key_columns, fontsize=_SMALL, color=style.outlier)
    _write_title(results, figure, height, style)


def _write_title(results: ReportResults, figure: Any, height: float, style: Style) -> None:
    """Writes what was measured, in full if small letters let it fit, and how much it is."""
    title = printable(results.title)
    if results.against is not None:
        title = f"{title} (filled), {printable(results.against.title)} (hollow)"
    size = min(10.0, 10.0 * _ROOM / _width(figure, title, 10.0, "bold"))
    if size < 6:
        title, size = f"{title[: int(len(title) * size / 6) - 1]}…", 6.0
    total = sum(row.moments.numel for row in results.rows)
    wrong = counted(len(results.outliers), "outlier") if results.outliers else "no outliers"
    values = f"{_count(total)} value{'s' * (total != 1)}"
    said = f"{counted(len(results.rows), 'parameter')}, {values}, {wrong}"
    at = _LEFT / _WIDTH
    figure.text(
        at, 1 - 10 / height, title, fontsize=size, fontweight="bold", va="center",
        color=style.ink, parse_math=False,
    )  # fmt: skip
    figure.text(at, 1 - 22 / height, said, va="center", fontsize=7, color=style.soft)


def _count(number: int) -> str:
    for size, unit in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _width(figure: Any, text: str, size: float, weight: str = "normal") -> float:
    """The width of a text in points."""
    one = figure.text(0, 0, text, fontsize=size, fontweight=weight, parse_math=False)
    width = one.get_window_extent(figure.canvas.get_renderer()).width / figure.dpi * 72
    one.remove()
    return max(float(width), 1.0)


def _columns(figure: Any, texts: Collection[str], more: float, size: float) -> int:
    """How many columns of texts there is room for, each with so many points more."""
    widest = max((_width(figure, text, size) for text in texts), default=_ROOM)
    return max(min(int(_ROOM // (widest + more)), len(texts)), 1)


def _signs(results: ReportResults, style: Style) -> dict[str, dict[str, Any]]:
    """What the legend explains, each with the arguments of a line that shows it."""
    present = {row.role for row in results.rows}
    intended = any(row.intended_gain for row in results.rows)
    signs = {
        role.replace("_", ", ") if role == "gate_up" else role: style.marker(role, 1.0)
        for role in ROLES
        if role in present
    }
    line = {"marker": "", "lw": 1.0}
    if intended:
        signs["intended"] = {**line, "ls": "-", "color": style.soft}
    if any(SIGMAS * row.moments.std_error > _VISIBLE for row in results.rows):
        signs["±5 SE"] = {"ls": "", "marker": "|", "mec": style.soft, "ms": 8, "mew": 1.0}
    if results.outliers:
        signs["outlier"] = style.marker("q", 1.0, style.outlier)
    signs["normal"] = {**line, "ls": NORMAL_DASHES, "color": style.ink}
    if len(distributions(results.rows)) > 1:
        signs["other intended"] = {**line, "ls": OTHER_DASHES, "color": style.ink}
    return signs


def _key(outliers: Sequence[Outlier]) -> list[str]:
    """The numbered outliers, in words; the last line says how many more there are."""
    texts = [
        f"{number}  {shortened(printable(one.name).removesuffix('.weight'), _NAME)}  {one.short}"
        for number, one in enumerate(outliers[:_NUMBERED], 1)
    ]
    more = len(outliers) - _NUMBERED
    return [*texts, f"and {more} more"] if more > 0 else texts


def _write(
    area: Any, texts: Sequence[str], columns: int, signs: Sequence[dict[str, Any]] = (), **how: Any
) -> None:
    """Writes texts in columns of one width, column by column; with signs beside them, by rows."""
    lines, points = -(-len(texts) // columns), _ROOM / columns
    area.set_axis_off()
    area.set(xlim=(0, columns), ylim=(lines, 0))
    for number, text in enumerate(texts):
        x, y = number // lines, number % lines + 0.5
        if signs:
            x, y = number % columns, number // columns + 0.5
            area.plot([x, x + 6 / points, x + 12 / points], [y] * 3, markevery=[1], **signs[number])
        area.annotate(
            text, (x, y), (16 * bool(signs), 0), textcoords="offset points", va="center",
            annotation_clip=False, parse_math=False, **how,
        )  # fmt: skip
