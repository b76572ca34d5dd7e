"""Replays entries of a tape, in new memory on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.nn import init as torch_init
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_unflatten

from torchinit.errors import ArgumentError
from torchinit.fill.batch import without_batch
from torchinit.fill.door import fill
from torchinit.native.torch_private import unseen
from torchinit.orthogonal import fill_orthogonal
from torchinit.placement.box import Box
from torchinit.tape.facts import is_pinned
from torchinit.tape.tape import Bytes, Cell, Entry, Fill, Input, Operation, Ref, Tape
from torchinit.values.kinds import seeded

# Returns the key of a draw, by its number.
KeyOfDraw = Callable[[int], int]

_CPU = torch.device("cpu")
_TILE = 1 << 20  # elements computed together


def play(
    entries: Sequence[Entry], key_of_draw: KeyOfDraw, wanted: Iterable[Cell]
) -> dict[Cell, UntypedStorage]:
    """Replays entries, and returns the wanted storages; others are freed after their last use.

    It uses one thread, since torch's results may depend on the number of threads.
    """
    memory: dict[Cell, UntypedStorage] = {}
    kept = set(wanted)
    last = {ref.cell: entry for entry in entries for ref in (*entry.reads, *entry.writes)}
    with _at_once():
        for entry in entries:
            if isinstance(entry, Fill):
                do_fill(
                    entry, entry.writes[0].of(_memory_of(memory, entry.writes[0].cell)), key_of_draw
                )
            elif isinstance(entry, Bytes):
                memory[entry.writes[0].cell] = values_of(entry.constant).clone().untyped_storage()
            else:
                assert isinstance(entry, Operation)
                _operate(entry, memory, key_of_draw)
            for cell in {ref.cell for ref in (*entry.reads, *entry.writes)}:
                if last[cell] is entry and cell not in kept:
                    memory.pop(cell, None)
    return memory


def write_into(tape: Tape, cells: Sequence[Cell], key_of_draw: KeyOfDraw) -> None:
    """Executes the pending entries of storages in their memory."""
    memory = play(tape.entries_for(cells), key_of_draw, cells)
    for cell in cells:
        storage = cell.storage()
        if storage is not None:
            storage.copy_(memory[cell], False)
        cell.is_pending, cell.watched = False, ""


@contextlib.contextmanager
def _at_once() -> Iterator[None]:
    """A block in which torch uses one thread and no open batch collects fills."""
    with without_batch(), one_thread(), torch.no_grad():
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """A block that no mode or interception observes."""
    with torch.no_grad(), _disable_current_modes(), unseen():
        yield


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """A block in which torch uses one thread, unless the code inside sets the number."""
    before = torch.get_num_threads()
    if before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() == 1:
            torch.set_num_threads(before)


def values_of(constant: Input) -> Tensor:
    """The values of a constant.

    Raises:
        ArgumentError: if they have been released.
    """
    if constant.tensor is None:
        raise ArgumentError(
            "constant values computed by the constructor were released after their first use to "
            "save memory: build the model again"
        )
    return constant.tensor


def do_fill(entry: Fill, tensor: Tensor, key_of_draw: KeyOfDraw, box: Box | None = None) -> None:
    """Executes a fill on a tensor, or on a box of it."""
    key = 0 if entry.draw is None else key_of_draw(entry.draw)
    if entry.law is not None:
        fill(entry.law, tensor, key, box)
    elif entry.call.name == "orthogonal_":
        fill_orthogonal(tensor, float(entry.call.arguments["gain"]), key, box)
    else:
        with seeded(key, _CPU):
            getattr(torch_init, entry.call.name)(tensor, **entry.call.arguments)


def _memory_of(memory: dict[Cell, UntypedStorage], cell: Cell) -> UntypedStorage:
    if cell not in memory:
        memory[cell] = UntypedStorage(cell.nbytes)
    return memory[cell]


def _operate(entry: Operation, memory: dict[Cell, UntypedStorage], key_of_draw: KeyOfDraw) -> None:
    given: list[Any] = []
    for argument in entry.arguments:
        if isinstance(argument, Ref):
            given.append(argument.of(_memory_of(memory, argument.cell)))
        else:
            given.append(values_of(argument) if isinstance(argument, Input) else argument)
    args, kwargs = tree_unflatten(given, entry.spec)
    with seeded(None if entry.draw is None else key_of_draw(entry.draw), _CPU):
        results = tree_leaves(entry.function(*args, **kwargs))
    new = [
        one for one in results
        if isinstance(one, Tensor) and not any(one is other for other in given)
    ]  # fmt: skip
    for ref, result in zip(entry.made, new, strict=False):
        storage = result.untyped_storage()
        there = (tuple(result.shape), result.stride(), result.storage_offset())
        is_as_it_says = result.dtype == ref.dtype and not (result.is_conj() or result.is_neg())
        if not is_as_it_says or (there, storage.nbytes()) != (ref.geometry, ref.cell.nbytes):
            storage = UntypedStorage(ref.cell.nbytes)
            ref.of(storage).copy_(result)
        memory[ref.cell] = storage


def box_is_exact(entries: Iterable[Entry], ref: Ref) -> bool:
    """Whether any box of a tensor can be replayed alone with the same bits as the full tensor.

    That holds if it depends only on draws, numbers and tensors of its own shape, combined by
    pointwise operators that are exact or rounded as IEEE 754 defines.
    """
    dtypes: dict[Cell, torch.dtype] = {}  # the dtype in which each storage is used

    def is_like(one: Ref) -> bool:
        if dtypes.setdefault(one.cell, one.dtype) != one.dtype:
            return False
        return one.is_contiguous and one.size == ref.size and one.is_all

    if not is_like(ref):
        return False
    for entry in entries:
        if isinstance(entry, Fill):
            if entry.law is None or not is_like(entry.writes[0]):
                return False
        elif (
            not isinstance(entry, Operation)
            or entry.draw is not None
            or not _works_by_element(entry, ref, is_like)
        ):
            return False
    return True


def _works_by_element(entry: Operation, ref: Ref, is_like: Callable[[Any], bool]) -> bool:
    args, kwargs = tree_unflatten(list(entry.arguments), entry.spec)
    names = [argument.name for argument in entry.function._schema.arguments]
    named = dict(zip(names, args, strict=False)) | kwargs
    tensors = [one for one in tree_leaves(named) if isinstance(one, Ref | Input)]
    numbers = {name: one for name, one in named.items() if not isinstance(one, Ref | Input)}
    if not is_pinned(entry.function, numbers):
        return False
    return all(map(is_like, entry.writes)) and all(
        is_like(one) if isinstance(one, Ref) else _is_for_all(one, ref) for one in tensors
    )


def _is_for_all(constant: Input, ref: Ref) -> bool:
    """Whether a constant is a scalar or has a value for each element."""
    tensor = values_of(constant)
    return tensor.dim() == 0 or tuple(tensor.shape) == ref.size


def play_box(
    entries: Sequence[Entry], ref: Ref, key_of_draw: KeyOfDraw, offset: Sequence[int], into: Tensor
) -> None:
    """Replays the box of a tensor that begins at ``offset``, in tiles: see ``box_is_exact``.

    ``into`` is memory for the box, of any layout and dtype.
    """
    if into.dim() and into.numel() > _TILE:
        dim = max(range(into.dim()), key=into.size)
        half = into.size(dim) // 2
        second = [start + half * (i == dim) for i, start in enumerate(offset)]
        play_box(entries, ref, key_of_draw, offset, into.narrow(dim, 0, half))
        rest = into.size(dim) - half
        play_box(entries, ref, key_of_draw, second, into.narrow(dim, half, rest))
        return
    shape, place = tuple(into.shape), tuple(offset)
    tiles: dict[Cell, Tensor] = {}

    def tile_of(one: Any) -> Any:
        if isinstance(one, Ref):
            if one.cell not in tiles:
                tiles[one.cell] = torch.empty(shape, dtype=one.dtype, device="cpu")
            return tiles[one.cell]
        if not isinstance(one, Input):
            return one
        tensor = values_of(one)
        for dim in range(tensor.dim()):
            tensor = tensor.narrow(dim, place[dim], shape[dim])
        return tensor

    with _at_once():
        for entry in entries:
            if isinstance(entry, Fill):
                do_fill(entry, tile_of(entry.writes[0]), key_of_draw, Box(ref.size, place))
                continue
            assert isinstance(entry, Operation)
            given = [tile_of(argument) for argument in entry.arguments]
            args, kwargs = tree_unflatten(given, entry.spec)
            result = entry.function(*args, **kwargs)
            for made in entry.made:
                tiles[made.cell] = result
        into.copy_(tiles[ref.cell])
