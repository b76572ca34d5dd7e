"""Extracts the programs of a model's tensors from its recording."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from torchinit.schemes.calls import Call
from torchinit.schemes.distributions import constant_draw
from torchinit.streams.canonical import Named
from torchinit.tape.memory import count_unwritten
from torchinit.tape.program import Program
from torchinit.tape.run import Recorded
from torchinit.tape.tape import (
    Cell,
    Entry,
    Fill,
    Input,
    Ref,
    inputs_of,
    is_plain_memory,
)


def programs_of(recorded: Recorded) -> dict[str, Program]:
    """The program of each parameter and buffer in plain memory, by name."""
    maker = _Maker(recorded)
    programs: dict[str, Program] = {}
    for named in (*recorded.parameters, *recorded.buffers):
        tensor: Any = named.tensor
        if is_plain_memory(tensor):
            programs[named.name] = maker.make(named)
            programs[named.name].names = tuple(slot.name for slot in named.slots)
    for program in programs.values():
        for entry in program.entries:
            if entry.draw is not None:
                name = recorded.naming.names[entry.draw]
                assert name is not None
                program.labels[entry.draw] = programs.get(name.base), name
        # Draws that were read may have affected a frozen program.
        for number in recorded.recorder.early if program.is_frozen else ():
            early = recorded.naming.names[number]
            assert early is not None
            program.labels[number] = programs.get(early.base), early
    return programs


class _Maker:
    def __init__(self, recorded: Recorded) -> None:
        self._tape = recorded.recorder.tape
        self._baked = recorded.recorder.baked
        self._used_own_seed = recorded.recorder.used_own_seed
        self._entries = recorded.naming.entries
        self._seed = recorded.seed

    def make(self, named: Named) -> Program:
        tensor: Tensor = named.tensor
        cell = self._tape.find(tensor)
        entries: list[Entry] = []
        ref: Ref | None = None
        constant: Input | None = None
        is_torchs = False
        if cell is not None and cell.writes:
            entries, ref = self._entries[cell], self._tape.ref(tensor, cell)
        elif cell is not None and cell.constant is not None:
            ref = self._tape.ref(tensor, cell)
            call = Call("constant_", {"val": cell.constant})
            entries = [Fill(ref, call, constant_draw(cell.constant), None)]
            entries[0].index = self._baked or 0
        else:
            constant = Input(tensor.detach())
        if self._used_own_seed:
            is_torchs = (cell is not None and cell.is_torchs) or any(
                one.is_torchs for entry in entries for one in inputs_of(entry)
            )
        is_frozen = self._baked is not None and (
            constant is not None or any(entry.index >= self._baked for entry in entries)
        )
        return Program(
            named.name, tensor, entries, ref, constant, self._seed,
            is_frozen=is_frozen, is_torchs=is_torchs,
            is_unfilled=cell is not None and not entries and _is_unfilled(tensor, cell),
        )  # fmt: skip


def _is_unfilled(tensor: Tensor, cell: Cell) -> bool:
    """Whether a tensor, or a part of it, was never written to."""
    if not tensor.numel():
        return False
    return cell.is_fresh or (cell.has_gaps and count_unwritten(tensor) > 0)
