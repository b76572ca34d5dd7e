"""Names each draw after the tensor that it fills, or a numbered part of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor, nn

from torchinit.streams.canonical import places_of
from torchinit.streams.named_keys import DrawNames, Elements, Name, elements_of
from torchinit.tape.tape import Cell, Entry, Ref, Tape


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
    """Names the draws that affect a live tensor, or (``early``) that the code read.

    A tensor may be listed under several names. Modules of the model name the draws that no named
    tensor depends on.
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
    rule = DrawNames(
        ((one, _elements(ref)) for some in homes.values() for one, ref in some), once=True
    )
    modules: dict[int, str] = {}
    names: list[Name | None] = [None] * len(tape.draws)
    for number, (_, ref, module) in enumerate(tape.draws):
        if number not in wanted:
            continue
        found = rule.of(_elements(ref))
        if found is None:
            base = ""
            if ref.cell in homes:
                base = min(one for one, _ in homes[ref.cell])
            elif number in feeds:
                base = feeds[number]
            elif module is not None:
                if not modules:  # a shared module has its first name
                    modules = {id(one): at.rstrip(".") for at, one in reversed(places_of(model))}
                base = modules.get(id(module), "")
            found = rule.part(base)
        names[number] = found
    return Naming(names, entries)


def _elements(ref: Ref) -> Elements:
    size = ref.dtype.itemsize
    if ref.is_contiguous:  # the quick way for most
        begin, nbytes = ref.offset * size, ref.numel * size
        return Elements(id(ref.cell), begin, begin + nbytes, nbytes)
    return elements_of(id(ref.cell), *ref.geometry, size)
