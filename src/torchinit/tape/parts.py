"""The entries that determine parts of a storage, such as the views of a flat buffer."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

from torchinit.tape.tape import Cell, Entry, Ref


def entries_of_parts(
    entries: Sequence[Entry], parts: Sequence[Ref]
) -> Iterator[tuple[Ref, list[Entry]]]:
    """Divides the entries that determine a storage among tensors in it.

    Entries whose bytes overlap, or that have another storage in common, stay together. Takes as
    long as sorting both, apart from entries that several parts need.

    Args:
        entries: as ``Tape.entries_for`` returns them.
        parts: tensors of the storage.

    Yields:
        Each part with the entries that determine its values, in order; none if it was never
        written to.
    """
    cell = parts[0].cell
    # What wrote all of it before the others is needed by each part, and joins none.
    first: list[Entry] = []
    rest: list[Entry] = []
    for one in entries:
        is_first = one.whole == (True,) and one.writes[0].cell is cell and not one.reads
        (first if is_first else rest).append(one)
    ranges = _joined([_range(one, cell) for one in rest])
    begins, ends = [begin for begin, _ in ranges], [end for _, end in ranges]
    groups = _Groups()
    members: dict[object, list[Entry]] = {}
    placed = [_places(one, cell, begins) for one in rest]
    for places in placed:
        groups.join(places)
    for entry, places in zip(rest, placed, strict=True):
        members.setdefault(groups.of(places[0]), []).append(entry)
    for part in parts:
        begin, end = _bytes(part)
        among = range(bisect.bisect_right(ends, begin), bisect.bisect_left(begins, end))
        found = {groups.of(number): None for number in among} if begin < end else {}
        its = [entry for group in found for entry in members[group]]
        yield part, sorted([*first, *its], key=lambda entry: entry.index)


class _Groups:
    """Groups of objects that were joined."""

    def __init__(self) -> None:
        self._above: dict[object, object] = {}

    def of(self, one: object) -> object:
        """What stands for the group of an object."""
        while (above := self._above.setdefault(one, one)) != one:
            self._above[one] = self._above[above]
            one = above
        return one

    def join(self, some: Sequence[object]) -> None:
        """Makes one group of the groups of some objects."""
        for one in some[1:]:
            self._above[self.of(one)] = self.of(some[0])


def _bytes(ref: Ref) -> tuple[int, int]:
    """The range of bytes of its storage that a tensor lies in."""
    size = ref.dtype.itemsize
    return ref.offset * size, (ref.offset + ref.extent) * size


def _range(entry: Entry, cell: Cell) -> tuple[int, int]:
    """The range of bytes of a storage that an entry accesses; an empty one if it is another's."""
    found = [_bytes(ref) for ref in (*entry.writes, *entry.reads) if ref.cell is cell]
    return min((b for b, _ in found), default=0), max((e for _, e in found), default=0)


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, overlapping ones as one, without empty ones."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(one for one in ranges if one[0] < one[1]):
        if joined and begin < joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((begin, end))
    return joined


def _places(entry: Entry, cell: Cell, begins: Sequence[int]) -> list[object]:
    """The number of the range, and the other storages, that an entry accesses."""
    begin, end = _range(entry, cell)
    here = [bisect.bisect_right(begins, begin) - 1] if begin < end else []
    return [*here, *(ref.cell for ref in (*entry.writes, *entry.reads) if ref.cell is not cell)]
