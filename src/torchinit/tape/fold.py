"""Folds recorded arithmetic into a single draw with the same distribution.

Older libraries compute the truncated normal as ``uniform_ erfinv_ mul_ add_ clamp_``, and scale or
shift it afterwards. A single draw is as exact as torchinit's own, takes one pass and can be cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch.utils._pytree import tree_unflatten

from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import (
    TRUNCATED_NORMAL,
    UNIFORM,
    Draw,
    parameters_of,
    truncated_draw,
)
from torchinit.tape.facts import facts_of
from torchinit.tape.tape import Entry, Fill, Operation, Tape

_WRITTEN_OUT = ("erfinv_", "mul_", "add_", "clamp_")
_CLOSE = 1e-6  # in units of probability: code computes the bounds in float64 and rounds them


def fold(tape: Tape) -> None:
    """Replaces the last entries by one draw, if they are equivalent to one."""
    for count, read in ((5, _truncated), (2, _moved)):
        some = tape.entries[-count:]
        first = some[0]
        if len(some) < count or not isinstance(first, Fill) or first.draw is None:
            continue
        if not all(_is_on(entry, first) for entry in some[1:]):
            continue
        law = read(first, some[1:])
        if law is None:
            continue
        del tape.entries[first.index + 1 :]
        cell = first.writes[0].cell
        cell.writes = [index for index in cell.writes if index <= first.index]
        first.law = law
        first.call = Call(
            "trunc_normal_", dict(zip(("mean", "std", "a", "b"), law[1:], strict=True))
        )
        return


def _is_on(entry: Entry, first: Fill) -> bool:
    return (
        isinstance(entry, Operation)
        and len(entry.writes) == 1
        and entry.writes[0] == first.writes[0]
        and len(entry.reads) == 1
    )


def _name(entry: Operation) -> str:
    return facts_of(entry.function).name


def _numbers(entry: Operation) -> list[float] | None:
    """The arguments of an operator after the tensor; None if they are not all numbers."""
    args, kwargs = tree_unflatten(list(entry.arguments), entry.spec)
    found = list(args[1:])
    if _name(entry) == "clamp_":
        found += [kwargs.pop(name) for name in ("min", "max")[len(found) :] if name in kwargs]
    if kwargs or not all(isinstance(one, int | float) for one in found):
        return None
    return found


def _truncated(first: Fill, rest: Sequence[Any]) -> Draw | None:
    if first.law is None or first.law[0] != UNIFORM or tuple(map(_name, rest)) != _WRITTEN_OUT:
        return None
    given = [_numbers(entry) for entry in rest]
    if [None if one is None else len(one) for one in given] != [0, 1, 1, 2]:
        return None
    (scale,), (mean,), (a, b) = given[1:]  # type: ignore[misc]
    std = scale / math.sqrt(2)
    if not std > 0:
        return None
    for bound, drawn in zip((a, b), parameters_of(first.law), strict=True):
        if abs(math.erf((bound - mean) / (std * math.sqrt(2))) - drawn) > _CLOSE:
            return None
    return truncated_draw(mean, std, a, b)


def _moved(first: Fill, rest: Sequence[Any]) -> Draw | None:
    """The draw of a truncated normal that is multiplied by a number or shifted by one."""
    if first.law is None or first.law[0] != TRUNCATED_NORMAL:
        return None
    given = _numbers(rest[0])
    if given is None or len(given) != 1:
        return None
    mean, std, a, b = parameters_of(first.law)
    number = given[0]
    if _name(rest[0]) == "add_":
        return truncated_draw(mean + number, std, a + number, b + number)
    if _name(rest[0]) == "mul_" and number > 0:
        return truncated_draw(mean * number, std * number, a * number, b * number)
    return None
