"""Allocates parameters and buffers of the meta device and attaches them to the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import Buffer, Parameter

from torchinit.fill.sharded import copy_pieces
from torchinit.native.torch_private import make_parameter
from torchinit.placement.distributed import (
    empty_sharded,
    is_dtensor,
    read_sharded,
)
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
