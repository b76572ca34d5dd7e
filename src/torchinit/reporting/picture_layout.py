"""Where rows and labels go in the picture: depth from left to right, labels without overlaps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow

# Between two stacks.
_GAP = 1.0
# The part of a layer's width over which its roles are spread.
_SPREAD = 0.8
# Tried for each label, in points.
_DISTANCES = (8.0, 14.0, 21.0, 29.0, 38.0, 48.0, 60.0, 74.0, 90.0, 108.0)
_DIRECTIONS = (
    (1.0, 0.5), (-1.0, 0.5), (1.0, -0.5), (-1.0, -0.5), (0.0, 1.0), (0.0, -1.0), (0.5, 1.0),
    (-0.5, 1.0), (0.5, -1.0), (-0.5, -1.0),
)  # fmt: skip
_MARGIN = 1.5  # pixels


# Rows.


class DepthAxis(NamedTuple):
    """The axis of depth.

    Attributes:
        x: of each row.
        ticks: x and text of each label.
        edges: x of the lines between stacks.
        layers: the number of all layers.
        width: of the axis.
        apart: distance of neighbouring roles of a layer.
    """

    x: list[float]
    ticks: list[tuple[float, str]]
    edges: list[float]
    layers: int
    width: float
    apart: float


def depth_axis(rows: Sequence[ReportRow]) -> DepthAxis:
    """Places rows: layers by their numbers, stack after stack; other rows to the left or right."""
    stacks = _stacks(rows)
    starts: dict[str, float] = {}
    ticks: list[tuple[float, str]] = []
    edges: list[float] = []
    after = 0.0
    for stack, depths in stacks.items():
        if starts:
            edges.append(after + (_GAP - 1) / 2)
            after += _GAP
        starts[stack] = after
        name = _short(stack, stacks) if len(stacks) > 1 else ""
        every = _every(len(depths))
        for i in range(0, len(depths), every):
            number = ".".join(map(str, depths[i]))
            ticks.append((after + i, f"{number}\n{name}" if name and not i else number))
        after += len(depths)
    layers = sum(map(len, stacks.values()))
    # Rows without a spread are in an axis of their own, the foot: roles are spread in each.
    roles = {
        varies: [
            role for role in ROLES
            if any(_in_layer(row) and row.role == role and _varies(row) == varies for row in rows)
        ]
        for varies in (True, False)
    }  # fmt: skip
    margin = max(layers / 24, 1.0)
    ends = {-1: -margin - 0.0, 1: max(after - 1, 0.0) + margin}
    x = []
    first = next((i for i, row in enumerate(rows) if _in_layer(row)), len(rows))
    for i, row in enumerate(rows):
        if _in_layer(row):
            depth = stacks[row.place.stack].index(row.place.depth)
            x.append(starts[row.place.stack] + depth + _offset(row.role, roles[_varies(row)]))
        else:
            x.append(ends[_side(row, i < first)])
    if any(not _in_layer(row) and _side(row, i < first) < 0 for i, row in enumerate(rows)):
        ticks.append((ends[-1], "in"))
    if any(not _in_layer(row) and _side(row, i < first) > 0 for i, row in enumerate(rows)):
        ticks.append((ends[1], "out"))
    places = [*x, *(place for place, _ in ticks)]
    width = max(places, default=0.0) - min(places, default=0.0) + 1.0
    return DepthAxis(x, sorted(ticks), edges, layers, width, _SPREAD / max(len(roles[True]) - 1, 1))


def _in_layer(row: ReportRow) -> bool:
    return bool(row.place.depth)


def _varies(row: ReportRow) -> bool:
    return row.moments.std > 0


def _side(row: ReportRow, is_first: bool) -> int:
    """Left or right, for a row in no layer."""
    if row.role in ("embedding", "head"):
        return -1 if row.role == "embedding" else 1
    return -1 if is_first else 1


def _stacks(rows: Sequence[ReportRow]) -> dict[str, list[tuple[int, ...]]]:
    """The sorted depths in each stack; stacks in the order of the model."""
    depths: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        if _in_layer(row):
            depths.setdefault(row.place.stack, set()).add(row.place.depth)
    return {stack: sorted(found) for stack, found in depths.items()}


def _short(stack: str, stacks: dict[str, list[tuple[int, ...]]]) -> str:
    """The part of a stack's name that tells it from the others."""
    split = [name.split(".") for name in stacks]
    atoms = stack.split(".")
    while len(atoms) > 1 and all(other[:1] == atoms[:1] for other in split):
        atoms, split = atoms[1:], [other[1:] for other in split]
    return ".".join(atoms[:2])


def _every(count: int) -> int:
    """Every how many layers a label stands: at most nine in a stack, at round numbers."""
    return next(
        step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 10**9) if count <= 9 * step
    )


def _offset(role: str, roles: Sequence[str]) -> float:
    if len(roles) < 2:
        return 0.0
    return _SPREAD * (roles.index(role) / (len(roles) - 1) - 0.5)


# Labels.


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
    """Writes labels, each with a line to its point, so that they do not overlap.

    Args:
        labels: axes, x, y and text of each.
        marks: axes, x and y of all points, which labels should not cover.
        within: the axes that labels should stay inside.
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
    """Candidates around a point: distance, box in pixels, offset in points, alignment."""
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
    """How bad a place is: outside the frame, over other labels, over points."""
    outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
    covered = sum(box.holds(*point) for point in points)
    return 100.0 * outside + 50.0 * sum(box.overlaps(other) for other in taken) + 10.0 * covered
