"""Who gets what: the scheme of every parameter by rules, and what it comes to for its shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import Parameter, is_lazy

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError
from torchinit.fill.route import PLAIN_TYPES
from torchinit.models.names import Named
from torchinit.rules.composed import By
from torchinit.rules.elementwise import Elementwise
from torchinit.rules.part import Function, Kept, Matrix, Part, Region
from torchinit.rules.rules import Rules, check_unused
from torchinit.rules.scheme import Scheme, Target
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import CONSTANT, Draw, check_draw

_SHOWN = 10  # names in an error


class Assignment(NamedTuple):
    """What one parameter gets.

    Attributes:
        named: the parameter.
        dtype: that it has in the end.
        draw: of all of it; None if it takes more than a draw.
        parts: of it, where draw is None.
        rule: in words, where it comes from.
        scheme: in words, what it is.
    """

    named: Named
    dtype: torch.dtype
    draw: Draw | None
    parts: Sequence[Part]
    rule: Any
    scheme: Any


def assign(
    parameters: Sequence[Named], rules: Rules, dtype: torch.dtype | None, *, strict: bool
) -> list[Assignment]:
    """Assigns every parameter what the first rule that matches it gives.

    Raises:
        ArgumentError: parameters without a rule, rules without a parameter (unless not strict), a
            parameter whose names disagree, a scheme that cannot fill it. Everything that no rule
            matches is named at once.
        TypeError: for a parameter that is none of plain memory.
    """
    find, chosen = rules.find, rules.rules
    found: list[int] = []
    used: set[int] = set()
    unmatched: list[str] = []
    for named in parameters:
        name, _, slots = named
        number = find(slots[0].name, slots[0].owner)
        if len(slots) > 1:
            number = _agree(named, rules, used)
        if number < 0:
            unmatched.append(name)
        found.append(number)
    used.update(found)
    if unmatched:
        raise ArgumentError(
            f"no rule matches {len(unmatched)} of {len(parameters)} parameters: "
            f"{some(unmatched)}. Give them a rule, 'keep' to leave them alone, or end the rules "
            "with '**'"
        )
    if strict:
        names = [slot.name for named in parameters for slot in named.slots]
        check_unused(rules, used, names)
    checked: set[tuple[Draw, torch.dtype]] = set()
    assignments = []
    for named, number in zip(parameters, found, strict=True):
        scheme = chosen[number].scheme
        own = named.tensor.dtype
        final = (
            dtype if dtype is not None and named.tensor.is_meta and own.is_floating_point else own
        )
        if scheme.is_uniform and type(named.tensor) is Parameter:
            draw: Draw = scheme._draw  # type: ignore[attr-defined]
            if (draw, final) not in checked:
                _check_draw(named, draw, final)
                checked.add((draw, final))
            assignments.append(Assignment(named, final, draw, (), chosen[number].title, scheme))
        else:
            assignments.append(_assign_one(named, chosen[number].title, scheme, final))
    _check_part_names(assignments)
    return assignments


def _check_part_names(assignments: Sequence[Assignment]) -> None:
    """Raises ArgumentError if parts of two parameters go by one name: they would be equal."""
    if all(not one.parts or one.parts[0].region.name == one.named.name for one in assignments):
        return
    owners: dict[str, str] = {}
    for one in assignments:
        name = one.named.name
        filled: list[tuple[str, Any]] = [(p.region.name, p.values) for p in one.parts] or [
            (name, one.draw)
        ]
        for part, values in filled:
            if _is_random(values) and owners.setdefault(part, name) != name:
                raise ArgumentError(
                    f"{part!r} names values of parameter {owners[part]!r} and of {name!r}, which "
                    "would be equal: name the parts of Blocks otherwise"
                )


def _is_random(values: Any) -> bool:
    if isinstance(values, Kept | Call | torch.Tensor):
        return False
    return isinstance(values, Matrix | Function) or values[0] != CONSTANT


def check_kinds(parameters: Sequence[Named]) -> None:
    """Raises for parameters that are not yet, or that nobody but their own class can write."""
    for name, tensor, _ in parameters:
        if type(tensor) is Parameter:
            continue
        if is_lazy(tensor):
            raise ArgumentError(
                f"parameter {name!r} is lazy and has no shape yet: call the model once, or "
                "initialize_parameters of its module, before"
            )


def _agree(named: Named, rules: Rules, used: set[int]) -> int:
    """The number of the rule for all names of a tied parameter."""
    numbers = {slot.name: rules.find(slot.name, slot.owner) for slot in named.slots}
    matched = {name: number for name, number in numbers.items() if number >= 0}
    if not matched:
        return -1
    used.update(matched.values())
    schemes = {name: rules.rules[number].scheme for name, number in matched.items()}
    first = next(iter(schemes.values()))
    if any(scheme != first for scheme in schemes.values()):
        said = "; ".join(
            f"{name!r} by {rules.rules[number].title}" for name, number in matched.items()
        )
        raise ArgumentError(
            f"one parameter has {len(matched)} names that match different rules: {said}. Put a "
            "rule that matches all of them first"
        )
    return next(iter(matched.values()))


def _assign_one(named: Named, rule: str, scheme: Scheme, dtype: torch.dtype) -> Assignment:
    name, tensor, slots = named
    shape = tuple(tensor.shape)
    where = f"parameter {name!r} of shape {shape} and its rule {rule}"
    try:
        target = Target(name, shape, dtype, slots[0].owner)
        region = Region(name, shape)
        if isinstance(scheme, By):
            scheme = scheme.scheme(region, target)
        parts = scheme.parts(region, target)
    except Exception as error:
        said = (
            str(error) if isinstance(error, ArgumentError) else f"{type(error).__name__}: {error}"
        )
        raise ArgumentError(f"{where}: {said}") from error
    for part in parts:
        _check_part(named, part, dtype, rule)
    draw = None
    if len(parts) == 1 and isinstance(scheme, Elementwise):
        draw = parts[0].values
        parts = []
    return Assignment(named, dtype, draw, parts, rule, scheme)  # type: ignore[arg-type]


def _check_part(named: Named, part: Part, dtype: torch.dtype, rule: str) -> None:
    values = part.values
    if isinstance(values, Kept):
        if named.tensor.is_meta:
            raise ArgumentError(
                f"parameter {named.name!r} is on the meta device, where there is nothing to keep "
                f"(rule {rule})"
            )
        return
    if type(named.tensor) not in PLAIN_TYPES:
        raise TypeError(
            f"parameter {named.name!r} is a {type(named.tensor).__name__}, whose values may lie "
            "anywhere: give it the rule 'keep', and fill it by its own means"
        )
    if dtype not in ALL_DTYPES and not isinstance(values, Function):
        raise TypeError(
            f"parameter {named.name!r} has dtype {dtype}, which cannot be initialised: give it the "
            "rule 'keep', or a callable"
        )
    if isinstance(values, tuple) and not isinstance(values, Matrix | Call | Function):
        _check_draw(named, values, dtype)


def _check_draw(named: Named, draw: Draw, dtype: torch.dtype) -> None:
    if dtype not in ALL_DTYPES:
        raise TypeError(
            f"parameter {named.name!r} has dtype {dtype}, which cannot be initialised: give it the "
            "rule 'keep', or a callable"
        )
    try:
        check_draw(draw, dtype)
    except ArgumentError as error:
        raise ArgumentError(f"parameter {named.name!r}: {error}") from None


def some(names: Sequence[str]) -> str:
    """The first of many names, for an error."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def padding_rows(named: Named) -> list[int]:
    """Rows of an embedding that stand for padding, and are zero."""
    return sorted(
        {
            slot.owner.padding_idx
            for slot in named.slots
            if isinstance(slot.owner, nn.Embedding | nn.EmbeddingBag)
            and slot.owner.padding_idx is not None
            and slot.name.rsplit(".", 1)[-1] == "weight"
        }
    )
