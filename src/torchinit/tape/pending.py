"""Entries of a tape under recording: which memory is pending, and which values code has read.

An entry is added before its memory has its values. Where code reads them, or memory is exposed to
other code, the entries that determine them are executed first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from torchinit.patch.frames import Frame, module_that_draws
from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import constant_draw
from torchinit.streams.named_keys import KeyOfName, part_of
from torchinit.tape.facts import NewTensor, OperatorCall
from torchinit.tape.memory import LARGE, Memory, is_marked, mark_unwritten
from torchinit.tape.play import write_into
from torchinit.tape.tape import (
    Bytes,
    Cell,
    Drawing,
    Fill,
    Input,
    Operation,
    Ref,
    Tape,
    address_of,
    is_plain_memory,
    storage_of,
    unseen_by_modes,
)

_LARGE_SCRATCH = 1 << 26  # bytes from which partly written memory is not marked
_SMALL = 1 << 16  # bytes up to which a constant is copied at once instead of when it is overwritten
_EARLY = "\0early"  # names the draws that are read before their names are known


class PendingEntries:
    """The tape that a recorder writes, and the memory of what is on it.

    Attributes:
        tape: the recorded entries.
        early: numbers of the draws whose values the code read while it ran.
        baked: index of the first entry that may depend on read values in a way that the tape does
            not show; None if the code has read none.
        drew_elsewhere: whether the code drew from Python's or NumPy's generator.
    """

    def __init__(self, key_of_name: KeyOfName, names: Sequence[tuple[Any, str]] | None) -> None:
        """Takes (what, name) of each draw of the previous run, in order; None in the first run."""
        self.tape = Tape()
        self.memory = Memory()
        self.early: set[int] = set()
        self.baked: int | None = None
        self.drew_elsewhere = False
        self.frame: Frame | None = None
        self._key_of_name, self._names = key_of_name, names

    def _is_taped(self, tensor: Tensor) -> bool:
        if not is_plain_memory(tensor):
            return False
        cell = self.tape.find(tensor)
        return cell is not None and bool(cell.writes)

    def _any_taped(self, tensors: Sequence[Tensor]) -> bool:
        """Whether any is on the tape; if none is, stops watching them: the operator uses them."""
        cells = [cell for one in tensors if is_plain_memory(one) and (cell := self.tape.find(one))]
        if any(cell.writes for cell in cells):
            return True
        for cell in cells:
            cell.watched = ""
        return False

    def _target(self, tensor: Tensor, *, overwrites: bool) -> Ref:
        """The reference to a tensor that an entry will write to; first records what it holds."""
        cell = self.tape.cell(tensor)
        ref = self.tape.ref(tensor, cell)
        if cell.writes:
            return ref
        if not (cell.watched or cell.is_fresh) and not storage_of(tensor).resizable():
            cell.is_exposed = True  # memory of NumPy or other code
        if cell.held:
            self._hold(cell)
        if cell.watched == "marked" and cell.is_fresh and not ref.is_all:
            # If the mark is gone, other code has written to it.
            cell.is_fresh = is_marked(_begin(tensor), cell.nbytes)
        if cell.is_fresh or (overwrites and ref.is_all):
            if cell.is_fresh and not cell.watched:
                most = LARGE if self.memory.has_pages else math.inf
                self.memory.mark(cell, _begin(tensor), most)
            return ref
        with torch.no_grad(), unseen_by_modes():
            whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
            whole.set_(storage_of(tensor))
            held = Input(whole.clone().cpu(), is_torchs=cell.is_torchs)
            self.tape.add(Bytes((self.tape.ref(whole, cell),), (True,), (), None, held))
        cell.is_pending = False
        return ref

    def _record_fill(self, call: Call, tensor: Tensor, law: Any, *, is_random: bool) -> None:
        ref = self._target(tensor, overwrites=True)
        number = None
        if is_random:
            said = law or (call.name, *call.arguments.values())
            number = self._note_draw((said, ref.size, ref.dtype), ref, tensor)
        self._add(Fill.of(ref, call, law, number))

    def _record_constant(self, tensor: Tensor, number: float) -> None:
        call = Call("constant_", {"val": number})
        self._record_fill(call, tensor, constant_draw(number), is_random=False)

    def _note_draw(self, law: Any, ref: Ref, tensor: Tensor) -> int:
        module = None if type(tensor) is nn.Parameter else module_that_draws()
        self.tape.draws.append(Drawing(law, ref, module))
        return len(self.tape.draws) - 1

    def _add(self, entry: Any) -> None:
        self.tape.add(entry)
        # Exposed memory, and memory of other devices, is never pending.
        for ref in entry.writes:
            if ref.cell.is_exposed:  # other code may read it from now on
                self._bake([ref.cell])
            if ref.cell.is_exposed or not ref.cell.is_on_cpu:
                self.do([ref.cell])

    def _hold(self, cell: Cell) -> None:
        """Copies the values that entries refer to, before they change."""
        for constant in cell.held:
            with unseen_by_modes():
                assert constant.tensor is not None
                constant.tensor = constant.tensor.clone()
        cell.held = []

    def _before_write(self, tensor: Tensor, *, overwrites: bool) -> None:
        """Prepares a tensor that is not on the tape for a write."""
        cell = self.tape.find(tensor) if is_plain_memory(tensor) else None
        if cell is None:
            return
        self._hold(cell)
        ref = self.tape.ref(tensor, cell)
        if cell.is_fresh and not (overwrites and ref.is_all) and cell.nbytes < _LARGE_SCRATCH:
            cell.has_gaps = True
            with unseen_by_modes():
                size = (cell.nbytes // tensor.dtype.itemsize,)
                whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                mark_unwritten(whole.set_(storage_of(tensor), 0, size, (1,)))
        elif overwrites and ref.is_all:
            cell.has_gaps = False
        cell.is_fresh, cell.constant = False, None

    def _note_constant(self, tensor: Tensor, number: float | None) -> None:
        if is_plain_memory(tensor) and number is not None and tensor.dtype.is_floating_point:
            cell = self.tape.cell(tensor)
            if self.tape.ref(tensor, cell).is_all and not cell.is_exposed:
                cell.constant = number

    def _pass_on(self, tensors: Sequence[Tensor], results: Sequence[Any]) -> None:
        """Marks results that depend on torch's own draws as torch's."""
        found = (self.tape.find(one) for one in tensors if is_plain_memory(one))
        if any(cell is not None and cell.is_torchs for cell in found):
            for result in results:
                if is_plain_memory(result):
                    self.tape.cell(result).is_torchs = True

    def _argument(self, tensor: Tensor) -> Ref | Input:
        cell = self.tape.find(tensor) if is_plain_memory(tensor) else None
        is_marked_view = tensor.is_conj() or tensor.is_neg()
        if cell is not None and cell.writes and not is_marked_view:
            return self.tape.ref(tensor, cell)
        if is_marked_view:
            self._bake()  # a Ref has no conj or neg bit
            return Input(tensor.detach().clone().resolve_conj().resolve_neg())
        constant = Input(tensor.detach(), is_torchs=cell is not None and cell.is_torchs)
        if tensor.nbytes <= _SMALL or not is_plain_memory(tensor):
            constant.tensor = tensor.detach().clone()
        else:
            self.tape.cell(tensor).held.append(constant)
        return constant

    def _operation(self, op: OperatorCall, draw: int | None = None) -> Operation:
        """Makes the entry of an operator, without its results; not yet on the tape."""
        flat, spec = op.flat()
        targets = [one for one in op.targets if is_plain_memory(one)]
        overwrites = op.facts.overwrites
        with unseen_by_modes():
            writes = [self._target(target, overwrites=overwrites) for target in targets]
            written = {id(target): ref for target, ref in zip(targets, writes, strict=True)}
            arguments: list[Any] = [
                written.get(id(one)) or self._argument(one) if isinstance(one, Tensor)
                else None if isinstance(one, Generator) else one
                for one in flat
            ]  # fmt: skip
        whole = [overwrites and ref.is_all for ref in writes]
        gone = [ref.cell for ref, is_whole in zip(writes, whole, strict=True) if is_whole]
        sources = set(map(id, op.sources()))
        reads = [
            one for given, one in zip(flat, arguments, strict=True)
            if isinstance(one, Ref) and (one.cell not in gone or id(given) in sources)
        ]  # fmt: skip
        return Operation(writes, whole, reads, draw, op.function, arguments, spec)

    def _real(self, shape: NewTensor) -> Tensor:
        """Untouched memory for a result of an operator."""
        with unseen_by_modes():
            real = self.memory.untouched(*shape)
        self.memory.watch(self.tape.cell(real), real)
        return real

    def _add_done(self, entry: Operation) -> None:
        """Records an entry that has been executed."""
        self.tape.add(entry)
        for ref in entry.writes:
            ref.cell.is_pending = False

    # Values that the code reads while it runs.

    def _bake(self, cells: Sequence[Cell] = ()) -> None:
        """Notes that code reads values: later entries may depend on them, if they were drawn.

        Args:
            cells: the storages that are read; empty if the values were certainly drawn.
        """
        if self.baked is None and (
            not cells or any(one.draw is not None for one in self.tape.entries_for(cells))
        ):
            self.baked = len(self.tape.entries)

    def bake_all(self) -> None:
        """Notes draws from Python's or NumPy's generator, on which any entry may depend."""
        self.baked, self.drew_elsewhere = 0, True

    def key_of_early(self, number: int) -> int:
        """The key of a draw that the code reads, from its name in the previous run."""
        self.early.add(number)
        if self._names is not None and number < len(self._names):
            return self._key_of_name(self._names[number][1])
        return self._key_of_name(part_of(_EARLY, number))

    def do(self, cells: Sequence[Cell]) -> None:
        """Executes the pending entries of storages in their memory."""
        cells = [cell for cell in cells if cell.is_pending]
        if not cells:
            return
        before = self.frame.busy if self.frame else False
        if self.frame:
            self.frame.busy = True
        try:
            write_into(self.tape, cells, self.key_of_early)
        finally:
            if self.frame:
                self.frame.busy = before

    def touched(self) -> list[Cell]:
        """The pending storages that were accessed without torch's dispatcher."""
        return [
            cell for cell in self.tape.cells.values()
            if cell.is_pending and cell.watched and not cell.is_exposed
            and self.memory.is_touched(cell)
        ]  # fmt: skip


def _begin(tensor: Tensor) -> int:
    """The address of a tensor's storage."""
    return address_of(tensor) - int(tensor.storage_offset()) * tensor.dtype.itemsize
