"""Assigns each parameter a scheme by rules, and resolves the scheme for the parameter's shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError, counted
from torchinit.fill.route import PLAIN_TYPES
from torchinit.native.torch_private import storage_number
from torchinit.placement.distributed import is_dtensor, local_memory
from torchinit.rules.composed import By
from torchinit.rules.elementwise import Elementwise
from torchinit.rules.rules import (
    FOR_BUFFERS,
    Places,
    Rules,
    check_unused,
    is_for_buffers,
)
from torchinit.rules.scheme import Scheme, Target
from torchinit.rules.structured import Custom, FromModel, GivenTensor, Keep
from torchinit.schemes.distributions import Draw, check_draw, constant_draw
from torchinit.streams.canonical import Named, new_tuple
from torchinit.untrusted import first_names
from torchinit.values.kinds import DrawnValues, ReturnedValues
from torchinit.values.region import Part, Region


class Assignment(NamedTuple):
    """What one parameter is filled with.

    Attributes:
        named: the parameter.
        dtype: its final dtype.
        draw: the one draw that fills it; None if it needs more than one.
        is_plain: whether it is on the meta device and one draw fills it.
        parts: its parts, if draw is None.
        pads: padding rows, zeroed last.
        rule: a description of its origin.
    """

    named: Named
    dtype: torch.dtype
    draw: Draw | None
    is_plain: bool
    parts: Sequence[Part]
    pads: Sequence[int]
    rule: str

    @property
    def all_parts(self) -> Sequence[Part]:
        """Its parts, or the one that the draw fills."""
        if self.draw is None:
            return self.parts
        shape = tuple(self.named.tensor.shape)
        return [Part(Region(self.named.name, shape), DrawnValues(self.draw))]

    @property
    def pad_parts(self) -> list[Part]:
        """Its padding rows, which are filled with zeros after all parts."""
        shape, zero = (1, *self.named.tensor.shape[1:]), DrawnValues(constant_draw(0.0))
        return [
            Part(Region(self.named.name, shape, cuts=((0, row, 1),)), zero) for row in self.pads
        ]


def assignment_of(
    named: Named,
    dtype: torch.dtype | None,
    draw: Draw | None,
    parts: Sequence[Part],
    pads: Sequence[int],
    rule: str,
) -> Assignment:
    """Makes an assignment, and works out whether it is plain and its final dtype."""
    tensor = named.tensor
    is_plain = draw is not None and tensor.is_meta and type(tensor) is Parameter and not pads
    return Assignment(named, final_dtype(tensor, dtype), draw, is_plain, parts, pads, rule)


def final_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a parameter after initialisation: the one asked for, or its own."""
    is_taken = tensor.is_meta and tensor.dtype.is_floating_point
    return tensor.dtype if dtype is None or not is_taken else dtype


def assign(
    parameters: Sequence[Named],
    rules: Rules,
    dtype: torch.dtype | None,
    *,
    strict: bool,
    own: Callable[..., list[Assignment]] | None = None,
    buffers: Sequence[Named] = (),
    others: Sequence[Named] = (),
) -> tuple[Sequence[Assignment], list[Assignment]]:
    """Assigns each parameter the scheme of the first rule that matches it.

    A rule that matches buffers, and no parameter, applies to the buffers.

    Args:
        parameters: the model's parameters.
        rules: the rules.
        dtype: for parameters on the meta device; None keeps each one's dtype.
        strict: whether an unused rule is an error.
        own: assigns parameters their default initialisation, as ``Own.assign`` does.
        buffers: those that rules may match.
        others: the model's other parameters. They get nothing here, but a rule for one of them is
            not for buffers.

    Returns:
        One assignment for each parameter; one for each buffer that a rule matches.

    Raises:
        ArgumentError: for unmatched parameters (all are listed), unused rules (if strict), a tied
            parameter whose names match different rules, or a scheme that cannot fill a parameter.
        TypeError: for a parameter of an unsupported tensor type or dtype.
    """
    find, chosen = rules.find, rules.rules
    _check_given(rules, [*parameters, *buffers])
    titles = [rule.title for rule in chosen]
    # The draw of each rule whose draw is the same for every parameter.
    draws = [getattr(rule.scheme, "_draw", None) for rule in chosen]
    used: set[int] = set()
    unmatched: list[str] = []
    checked: set[tuple[int, torch.dtype]] = set()
    assignments: list[Assignment] = []
    owns: dict[str, list[tuple[int, Named]]] = {}  # FromModel's parameters and their indices
    for named in parameters:
        name, tensor, _, _, owner, ties = named
        number = agree(named, rules, used) if ties else find(name, owner)
        if number < 0:
            unmatched.append(name)
            continue
        used.add(number)
        scheme = chosen[number].scheme
        if own is not None and isinstance(scheme, FromModel):
            owns.setdefault(scheme.how, []).append((len(assignments), named))
            assignments.append(None)  # type: ignore[arg-type]
            continue
        dtype_ = tensor.dtype if dtype is None else final_dtype(tensor, dtype)
        draw = draws[number]
        if draw is None or type(tensor) is not Parameter:
            assignments.append(_assign_one(named, titles[number], scheme, dtype_))
            continue
        if (number, dtype_) not in checked:
            _check_draw(named, draw, dtype_)
            checked.add((number, dtype_))
        pads = padding_rows(named) if ties or "padding_idx" in owner.__dict__ else ()
        is_plain = tensor.is_meta and not pads
        one = (named, dtype_, draw, is_plain, (), pads, titles[number])
        assignments.append(new_tuple(Assignment, one))
    check_matched(unmatched, len(parameters))
    for how, places in owns.items():
        assert own is not None
        found = own([named for _, named in places], dtype, how)
        for (place, _), assignment in zip(places, found, strict=True):
            assignments[place] = assignment
    of_buffers: list[Assignment] = []
    if len(used) < len(chosen) and (strict or buffers):
        everywhere = _places([*parameters, *others])
        if buffers:
            of_buffers = _assign_buffers(buffers, rules, used, everywhere)
        if strict:
            check_unused(rules, used, everywhere, _places(buffers))
    _check_part_names(assignments)
    return join_names(assignments), of_buffers


