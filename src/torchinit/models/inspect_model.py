"""The parameters and buffers of a model, inspected once: which, of what kind, and where they go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter, is_lazy

from torchinit.errors import ArgumentError, counted
from torchinit.frameworks.offload import offloaded, partitioned
from torchinit.frameworks.transformers import declared_ties
from torchinit.native.torch_private import storage_number
from torchinit.placement.distributed import (
    Survey,
    check_placement,
    local_memory,
    reshard_all,
    survey,
)
from torchinit.placement.overlap import overlapping
from torchinit.rules.globs import glob_matcher
from torchinit.streams.canonical import Gathered, Named, Rename, gather
from torchinit.untrusted import first_names

# Names or globs of the tensors to fill; None means all.
Only: TypeAlias = "str | Sequence[str] | None"


class BrokenTie(NamedTuple):
    """Two parameters that a model declares as tied, but that are separate tensors.

    Tensor parallelism, ``fully_shard`` of only one of the modules, and ``to_empty`` break ties
    silently, and the copies would get different values.
    """

    names: tuple[str, str]
    tensors: tuple[Tensor, Tensor]


class Inspected(NamedTuple):
    """What there is in a model.

    Attributes:
        parameters, buffers: those to fill.
        all_parameters, all_buffers: all of the model's.
        broken_ties: those that ``rename`` does not join.
        device: the final device of tensors on the meta device.
    """

    parameters: list[Named]
    buffers: list[Named]
    all_parameters: list[Named]
    all_buffers: list[Named]
    broken_ties: list[BrokenTie]
    device: torch.device


def inspect_model(
    model: nn.Module,
    device: torch.device | str | int | None = None,
    dtype: torch.dtype | None = None,
    rename: Rename = None,
    only: Only = None,
) -> Inspected:
    """Finds the tensors of a model, and checks that they can be filled.

    Args:
        model, device, dtype, rename, only: as for ``init_model_``.

    Raises:
        ArgumentError, TypeError: as ``init_model_``.
    """
    check_dtype(dtype)
    gathered = _gathered(model, rename)
    placed = survey([named.tensor for named in gathered.parameters])
    all_parameters, shared = _joined(gathered.parameters, placed.memories)
    parameters, buffers = all_parameters, gathered.buffers
    if only is not None:
        parameters, buffers = _chosen(model, parameters, buffers, only)
    _check_in_place(model, parameters, buffers)
    _check_kinds(parameters, placed)
    _check_apart(shared, parameters)
    final = torch.device("cpu")
    if any(named.tensor.is_meta for named in (*parameters, *buffers)):
        final = _target_device(device, parameters, placed)
    declared = dict(declared_ties(model, may_be_inside=bool(placed.devices)))
    ties = _broken_ties(declared, gathered, all_parameters)
    return Inspected(parameters, buffers, all_parameters, gathered.buffers, ties, final)


def local_parameters(
    model: nn.Module,
    rename: Rename = None,
    memory_of: Callable[[Any], Tensor] = local_memory,
) -> list[Named]:
    """The parameters of a model whose shards are plain tensors, checked as ``inspect_model`` does.

    Args:
        model, rename: as for ``init_model_``.
        memory_of: returns what this rank holds of a parameter.

    Raises:
        ArgumentError, TypeError: as ``init_model_``.
    """
    parameters = _gathered(model, rename).parameters
    _check_kinds(parameters, survey([named.tensor for named in parameters]))
    joined, shared = _joined(parameters, [memory_of(named.tensor) for named in parameters])
    _check_apart(shared, joined)
    return joined


def _gathered(model: nn.Module, rename: Rename) -> Gathered:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    reshard_all(model)
    return gather(model, rename)


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raises TypeError or ArgumentError unless dtype is None or a floating-point dtype."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"dtype={dtype!r} must be a torch.dtype, not {type(dtype).__name__}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype={dtype} must be a floating-point dtype")


def _broken_ties(
    declared: Mapping[str, str], gathered: Gathered, joined: Sequence[Named]
) -> list[BrokenTie]:
    """The ties between two tensors, by canonical names, that rename does not join."""
    if not declared:
        return []
    names = {
        slot.name: (id(slot.module), slot.attribute)
        for named in gathered.canonical for slot in named.slots
    }  # fmt: skip
    now = {
        (id(slot.module), slot.attribute): (slot.name, named.tensor)
        for named in joined for slot in named.slots
    }  # fmt: skip
    found = []
    for one, other in map(sorted, declared.items()):
        if one in names and other in names:
            (first, tensor), (second, twin) = now[names[one]], now[names[other]]
            if tensor is not twin and first != second:
                found.append(BrokenTie((one, other), (tensor, twin)))
    return found


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
    patterns = {glob: glob_matcher(glob) for glob in globs}
    unused = set(globs)
    for group, kept in zip((parameters, buffers), found, strict=True):
        for named in group:
            said = (*(slot.name for slot in named.slots), *names[id(named.tensor)])
            matching = {
                glob for glob, pattern in patterns.items()
                if any(map(pattern, said))
            }  # fmt: skip
            unused -= matching
            if matching:
                kept.append(named)
    if unused or not globs:
        what = first_names(sorted(unused)) if unused else repr(only)
        raise ArgumentError(f"only: {what} matches no parameter or buffer of the model")
    return found


def _check_in_place(
    model: nn.Module, parameters: Sequence[Named], buffers: Sequence[Named]
) -> None:
    """Raises ArgumentError for tensors whose values are kept elsewhere than in the model."""
    modules = set(map(id, offloaded(model)))
    if modules:
        names = [
            named.name for named in (*parameters, *buffers)
            if any(id(slot.module) in modules for slot in named.slots)
        ]  # fmt: skip
        if names:
            raise ArgumentError(
                f"Accelerate offloads {counted(len(names), 'tensor')}, and would overwrite what is "
                f"filled in: {first_names(names)}. Initialise the model before cpu_offload, "
                "disk_offload or dispatch_model, or first call "
                "accelerate.hooks.remove_hook_from_submodules"
            )
    apart = set(map(id, partitioned(named.tensor for named in parameters)))
    if apart:
        names = [named.name for named in parameters if id(named.tensor) in apart]
        raise ArgumentError(
            f"DeepSpeed has partitioned {counted(len(names), 'parameter')}, with values outside "
            f"the model: {first_names(names)}. Call init_model_ in a block of "
            "deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0)"
        )


def _check_kinds(parameters: Sequence[Named], placed: Survey) -> None:
    """Raises ArgumentError for lazy parameters and for shards whose placement is unsupported."""
    for name, tensor, *_ in parameters:
        if type(tensor) is Parameter and not placed.may_be_flat:
            continue
        if is_lazy(tensor):
            raise ArgumentError(
                f"parameter {name!r} is lazy and has no shape yet: first call the model once, or "
                "call initialize_parameters of its module"
            )
        try:
            check_placement(tensor)
        except ArgumentError as error:
            raise ArgumentError(f"parameter {name!r}: {error}") from None


class _Shared(NamedTuple):
    """Different tensors that share a storage: their names, and their memory on this rank."""

    group: list[Named]
    memories: list[Tensor]


def _joined(
    parameters: Sequence[Named], memories: Sequence[Tensor]
) -> tuple[list[Named], list[_Shared]]:
    """Joins parameters that are the same elements of one storage into one with several names.

    ``load_state_dict(assign=True)`` splits tied parameters into such pairs. The second result is
    the other parameters that share a storage.
    """
    if any(is_lazy(named.tensor) for named in parameters):
        return list(parameters), []  # lazy ones have no storage
    numbers = list(map(storage_number, memories))
    if len(set(numbers)) == len(numbers):
        return list(parameters), []
    found: dict[Any, Named] = {}
    by_storage: dict[int, dict[Any, Tensor]] = {}
    for number, named, memory in zip(numbers, parameters, memories, strict=True):
        place: Any = (number, memory.shape, memory.stride(), memory.storage_offset(), memory.dtype)
        if memory.layout is not torch.strided or not memory.numel():
            place = id(named.tensor)
        first = found.get(place)
        if first is None:
            found[place] = named
            by_storage.setdefault(number, {})[place] = memory
        else:
            ties = (*first.slots, *named.slots)
            found[place] = first._replace(name=min(first.name, named.name), ties=ties)
    shared = [
        _Shared([found[place] for place in places], list(places.values()))
        for places in by_storage.values() if len(places) > 1
    ]  # fmt: skip
    return list(found.values()), shared


def _check_apart(shared: Sequence[_Shared], wanted: Sequence[Named]) -> None:
    """Raises ArgumentError if a parameter to fill overlaps another one in memory.

    One would overwrite the other. On the meta device it raises for any two views of one storage,
    which would become separate storages.
    """
    names = {named.name for named in wanted}
    for one in shared:
        if names.isdisjoint(named.name for named in one.group):
            continue
        first, second = one.group[:2]
        if first.tensor.is_meta:
            raise ArgumentError(
                f"parameters {first.name!r} and {second.name!r} are views of one storage on "
                "the meta device, and would be separated: build the model on another device, or "
                "make them one parameter"
            )
        _check_shared(one, names)


def check_buffers_apart(parameters: Sequence[Named], buffers: Sequence[Named]) -> None:
    """Raises ArgumentError if a buffer to fill, in memory, overlaps another tensor to fill."""
    here = [named for named in buffers if not named.tensor.is_meta]
    if not here:
        return
    everything = [*here, *parameters]
    memories = survey([named.tensor for named in everything]).memories
    by_storage: dict[int, _Shared] = {}
    for number, (named, memory) in enumerate(zip(everything, memories, strict=True)):
        storage = storage_number(memory)
        if number < len(here) or storage in by_storage:
            one = by_storage.setdefault(storage, _Shared([], []))
            one.group.append(named)
            one.memories.append(memory)
    names = {named.name for named in buffers}
    for one in by_storage.values():
        _check_shared(one, names)


def _check_shared(shared: _Shared, names: Set[str]) -> None:
    """Raises ArgumentError if a tensor of these names overlaps another one of its storage."""
    dense = [
        (named, memory) for named, memory in zip(*shared, strict=True)
        if memory.layout is torch.strided
    ]  # fmt: skip
    while pair := overlapping([memory for _, memory in dense]):
        one, other = (dense[number][0] for number in pair)
        if one.name in names or other.name in names:
            raise ArgumentError(
                f"{one.name!r} and {other.name!r} share memory, so that filling one overwrites "
                "the other: make them one parameter, or give each its own storage"
            )
        del dense[pair[1]]


def _target_device(device: Any, parameters: Sequence[Named], placed: Survey) -> torch.device:
    """The final device of meta parameters: the given one, that of the DTensors' mesh, or torch's.

    Raises:
        ArgumentError: if that is the meta device.
    """
    found = torch.get_default_device() if device is None else torch.device(device)
    if device is None and placed.devices:
        for _, tensor, *_ in parameters:
            if tensor.is_meta and id(tensor) in placed.devices:
                return placed.devices[id(tensor)]
    if found.type == "meta":
        raise ArgumentError(
            f"device={device} is the meta device, where tensors have no values: "
            "give the model's final device, or leave the block of torch.device('meta')"
        )
    return found
