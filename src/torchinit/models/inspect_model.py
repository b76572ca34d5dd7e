"""The parameters and buffers of a model, inspected once: which, of what kind, and where they go."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from torchinit.errors import ArgumentError
from torchinit.models.assign import some
from torchinit.native.torch_private import storage_number
from torchinit.placement.distributed import (
    check_no_flat_piece,
    device_of_mesh,
    has_fsdp,
    is_dtensor,
    local_memory,
    read_sharded,
    reshard_all,
)
from torchinit.placement.overlap import overlapping
from torchinit.rules.rules import translate
from torchinit.streams.canonical import Named, Rename, gather

# Names or globs of the tensors to fill; None means all.
Only: TypeAlias = "str | Sequence[str] | None"


class Inspected(NamedTuple):
    """What there is in a model.

    Attributes:
        parameters, buffers: those to fill.
        all_parameters, all_buffers: all of the model's.
        device: the final device of tensors on the meta device.
    """

    parameters: list[Named]
    buffers: list[Named]
    all_parameters: list[Named]
    all_buffers: list[Named]
    device: torch.device


def inspect_model(
    model: nn.Module, device: Any = None, rename: Rename = None, only: Only = None
) -> Inspected:
    """Finds the tensors of a model, and checks that they can be filled.

    Args:
        model, device, rename, only: as for ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_``.
    """
    check_model(model)
    reshard_all(model)
    found, all_buffers = gather(model, rename)
    all_parameters = joined(found)
    parameters, buffers = all_parameters, all_buffers
    if only is not None:
        parameters, buffers = _chosen(model, parameters, buffers, only)
    _check_kinds(parameters)
    _check_apart(parameters)
    final = torch.device("cpu")
    if any(named.tensor.is_meta for named in (*parameters, *buffers)):
        final = _target_device(device, parameters)
    return Inspected(parameters, buffers, all_parameters, all_buffers, final)


def check_model(model: object) -> None:
    """Raises TypeError unless model is a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")


def _chosen(
    model: nn.Module, parameters: Sequence[Named], buffers: Sequence[Named], only: Only
) -> tuple[list[Named], list[Named]]:
    """The tensors whose canonical name or ``state_dict`` FQN matches a glob.

    Raises:
        TypeError: if only is neither a string nor strings.
        ArgumentError: for a glob that matches nothing.
    """
    globs = [only] if isinstance(only, str) else only
    if not isinstance(globs, Iterable) or not all(isinstance(glob, str) for glob in globs):
        raise TypeError(f"only={only!r} must be names or globs: a string or a list of strings")
    globs = list(globs)
    names: dict[int, list[str]] = {}
    for register in (model.named_parameters, model.named_buffers):
        for name, tensor in register(remove_duplicate=False):
            names.setdefault(id(tensor), []).append(name)
    found: tuple[list[Named], list[Named]] = [], []
    patterns = {glob: re.compile(translate(glob), re.DOTALL) for glob in globs}
    unused = set(globs)
    for group, kept in zip((parameters, buffers), found, strict=True):
        for named in group:
            said = (*(slot.name for slot in named.slots), *names[id(named.tensor)])
            matching = {
                glob for glob, pattern in patterns.items()
                if any(map(pattern.fullmatch, said))
            }  # fmt: skip
            unused -= matching
            if matching:
                kept.append(named)
    if unused or not globs:
        what = some(sorted(unused)) if unused else repr(only)
        raise ArgumentError(f"only: {what} matches no parameter or buffer of the model")
    return found


def _check_kinds(parameters: Sequence[Named]) -> None:
    """Raises ArgumentError for lazy parameters and for shards whose placement is unsupported."""
    may_be_flat = has_fsdp()
    for name, tensor, *_ in parameters:
        if type(tensor) is Parameter and not may_be_flat:
            continue
        if is_lazy(tensor):
            raise ArgumentError(
                f"parameter {name!r} is lazy and has no shape yet: first call the model once, or "
                "call initialize_parameters of its module"
            )
        try:
            check_no_flat_piece(tensor)
            if is_dtensor(tensor):
                read_sharded(tensor)
        except ArgumentError as error:
            raise ArgumentError(f"parameter {name!r}: {error}") from None


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


def _check_apart(parameters: Sequence[Named]) -> None:
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
    for group in by_storage.values():
        if len(group) == 1:
            continue
        if group[0].tensor.is_meta:
            raise ArgumentError(
                f"parameters {group[0].name!r} and {group[1].name!r} are views of one storage on "
                "the meta device, and would be separated: build the model on another device, or "
                "make them one parameter"
            )
        dense = [one for one in group if _memory(one).layout is torch.strided]
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


def _target_device(device: Any, parameters: Sequence[Named]) -> torch.device:
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
