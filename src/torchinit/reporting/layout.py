"""Where parameters stand in the picture: depths of one stack after another, left to right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchinit.reporting.roles import ROLES
from torchinit.reporting.rows import ReportRow

# Between what comes before the first layer, the stacks, and what comes after the last.
_GAP = 1.0
# Of the width of a layer, that its roles are spread over.
_SPREAD = 0.8


class PictureLayout(NamedTuple):
    """Places on the axis of depth.

    Attributes:
        x: of each row.
        ticks: where labels stand, and what they are.
        edges: between stacks.
        layers: how many there are in all.
        width: of the axis.
        apart: between neighbouring roles of a layer.
    """

    x: list[float]
    ticks: list[tuple[float, str]]
    edges: list[float]
    layers: int
    width: float
    apart: float


def lay_out(rows: Sequence[ReportRow]) -> PictureLayout:
    """Places of rows: layers in the order of their numbers, what has none left or right of them."""
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
    # What has a spread stands above, what has none in the foot: each has the width for itself.
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
    return PictureLayout(
        x, sorted(ticks), edges, layers, width, _SPREAD / max(len(roles[True]) - 1, 1)
    )


def _in_layer(row: ReportRow) -> bool:
    return bool(row.place.depth)


def _varies(row: ReportRow) -> bool:
    return row.moments.std > 0


def _side(row: ReportRow, is_first: bool) -> int:
    """Left or right of the layers, of what is in none."""
    if row.role in ("embedding", "head"):
        return -1 if row.role == "embedding" else 1
    return -1 if is_first else 1


def _stacks(rows: Sequence[ReportRow]) -> dict[str, list[tuple[int, ...]]]:
    """The depths in each stack, in order; stacks as they come."""
    depths: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        if _in_layer(row):
            depths.setdefault(row.place.stack, set()).add(row.place.depth)
    return {stack: sorted(found) for stack, found in depths.items()}


def _short(stack: str, stacks: dict[str, list[tuple[int, ...]]]) -> str:
    """What of the name of a stack tells it from the others."""
    split = [name.split(".") for name in stacks]
    atoms = stack.split(".")
    while len(atoms) > 1 and all(other[:1] == atoms[:1] for other in split):
        atoms, split = atoms[1:], [other[1:] for other in split]
    return ".".join(atoms[:2])


def _every(count: int) -> int:
    """Labels of a stack: at most nine, at round numbers."""
    return next(
        step for step in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 10**9) if count <= 9 * step
    )


def _offset(role: str, roles: Sequence[str]) -> float:
    if len(roles) < 2:
        return 0.0
    return _SPREAD * (roles.index(role) / (len(roles) - 1) - 0.5)
