"""What a tape is: entries, the storages that they read and write, and the draws among them.

A tensor on it is a storage, a dtype and a geometry, so views need no entries. Storages are held by
weak references: memory of what is no longer used is freed, and no address is taken for another's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage

from torchinit.fill.route import PLAIN_TYPES
from torchinit.native.torch_private import StorageWeakRef, storage_number, storage_of_reference
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import Draw
from torchinit.streams.canonical import new_tuple

# The methods as they are: while a recorder is on, others take their place (patch/methods.py).
storage_of, address_of = Tensor.untyped_storage, Tensor.data_ptr


def is_plain_memory(tensor: Any) -> bool:
    """Whether a tensor is nothing but numbers in a storage of its own kind."""
    return (
        type(tensor) in PLAIN_TYPES
        and tensor.layout is torch.strided
        and not (tensor.is_meta or tensor.is_quantized or tensor.is_nested)
    )


class Cell:
    """A storage, as long as it lives.

    Attributes:
        number: its identity.
        nbytes: its size.
        is_on_cpu: where it lies.
        is_fresh: whether nobody has written to it since it was made.
        writes: numbers of the entries that write to it, in order; none if it is on no tape.
        is_pending: whether entries have not been done in its memory.
        is_exposed: whether somebody may hold its address, and look at any time.
        watched: whether its memory is marked, or a mapping of its own.
        held: arguments of entries that refer to its values as they are.
        constant: the number that all of it was filled with; None if there is none.
        has_gaps: whether it was written in part when nothing was there, and marked before.
        is_torchs: whether torch's own draws, of a seed or generator of the code's, are in it.
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
        """Whether anybody still has the storage."""
        return not self.reference.expired()

    def storage(self) -> UntypedStorage | None:
        """The storage itself; None if it is no more."""
        if storage_of_reference is None:
            return self.reference.storage  # type: ignore[no-any-return]
        return storage_of_reference(self.reference.cdata)  # type: ignore[no-any-return]


