"""Names beside points, none over another: the first free of a few places around each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# In points, from the nearest outward.
_DISTANCES = (7.0, 14.0, 22.0, 32.0, 44.0, 58.0, 74.0)
_DIRECTIONS = ((1.0, 0.55), (-1.0, 0.55), (1.0, -0.55), (-1.0, -0.55), (0.0, 1.0), (0.0, -1.0))


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
    renderer = within[0].figure.canvas.get_renderer()
    ends = [axes.get_window_extent(renderer) for axes in within]
    frame = ends[0].union(ends)
    points = [tuple(axes.transData.transform((x, y))) for axes, x, y in marks]
    taken: list[Any] = []
    for axes, x, y, text in sorted(labels, key=lambda one: (one[1], -one[2])):
        best, best_cost = None, float("inf")
        for distance in _DISTANCES:
            for dx, dy in _DIRECTIONS:
                label = _write(axes, x, y, text, dx * distance, dy * distance, colour)
                box = label.get_window_extent(renderer).padded(1.5)
                cost = _cost(box, frame, taken, points)
                if best is None or cost < best_cost:
                    if best is not None:
                        best.remove()
                    best, best_cost = label, cost
                else:
                    label.remove()
                if not cost:
                    break
            if not best_cost:
                break
        assert best is not None
        taken.append(best.get_window_extent(renderer).padded(1.5))


def _write(axes: Any, x: float, y: float, text: str, dx: float, dy: float, colour: str) -> Any:
    from matplotlib.patheffects import withStroke

    return axes.annotate(
        text, (x, y), (dx, dy), textcoords="offset points", color=colour, fontsize=6.5,
        ha="left" if dx > 0 else "right" if dx < 0 else "center", va="center", zorder=7,
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0.5, "shrinkB": 2.5},
        annotation_clip=False,
        path_effects=[withStroke(linewidth=1.6, foreground="white")],
    )  # fmt: skip


def _cost(box: Any, frame: Any, taken: Sequence[Any], points: Sequence[Any]) -> float:
    """How bad a place is: out of the frame, over another label, over points."""
    cost = 0.0
    if box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1:
        cost += 100.0
    cost += 50.0 * sum(bool(box.overlaps(other)) for other in taken)
    return cost + 10.0 * sum(bool(box.contains(*point)) for point in points)
