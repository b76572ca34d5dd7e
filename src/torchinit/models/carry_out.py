"""Carries out assignments: runs callables on scratch memory, fills, then attaches the tensors.

The model stays unchanged until the fills have succeeded, but for tensors filled in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, empty
from torch.nn.parameter import Parameter

from torchinit.errors import ArgumentError
from torchinit.fill import checks
from torchinit.fill.batch import without_batch
from torchinit.fill.door import fill_fresh
from torchinit.fill.route import is_native_memory
from torchinit.models.assign import Assignment
from torchinit.models.keyed import run_callable
from torchinit.models.materialise import (
    allocate,
    allocate_here,
    attach,
    parameter_like,
    shard_like,
)
from torchinit.native import kernels
from torchinit.native.torch_private import make_parameter
from torchinit.placement.distributed import is_dtensor, local_memory
from torchinit.progress import batches
from torchinit.schemes.distributions import CONSTANT, Draw, constant_draw
from torchinit.streams.named_keys import KeyOfName
from torchinit.tape.memory import check_written, count_unwritten, mark_unwritten
from torchinit.values.apply import fill_parts
from torchinit.values.kinds import DrawnValues, GivenValues
from torchinit.values.region import Part, Region


@without_batch()
def carry_out(
    assignments: Sequence[Assignment],
    device: torch.device,
    key_of_name: KeyOfName,
) -> None:
    """Fills every parameter, allocating memory for those on the meta device.

    An open ``batch()`` collects none of these fills, since their values are read at once.

    Args:
        assignments: one for each parameter.
        device: the final device of parameters on the meta device.
        key_of_name: maps names to keys under the seed.
    """
    plain: list[Assignment] = []  # on the meta device and filled by one draw
    others: list[Assignment] = []
    for one in assignments:
        (plain if one[3] else others).append(one)
    _check_targets(others)
    ready: dict[str, Tensor] = {}
    others = [_run_callables(one, device, key_of_name, ready) for one in others]
    homes = _allocate(others, device, ready)
    fresh = _fill_plain(plain, device, key_of_name)
    with torch.no_grad():
        _fill_others(others, homes, key_of_name)
    for one, memory in zip(plain, fresh, strict=True):
        attach(one[0], memory)
    for one, home in zip(others, homes, strict=True):
        if one.named.tensor.is_meta:
            attach(one.named, parameter_like(one.named.tensor, home))
        elif home is not one.named.tensor:
            with torch.no_grad():
                local_memory(one.named.tensor).copy_(local_memory(home))
            kernels.count_write(one.named.tensor)


@without_batch()
def whole_of(one: Assignment, device: torch.device, key_of_name: KeyOfName) -> Tensor:
    """Fills one full parameter in new memory, as ``carry_out`` does; the model stays unchanged.

    Args:
        one: the assignment of a plain parameter on the meta device.
        device, key_of_name: as ``carry_out``.
    """
    ready: dict[str, Tensor] = {}
    one = _run_callables(one, device, key_of_name, ready)
    (home,) = _allocate([one], device, ready)
    with torch.no_grad():
        _fill_others([one], [home], key_of_name)
    return home


def _fill_plain(
    assignments: Sequence[Assignment], device: torch.device, key_of_name: KeyOfName
) -> list[Parameter]:
    """Allocates and fills parameters that need one draw each, in one call of the kernels."""
    plainly = device.type == "cpu" and torch.get_default_device() == device
    kinds: dict[torch.dtype, Any] = {
        one[1]: {"dtype": one[1], "device": device} for one in assignments
    }
    if plainly and torch.get_default_dtype() in kinds:
        kinds[torch.get_default_dtype()] = {}  # torch's defaults are a sixth faster
    memory: list[Parameter] = []
    draws: list[Draw] = []
    keys: list[int] = []
    whole = True
    for (name, meta, *_), dtype, draw, *_ in assignments:
        if meta.is_contiguous():
            options = kinds[dtype]
            data = empty(meta.shape, **options) if options else empty(meta.shape)
        else:
            data, whole = allocate(meta, dtype, device), False
        new = make_parameter(Parameter, data, meta.requires_grad)
        if attributes := meta.__dict__:
            new.__dict__.update(attributes)
        memory.append(new)
        draws.append(draw)  # type: ignore[arg-type]
        keys.append(0 if draw[0] == CONSTANT else key_of_name(name))  # type: ignore[index]
    for some in batches("init_model_", memory):
        if not (whole and fill_fresh(draws[some], memory[some], keys[some])):
            parts = [
                (home, Part(Region(one[0][0], tuple(home.shape)), DrawnValues(draw)))
                for one, home, draw in zip(
                    assignments[some], memory[some], draws[some], strict=True
                )
            ]
            fill_parts(parts, keys[some])
    return memory


def _check_targets(assignments: Sequence[Assignment]) -> None:
    """Raises ArgumentError for parameters whose memory is not writable."""
    for one in assignments:
        tensor = one.named.tensor
        memory = local_memory(tensor)
        if not tensor.is_meta and not _is_kept(one) and is_native_memory(memory):
            try:
                checks.check_target(memory)
            except ArgumentError as error:
                raise ArgumentError(f"parameter {one.named.name!r}: {error}") from None


def _is_kept(one: Assignment) -> bool:
    return any(part.values.keeps for part in one.parts)


def _allocate(
    assignments: Sequence[Assignment], device: torch.device, ready: Mapping[str, Tensor]
) -> list[Tensor]:
    """The tensor in which each parameter is filled: a new one, or the parameter itself."""
    homes: list[Tensor] = []
    for one in assignments:
        tensor = one.named.tensor
        value = ready.get(one.named.name) if ready else None
        if value is not None:
            homes.append(shard_like(value, tensor, device if tensor.is_meta else tensor.device))
            continue
        home = allocate_here(tensor, one.dtype, device) if tensor.is_meta else tensor
        if one.parts and _may_leave_gaps(one):
            home = home if tensor.is_meta else allocate_here(tensor, tensor.dtype, tensor.device)
            mark_unwritten(local_memory(home))
        homes.append(home)
    return homes


def _may_leave_gaps(one: Assignment) -> bool:
    """Whether the parts are recorded views that may not cover the parameter."""
    region = one.parts[0].region
    return region.geometry is not None and _numel(region.geometry[0]) < one.named.tensor.numel()


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _fill_others(
    assignments: Sequence[Assignment], homes: Sequence[Tensor], key_of_name: KeyOfName
) -> None:
    """Fills parameters by parts: together, except recorded views, whose order matters."""
    together: list[tuple[Tensor, Part]] = []
    in_order: list[tuple[Tensor, Part]] = []
    for one, home in zip(assignments, homes, strict=True):
        parts = one.parts
        if one.draw is not None:
            parts = [Part(Region(one.named.name, tuple(home.shape)), DrawnValues(one.draw))]
        views = any(part.region.geometry is not None for part in parts)
        (in_order if views else together).extend((home, part) for part in parts)
    fill_parts(together, [_key(part, key_of_name) for _, part in together])
    for pair in in_order:
        fill_parts([pair], [_key(pair[1], key_of_name)])
    for one, home in zip(assignments, homes, strict=True):
        if one.parts and _may_leave_gaps(one):
            check_written(one.named.name, local_memory(home), one.rule)
        if one.pads and not _is_kept(one):
            shape = (1, *home.shape[1:])
            rows = [Region(one.named.name, shape, cuts=((0, row, 1),)) for row in one.pads]
            zero = DrawnValues(constant_draw(0.0))
            fill_parts([(home, Part(row, zero)) for row in rows], [0] * len(rows))


def _key(part: Part, key_of_name: KeyOfName) -> int:
    draw = part.values.draw
    return 0 if draw and draw[0] == CONSTANT else key_of_name(part.region.name)


def _run_callables(
    one: Assignment, device: torch.device, key_of_name: KeyOfName, ready: dict[str, Tensor]
) -> Assignment:
    """Runs the callables of one parameter; their results become values to copy."""
    if all(part.values.function is None for part in one.parts):
        return one
    parts: list[Part] = []
    wholes: dict[str, Tensor] = {}
    for part in one.parts:
        region, values = part
        if values.function is None:
            parts.append(part)
            continue
        made = wholes.get(region.name)
        if made is None:
            made = _call(one, region, values.function, device, key_of_name)
            wholes[region.name] = made
        if (
            made.shape == one.named.tensor.shape
            and one.named.tensor.is_meta
            and not is_dtensor(one.named.tensor)
            and len(one.parts) == 1
        ):
            ready[one.named.name] = made
        else:
            parts.append(Part(region, GivenValues(made)))
    return one._replace(parts=parts)


def _call(
    one: Assignment, region: Region, function: Callable[[Tensor], object],
    device: torch.device, key_of_name: KeyOfName,
) -> Tensor:  # fmt: skip
    """A part's logical tensor in scratch memory, filled by its callable."""
    name, tensor, *_ = one.named
    is_all = region.shape == tuple(tensor.shape) and region.offset is None
    before: Tensor | None = None
    if is_all and not tensor.is_meta and not is_dtensor(tensor):
        before = tensor.detach()
        scratch = before.clone()
    elif is_all:
        scratch = allocate(tensor, one.dtype, device if tensor.is_meta else tensor.device)
        mark_unwritten(scratch)
    else:
        where = device if tensor.is_meta else tensor.device
        scratch = torch.empty(region.shape, dtype=one.dtype, device=where)
        mark_unwritten(scratch)
    if not is_dtensor(tensor):
        scratch.__dict__.update(tensor.__dict__)
    kind, version = _kind(scratch), _version(scratch)
    try:
        run_callable(function, scratch, region.name, key_of_name)
    except Exception as error:
        raise ArgumentError(
            f"the rule {one.rule} raised {type(error).__name__} for parameter {name!r}: {error}"
        ) from error
    scratch = scratch.detach()
    by = f"the rule {one.rule}"
    if _kind(scratch) != kind:
        shape, dtype, where = _kind(scratch)
        raise ArgumentError(
            f"{by} turned parameter {name!r} into a tensor of shape {shape} and {dtype} on "
            f"{where}: it must fill its argument in place"
        )
    if before is None and (scratch.dtype.is_floating_point or count_unwritten(scratch)):
        check_written(name, scratch, by)
    elif _version(scratch) == version and (before is None or torch.equal(before, scratch)):
        raise ArgumentError(
            f"{by} wrote nothing to parameter {name!r}: it must fill its argument in place"
        )
    return scratch


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _version(tensor: Tensor) -> int:
    """A tensor's version counter; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version