def _check_given(rules: Rules, filled: Sequence[Named]) -> None:
    """Raises ArgumentError for a tensor in the rules that is one of the model's own."""
    given = [one for one in rules.rules if isinstance(one.scheme, GivenTensor)]
    if not given:
        return
    owners = {
        storage_number(local_memory(named.tensor)): named.name for named in filled
        if not is_lazy(named.tensor) and named.tensor.layout is torch.strided
        and named.tensor.numel()
    }  # fmt: skip
    for one in given:
        tensor: Tensor = one.scheme.tensor  # type: ignore[attr-defined]
        name = owners.get(storage_number(local_memory(tensor)))
        if name is not None:
            raise ArgumentError(
                f"rule {one.title} is a tensor in the memory of {name!r}, which is filled too: "
                "give its clone()"
            )


def _places(tensors: Sequence[Named]) -> Places:
    return Places((slot.name, slot.owner) for named in tensors for slot in named.slots)


def _assign_buffers(
    buffers: Sequence[Named], rules: Rules, used: set[int], parameters: Places
) -> list[Assignment]:
    """Assigns buffers the values of the first rule that matches them and no parameter."""
    numbers = [
        number for number, (key, scheme) in enumerate(rules.rules)
        if number not in used and is_for_buffers(key)
        and isinstance(scheme, GivenTensor | Keep | Custom | By)
        and rules.first_match(number, parameters) is None
    ]  # fmt: skip
    find, found = rules.finder_among(numbers), []
    for named in buffers if numbers else ():
        matching = (find(slot.name, slot.owner) for slot in named.slots)
        number = min((n for n in matching if n >= 0), default=-1)
        if number < 0:
            continue
        used.add(number)
        rule, name, shape = rules.rules[number], named.name, tuple(named.tensor.shape)
        scheme = rule.scheme
        region, target = Region(name, shape), Target(name, shape, named.tensor.dtype, named.owner)
        where = f"buffer {name!r} of shape {shape} and its rule {rule.title}"
        try:
            if isinstance(scheme, By):
                scheme = scheme.scheme(region, target)
            if isinstance(scheme, Keep) and named.tensor.is_meta:
                continue  # there is nothing to keep: the model's own code fills it
            if isinstance(scheme, Custom):
                parts = [Part(region, ReturnedValues(scheme.function))]
            elif isinstance(scheme, GivenTensor | Keep):
                parts = scheme.parts(region, target)
            else:
                raise ArgumentError(f"{scheme!r} is not for a buffer, {FOR_BUFFERS}")
        except Exception as error:
            raise _refused(where, error) from error
        found.append(assignment_of(named, None, None, parts, (), rule.title))
    return found


def _refused(where: str, error: Exception) -> ArgumentError:
    kind = "" if isinstance(error, ArgumentError) else f"{type(error).__name__}: "
    return ArgumentError(f"{where}: {kind}{error}")


