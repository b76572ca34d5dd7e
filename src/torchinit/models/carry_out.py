"""Carries out assignments: runs callables on scratch memory, fills, then attaches the tensors.

The model stays unchanged until the fills have succeeded, but for tensors filled in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, empty, nn
from torch.nn.parameter import Buffer, Parameter

from torchinit.errors import ArgumentError
from torchinit.fill import checks
from torchinit.fill.batch import without_batch
from torchinit.fill.door import fill_fresh
from torchinit.fill.route import is_native_memory
from torchinit.models.assign import Assignment
from torchinit.models.keyed import run_callable
from torchinit.native import kernels
from torchinit.native.torch_private import make_parameter, storage_number
from torchinit.placement.distributed import empty_sharded, is_dtensor, local_memory
from torchinit.progress import batches
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.canonical import Named, Slot
from torchinit.streams.named_keys import KeyOfName
from torchinit.tape.memory import check_written, count_unwritten, mark_unwritten
from torchinit.values.apply import fill_parts
from torchinit.values.kinds import GivenValues
from torchinit.values.region import Part, Region

_set_attribute = nn.Module.__setattr__


@without_batch()
def carry_out(
    assignments: Sequence[Assignment], device: torch.device, key_of_name: KeyOfName
) -> list[Tensor]:
    """Fills parameters and buffers, allocating memory for those on the meta device.

    An open ``batch()`` collects none of these fills, since their values are read at once.

    Args:
        assignments: one for each tensor.
        device: the final device of tensors on the meta device.
        key_of_name: maps names to keys under the seed.

    Returns:
        The tensors that the model should have now.
    """
    plain: list[Assignment] = []  # on the meta device and filled by one draw
    others: list[Assignment] = []
    for one in assignments:
        (plain if one[3] else others).append(one)
    for one in others:
        _check_target(one)
    ready = [_with_memory(one, device, key_of_name) for one in others]
    fresh = _fill_plain(plain, device, key_of_name)
    _fill_others(ready, key_of_name)
    for one, parameter in zip(plain, fresh, strict=True):
        _, _, module, attribute, _, ties = one[0]
        if type(module).__setattr__ is _set_attribute and not ties:
            module.__dict__["_parameters"][attribute] = parameter
        else:
            for slot in one[0].slots:
                put_parameter(slot, parameter)
    done: list[Tensor] = [*fresh]
    for one, home in ready:
        old = one.named.tensor
        if old.is_meta:
            done.append(attach(one.named, home))
            continue
        done += [slot.tensor for slot in one.named.slots] if one.named.ties else [old]
        if home is not old:
            with torch.no_grad():
                local_memory(old).copy_(local_memory(home))
            kernels.count_write(old)
    return done


@without_batch()
def whole_of(one: Assignment, device: torch.device, key_of_name: KeyOfName) -> Tensor:
    """Fills one full tensor in new memory, as ``carry_out`` does; the model stays unchanged.

    Args:
        one: the assignment of a plain tensor on the meta device.
        device, key_of_name: as ``carry_out``.
    """
    ready = _with_memory(one, device, key_of_name)
    _fill_others([ready], key_of_name)
    return ready[1]


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
            data, whole = _allocate(meta, dtype, device), False
        new = make_parameter(Parameter, data, meta.requires_grad)
        if attributes := meta.__dict__:
            new.__dict__.update(attributes)
        memory.append(new)
        draws.append(draw)  # type: ignore[arg-type]
        keys.append(0 if draw[0] == CONSTANT else key_of_name(name))  # type: ignore[index]
    for some in batches("init_model_", memory):
        if not (whole and fill_fresh(draws[some], memory[some], keys[some])):
            pairs = zip(memory[some], assignments[some], strict=True)
            fill_parts([(home, one.all_parts[0]) for home, one in pairs], keys[some])
    return memory


def _check_target(one: Assignment) -> None:
    """Raises ArgumentError for a parameter whose memory is not writable."""
    tensor = one.named.tensor
    if tensor.is_meta or _is_kept(one):
        return
    memory = local_memory(tensor)
    if not is_native_memory(memory):
        return
    try:
        checks.check_target(memory)
    except ArgumentError as error:
        raise ArgumentError(f"{_what(one)}: {error}") from None


def _what(one: Assignment) -> str:
    return f"{'buffer' if is_buffer(one.named) else 'parameter'} {one.named.name!r}"


def _is_kept(one: Assignment) -> bool:
    return one.draw is None and any(part.values.keeps for part in one.parts)


def _with_memory(
    one: Assignment, device: torch.device, key_of_name: KeyOfName
) -> tuple[Assignment, Tensor]:
    """Runs callables, and finds the tensor to fill: a new one, or the parameter itself."""
    tensor = one.named.tensor
    if one.draw is None and any(part.values.function is not None for part in one.parts):
        one = run_callables(one, device, key_of_name)
        made = one.parts[0].values
        if (
            len(one.parts) == 1 and isinstance(made, GivenValues)
            and tensor.is_meta and not is_dtensor(tensor) and made.tensor.shape == tensor.shape
        ):  # fmt: skip
            return one._replace(parts=()), made.tensor
    home = allocate_here(tensor, one.dtype, device) if tensor.is_meta else tensor
    if _may_leave_gaps(one):
        if not tensor.is_meta:
            home = allocate_here(tensor, tensor.dtype, tensor.device)
        mark_unwritten(local_memory(home))
    return one, home


def _may_leave_gaps(one: Assignment) -> bool:
    """Whether the parts are recorded views that may not cover the parameter."""
    geometry = one.parts[0].region.geometry if one.parts else None
    return geometry is not None and torch.Size(geometry[0]).numel() < one.named.tensor.numel()


@torch.no_grad()
def _fill_others(ready: Sequence[tuple[Assignment, Tensor]], key_of_name: KeyOfName) -> None:
    """Fills tensors by parts: together, except recorded views, whose order matters."""
    together: list[tuple[Tensor, Part]] = []
    in_order: list[tuple[Tensor, Part]] = []
    for one, home in ready:
        parts = one.all_parts
        views = one.draw is None and any(part.region.geometry is not None for part in parts)
        (in_order if views else together).extend((home, part) for part in parts)
    fill_parts(together, [part.key(key_of_name) for _, part in together])
    for home, part in in_order:
        fill_parts([(home, part)], [part.key(key_of_name)])
    for one, home in ready:
        if _may_leave_gaps(one):
            check_written(one.named.name, local_memory(home), one.rule)
        if one.pads and not _is_kept(one):
            fill_parts([(home, part) for part in one.pad_parts], [0] * len(one.pads))


# Callables.


def run_callables(one: Assignment, device: torch.device, key_of_name: KeyOfName) -> Assignment:
    """Runs the callables of one parameter; their results become values to copy."""
    parts: list[Part] = []
    wholes: dict[str, Tensor] = {}
    for part in one.parts:
        region, values = part
        if values.function is not None:
            if region.name not in wholes:
                wholes[region.name] = _call(one, region, values.function, device, key_of_name)
            part = Part(region, GivenValues(wholes[region.name]))
        parts.append(part)
    return one._replace(parts=parts)


def _call(
    one: Assignment, region: Region, function: Callable[[Tensor], object],
    device: torch.device, key_of_name: KeyOfName,
) -> Tensor:  # fmt: skip
    """A part's logical tensor in scratch memory, filled by its callable."""
    name, tensor, *_ = one.named
    where = device if tensor.is_meta else tensor.device
    is_all = region.shape == tuple(tensor.shape) and region.offset is None
    before: Tensor | None = None
    if is_all and not tensor.is_meta and not is_dtensor(tensor):
        before = tensor.detach()
        scratch = before.clone()
    else:
        scratch = (
            _allocate(tensor, one.dtype, where) if is_all
            else torch.empty(region.shape, dtype=one.dtype, device=where)
        )  # fmt: skip
        mark_unwritten(scratch)
    if not is_dtensor(tensor):
        scratch.__dict__.update(tensor.__dict__)
    kind, version, storage = _kind(scratch), _version(scratch), storage_number(scratch)
    try:
        run_callable(function, scratch, region.name, key_of_name)
    except Exception as error:
        raise ArgumentError(
            f"the rule {one.rule} raised {type(error).__name__} for {_what(one)}: {error}"
        ) from error
    scratch = scratch.detach()
    if storage_number(scratch) != storage:  # it may be in use elsewhere
        scratch = scratch.clone()
    by = f"the rule {one.rule}"
    if _kind(scratch) != kind:
        shape, dtype, where = _kind(scratch)
        raise ArgumentError(
            f"{by} turned {_what(one)} into a tensor of shape {shape} and {dtype} on "
            f"{where}: it must fill its argument in place"
        )
    if before is None and (scratch.dtype.is_floating_point or count_unwritten(scratch)):
        check_written(name, scratch, by)
    elif _version(scratch) == version and (before is None or torch.equal(before, scratch)):
        raise ArgumentError(
            f"{by} wrote nothing to {_what(one)}: it must fill its argument in place"
        )
    return scratch


