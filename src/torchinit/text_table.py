"""Text tables: columns as wide as their widest cell, two spaces apart."""

from __future__ import annotations

from collections.abc import Sequence

from torchinit.untrusted import printable

_LEAST = 16  # characters that the first column keeps
_START = 6  # of them from the start of the cell


def text_table(rows: Sequence[Sequence[str]], left: int, *, most: int | None = None) -> list[str]:
    r"""Returns one line for each row; what a terminal may act on is escaped.

    Args:
        rows: the headings and the rows below them, all of one length.
        left: how many columns are aligned to the left; the others, numbers, to the right.
        most: characters in a line, for which the middle of cells in the first column is left out.

    >>> print(*text_table([["name", "std"], ["wte", "0.02"]], left=1), sep="\n")
    name   std
    wte   0.02
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if most is not None:
        others = sum(widths[1:]) + 2 * len(widths[1:])
        widths[0] = min(widths[0], max(most - others, _LEAST))
    return [
        "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(
                zip((_shortened(row[0], widths[0]), *row[1:]), widths, strict=True)
            )
        ).rstrip()
        for row in rows
    ]


def _shortened(text: str, width: int) -> str:
    """Leaves out the middle: the end tells names apart, the start says how deep they lie."""
    if len(text) <= width:
        return text
    end = len(text) - width + _START + 1
    return f"{text[:_START]}…{text[end:]}"
