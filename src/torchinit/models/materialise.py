"""Allocates parameters and buffers of the meta device and attaches them to the model."""

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
    """Uninitialised memory of a meta tensor's shape and strides; of a DTensor, the full tensor."""
    if meta.is_contiguous():
        return torch.empty(meta.shape, dtype=dtype, device=device)
    return torch.empty_strided(meta.shape, meta.stride(), dtype=dtype, device=device)


def allocate_here(meta: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory for a meta tensor on this rank; of a DTensor, the local shard."""
    if is_dtensor(meta):
        return empty_sharded(meta, dtype, device)  # type: ignore[no-any-return]
    return allocate(meta, dtype, device)


def shard_like(value: Tensor, old: Tensor, device: torch.device) -> Tensor:
    """A full plain tensor, sharded like another tensor if that is a DTensor."""
    if not is_dtensor(old):
        return value
    sharded = read_sharded(new := empty_sharded(old, value.dtype, device))
    copy_pieces(value, sharded.local, sharded.pieces)
    return new  # type: ignore[no-any-return]


def parameter_like(old: Tensor, memory: Tensor) -> Parameter:
    """A parameter in new memory, with the attributes of an old one."""
    if is_dtensor(memory):
        new = Parameter(memory, old.requires_grad)
    else:
        new = make_parameter(Parameter, memory, old.requires_grad)
    if attributes := old.__dict__:
        new.__dict__.update(attributes)
    return new


def attach(named: Named, new: Parameter) -> None:
    """Replaces a parameter everywhere it is registered."""
    _, _, module, attribute, _, ties = named
    if type(module).__setattr__ is _set_attribute and not ties:
        module.__dict__["_parameters"][attribute] = new
    else:
        for place in named.slots:
            put_parameter(place, new)


def put_parameter(slot: Slot, parameter: Parameter) -> None:
    """Replaces the parameter registered in one slot."""
    if type(slot.module).__setattr__ is _set_attribute:
        slot.module._parameters[slot.attribute] = parameter
    else:  # recurrent layers also keep a list of their weights
        setattr(slot.module, slot.attribute, parameter)


def attach_buffer(named: Named, memory: Tensor) -> None:
    """Replaces a buffer everywhere it is registered."""
    memory = shard_like(memory, named.tensor, memory.device)
    if isinstance(named.tensor, Buffer):
        memory = Buffer(memory, persistent=named.tensor.persistent)
    elif type(named.tensor) is Parameter:
        memory = parameter_like(named.tensor, memory)
    memory.__dict__.update(named.tensor.__dict__)
    for slot in named.slots:
        slot.module._buffers[slot.attribute] = memory


def joined(parameters: Sequence[Named]) -> list[Named]:
    """Joins parameters that are the same elements of one storage into one with several names.

    ``load_state_dict(assign=True)`` splits tied parameters into such pairs.
    """
    if any(is_lazy(named.tensor) for named in parameters):
        return list(parameters)  # lazy ones have no storage
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
    """Raises ArgumentError for parameters that overlap in memory.

    One would overwrite the other. On the meta device it raises for any two views of one storage,
    which would become separate storages.
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
                f"parameters {some[0].name!r} and {some[1].name!r} are views of one storage on the "
                "meta device, and would be separated: build the model on another device, or make "
                "them one parameter"
            )
        dense = [one for one in some if _memory(one).layout is torch.strided]
        pair = overlapping([_memory(one) for one in dense])
        if pair is not None:
            one, other = (dense[number] for number in pair)
            raise ArgumentError(
                f"parameters {one.name!r} and {other.name!r} share memory, so that filling one "
                "overwrites the other: make them one parameter, or give each its own storage"
            )


def _memory(named: Named) -> Tensor:
    tensor: Tensor = named[1]
    return tensor if type(tensor) is Parameter else local_memory(tensor)


def target_device(device: Any, parameters: Sequence[Named]) -> torch.device:
    """The final device of meta parameters: the given one, that of the DTensors' mesh, or torch's.

    Raises:
        ArgumentError: if that is the meta device.
    """
    found = torch.get_default_device() if device is None else torch.device(device)
    if device is None:
        for _, tensor, *_ in parameters:
            if tensor.is_meta and is_dtensor(tensor):
                return device_of_mesh(tensor)
    if found.type == "meta":
        raise ArgumentError(
            f"device={device} is the meta device, where tensors have no values: "
            "give the model's final device, or leave the block of torch.device('meta')"
        )
    return found
