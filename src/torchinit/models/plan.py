"""The plan: a table of what each parameter would be filled with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch

from torchinit.models.assign import Assignment
from torchinit.schemes.fans import calculate_fans
from torchinit.schemes.law import Law
from torchinit.text_table import text_table
from torchinit.values.region import Part

_WIDTH = 100  # of the table
_HEADINGS = ("parameter", "shape", "dtype", "rule", "fills with", "fan_in", "fan_out", "std")
_SAID_ONCE = ("dtype", "rule")  # if it is the same in all rows


class Row(NamedTuple):
    """One parameter, or one part of it.

    Attributes:
        name: of the parameter; for a part, the name it has in an unfused model.
        parameter: name of the parameter that contains the part.
        shape: of the logical tensor.
        dtype: of the parameter.
        rule: the pattern or type that matched; for a default initialisation, its source.
        values: what it is filled with, in words.
        fans: (fan_in, fan_out) as torch computes them; None for a vector.
        law: statistics of the values: mean, std and bounds; None if they are not known.
        shares: the number of shares that the part consists of.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rule: str
    values: str
    fans: tuple[int, int] | None
    law: Law | None
    shares: int = 1

    @property
    def std(self) -> float | None:
        """The standard deviation of the values; None if it is not known."""
        return None if self.law is None else self.law.std

    def __repr__(self) -> str:
        name, shape, dtype, rule, values, fan_in, fan_out, std = _cells(self)
        fans = f", fan_in={fan_in}, fan_out={fan_out}" if self.fans else ""
        said = f"{name!r}, {shape or 'scalar'}, {dtype}, {values} by {rule}{fans}"
        return f"Row({said}, std={std})" if std else f"Row({said})"


class Plan(Sequence[Row]):
    """One row for each parameter or part of one, in the model's order. Prints as a table.

    >>> import torch, torchinit
    >>> rules = {"**.bias": "zeros", "**": torchinit.Normal(0.02)}
    >>> print(torchinit.plan_model(torch.nn.Linear(8, 4), rules))
    parameter  shape  rule     fills with                fan_in  fan_out   std
    weight     4x8    **       normal(mean=0, std=0.02)       8        4  0.02
    bias       4      **.bias  constant(val=0)                               0
    dtype: float32
    """

    def __init__(
        self, assignments: Sequence[Assignment], formats: Mapping[str, str] | None = None
    ) -> None:
        """Takes the assignments, and by the parameter's name how it is quantised."""
        self._rows = [row for one in assignments for row in _rows(one, formats or {})]

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        columns = [*zip(_HEADINGS, *map(_cells, self._rows), strict=True)]
        same = [one for one in columns if one[0] in _SAID_ONCE and len({*one[1:]}) == 1]
        columns = [one for one in columns if one not in same]
        names = [number for number, one in enumerate(columns) if one[0] in ("parameter", "rule")]
        left, rows = 5 - len(same), [*zip(*columns, strict=True)]
        lines = text_table(rows, left, most=_WIDTH, shorten=names)
        return "\n".join([*lines, *(f"{heading}: {cell}" for heading, cell, *_ in same)])

    __repr__ = __str__


def _cells(row: Row) -> tuple[str, ...]:
    fan_in, fan_out = map(str, row.fans or ("", ""))
    std = "" if row.std is None else f"{row.std:.4g}"
    name = row.name if row.shares == 1 else f"{row.name} ({row.shares} pieces)"
    name = name.replace("\0", "#")
    shape = "x".join(map(str, row.shape))
    return name, shape, str(row.dtype)[6:], row.rule, row.values, fan_in, fan_out, std


def _rows(assignment: Assignment, formats: Mapping[str, str]) -> Iterator[Row]:
    form = formats.get(assignment.named.name)
    quantised = f", as {form}" if form else ""
    shares: dict[str, list[Part]] = {}
    for part in assignment.all_parts:
        shares.setdefault(part.region.name, []).append(part)
    for name, pieces in shares.items():
        region, values = pieces[0]
        shape = region.matrix_shape
        yield Row(
            name, assignment.named.name, region.shape, assignment.dtype, assignment.rule,
            f"{values}{quantised}", calculate_fans(shape) if len(shape) > 1 else None,
            values.statistics(shape), len(pieces),
        )  # fmt: skip
