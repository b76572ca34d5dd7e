"""The tape: entries, the storages that they read and write, and their draws.

A tensor on it is a storage, a dtype and a geometry, so views need no entries. Storages are held by
weak references: unused memory is freed, and a reused address is not taken for the old storage.
"""

from __future__ import annotations

import bisect
import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import _disable_current_modes

from torchinit.fill.route import PLAIN_TYPES
from torchinit.native.torch_private import (
    StorageWeakRef,
    dispatch_modes,
    storage_number,
    storage_of_reference,
)
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import Draw
from torchinit.streams.canonical import new_tuple

# The original methods, which patch/hooks.py replaces during recording.
storage_of, address_of = Tensor.untyped_storage, Tensor.data_ptr


def unseen_by_modes() -> Any:
    """A block that no mode observes. Usually none is active: a recorder is off while it works."""
    return _disable_current_modes() if dispatch_modes() else contextlib.nullcontext()


def is_plain_memory(tensor: Any) -> bool:
    """Whether a tensor is a plain strided one, with its values in its storage."""
    return (
        type(tensor) in PLAIN_TYPES
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    )


class Cell:
    """The record of one storage during its lifetime.

    Attributes:
        number: its identity.
        nbytes: its size.
        is_on_cpu: whether it is on the CPU.
        is_fresh: whether it was never written to.
        writes: indices of the entries that write to it, in order; empty if it is not on the tape.
        is_pending: whether its memory lacks the results of entries.
        is_exposed: whether other code may have its address and access it at any time.
        watched: how its memory is watched: ``marked``, ``mapped`` or not at all (empty).
        held: arguments of entries that refer to its current values.
        constant: the number with which all of it was filled; None if there is none.
        has_gaps: whether it was written only in part, and marked as unwritten before.
        is_torchs: whether it has torch's own draws, from the code's own seed or generator.
    """

    __slots__ = (
        "constant", "has_gaps", "held", "is_exposed", "is_fresh", "is_on_cpu", "is_pending",
        "is_torchs", "nbytes", "number", "reference", "watched", "writes",
    )  # fmt: skip

    def __init__(self, number: int, storage: UntypedStorage, *, is_on_cpu: bool) -> None:
        self.reference = StorageWeakRef(storage)
        self.number, self.nbytes, self.is_on_cpu = number, storage.nbytes(), is_on_cpu
        self.writes: list[int] = []
        self.held: list[Input] = []
        self.constant: float | None = None
        self.is_fresh = self.is_pending = self.is_exposed = self.is_torchs = self.has_gaps = False
        self.watched = ""

    @property
    def is_alive(self) -> bool:
        """Whether the storage still exists."""
        return not self.reference.expired()

    def storage(self) -> UntypedStorage | None:
        """The storage itself; None if it has been freed."""
        if storage_of_reference is None:
            return self.reference.storage  # type: ignore[no-any-return]
        return storage_of_reference(self.reference.cdata)  # type: ignore[no-any-return]


class Ref(NamedTuple):
    """A reference to a tensor by its storage and geometry.

    Attributes:
        cell: its storage.
        dtype, size, stride, offset: of the tensor in the storage.
        is_contiguous: whether it is contiguous.
        is_all: whether it covers all of its storage, each element once.
    """

    cell: Cell
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    is_contiguous: bool
    is_all: bool

    @property
    def geometry(self) -> tuple[tuple[int, ...], tuple[int, ...], int]:
        """Sizes, strides and offset."""
        return self.size, self.stride, self.offset

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.size)

    @property
    def extent(self) -> int:
        """The number of elements of the storage from its first element to its last."""
        if not self.numel:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))

    def is_same_run(self, other: Ref) -> bool:
        """Whether it and another tensor of its storage are the same contiguous elements."""
        return (
            (self.offset, self.numel) == (other.offset, other.numel)
            and self.is_contiguous
            and other.is_contiguous
        )

    def of(self, storage: UntypedStorage) -> Tensor:
        """The tensor in another storage of the same size."""
        made = torch.empty(0, dtype=self.dtype, device="cpu")
        return made.set_(storage, self.offset, self.size, self.stride)