class Ref(NamedTuple):
    """A tensor, by where it lies.

    Attributes:
        cell: its storage.
        dtype, size, stride, offset: of the tensor in it.
        is_contiguous: whether its elements lie side by side, in order.
        is_all: whether it is all of its storage, each element once.
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
        """How many elements it has."""
        return math.prod(self.size)

    @property
    def extent(self) -> int:
        """How many elements of the storage it reaches over."""
        if not self.numel:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.size, self.stride, strict=True))

    def is_same_run(self, other: Ref) -> bool:
        """Whether it and another of its storage are the same elements, one after another."""
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
    """Whether elements lie side by side, in any order."""
    expected = 1
    for step, length in sorted(zip(stride, size, strict=True)):
        if length != 1:
            if step != expected:
                return False
            expected *= length
    return True


class Input:
    """A tensor that no entry makes, as an entry found it; None if it has been given up.

    Attributes:
        tensor: itself.
        is_torchs: whether torch's own draws are in it.
    """

    __slots__ = ("is_torchs", "tensor")

    def __init__(self, tensor: Tensor, *, is_torchs: bool = False) -> None:
        self.tensor: Tensor | None = tensor
        self.is_torchs = is_torchs


class Entry:
    """Something that was asked for, and waits.

    Attributes:
        index: its place on the tape.
        writes: what it writes to.
        whole: of each of these, whether all of the storage is written, whatever was there.
        reads: what it reads; not what it only overwrites.
        draw: the number of the draw that it is; None if it draws nothing.
    """

    __slots__ = ("draw", "index", "reads", "whole", "writes")

    def __init__(
        self,
        writes: Sequence[Ref],
        whole: Sequence[bool],
        reads: Sequence[Ref] = (),
        draw: int | None = None,
    ) -> None:
        self.index = -1
        self.writes, self.whole, self.reads, self.draw = writes, whole, reads, draw


class Fill(Entry):
    """A function of torch.nn.init, or what comes to one.

    Attributes:
        call: its name and arguments.
        law: its draw, if its values are drawn one by one.
    """

    __slots__ = ("call", "law")

    def __init__(self, ref: Ref, call: Call, law: Draw | None, draw: int | None) -> None:
        self.index = -1
        self.writes, self.whole, self.reads, self.draw = (ref,), (ref.is_all,), (), draw
        self.call, self.law = call, law


class Bytes(Entry):
    """All of a storage as it was before an entry wrote to a part."""

    __slots__ = ("constant",)

    def __init__(self, ref: Ref, bytes_: Tensor) -> None:
        super().__init__((ref,), (True,))
        self.constant = Input(bytes_, is_torchs=ref.cell.is_torchs)


class Operation(Entry):
    """An operator of torch.

    Attributes:
        function: the overload.
        arguments, spec: as ``tree_unflatten`` takes them, tensors being Refs and Constants.
        made: the tensors that it returns and that are new, among those it writes.
    """

    __slots__ = ("arguments", "function", "made", "spec")

    def __init__(
        self,
        function: Any,
        arguments: Sequence[Any],
        spec: Any,
        writes: Sequence[Ref],
        whole: Sequence[bool],
        reads: Sequence[Ref],
        draw: int | None = None,
    ) -> None:
        super().__init__(writes, whole, reads, draw)
        self.function, self.arguments, self.spec = function, arguments, spec
        self.made: tuple[Ref, ...] = ()

    def make(self, ref: Ref) -> None:
        """Adds a tensor that it returns."""
        self.made = (*self.made, ref)
        self.writes, self.whole = (*self.writes, ref), (*self.whole, True)


def inputs_of(entry: Entry) -> list[Input]:
    """The tensors that an entry takes and that no entry makes."""
    if isinstance(entry, Bytes):
        return [entry.constant]
    if isinstance(entry, Operation):
        return [one for one in entry.arguments if isinstance(one, Input)]
    return []


class Drawing(NamedTuple):
    """A draw.

    Attributes:
        law: what must be alike in every run of the code.
        ref: where it goes.
        module: whose method drew it; None if none did, or what is drawn has a name.
    """

    law: Any
    ref: Ref
    module: torch.nn.Module | None


class Tape:
    """Entries, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.cells: dict[int, Cell] = {}
        self.draws: list[Drawing] = []

    def find(self, tensor: Tensor) -> Cell | None:
        """The cell of a tensor's storage, if there is one."""
        return self.cells.get(storage_number(tensor))

    def cell(self, tensor: Tensor) -> Cell:
        """The cell of a tensor's storage."""
        number = storage_number(tensor)
        cell = self.cells.get(number)
        if cell is None:
            cell = Cell(number, storage_of(tensor), is_on_cpu=tensor.is_cpu)
            self.cells[number] = cell
        return cell

    def renew(self, tensor: Tensor) -> Cell:
        """A cell on no tape for a storage whose values follow from no entry any more.

        Entries that read what was there before know it by the old one.
        """
        old = self.cells.pop(storage_number(tensor))
        old.is_pending, old.watched = False, ""
        new = self.cell(tensor)
        new.is_exposed = old.is_exposed
        return new

    def ref(self, tensor: Tensor, cell: Cell) -> Ref:
        """A tensor as the tape knows it."""
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
        """The entries that the values of storages follow from, in order."""
        cells = list(cells)
        if len(cells) == 1 and cells[0].writes:
            last = self.entries[cells[0].writes[-1]]
            if last.whole == (True,) and not last.reads:
                return [last]  # as of most parameters
        needed: set[int] = set()
        seen: set[tuple[int, int]] = set()
        left = [(cell, len(self.entries)) for cell in cells]
        while left:
            cell, before = left.pop()
            for index in reversed(cell.writes):
                if index >= before:
                    continue
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
        """Storages in groups: those whose values follow from a common entry are in one."""
        owners: dict[int, tuple[list[Cell], set[int]]] = {}  # by entry: its group, and all of its
        for cell in cells:
            needed = {entry.index for entry in self.entries_for([cell])}
            group: tuple[list[Cell], set[int]] = ([], set(needed))
            for known in {id(one): one for i in needed if (one := owners.get(i))}.values():
                group[0].extend(known[0])
                group[1].update(known[1])
            group[0].append(cell)
            owners.update(dict.fromkeys(group[1], group))
        return [group for group, _ in {id(one): one for one in owners.values()}.values()]
