"""Carries out what was assigned: callables first, on scratch memory; then every fill; then places.

Until the last of it the model is as it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from torchinit.errors import ArgumentError
from torchinit.fill import checks
from torchinit.fill.fill import fill_fresh
from torchinit.fill.route import is_native_memory, obstacle
from torchinit.models.assign import Assignment, padding_rows
from torchinit.models.keyed import KeyOfName, run_callable
from torchinit.models.materialise import allocate, attach
from torchinit.models.scratch import check_written, mark_unwritten
from torchinit.rules.fill_parts import fill_parts
from torchinit.rules.part import Function, Kept, Part, Region
from torchinit.schemes.distributions import CONSTANT, Draw


def carry_out(
    assignments: Sequence[Assignment],
    device: torch.device,
    key_of_name: KeyOfName,
    values: Mapping[str, Tensor],
    *,
    pads: bool,
) -> None:
    """Fills every parameter, and gives those on the meta device their memory.

    Args:
        assignments: of all parameters.
        device: where those on the meta device go.
        key_of_name: under the seed.
        values: of parameters that are there already, by name.
        pads: whether rows of embeddings that stand for padding are to be zeroed.
    """
    _check_targets(assignments)
    ready = dict(values)
    assignments = [_run_callables(one, device, key_of_name, ready) for one in assignments]
    homes = _allocate(assignments, device, ready)
    _fill_whole(assignments, homes, key_of_name)
    for one, home in zip(assignments, homes, strict=True):
        if one.parts:
            _fill_parts(one, home, key_of_name)
        if pads and not _is_kept(one):
            for row in padding_rows(one.named):
                with torch.no_grad():
                    home[row].zero_()
    for one, home in zip(assignments, homes, strict=True):
        if one.named.tensor.is_meta:
            attach(one.named, home)
        elif home is not one.named.tensor:
            with torch.no_grad():
                one.named.tensor.copy_(home)


def _check_targets(assignments: Sequence[Assignment]) -> None:
    """Raises ArgumentError for memory that cannot be written to."""
    for one in assignments:
        tensor = one.named.tensor
        if not tensor.is_meta and not _is_kept(one) and is_native_memory(tensor):
            try:
                checks.check_target(tensor)
            except ArgumentError as error:
                raise ArgumentError(f"parameter {one.named.name!r}: {error}") from None


def _is_kept(one: Assignment) -> bool:
    return any(isinstance(part.values, Kept) for part in one.parts)


def _allocate(
    assignments: Sequence[Assignment], device: torch.device, ready: Mapping[str, Tensor]
) -> list[Tensor]:
    """The memory that each is filled in: new, or the parameter's own."""
    homes: list[Tensor] = []
    for one in assignments:
        tensor = one.named.tensor
        home = ready.get(one.named.name) if ready else None
        if home is None:
            home = allocate(tensor, one.dtype, device) if tensor.is_meta else tensor
            if one.parts and _may_leave_gaps(one):
                home = home if tensor.is_meta else torch.empty_like(tensor, requires_grad=False)
                mark_unwritten(home)
        homes.append(home)
    return homes


def _may_leave_gaps(one: Assignment) -> bool:
    """Whether the parts, as recorded of views, may not cover all."""
    region = one.parts[0].region
    return region.geometry is not None and _numel(region.geometry[0]) < one.named.tensor.numel()


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _fill_whole(
    assignments: Sequence[Assignment], homes: Sequence[Tensor], key_of_name: KeyOfName
) -> None:
    """Fills what takes one draw each: new memory in one list, memory that was there in another."""
    fresh: tuple[list[Draw], list[Tensor], list[int]] = ([], [], [])
    others: tuple[list[tuple[Tensor, Part]], list[int]] = ([], [])
    for one, home in zip(assignments, homes, strict=True):
        draw = one.draw
        if draw is None:
            continue
        key = 0 if draw[0] == CONSTANT else key_of_name(one.named.name)
        if one.named.tensor.is_meta and home.is_contiguous() and not obstacle(home):
            for column, value in zip(fresh, (draw, home, key), strict=True):
                column.append(value)  # type: ignore[attr-defined]
        else:
            region = Region(one.named.name, tuple(home.shape))
            others[0].append((home, Part(region, draw)))
            others[1].append(key)
    fill_fresh(*fresh)
    if others[0]:
        fill_parts(*others)


def _fill_parts(one: Assignment, home: Tensor, key_of_name: KeyOfName) -> None:
    """Fills a parameter part by part; where order matters, one after the other."""
    keys = [key_of_name(part.region.name) for part in one.parts]
    pairs = [(home, part) for part in one.parts]
    if one.parts[0].region.geometry is None and len({p.region.geometry for p in one.parts}) == 1:
        fill_parts(pairs, keys)
    else:
        for pair, key in zip(pairs, keys, strict=True):
            fill_parts([pair], [key])
    if _may_leave_gaps(one):
        check_written(one.named.name, home, str(one.rule))


def _run_callables(
    one: Assignment, device: torch.device, key_of_name: KeyOfName, ready: dict[str, Tensor]
) -> Assignment:
    """Calls what is unknown of one parameter; what it leaves becomes values to be copied."""
    if not any(isinstance(part.values, Function) for part in one.parts):
        return one
    parts: list[Part] = []
    wholes: dict[str, Tensor] = {}
    for part in one.parts:
        region, values = part
        if not isinstance(values, Function):
            parts.append(part)
            continue
        made = wholes.get(region.name)
        if made is None:
            made = wholes[region.name] = _call(one, part, values, device, key_of_name)
        if (
            made.shape == one.named.tensor.shape
            and one.named.tensor.is_meta
            and len(one.parts) == 1
        ):
            ready[one.named.name] = made
        else:
            parts.append(Part(region, made))
    return one._replace(parts=parts)


def _call(
    one: Assignment, part: Part, values: Function, device: torch.device, key_of_name: KeyOfName
) -> Tensor:
    """Memory for a part's logical tensor, as a callable has left it."""
    name, tensor, _ = one.named
    region = part.region
    is_all = region.shape == tuple(tensor.shape) and region.offset is None
    before: Tensor | None = None
    if is_all and not tensor.is_meta:
        before = tensor.detach()
        scratch = before.clone()
    elif is_all:
        scratch = allocate(tensor, one.dtype, device)
        mark_unwritten(scratch)
    else:
        where = device if tensor.is_meta else tensor.device
        scratch = torch.empty(region.shape, dtype=one.dtype, device=where)
        mark_unwritten(scratch)
    scratch.__dict__.update(tensor.__dict__)
    version = scratch._version
    try:
        run_callable(values.function, scratch, region.name, key_of_name)
    except Exception as error:
        raise ArgumentError(
            f"the rule {one.rule} raised {type(error).__name__} for parameter {name!r}: {error}"
        ) from error
    scratch = scratch.detach()
    by = f"the rule {one.rule}"
    if before is None and scratch.dtype.is_floating_point:
        check_written(name, scratch, by)
    elif scratch._version == version and (before is None or torch.equal(before, scratch)):
        raise ArgumentError(
            f"{by} wrote nothing of parameter {name!r}: it must fill what it is given in place"
        )
    return scratch
