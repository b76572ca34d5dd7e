"""Names beside points, none over another: the first free of a few places around each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

# In points, from the nearest outward.
_DISTANCES = (8.0, 14.0, 21.0, 29.0, 38.0, 48.0, 60.0, 74.0, 90.0, 108.0)
_DIRECTIONS = (
    (1.0, 0.5), (-1.0, 0.5), (1.0, -0.5), (-1.0, -0.5), (0.0, 1.0), (0.0, -1.0), (0.5, 1.0),
    (-0.5, 1.0), (0.5, -1.0), (-0.5, -1.0),
)  # fmt: skip
_MARGIN = 1.5  # pixels


class _Box(NamedTuple):
    x0: float
    y0: float
    x1: float
    y1: float

    def overlaps(self, other: _Box) -> bool:
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )

    def holds(self, x: float, y: float) -> bool:
        return self.x0 < x < self.x1 and self.y0 < y < self.y1


def place_labels(
    labels: Sequence[tuple[Any, float, float, str]],
    marks: Sequence[tuple[Any, float, float]],
    within: tuple[Any, Any],
    colour: str,
) -> None:
    """Writes labels that do not overlap, each with a line to its point.

    Args:
        labels: axes, x, y and text of each.
        marks: axes, x and y of all points, which labels are not to cover.
        within: the axes between whose edges all labels are to lie.
        colour: of text and lines.
    """
    if not labels:
        return
    from matplotlib.text import Text

    figure = within[0].figure
    renderer = figure.canvas.get_renderer()
    ends = [axes.get_window_extent(renderer) for axes in within]
    frame = _Box(*ends[0].union(ends).extents)
    points = [tuple(axes.transData.transform((x, y))) for axes, x, y in marks]
    taken: list[_Box] = []
    for axes, x, y, text in sorted(labels, key=lambda one: (one[1], -one[2])):
        label = _write(axes, x, y, text, colour)
        size = Text.get_window_extent(label, renderer)  # without the line
        own = axes.transData.transform((x, y))
        places = [
            (_cost(box, frame, taken, points), distance, number, box, offset, side)
            for number, (distance, box, offset, side) in enumerate(
                _places(own, size.width, size.height, figure.dpi / 72)
            )
        ]
        _, _, _, box, offset, side = min(places, key=lambda place: place[:3])
        label.set_position(offset)
        label.set_horizontalalignment(side)
        taken.append(box)


def _places(
    own: Any, width: float, height: float, scale: float
) -> Iterator[tuple[float, _Box, tuple[float, float], str]]:
    """Distance, box in pixels, offset in points and alignment of places around a point."""
    for distance in _DISTANCES:
        for dx, dy in _DIRECTIONS:
            offset = dx * distance, dy * distance
            x, y = own[0] + offset[0] * scale, own[1] + offset[1] * scale
            left = x - (width if dx < 0 else width / 2 if dx == 0 else 0.0)
            box = _Box(
                left - _MARGIN, y - height / 2 - _MARGIN, left + width + _MARGIN,
                y + height / 2 + _MARGIN,
            )  # fmt: skip
            yield distance, box, offset, "right" if dx < 0 else "center" if dx == 0 else "left"


def _write(axes: Any, x: float, y: float, text: str, colour: str) -> Any:
    from matplotlib.patheffects import withStroke

    return axes.annotate(
        text, (x, y), (0.0, 0.0), textcoords="offset points", color=colour, fontsize=6.5,
        va="center", zorder=7, annotation_clip=False, parse_math=False,
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0.5, "shrinkB": 2.5},
        path_effects=[withStroke(linewidth=1.6, foreground="white")],
    )  # fmt: skip


def _cost(
    box: _Box, frame: _Box, taken: Sequence[_Box], points: Sequence[tuple[float, ...]]
) -> float:
    """How bad a place is: out of the frame, over another label, over points."""
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    covered = sum(box.holds(*point) for point in points)
    return 100.0 * outside + 50.0 * sum(box.overlaps(other) for other in taken) + 10.0 * covered
