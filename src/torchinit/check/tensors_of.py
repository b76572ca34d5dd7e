"""The tensors of a model, by name, and the plain memory under each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.errors import ArgumentError
from torchinit.fill.checks import extent
from torchinit.fill.route import PLAIN_TYPES
from torchinit.frameworks.offload import partitioned
from torchinit.native import kernels
from torchinit.native.torch_private import FakeTensor, is_wrapped, unseen
from torchinit.placement.distributed import is_dtensor, local_of, read_sharded
from torchinit.placement.mesh import ShardPiece
from torchinit.streams.canonical import Named, gather, is_saved, new_tuple, places_of

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOLDERS = (Tensor, list, tuple, dict)


class PlainPart(NamedTuple):
    """Plain memory under a tensor.

    Attributes:
        suffix: what to add to the tensor's name.
        memory: a plain strided tensor; of complex numbers, their real parts and imaginary parts in
            a last dimension. None if there is none, or none that can be reached.
        lacks: why it is None: ``on meta``, ``no memory`` or ``cannot tell``.
        shape: of the whole tensor.
        pieces: of the DTensor whose local tensor it is; None for others.
        dtype: of the tensor.
    """

    suffix: str
    memory: Tensor | None
    lacks: str
    shape: tuple[int, ...]
    pieces: Sequence[ShardPiece] | None
    dtype: torch.dtype


class Held(NamedTuple):
    """A tensor of a model.

    Attributes:
        names: canonical names, parameters and buffers before attributes.
        kind: as in a row of ``Uninitialized``.
        tensor: of any type.
        parts: the plain memory under it.
    """

    names: list[str]
    kind: str
    tensor: Tensor
    parts: list[PlainPart]


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """A block in which torch works on memory as it is: no mode, subclass or gradient sees it."""
    with unseen(), _disable_current_modes(), kernels.serial_if_forked(), torch.no_grad():
        yield


def tensors_of(model: nn.Module) -> list[Held]:
    """The parameters and buffers of a model, and tensors in attributes and in lists and dicts.

    What lies in the same place of memory with the same shape is one tensor of several names.
    """
    found: dict[Any, Held] = {}

    def add(names: list[str], kind: str, tensor: Tensor) -> None:
        parts = parts_of(tensor)
        place = _place(tensor, parts)
        if place in found:
            found[place].names.extend(names)
        else:
            found[place] = new_tuple(Held, (names, kind, tensor, parts))

    with plainly():
        parameters, buffers, _ = gather(model)
        for named in parameters:
            add(_names_of(named), "parameter", named.tensor)
        for named in buffers:
            kind = "buffer" if is_saved(named) else "buffer, not saved"
            add(_names_of(named), kind, named.tensor)
        seen: set[int] = set()
        taken: set[str] = set()
        for prefix, module in places_of(model):
            own = vars(module)
            if id(module) in seen or own.keys() <= _OF_EVERY_MODULE:
                continue
            seen.add(id(module))
            for attribute, value in list(own.items()):
                if attribute not in _OF_EVERY_MODULE and isinstance(value, _HOLDERS):
                    for name, tensor in _inside(prefix + attribute, value):
                        while name in taken:  # of two keys with the same text
                            name += "'"
                        taken.add(name)
                        add([name], "attribute", tensor)
    return list(found.values())


def count_of(tensors: Sequence[Held]) -> int:
    """How many tensors there are, of subclasses their parts, as each has rows of its own."""
    return sum(len(one.parts) or 1 for one in tensors)


def _names_of(named: Named) -> list[str]:
    """Its names, the smallest first."""
    if not named.ties:
        return [named.name]
    return list(dict.fromkeys([named.name, *(slot.name for slot in named.ties)]))


def _inside(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in an attribute, however deep in lists, tuples and dicts."""
    todo = [(name, value)]
    seen: set[int] = set()
    while todo:
        name, value = todo.pop()
        if isinstance(value, Tensor):
            yield name, value
        elif id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            inside = [(key, inner) for key, inner in items if isinstance(inner, _HOLDERS)]
            todo += [(f"{name}.{key}", inner) for key, inner in reversed(inside)]