def _kind(tensor: Tensor) -> tuple[tuple[int, ...], torch.dtype, torch.device]:
    return tuple(tensor.shape), tensor.dtype, tensor.device


def _version(tensor: Tensor) -> int:
    """A tensor's version counter; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


# Memory, and where it is registered.


def _allocate(meta: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory of a meta tensor's shape and strides; of a DTensor, the full tensor."""
    is_expanded_buffer = 0 in meta.stride() and not isinstance(meta, Parameter)
    if meta.is_contiguous() or is_expanded_buffer:
        return torch.empty(meta.shape, dtype=dtype, device=device)
    return torch.empty_strided(meta.shape, meta.stride(), dtype=dtype, device=device)


def allocate_here(meta: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory for a meta tensor on this rank; of a DTensor, the local shard."""
    if is_dtensor(meta):
        return empty_sharded(meta, dtype, device)  # type: ignore[no-any-return]
    return _allocate(meta, dtype, device)


def is_buffer(named: Named) -> bool:
    """Whether a tensor is registered as a buffer, which a Parameter may be too."""
    return named.attribute in named.module.__dict__.get("_buffers", ())


def attach(named: Named, memory: Tensor) -> Tensor:
    """Replaces a tensor everywhere it is registered by memory that takes its attributes."""
    old = named.tensor
    if not is_buffer(named):
        memory = new = _parameter_like(old, memory)
        for slot in named.slots:
            put_parameter(slot, new)
        return new
    if isinstance(old, Buffer):
        memory = Buffer(memory, persistent=old.persistent)
    elif type(old) is Parameter:
        memory = _parameter_like(old, memory)
    memory.__dict__.update(old.__dict__)
    for slot in named.slots:
        slot.module._buffers[slot.attribute] = memory
    return memory


def put_parameter(slot: Slot, parameter: Parameter) -> None:
    """Replaces the parameter registered in one slot."""
    if type(slot.module).__setattr__ is _set_attribute:
        slot.module._parameters[slot.attribute] = parameter
    else:  # recurrent layers also keep a list of their weights
        setattr(slot.module, slot.attribute, parameter)


def _parameter_like(old: Tensor, memory: Tensor) -> Parameter:
    """A parameter in new memory, with the attributes of an old one."""
    if type(memory) is not Tensor:
        new = Parameter(memory, old.requires_grad)
    else:
        new = make_parameter(Parameter, memory, old.requires_grad)
    # A subclass keeps its tensors there, of which new has its own.
    new.__dict__.update(old.__dict__ | new.__dict__)
    return new
