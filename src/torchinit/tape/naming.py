"""Names each draw after the tensor that it fills, or a numbered part of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from torchinit.streams.canonical import places_of
from torchinit.streams.named_keys import part_of
from torchinit.tape.tape import Cell, Entry, Ref, Tape


class Name(NamedTuple):
    """The name of a draw.

    Attributes:
        base: the name of a tensor or a module.
        ordinal: the number of the part; None for the full tensor.
    """

    base: str
    ordinal: int | None = None

    @property
    def text(self) -> str:
        """The text from which the key is derived."""
        return self.base if self.ordinal is None else part_of(self.base, self.ordinal)


class Naming(NamedTuple):
    """The names of draws, and the entries that determine each storage.

    Attributes:
        names: of the draws, in order; None for draws that do not matter.
        entries: by storage.
    """

    names: list[Name | None]
    entries: dict[Cell, list[Entry]]


def name_draws(
    tape: Tape, tensors: Iterable[tuple[str, Tensor]], early: Iterable[int], model: nn.Module
) -> Naming:
    """Names the draws that affect a live tensor, or that the code read.

    Args:
        tape: the complete tape.
        tensors: names and tensors in plain memory; a tensor may have several names.
        early: numbers of draws whose values the code read.
        model: its modules name the draws that no named tensor depends on.
    """
    homes: dict[Cell, list[tuple[str, Ref]]] = {}
    for name, tensor in tensors:
        cell = tape.find(tensor)
        if cell is not None and cell.writes:
            homes.setdefault(cell, []).append((name, tape.ref(tensor, cell)))
    entries = {cell: tape.entries_for([cell]) for cell in homes}
    feeds: dict[int, str] = {}  # the smallest name that depends on each draw
    for cell, some in entries.items():
        smallest = min(name for name, _ in homes[cell])
        for entry in some:
            if entry.draw is not None:
                feeds[entry.draw] = min(feeds.get(entry.draw, smallest), smallest)
    others = [
        cell for cell in tape.cells.values()
        if cell.is_pending and cell not in homes and cell.is_alive
    ]  # fmt: skip
    wanted = {entry.draw for entry in tape.entries_for(others)} | set(feeds) | set(early)
    modules: dict[int, str] = {}
    names: list[Name | None] = [None] * len(tape.draws)
    parts: dict[str, int] = {}
    wholes: set[str] = set()
    for number, (_, ref, module) in enumerate(tape.draws):
        if number not in wanted:
            continue
        base, is_whole = "", False
        if ref.cell in homes:
            base, is_whole = _home(ref, homes[ref.cell])
        elif number in feeds:
            base = feeds[number]
        elif module is not None:
            if not modules:
                modules = {id(one): at.rstrip(".") for at, one in reversed(places_of(model))}
            base = modules.get(id(module), "")
        if is_whole and base not in wholes:
            wholes.add(base)
            names[number] = Name(base)
        else:
            names[number] = Name(base, parts.get(base, 0))
            parts[base] = parts.get(base, 0) + 1
    return Naming(names, entries)


def _home(ref: Ref, ones: Sequence[tuple[str, Ref]]) -> tuple[str, bool]:
    """The name of the tensor that a draw fills, and whether it fills all of it."""
    same = [name for name, other in ones if _are_equal(ref, other)]
    if same:
        return min(same), True
    begin, end = _range(ref)
    holding = [
        (other.numel, name) for name, other in ones
        if _range(other)[0] <= begin and end <= _range(other)[1]
    ]  # fmt: skip
    return (min(holding)[1] if holding else min(name for name, _ in ones)), False


def _are_equal(one: Ref, other: Ref) -> bool:
    """Whether two tensors of one storage have the same elements."""
    if one.geometry == other.geometry or (one.is_all and other.is_all):
        return True
    return one.is_same_run(other)


def _range(ref: Ref) -> tuple[int, int]:
    """The half-open range of bytes that a tensor covers in its storage."""
    return ref.offset * ref.dtype.itemsize, (ref.offset + ref.extent) * ref.dtype.itemsize
