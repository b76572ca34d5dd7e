"""Text tables: columns as wide as their widest cell, two spaces apart."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence

from torchinit.untrusted import is_terminal, printable

_LEAST = 16  # characters that a column keeps of which some are left out
_START = 6  # of them from the start of the cell


def text_table(
    rows: Sequence[Sequence[str]],
    left: int,
    *,
    most: int | None = None,
    shorten: Sequence[int] = (0,),
    indent: int = 0,
) -> list[str]:
    r"""Returns the text of each row: a line, or several where the table is too wide.

    Then the middle of long names is left out. If that is not enough, the first cell has a line of
    its own, and the others share the lines below it. Other cells stay whole. What a terminal may
    act on is escaped.

    Args:
        rows: the headings and the rows below them, all of one length.
        left: how many columns are aligned to the left; the others, numbers, to the right.
        most: characters in a line, unless standard output is a terminal, whose width counts then.
        shorten: the columns of names.
        indent: spaces before every line.

    >>> print(*text_table([["name", "std"], ["wte", "0.02"]], left=1), sep="\n")
    name   std
    wte   0.02
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    whole = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths, room = list(whole), _width(most) - indent
    excess = sum(widths) + 2 * (len(widths) - 1) - room
    while excess > 0 and (long := [i for i in shorten if widths[i] > _LEAST]):
        widths[max(long, key=widths.__getitem__)] -= 1
        excess -= 1
    lines: Sequence[Sequence[int]] = [range(len(widths))]
    if excess > 0:
        widths, lines = whole, _lines(whole, room)

    def cell(row: Sequence[str], i: int) -> str:
        if i < left:
            return shortened(row[i], widths[i]).ljust(widths[i])
        return row[i].rjust(widths[i])

    def line(row: Sequence[str], columns: Sequence[int]) -> str:
        begin = " " * (indent + 2 * (columns[0] > 0))
        return begin + "  ".join(cell(row, i) for i in columns).rstrip()

    return ["\n".join(line(row, columns) for columns in lines) for row in rows]


def _width(most: int | None) -> float:
    """Characters in a line: those of the terminal, if standard output is one."""
    if is_terminal(sys.stdout):
        return shutil.get_terminal_size().columns
    return math.inf if most is None else most


def _lines(widths: Sequence[int], room: float) -> list[list[int]]:
    """The columns of each line: the first alone, and as many others as fit, two spaces in."""
    lines, taken = [[0]], room
    for number, width in enumerate(widths[1:], 1):
        taken += 2 + width
        if taken > room:
            lines.append([])
            taken = 2 + width
        lines[-1].append(number)
    return lines


def shortened(text: str, width: int) -> str:
    """Leaves out the middle: the end tells names apart, the start says how deep they lie."""
    if len(text) <= width:
        return text
    end = len(text) - width + _START + 1
    return f"{text[:_START]}…{text[end:]}"
