"""The plan: who gets what, to be read before anything is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from torchinit.models.assign import Assignment
from torchinit.rules.part import Computed, Function, Kept, Matrix, Part, Values, draw_in
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import DISTRIBUTIONS, draw_in_words, law_of
from torchinit.schemes.fans import calculate_fans
from torchinit.schemes.law import Law, law_of_orthogonal
from torchinit.text_table import text_table

_HEADINGS = ("parameter", "shape", "dtype", "rule", "fills with", "fan_in", "fan_out", "std")


class Row(NamedTuple):
    """One part of one parameter, or all of it.

    Attributes:
        name: of the parameter, or of the part where it is not fused.
        parameter: that the part lies in.
        shape: of the logical tensor.
        dtype: of the parameter.
        rule: the pattern or type that matched; of a model's own initialisation, what was called.
        values: what it is filled with, in words.
        fans: (fan_in, fan_out) as torch counts them; None of a vector.
        law: mean, std and bounds of the values; None where nothing is known of them.
        shares: into how many pieces of the parameter it is cut.
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


class Plan(Sequence[Row]):
    """Rows, one for each parameter or part of one, in the model's order. Printed, a table.

    >>> import torch, torchinit
    >>> rules = {"**.bias": "zeros", "**": torchinit.Normal(0.02)}
    >>> print(torchinit.plan_model(torch.nn.Linear(8, 4), rules))
    parameter  shape  dtype    rule     fills with                fan_in  fan_out   std
    weight     4x8    float32  **       normal(mean=0, std=0.02)       8        4  0.02
    bias       4      float32  **.bias  constant(val=0)                               0
    """

    def __init__(self, assignments: Sequence[Assignment]) -> None:
        self._rows = [row for assignment in assignments for row in _rows(assignment)]

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __str__(self) -> str:
        return "\n".join(text_table([_HEADINGS, *map(_cells, self._rows)], left=5))

    __repr__ = __str__


def _cells(row: Row) -> tuple[str, ...]:
    fan_in, fan_out = map(str, row.fans or ("", ""))
    std = "" if row.law is None else f"{row.law.std:.4g}"
    name = row.name if row.shares == 1 else f"{row.name} ({row.shares} pieces)"
    name = name.replace("\0", "#")
    shape = "x".join(map(str, row.shape))
    return name, shape, str(row.dtype)[6:], row.rule, row.values, fan_in, fan_out, std


def _rows(assignment: Assignment) -> Iterator[Row]:
    named, dtype, draw, _, parts, _, rule = assignment
    shape = tuple(named.tensor.shape)
    if not parts:
        values, law = values_in_words(draw), law_of_values(draw)
        yield Row(named.name, named.name, shape, dtype, rule, values, fans_of(shape), law)
        return
    shares: dict[str, list[Part]] = {}
    for part in parts:
        shares.setdefault(part.region.name, []).append(part)
    for name, pieces in shares.items():
        region = pieces[0].region
        yield Row(
            name, named.name, region.shape, dtype, rule, values_in_words(pieces[0].values),
            fans_of(region.matrix_shape), law_of_part(pieces[0]), len(pieces),
        )  # fmt: skip


def fans_of(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Fans as torch counts them; None of a vector."""
    return calculate_fans(shape) if len(shape) > 1 else None


def values_in_words(values: Values | None) -> str:
    """What a part, or a draw of a whole parameter, is filled with; None is what is computed."""
    if values is None:
        return "computed"
    if isinstance(values, Kept):
        return "keep"
    if isinstance(values, Matrix):
        return f"orthogonal(gain={values.gain:g})"
    if isinstance(values, Call):
        return values.name.rstrip("_")
    if isinstance(values, Function):
        return getattr(values.function, "__qualname__", None) or repr(values.function)
    if isinstance(values, Computed):
        return "computed"
    if isinstance(values, torch.Tensor):
        return "computed values"
    return draw_in_words(values)


def law_of_part(part: Part) -> Law | None:
    """The law of a part's values; None where nothing is known of them."""
    if isinstance(part.values, Matrix):
        rows, *rest = part.region.matrix_shape
        return law_of_orthogonal(rows, torch.Size(rest).numel(), part.values.gain)
    return law_of_values(part.values)


def law_of_values(values: Values | None) -> Law | None:
    """The law of a draw; None for all else, and for words, which are no numbers."""
    draw = None if values is None else draw_in(values)
    return None if draw is None or DISTRIBUTIONS[draw[0]].law is None else law_of(draw)
