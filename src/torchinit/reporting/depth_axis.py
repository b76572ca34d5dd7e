"""Where rows of a report stand along the depth of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchinit.reporting.roles import ROLES, role_of
from torchinit.reporting.rows import ReportRow
from torchinit.untrusted import printable

# The part of a layer's width over which its parameters are spread; more of them share places.
_SPREAD, _PLACES = 0.8, 16


class DepthAxis(NamedTuple):
    """The axis of depth.

    Attributes:
        x: of each row.
        ticks: x and text of each label.
        stacks: the first and last x of each stack, and its name, if there are several.
        edges: x of the lines between stacks.
        layers: the number of all layers.
        apart: the distance of neighbours in a layer.
        limits: of the axis.
    """

    x: list[float]
    ticks: list[tuple[float, str]]
    stacks: list[tuple[float, float, str]]
    edges: list[float]
    layers: int
    apart: float
    limits: tuple[float, float]


def depth_axis(rows: Sequence[ReportRow]) -> DepthAxis:
    """Places rows: layers by their numbers, stack after stack; other rows to the left or right."""
    depths: dict[str, set[tuple[int, ...]]] = {}
    for row in rows:
        if row.place.depth:
            depths.setdefault(row.place.stack, set()).add(row.place.depth)
    layers: dict[tuple[str, tuple[int, ...]], float] = {}
    ticks: list[tuple[float, str]] = []
    stacks: list[tuple[float, float, str]] = []
    edges: list[float] = []
    after = 0.0
    for stack, found in depths.items():
        if layers:
            edges.append(after)
            after += 1
        if len(depths) > 1:
            name = printable(_short(stack, list(depths)))
            stacks.append((after - 0.5, after + len(found) - 0.5, name))
        # A label every so many layers: at most nine in a stack, at round numbers.
        steps = (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 10**9)
        every = next(step for step in steps if len(found) <= 9 * step)
        for i, depth in enumerate(sorted(found)):
            layers[stack, depth] = after + i
            if i % every == 0:
                ticks.append((after + i, ".".join(map(str, depth))))
        after += len(found)
    places, most = _places(rows)
    margin = max(len(layers) / 24, 1.0)
    left, right = -margin, max(after - 1, 0.0) + margin
    first = next((i for i, row in enumerate(rows) if row.place.depth), len(rows))
    x = []
    for i, (row, place) in enumerate(zip(rows, places, strict=True)):
        if row.place.depth:
            x.append(layers[row.place.stack, row.place.depth] + place)
        else:  # in the order of the model, but for embeddings, heads and their biases
            role = role_of(f"{row.name.removesuffix('.bias')}.weight", 2)
            is_head = row.role == "head" or (row.role == "bias" and role == "head")
            x.append(right if is_head or (i > first and row.role != "embedding") else left)
    ticks += [(end, said) for end, said in ((left, "in"), (right, "out")) if end in x]
    shown = [*x, *(place for place, _ in ticks)] or [0.0]
    pad = max((max(shown) - min(shown)) * 0.025, 0.5)
    limits = min(shown) - pad, max(shown) + pad
    apart = _SPREAD / max(most - 1, 1)
    return DepthAxis(x, sorted(ticks), stacks, edges, len(layers), apart, limits)


def _places(rows: Sequence[ReportRow]) -> tuple[list[float], int]:
    """The place of each row beside the middle of its layer, and how many places of gains there are.

    Siblings have one place. Rows without a spread are in an axes of their own, the foot. There, and
    where a layer has too many parameters, those of one role share a place.
    """
    beside: dict[tuple[str, bool], dict[str, str]] = {}
    for row in rows:
        if row.place.depth:
            alike = beside.setdefault((row.place.stack, row.moments.std > 0), {})
            alike.setdefault(row.place.pattern, row.role)
    places: dict[tuple[str, bool], float] = {}
    most = 1
    for (_, varies), roles in beside.items():
        names = sorted(roles, key=lambda name: ROLES.index(roles[name]))
        is_shared = not varies or len(names) > _PLACES
        sharing = roles if is_shared else {name: name for name in names}
        distinct = list(dict.fromkeys(sharing[name] for name in names))
        most = max(most, len(distinct) if varies else 1)
        for name in names:
            part = distinct.index(sharing[name]) / max(len(distinct) - 1, 1)
            places[name, varies] = _SPREAD * (part - 0.5) if len(distinct) > 1 else 0.0
    return [places.get((row.place.pattern, row.moments.std > 0), 0.0) for row in rows], most


def _short(stack: str, stacks: Sequence[str]) -> str:
    """The part of a stack's name that tells it from the others."""
    split = [name.split(".") for name in stacks]
    components = stack.split(".")
    while len(components) > 1 and all(other[:1] == components[:1] for other in split):
        components, split = components[1:], [other[1:] for other in split]
    return ".".join(components[:2])