def _check_part_names(assignments: Sequence[Assignment]) -> None:
    """Raises ArgumentError if two random parts have one name, which would make them equal."""
    if all(not one.parts or one.parts[0].region.name == one.named.name for one in assignments):
        return
    owners: dict[str, str] = {}
    for one in assignments:
        name = one.named.name
        placed: set[tuple[str, Any]] = set()
        for region, values in one.all_parts:
            part, offset = region.name, region.offset
            if not values.is_random:
                continue
            if owners.setdefault(part, name) != name:
                raise ArgumentError(
                    f"{part!r} names values of both parameter {owners[part]!r} and {name!r}, which "
                    "would be equal: rename the parts of Blocks"
                )
            if (part, offset) in placed:
                raise ArgumentError(
                    f"two parts of parameter {name!r} are named {part!r} and would get equal "
                    "values: rename the parts of Blocks"
                )
            placed.add((part, offset))


def check_matched(unmatched: Sequence[str], count: int) -> None:
    """Raises ArgumentError if any of so many parameters has no rule."""
    if unmatched:
        raise ArgumentError(
            f"no rule matches {len(unmatched)} of {counted(count, 'parameter')}: "
            f"{first_names(unmatched)}. Add rules, use 'keep' to leave values unchanged, "
            "or end the rules with '**'"
        )


def agree(named: Named, rules: Rules, used: set[int]) -> int:
    """The index of the rule that all matching names of a tied parameter agree on, or -1."""
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
            "rule first that matches all of them"
        )
    return next(iter(matched.values()))


def _assign_one(named: Named, rule: str, scheme: Scheme, dtype: torch.dtype) -> Assignment:
    name, shape = named.name, tuple(named.tensor.shape)
    try:
        target, region = Target(name, shape, dtype, named.owner), Region(name, shape)
        if isinstance(scheme, By):
            scheme = scheme.scheme(region, target)
        parts = scheme.parts(region, target)
    except Exception as error:
        raise _refused(f"parameter {name!r} of shape {shape} and its rule {rule}", error) from error
    for part in parts:
        _check_part(named, part, dtype, rule)
    draw = None
    if len(parts) == 1 and isinstance(scheme, Elementwise):
        draw, parts = parts[0].values.draw, []
    return assignment_of(named, dtype, draw, parts, padding_rows(named), rule)


def _check_part(named: Named, part: Part, dtype: torch.dtype, rule: str) -> None:
    tensor, values = named.tensor, part.values
    if values.keeps and tensor.is_meta:
        raise ArgumentError(
            f"parameter {named.name!r} is on the meta device, or quantised as a whole, and has no "
            f"values to keep (rule {rule})"
        )
    if values.keeps:
        return
    if type(tensor) not in PLAIN_TYPES and not is_dtensor(tensor):
        raise TypeError(
            f"parameter {named.name!r} is a {type(tensor).__name__}, which torchinit cannot "
            "fill: give it the rule 'keep' and fill it with its own methods"
        )
    if values.function is None:
        _check_draw(named, values.draw, dtype)


def _check_draw(named: Named, draw: Draw | None, dtype: torch.dtype) -> None:
    if dtype not in ALL_DTYPES:
        raise TypeError(
            f"parameter {named.name!r} has unsupported dtype {dtype}: give it the rule 'keep' or "
            "a callable"
        )
    try:
        if draw is not None:
            check_draw(draw, dtype)
    except ArgumentError as error:
        raise ArgumentError(f"parameter {named.name!r}: {error}") from None


def join_names(assignments: Sequence[Assignment]) -> Sequence[Assignment]:
    """Gives parameters that rename maps to one name the padding rows of all of them.

    Raises:
        ArgumentError: if two of them get different values.
    """
    if len({one[0][0] for one in assignments}) == len(assignments):
        return assignments
    first: dict[str, Assignment] = {}
    rows: dict[str, set[int]] = {}
    for one in assignments:
        other = first.setdefault(one.named.name, one)
        if (one.draw, one.parts) != (other.draw, other.parts):
            raise ArgumentError(
                f"rename gives the name {one.named.name!r} to two parameters that get different "
                f"values, from {other.rule} and from {one.rule}: put a rule first that matches both"
            )
        rows.setdefault(one.named.name, set()).update(one.pads)
    return [
        one._replace(pads=sorted(pads), is_plain=one.is_plain and not pads)
        for one in assignments
        for pads in (rows[one.named.name],)
    ]


def padding_rows(named: Named) -> list[int]:
    """The padding rows of an embedding, which must be zero."""
    rows = []
    for _, _, attribute, owner in named.slots:
        row = owner.__dict__.get("padding_idx")
        if row is None or attribute not in ("weight", "original"):
            continue
        if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
            rows.append(row)
    return rows
