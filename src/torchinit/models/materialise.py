"""Memory for parameters and buffers that are on the meta device, and their places in the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import Buffer, Parameter, is_lazy

from torchinit.errors import ArgumentError
from torchinit.fill.sharded import copy_pieces
from torchinit.native.torch_private import make_parameter, storage_number
from torchinit.placement.distributed import (
    device_of_mesh,
    empty_sharded,
    is_dtensor,
    local_memory,
    read_sharded,
)
from torchinit.placement.overlap import overlapping
from torchinit.streams.canonical import Named, Slot

_set_attribute = nn.Module.__setattr__


def allocate(meta: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory of a meta tensor's shape and strides; of a DTensor's, all of it."""
    if meta.is_contiguous():
        return torch.empty(meta.shape, dtype=dtype, device=device)
    return torch.empty_strided(meta.shape, meta.stride(), dtype=dtype, device=device)


def allocate_here(meta: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory of what of a meta tensor is to lie here: of a DTensor, its shard."""
    if is_dtensor(meta):
        return empty_sharded(meta, dtype, device)  # type: ignore[no-any-return]
    return allocate(meta, dtype, device)


def shard_like(value: Tensor, old: Tensor, device: torch.device) -> Tensor:
    """What of a whole plain tensor lies here of another one, which may be a DTensor."""
    if not is_dtensor(old):
        return value
    sharded = read_sharded(new := empty_sharded(old, value.dtype, device))
    copy_pieces(value, sharded.local, sharded.pieces)
    return new  # type: ignore[no-any-return]


def parameter_like(old: Tensor, memory: Tensor) -> Parameter:
    """A parameter in new memory with everything else of an old one."""
    if is_dtensor(memory):
        new = Parameter(memory, old.requires_grad)
    else:
        new = make_parameter(Parameter, memory, old.requires_grad)
    if attributes := old.__dict__:
        new.__dict__.update(attributes)
    return new


def attach(named: Named, new: Parameter) -> None:
    """Puts a parameter in place of another, everywhere that it is registered."""
    _, _, module, attribute, _, ties = named
    if type(module).__setattr__ is _set_attribute and not ties:
        module.__dict__["_parameters"][attribute] = new
    else:
        for place in named.slots:
            put_parameter(place, new)


def put_parameter(slot: Slot, parameter: Parameter) -> None:
    """Registers a parameter in place of another."""
    if type(slot.module).__setattr__ is _set_attribute:
        slot.module._parameters[slot.attribute] = parameter
    else:  # recurrent layers keep a list of their weights besides
        setattr(slot.module, slot.attribute, parameter)


def attach_buffer(named: Named, memory: Tensor) -> None:
    """Puts memory in place of a buffer, everywhere that it is registered."""
    memory = shard_like(memory, named.tensor, memory.device)
    if isinstance(named.tensor, Buffer):
        memory = Buffer(memory, persistent=named.tensor.persistent)
    elif type(named.tensor) is Parameter:
        memory = parameter_like(named.tensor, memory)
    memory.__dict__.update(named.tensor.__dict__)
    for slot in named.slots:
        slot.module._buffers[slot.attribute] = memory


def joined(parameters: Sequence[Named]) -> list[Named]:
    """Parameters, those that are the same elements of one memory as one that has several names.

    ``load_state_dict(assign=True)`` makes such pairs of what is tied.
    """
    if any(is_lazy(named.tensor) for named in parameters):
        return list(parameters)  # without memory
    numbers = list(map(storage_number, map(_memory, parameters)))
    if len(set(numbers)) == len(numbers):
        return list(parameters)
    found: dict[Any, Named] = {}
    for number, named in zip(numbers, parameters, strict=True):
        memory = _memory(named)
        place: Any = (number, memory.shape, memory.stride(), memory.storage_offset(), memory.dtype)
        if memory.layout is not torch.strided or not memory.numel():
            place = id(named.tensor)
        first = found.get(place)
        if first is None:
            found[place] = named
        else:
            ties = (*first.slots, *named.slots)
            found[place] = first._replace(name=min(slot.name for slot in ties), ties=ties)
    return list(found.values())


def check_apart(parameters: Sequence[Named]) -> None:
    """Raises ArgumentError for parameters that have elements of memory in common.

    Values of one would be lost. On the meta device it raises for all views of one storage: they
    would become separate, and what was one memory two.
    """
    numbers = list(map(storage_number, map(_memory, parameters)))
    if len(set(numbers)) == len(numbers):
        return
    by_storage: dict[int, list[Named]] = {}
    for number, named in zip(numbers, parameters, strict=True):
        by_storage.setdefault(number, []).append(named)
    for some in by_storage.values():
        if len(some) == 1:
            continue
        if some[0].tensor.is_meta:
            raise ArgumentError(
                f"parameters {some[0].name!r} and {some[1].name!r} are views of one memory on the "
                "meta device, and would no longer be: build the model on a device, or make one "
                "parameter of both"
            )
        dense = [one for one in some if _memory(one).layout is torch.strided]
        pair = overlapping([_memory(one) for one in dense])
        if pair is not None:
            one, other = (dense[number] for number in pair)
            raise ArgumentError(
                f"parameters {one.name!r} and {other.name!r} lie in one memory, and the values of "
                "one would be lost: make them one parameter, or give each memory of its own"
            )


def _memory(named: Named) -> Tensor:
    tensor: Tensor = named[1]
    return tensor if type(tensor) is Parameter else local_memory(tensor)


def target_device(device: Any, parameters: Sequence[Named]) -> torch.device:
    """Where meta parameters go: where they are asked to, or the mesh of DTensors is.

    Raises:
        ArgumentError: for the meta device, asked for or by default.
    """
    found = torch.get_default_device() if device is None else torch.device(device)
    if device is None:
        for _, tensor, *_ in parameters:
            if tensor.is_meta and is_dtensor(tensor):
                return device_of_mesh(tensor)
    if found.type == "meta":
        raise ArgumentError(
            f"device={device} is the meta device, where nothing has values: "
            "give the device that the model is to lie on, or leave torch.device('meta')"
        )
    return found
