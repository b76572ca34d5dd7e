"""The tensors of a checkpoint: their stored names, and what fills any range of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from torchinit.checkpoint.block_ranges import QuantisedSource, RangeFiller, range_of
from torchinit.checkpoint.layouts import StoredWeights
from torchinit.checkpoint.safetensors import FileTensor
from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError
from torchinit.fill.door import fill, fill_all
from torchinit.frameworks.transformers import as_published, is_transformers_model, without_unsaved
from torchinit.models.assign import Assignment
from torchinit.models.carry_out import whole_of
from torchinit.models.init_model import Prepared
from torchinit.models.quantised import weight_of
from torchinit.native import load
from torchinit.native.torch_private import storage_number
from torchinit.placement.box import Box
from torchinit.placement.distributed import shards_of_range
from torchinit.schemes.distributions import CONSTANT, Draw
from torchinit.streams.named_keys import KeyOfName, keys_of_names
from torchinit.values.apply import fill_local
from torchinit.values.region import Part, Region, as_cuts

# Fills a contiguous vector with the values of a parameter from an index on, in row-major order.
Filler: TypeAlias = "Callable[[Tensor, int], object]"
# All values of a parameter or buffer.
_Make: TypeAlias = "Callable[[], Tensor]"

_CPU = torch.device("cpu")


def file_tensors(
    model: nn.Module, found: Prepared, seed: int, weights: StoredWeights | None = None
) -> Iterator[FileTensor]:
    """The tensors of a model's checkpoint; those of one parameter are neighbours.

    Args:
        model: on the meta device.
        found: what its tensors are filled with.
        seed: of the keys.
        weights: what is stored in low precision.

    Raises:
        ArgumentError: for a ``state_dict`` with anything but parameters and buffers; for a weight
            that is stored in pieces of blocks.
    """
    key_of_name = keys_of_names(seed)
    fillers: dict[int, tuple[torch.dtype, _Make, Filler | None]] = {}  # by storage
    quantised: dict[int, Assignment] = {}
    sources: dict[int, QuantisedSource] = {}
    for one in found.assignments:
        if weights is not None and id(one.named.tensor) in weights.formats:
            number, form = storage_number(one.named.tensor), weights.formats[id(one.named.tensor)]
            weigh = partial(weight_of, one, form, _CPU, key_of_name)
            quantised[number] = one
            sources[number] = QuantisedSource(weigh, weights.layout.dtypes)
            continue
        make: _Make = partial(whole_of, one, _CPU, key_of_name)
        fillers[storage_number(one.named.tensor)] = one.dtype, make, filler_of(one, key_of_name)
    held = [(named, named.tensor) for named in found.buffers if not named.tensor.is_meta]
    made = [(one.named, whole_of(one, _CPU, key_of_name)) for one in found.filled]
    copied: dict[int, tuple[int, ...]] = {}  # the shapes of tensors that are in memory
    for named, tensor in (*held, *made):
        number, values = storage_number(named.tensor), tensor.detach().cpu().contiguous().view(-1)
        fillers[number] = tensor.dtype, values.detach, partial(_copy, values)
        copied[number] = tuple(tensor.shape)
    owners = {storage_number(one): one for one in (*model.parameters(), *model.buffers())}
    for name, of, view in _stored_views(model, owners):
        number = storage_number(view)
        if number in quantised:
            assert weights is not None
            yield from _quantised(name, of, view, quantised[number], sources[number], weights)
            continue
        owner, (dtype, make, filler) = owners[number], fillers[number]
        shape, first, strides = tuple(view.shape), int(view.storage_offset()), view.stride()
        if view.shape == owner.shape and (number in copied or strides == owner.stride()):
            yield FileTensor(name, copied.get(number, shape), dtype, of, make, filler)
        elif view.is_contiguous():
            moved = None if filler is None else partial(_fill_from, filler, first)
            yield FileTensor(name, shape, dtype, of, make, moved, first)
        else:
            yield FileTensor(name, shape, dtype, of, make, None, first, strides)


def _quantised(
    name: str, of: str, view: Tensor, one: Assignment, source: QuantisedSource,
    weights: StoredWeights,
) -> Iterator[FileTensor]:  # fmt: skip
    """The payload, scales and factor of a weight, or of a view of one."""
    form, shape = weights.formats[id(one.named.tensor)], tuple(one.named.tensor.shape)
    first, held = int(view.storage_offset()), tuple(view.shape)
    if not view.is_contiguous():
        raise ArgumentError(f"{name!r} is stored as a transposed view, which {form} is not for")
    blocks = range_of(form, shape, held, first, name)
    filler = None if _drawn_cuts(one) is None else RangeFiller(source, blocks)
    (payload, scales, whole), dtypes = weights.layout.names, weights.layout.dtypes
    yield FileTensor(
        name + payload, form.payload_shape(held), dtypes.payload, of, source.make,
        None if filler is None else filler.fill_payload, blocks.first * blocks.payload_width,
    )  # fmt: skip
    yield FileTensor(
        name + scales, blocks.scales_shape(held), dtypes.scales, of, source.make,
        None if filler is None else filler.fill_scales, blocks.begin * blocks.scales_width, part=1,
    )  # fmt: skip
    if whole:
        yield FileTensor(
            name + whole, (1,), torch.float32, of, source.make,
            None if filler is None else source.fill_factor, part=2,
        )  # fmt: skip


def _stored_views(model: nn.Module, owners: Mapping[int, Tensor]) -> list[tuple[str, str, Tensor]]:
    """Stored names; the parameters or buffers that the tensors are of, by name; views of these."""
    state = _state_of(model)
    names: dict[int, str] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentError(
                f"state_dict()[{name!r}] is a {type(tensor).__name__}: safetensors holds tensors"
            )
        if storage_number(tensor) not in owners:
            raise ArgumentError(
                f"state_dict()[{name!r}] is not a parameter or buffer of the model: its values are "
                "unknown"
            )
        names.setdefault(storage_number(tensor), name)
    views = {name: tensor.detach() for name, tensor in state.items()}
    if is_transformers_model(model):
        views = as_published(model, _once(without_unsaved(model, views)))
    else:
        views = _once(views)
    found = [(name, names[storage_number(view)], view) for name, view in views.items()]
    order = {of: number for number, of in enumerate(dict.fromkeys(of for _, of, _ in found))}
    return sorted(found, key=lambda one: order[one[1]])


def _state_of(model: nn.Module) -> Mapping[str, Any]:
    """The ``state_dict`` of a model, which may have a method of its own."""
    kind = type(model).__name__
    try:
        state = model.state_dict(keep_vars=True)
    except Exception as error:
        raise ArgumentError(
            f"{kind}.state_dict(keep_vars=True) raised {type(error).__name__}: {error}"
        ) from error
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"{kind}.state_dict() must return tensors by name, not {type(state).__name__}"
        )
    return state


def _once(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the first of their names."""
    first: dict[tuple[Any, ...], str] = {}
    for name, view in views.items():
        place = storage_number(view), view.storage_offset(), tuple(view.shape), view.stride()
        first.setdefault(place, name)
    return {name: views[name] for name in first.values()}


