"""``init_shard_``: fills a plain tensor that is a shard of a larger one."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from torchinit.dtypes import ALL_DTYPES
from torchinit.errors import ArgumentError, counted, shown
from torchinit.fill import checks
from torchinit.fill.door import fill_all
from torchinit.fill.route import is_native, is_native_memory
from torchinit.functional import check_generator
from torchinit.models.keyed import run_callable
from torchinit.native.torch_private import never_compile
from torchinit.placement.box import Box, check_box, cut_out
from torchinit.placement.distributed import Sharded, is_dtensor, shards_of_range
from torchinit.placement.mesh import ShardPiece
from torchinit.quantised.destination import check_format, check_served, destination_of, is_in_memory
from torchinit.quantised.fill import Weight, check_values, fill_weight
from torchinit.quantised.formats import BlockFormat
from torchinit.rules.composed import By, SchemeLike
from torchinit.rules.elementwise import Elementwise
from torchinit.rules.rules import as_scheme
from torchinit.rules.scheme import Scheme, Target
from torchinit.schemes.distributions import check_draw
from torchinit.streams.keys import Stream, draw_key_number
from torchinit.streams.named_keys import KeyOfName, keys_of_names
from torchinit.tape.memory import check_written, mark_unwritten
from torchinit.values.apply import fill_local, filling_order, streams_of
from torchinit.values.kinds import GivenValues
from torchinit.values.region import Part, Region


def init_shard_(
    tensor: Tensor,
    scheme: SchemeLike,
    *,
    global_shape: Sequence[int],
    offset: Sequence[int] | int,
    seed: int | None = None,
    name: str | None = None,
    generator: Generator | None = None,
    format: BlockFormat | None = None,  # noqa: A002
    scales: Tensor | tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Fills a plain tensor with its shard of a full tensor, without communication.

    For shards that are not DTensors, as in Megatron, DeepSpeed ZeRO or FSDP1. Fans, identities and
    orthogonality are those of the full tensor.

    Args:
        tensor: the shard: any view, possibly empty.
        scheme: as in the rules of ``init_model_``: a scheme, its name, a function of
            ``torch.nn.init`` or a partial of one, or a callable, which is given a full tensor.
        global_shape: shape of the full tensor.
        offset: index of the shard's first element in the full tensor, one number per dimension;
            or, for a one-dimensional range of the flattened full tensor, one index.
        seed, name: given together, the values are those of ``init_model_`` for a parameter of this
            name.
        generator: without seed and name, the key is drawn from here; None is torch's default CPU
            generator. It must be in the same state on all ranks.
        format: fills low-precision payload, the quantised values of the same call without a format;
            shapes and offset are still those of the values.
        scales: with a format, where the scales of all blocks go that the shard touches; a pair with
            the factor of the full tensor for ``NVFP4``. None fills the payload alone.

    Returns:
        tensor. On the meta device it is unchanged.

    Raises:
        ArgumentError: for a shard outside the full tensor, or a scheme or format that cannot fill
            the full tensor. Nothing has then been drawn or written.
        TypeError: for a DTensor, which carries its own placement; for an invalid scheme; for a
            dtype that only a callable can fill.

    >>> import torch, torchinit
    >>> whole = torch.empty(6, 4)
    >>> _ = torchinit.init_shard_(whole, "xavier_normal", global_shape=(6, 4), offset=(0, 0),
    ...     seed=0, name="a.weight")
    >>> rows = torch.empty(2, 4)
    >>> _ = torchinit.init_shard_(rows, "xavier_normal", global_shape=(6, 4), offset=(2, 0),
    ...     seed=0, name="a.weight")
    >>> torch.equal(rows, whole[2:4])
    True
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, not {type(tensor).__name__}")
    if is_dtensor(tensor):
        raise TypeError(
            "tensor is a DTensor, which carries its own placement: call torchinit's function, or a "
            "scheme, on it"
        )
    check_format(format, scales)
    key_of_name = _key_of_name(seed, name, generator)
    shape = _shape("global_shape", global_shape)
    if math.prod(shape) >= 2**63:
        raise ArgumentError(f"global_shape={shown(list(shape))} has more than 2^63 - 1 elements")
    chosen = as_scheme(scheme)
    dtype = tensor.dtype if format is None else format.source
    region, target = Region(name or "", shape), Target(name or "", shape, dtype)
    if isinstance(chosen, By):
        chosen = chosen.scheme(region, target)
    parts = chosen.parts(region, target)
    _check_parts(parts, dtype)
    if format is not None:
        weight, at = Weight(format, shape, parts, ()), _offset(offset, format)
        _fill_quantised(weight, tensor, scales, at, key_of_name, generator)
        return tensor
    place = _place(tensor, shape, offset)
    if tensor.is_meta:
        return tensor
    memory = tensor.detach()
    if is_native_memory(memory) and memory.numel():
        checks.check_target(memory)
    streams: Sequence[Stream]
    if key_of_name is not None:
        parts = [_called(part, memory, key_of_name) for part in parts]
        streams = [key_of_name(part.region.name) for part in parts]
    elif is_native(memory):
        parts, streams = _drawn(parts, memory, generator)
    else:
        keeps = any(part.values.keeps for part in parts)
        _cut_from_whole(memory, shape, place, chosen, generator, keeps=keeps)
        return tensor
    if isinstance(chosen, Elementwise):
        box = Box((math.prod(shape),), (place,)) if isinstance(place, int) else Box(shape, place)
        parts[0].values.fill_box(memory, box, streams[0])
        return tensor
    full: dict[str, Tensor] = {}
    fills = []
    for sharded in _sharded(memory, shape, place):
        for part, stream in zip(parts, streams, strict=True):
            if not part.values.keeps:
                fills += fill_local(sharded, part, part.region, stream, full)
    fill_all(fills)
    return tensor


def _fill_quantised(
    weight: Weight, tensor: Tensor, scales: Tensor | Sequence[Tensor] | None,
    offset: tuple[int, ...], key_of_name: KeyOfName | None, generator: Generator | None,
) -> None:  # fmt: skip
    form, parts = weight.format, weight.parts
    if all(part.values.keeps for part in parts):
        return
    check_values(weight)
    to = destination_of(form, tensor, scales, weight.shape, offset)
    if not is_in_memory(tensor):
        return
    check_served()
    like = torch.empty((), dtype=form.source, device=tensor.device)
    keys: Sequence[Stream]
    if key_of_name is not None:
        parts = [_called(part, like, key_of_name) for part in parts]
        keys = [part.key(key_of_name) for part in parts]
    else:
        parts, keys = _drawn(parts, like, generator)
    weight = weight._replace(parts=parts, keys=keys)
    check_values(weight)
    fill_weight(weight, to)


never_compile(_fill_quantised)


def _offset(offset: Sequence[int] | int, form: BlockFormat) -> tuple[int, ...]:
    if not isinstance(offset, Sequence):
        raise ArgumentError(
            f"offset={offset!r} is one index of the flattened full tensor, and {form} has blocks: "
            "give one number per dimension. (Masters, without a format, may be any range.)"
        )
    return _shape("offset", offset)


def _check_parts(parts: Sequence[Part], dtype: torch.dtype) -> None:
    for values in (part.values for part in parts):
        if values.keeps or values.function is not None:
            continue
        if dtype not in ALL_DTYPES:
            raise TypeError(f"tensor has unsupported dtype {dtype}: only a callable can fill it")
        if values.draw is not None:
            check_draw(values.draw, dtype)


def _cut_from_whole(
    memory: Tensor,
    shape: tuple[int, ...],
    place: tuple[int, ...] | int,
    scheme: Scheme,
    generator: Generator | None,
    *,
    keeps: bool,
) -> None:
    """Lets torch fill the full tensor, as in one process, and copies the shard."""
    whole = torch.empty(shape, dtype=memory.dtype, device=memory.device)
    if isinstance(place, int):
        here = whole.view(-1)[place : place + memory.numel()]
    else:
        here = cut_out(whole, place, memory.shape)
    if keeps:
        here.copy_(memory)
    else:
        mark_unwritten(whole)
    scheme(whole, generator)
    if not keeps:
        check_written("", whole, repr(scheme))
    with torch.no_grad():
        memory.copy_(here)


def _drawn(
    parts: Sequence[Part], like: Tensor, generator: Generator | None
) -> tuple[list[Part], list[Stream]]:
    """Draws the keys of parts in the same order as the scheme called on the full tensor."""
    ready, streams = list(parts), streams_of(parts, generator)
    for i in filling_order(parts):
        if isinstance(streams[i], int):
            continue
        if parts[i].values.takes_key:
            streams[i] = draw_key_number(generator)
        else:
            ready[i] = _called(parts[i], like)
    return ready, streams


def _called(part: Part, like: Tensor, key_of_name: KeyOfName | None = None) -> Part:
    """Replaces a part's callable by the values it writes to the full tensor, keyed by name."""
    region, values = part
    if values.function is None:
        return part
    scratch = torch.empty(region.shape, dtype=like.dtype, device=like.device)
    mark_unwritten(scratch)
    if key_of_name is None:
        values.function(scratch)
    else:
        run_callable(values.function, scratch, region.name, key_of_name)
    check_written(region.name, scratch, str(values))
    return Part(region, GivenValues(scratch.detach()))


