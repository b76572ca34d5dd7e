"""What is not initialised: rows, the table of them, and the error that has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchinit.errors import counted
from torchinit.placement.distributed import rank_of_world
from torchinit.text_table import text_table
from torchinit.untrusted import printable

# What there may be instead of values.
UNWRITTEN = "unwritten"
NAN = "NaN"
ON_META = "on meta"
NO_MEMORY = "no memory"
NOT_FILLED = "not filled"
CANNOT_TELL = "cannot tell"

_SHOWN = 30  # rows of a table
_NAMES = 3  # of a tied tensor


@dataclass(frozen=True)
class Uninitialized:
    """A tensor of a model, or a part of it, that has no values.

    Attributes:
        names: its canonical names; a tied tensor has several. A part of a tensor subclass has the
            subclass's attribute after a dot.
        kind: ``parameter``, ``buffer``, ``buffer, not saved`` (not in the ``state_dict``) or
            ``attribute``.
        what: ``unwritten``: holds what was in the memory before; ``NaN``; ``on meta``: has no
            memory; ``no memory``: freed, or of a lazy module; ``cannot tell``: one integer of 8
            bits that may be a value, a subclass that hides its memory, or values that Accelerate
            offloads or DeepSpeed partitions; ``not filled``: by torchinit.
        count: how many elements are so.
        total: how many there are, of a DTensor on this rank.
        where: the smallest box that has them, as an index of the whole tensor; empty if it is all.
        shape: of the whole tensor.
        dtype: of its elements.

    >>> import torch, torchinit
    >>> with torchinit.marked_memory():
    ...     model = torch.nn.BatchNorm1d(3)
    ...     model.running_mean = torch.empty(3)
    >>> row = torchinit.find_uninitialized(model)[0]
    >>> isinstance(row, torchinit.Uninitialized), row.names, row.kind, row.what, row.count
    (True, ('running_mean',), 'buffer', 'unwritten', 3)
    """

    names: tuple[str, ...]
    kind: str
    what: str
    count: int
    total: int
    where: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @classmethod
    def all_of(cls, name: str, kind: str, what: str, tensor: Any) -> Uninitialized:
        """The row of a tensor without any values."""
        shape = tuple(tensor.shape)
        return cls((name,), kind, what, tensor.numel(), tensor.numel(), "", shape, tensor.dtype)


class UninitializedError(RuntimeError):
    """Parameters, buffers or other tensors of a model that nobody initialised.

    Attributes:
        rows: what is not initialised, a list of ``Uninitialized``.

    >>> import torch, torchinit
    >>> try:
    ...     torchinit.check_init(torch.nn.Linear(3, 4), lambda model: model.bias.data.zero_())
    ... except torchinit.UninitializedError as error:
    ...     [(row.name, row.what) for row in error.rows]
    [('weight', 'unwritten')]
    """

    def __init__(self, rows: Sequence[Uninitialized], of: int | None = None) -> None:
        """Takes the rows, and how many tensors there are in all."""
        self.rows = list(rows)
        self.of = of
        super().__init__("\n".join([said_of(self.rows, of), *table_of(self.rows)]))

    def __reduce__(self) -> Any:
        # Another process has another rank, or none: it keeps the text of this one.
        return type(self), (self.rows, self.of), self.__dict__ | {"args": self.args}


def said_of(rows: Sequence[Uninitialized], of: int | None) -> str:
    """The heading of a table: how many tensors, and of how many if that is known."""
    count = len({row.names for row in rows})
    rank = rank_of_world()
    where = "" if rank is None else f" (rank {rank})"
    said = counted(count, "tensor")
    if of is not None:
        said = f"{count} of {counted(of, 'tensor')}"
    return f"{said} {'is' if count == 1 else 'are'} not initialised{where}"


def table_of(rows: Sequence[Uninitialized]) -> list[str]:
    """The lines of a table, none without rows; names of unknown origin are escaped."""
    if not rows:
        return []
    cells = [["name", "kind", "what", "elements", "where"]]
    for row in rows[:_SHOWN]:
        first, *others = row.names
        if others:
            more = f", … ({len(row.names)})" if len(row.names) > _NAMES else ""
            first = f"{first} (= {', '.join(others[: _NAMES - 1])}{more})"
        cells.append([first, row.kind, row.what, f"{row.count:,} of {row.total:,}", row.where])
    lines = text_table(cells, left=5, shorten=(), indent=2)
    if len(rows) > _SHOWN:
        lines.append(f"  and {len(rows) - _SHOWN} more: " + _some(rows[_SHOWN:]))
    return lines


def _some(rows: Sequence[Uninitialized]) -> str:
    shown = ", ".join(row.name for row in rows[:_NAMES])
    return printable(shown + (", …" if len(rows) > _NAMES else ""))