def _place(tensor: Tensor, parts: Sequence[PlainPart]) -> Any:
    """What two names of one tensor have in common."""
    if len(parts) == 1 and (memory := parts[0].memory) is not None:
        return memory.data_ptr(), memory.shape, memory.stride(), memory.dtype
    return id(tensor)


def parts_of(tensor: Any) -> list[PlainPart]:
    """The plain memory under a tensor: of a DTensor its shard, of a quantised one all its parts."""
    if (
        type(tensor) in PLAIN_TYPES
        and tensor.numel()
        and _is_reachable(tensor)
        and _has_memory(tensor)
    ):
        shape, dtype = tuple(tensor.shape), tensor.dtype
        part = ("", _real(tensor.detach()), "", shape, None, dtype)
        return [new_tuple(PlainPart, part)]
    return list(_parts(tensor, "", None))


def _parts(
    tensor: Any, suffix: str, of: tuple[tuple[int, ...], Sequence[ShardPiece]] | None
) -> Iterator[PlainPart]:
    if is_lazy(tensor):
        yield PlainPart(suffix, None, "no memory", (), None, tensor.dtype)
        return
    if not tensor.numel():
        for one in partitioned([tensor]):
            yield PlainPart(suffix, None, "cannot tell", tuple(one.shape), None, one.dtype)
        return
    shape, pieces = of or (() if _is_ragged(tensor) else tuple(tensor.shape), None)
    lacks = ""
    if type(tensor) not in PLAIN_TYPES:
        if is_dtensor(tensor):
            yield from _parts(local_of(tensor), suffix, _whole(tensor))
            return
        if names := _inner_names(tensor):
            for name in names:
                inner = getattr(tensor, name)
                if isinstance(inner, Tensor):
                    yield from _parts(inner, f"{suffix}.{name}", None)
            return
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        lacks = "on meta"
    elif not _is_reachable(tensor):
        lacks = "cannot tell"
    elif not _has_memory(tensor):
        lacks = "no memory" if type(tensor) in PLAIN_TYPES else "cannot tell"
    memory = None if lacks else _real(tensor.detach())
    yield PlainPart(suffix, memory, lacks, shape, pieces, tensor.dtype)


def _inner_names(tensor: Any) -> Sequence[str]:
    """The attributes of a subclass in which its values are; empty if it does not tell."""
    if not hasattr(tensor, "__tensor_flatten__") or isinstance(tensor, FakeTensor):
        return ()
    if tensor.is_nested:  # its offsets are its shape
        return ("_values",)
    try:
        return tensor.__tensor_flatten__()[0]  # type: ignore[no-any-return]
    except Exception:  # of code that is not ours
        return ()


def _is_ragged(tensor: Tensor) -> bool:
    """Whether a tensor is a nested one that has no shape."""
    return tensor.is_nested and tensor.layout is torch.strided


def _whole(tensor: Any) -> tuple[tuple[int, ...], Sequence[ShardPiece]]:
    """The shape of a DTensor and the boxes that are here; none if its placements do not tell."""
    try:
        return tuple(tensor.shape), read_sharded(tensor).pieces
    except ArgumentError:
        return tuple(tensor.shape), ()


def _is_reachable(tensor: Tensor) -> bool:
    """Whether a tensor's elements lie in a storage that can be read."""
    if tensor.layout is not torch.strided or tensor.is_meta:
        return False
    if tensor.is_quantized or tensor.is_nested or is_wrapped(tensor):
        return False
    try:
        tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _has_memory(tensor: Tensor) -> bool:
    """Whether a storage has all elements: it may be freed or cut off, or only be said to exist."""
    begin = int(tensor.storage_offset()) * tensor.itemsize
    is_there = tensor.data_ptr() > begin  # by the storage's own address
    return is_there and tensor.untyped_storage().nbytes() >= begin + extent(tensor)


def _real(tensor: Tensor) -> Tensor:
    """A tensor in the same memory, as it lies there."""
    tensor = tensor.as_subclass(Tensor) if type(tensor) is not Tensor else tensor
    if tensor.is_conj():
        tensor = tensor.conj()
    if tensor.is_neg():
        tensor = torch._neg_view(tensor)
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