def _key_of_name(
    seed: int | None, name: str | None, generator: Generator | None
) -> KeyOfName | None:
    check_generator(generator)
    if seed is None and name is None:
        return None
    if seed is None or name is None:
        raise ArgumentError(f"{seed=} and {name=} must be given together")
    if not isinstance(name, str):
        raise TypeError(f"name={name!r} must be a string, not {type(name).__name__}")
    if generator is not None:
        raise ArgumentError(f"{generator=} and {seed=} must not be given together: leave one out")
    return keys_of_names(seed)


def _shape(what: str, numbers: Sequence[int]) -> tuple[int, ...]:
    try:
        shape = tuple(operator.index(number) for number in numbers)
    except TypeError:
        raise TypeError(f"{what}={numbers!r} must be integers, one per dimension") from None
    if any(number < 0 for number in shape):
        raise ArgumentError(f"{what}={shown(list(shape))} must not be negative")
    return shape


def _place(
    tensor: Tensor, shape: tuple[int, ...], offset: Sequence[int] | int
) -> tuple[int, ...] | int:
    """The checked offset: one number per dimension, or one index of the flattened full tensor."""
    if isinstance(offset, Sequence):
        place = _shape("offset", offset)
        check_box(tensor.shape, Box(shape, place))
        return place
    try:
        first = operator.index(offset)
    except TypeError:
        raise TypeError(f"offset={offset!r} must be integers, or one integer") from None
    if tensor.dim() != 1 or not tensor.is_contiguous():
        raise ArgumentError(
            f"offset={shown(first)} is one index of the flattened full tensor, but tensor, of "
            f"shape {tuple(tensor.shape)}, is not one-dimensional and contiguous: give one number "
            "per dimension, or tensor.view(-1)"
        )
    if first < 0 or first + tensor.numel() > math.prod(shape):
        raise ArgumentError(
            f"offset={shown(first)} and {counted(tensor.numel(), 'element')} go beyond the "
            f"{math.prod(shape):,} of global_shape={list(shape)}: leave out the padding"
        )
    return first


def _sharded(
    memory: Tensor, shape: tuple[int, ...], place: tuple[int, ...] | int
) -> Iterator[Sharded]:
    """The tensor as shards, one for each box it covers."""
    zeros = (0,) * len(shape)
    if not isinstance(place, int):
        if memory.numel():
            yield Sharded(memory, shape, [ShardPiece(zeros, place, tuple(memory.shape))])
    else:
        yield from shards_of_range(memory, shape, place)