def _is_dense(size: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether elements are adjacent in memory, in any order."""
    expected = 1
    for step, length in sorted(zip(stride, size, strict=True)):
        if length != 1:
            if step != expected:
                return False
            expected *= length
    return True


@dataclass(slots=True, eq=False)
class Input:
    """A tensor that an entry uses and no entry makes.

    Attributes:
        tensor: its values when the entry was recorded; None if they have been released.
        is_torchs: whether it has torch's own draws.
    """

    tensor: Tensor | None
    is_torchs: bool = False


@dataclass(slots=True, eq=False)
class Entry:
    """One recorded operation.

    Attributes:
        writes: the tensors that it writes to.
        whole: for each of these, whether it overwrites the entire storage.
        reads: the tensors that it reads, without those that it only overwrites.
        draw: the number of its draw; None if it draws nothing.
        index: its index on the tape.
    """

    writes: Sequence[Ref]
    whole: Sequence[bool]
    reads: Sequence[Ref]
    draw: int | None
    index: int = field(default=-1, init=False)


@dataclass(slots=True, eq=False)
class Fill(Entry):
    """A call of a torch.nn.init function, or an equivalent one.

    Attributes:
        call: its name and arguments.
        law: its draw (distribution and parameters), if its values are drawn independently.
    """

    call: Call
    law: Draw | None

    @classmethod
    def of(cls, ref: Ref, call: Call, law: Draw | None, draw: int | None) -> Fill:
        """The fill of a tensor."""
        return cls((ref,), (ref.is_all,), (), draw, call, law)


@dataclass(slots=True, eq=False)
class Bytes(Entry):
    """The contents of a storage before an entry wrote to a part of it."""

    constant: Input


@dataclass(slots=True, eq=False)
class Operation(Entry):
    """A call of a torch operator.

    Attributes:
        function: the overload.
        arguments, spec: as ``tree_unflatten`` takes them, with tensors as Refs and Inputs.
        made: the new tensors that it returns, which are among its writes.
    """

    function: Any
    arguments: Sequence[Any]
    spec: Any
    made: tuple[Ref, ...] = ()

    def make(self, ref: Ref) -> None:
        """Adds a new tensor that it returns."""
        self.made = (*self.made, ref)
        self.writes, self.whole = (*self.writes, ref), (*self.whole, True)


def inputs_of(entry: Entry) -> list[Input]:
    """The tensors that an entry uses and no entry makes."""
    if isinstance(entry, Bytes):
        return [entry.constant]
    if isinstance(entry, Operation):
        return [one for one in entry.arguments if isinstance(one, Input)]
    return []


class Drawing(NamedTuple):
    """A recorded draw.

    Attributes:
        law: a description that must be equal in every run of the code.
        ref: the tensor that it fills.
        module: the module whose method drew; None if there is none, or the tensor is a parameter.
    """

    law: Any
    ref: Ref
    module: torch.nn.Module | None


class Tape:
    """Recorded entries, in order of execution."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.cells: dict[int, Cell] = {}
        self.draws: list[Drawing] = []

    def find(self, tensor: Tensor) -> Cell | None:
        """The cell of a tensor's storage; None if it has none yet."""
        return self.cells.get(storage_number(tensor))

    def cell(self, tensor: Tensor) -> Cell:
        """The cell of a tensor's storage, made if necessary."""
        number = storage_number(tensor)
        cell = self.cells.get(number)
        if cell is None:
            cell = Cell(number, storage_of(tensor), is_on_cpu=tensor.is_cpu)
            self.cells[number] = cell
        return cell

    def renew(self, tensor: Tensor) -> Cell:
        """Gives a storage a new cell without entries, when no entry determines its values any more.

        Entries that read its former values refer to the old cell.
        """
        old = self.cells.pop(storage_number(tensor))
        old.is_pending, old.watched = False, ""
        new = self.cell(tensor)
        new.is_exposed = old.is_exposed
        return new

    def ref(self, tensor: Tensor, cell: Cell) -> Ref:
        """The reference to a tensor in a cell."""
        size, stride, offset = tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
        is_contiguous = tensor.is_contiguous()
        is_all = tensor.nbytes == cell.nbytes and (is_contiguous or _is_dense(size, stride))
        place = (cell, tensor.dtype, size, stride, offset, is_contiguous, is_all)
        return new_tuple(Ref, place)  # type: ignore[no-any-return]

    def add(self, entry: Entry) -> None:
        """Adds an entry at the end."""
        entry.index = len(self.entries)
        self.entries.append(entry)
        for ref in entry.writes:
            cell = ref.cell
            cell.writes.append(entry.index)
            cell.is_pending, cell.is_fresh, cell.constant = True, False, None

    def entries_for(self, cells: Iterable[Cell]) -> list[Entry]:
        """The entries that determine the values of storages, in order."""
        cells = list(cells)
        if len(cells) == 1 and cells[0].writes:
            last = self.entries[cells[0].writes[-1]]
            if last.whole == (True,) and not last.reads:
                return [last]  # the case of most parameters
        needed: set[int] = set()
        seen: set[tuple[int, int]] = set()
        left = [(cell, len(self.entries)) for cell in cells]
        while left:
            cell, before = left.pop()
            for place in reversed(range(bisect.bisect_left(cell.writes, before))):
                index = cell.writes[place]
                if (id(cell), index) in seen:
                    break
                seen.add((id(cell), index))
                entry = self.entries[index]
                if index not in needed:
                    needed.add(index)
                    left += [(ref.cell, index) for ref in entry.reads]
                if any(
                    ref.cell is cell and whole
                    for ref, whole in zip(entry.writes, entry.whole, strict=True)
                ):
                    break
        return [self.entries[index] for index in sorted(needed)]

    def together(self, cells: Iterable[Cell]) -> list[list[Cell]]:
        """Groups storages so that those that depend on a common entry are in one group."""
        owners: dict[int, tuple[list[Cell], set[int]]] = {}  # by entry: its group, with its entries
        for cell in cells:
            needed = {entry.index for entry in self.entries_for([cell])}
            group: tuple[list[Cell], set[int]] = ([], set(needed))
            for known in {id(one): one for i in needed if (one := owners.get(i))}.values():
                group[0].extend(known[0])
                group[1].update(known[1])
            group[0].append(cell)
            owners.update(dict.fromkeys(group[1], group))
        return [group for group, _ in {id(one): one for one in owners.values()}.values()]