# What fills a range.


def filler_of(one: Assignment, key_of_name: KeyOfName) -> Filler | None:
    """What fills any range of a parameter; None if its values can only be made all at once.

    Args:
        one: what the parameter, a plain one on the meta device, was assigned.
        key_of_name: gives the key of a name under the seed.
    """
    parts = _drawn_cuts(one)
    if parts is None or one.dtype not in ALL_DTYPES:
        return None
    if load.module is None and not all(map(_is_constant, parts)):
        return None  # torch draws it all at once
    keys = [part.key(key_of_name) for part in parts]
    shape = tuple(one.named.tensor.shape)
    filler: Filler
    if one.draw is not None:
        filler = partial(_fill_draw, one.draw, keys[0], math.prod(shape))
    else:
        filler = partial(_fill_parts, shape, list(zip(parts, keys, strict=True)))
    return partial(_pad, filler, math.prod(shape[1:]), one.pads) if one.pads else filler


def _drawn_cuts(one: Assignment) -> list[Part] | None:
    """The parts of a parameter if all are cuts that are drawn independently; else None."""
    tensor = one.named.tensor
    if one.draw is not None:
        return list(one.all_parts)
    if not one.parts or not tensor.is_contiguous():
        return None
    first = one.parts[0].region.geometry
    if first is not None and math.prod(first[0]) < tensor.numel():
        return None  # values outside the parts are known only when all are made
    parts: list[Part] = []
    for region, values in one.parts:
        cut: Region | None = region
        if region.geometry is not None:
            cut = as_cuts(region, tuple(tensor.shape), tuple(tensor.stride()))
        if cut is None or values.draw is None:
            return None
        parts.append(Part(cut, values))
    return parts


def _is_constant(part: Part) -> bool:
    return part.values.draw is not None and part.values.draw[0] == CONSTANT


def _copy(values: Tensor, memory: Tensor, first: int) -> None:
    memory.copy_(values[first : first + memory.numel()])


def _fill_from(filler: Filler, offset: int, memory: Tensor, first: int) -> None:
    filler(memory, offset + first)


def _fill_draw(draw: Draw, key: int, numel: int, memory: Tensor, first: int) -> None:
    fill(draw, memory, key, Box((numel,), (first,)))


def _fill_parts(
    shape: tuple[int, ...], parts: Sequence[tuple[Part, int]], memory: Tensor, first: int
) -> None:
    """Fills the boxes that a range consists of with parts, which have keys of their own."""
    fills: list[Any] = []
    for here in shards_of_range(memory, shape, first):
        for part, key in parts:
            fills += fill_local(here, part, part.region, key, {})
    fill_all(fills)


def _pad(filler: Filler, row: int, rows: Sequence[int], memory: Tensor, first: int) -> None:
    """Fills a range, then rows of padding in it with zeros."""
    filler(memory, first)
    for number in rows:
        begin, end = number * row - first, (number + 1) * row - first
        if end > 0 and begin < memory.numel():
            memory[max(begin, 0) : end].zero_()
