"""How a matrix is cut for forming it: into panels of columns, and reflectors into blocks.

Both follow from the shape and the kind of device alone. They are part of the contract: products of
other sizes round otherwise. So a panel has the same bits whoever forms it, and with whichever
others.
"""

from __future__ import annotations

from typing import NamedTuple

# Columns of a panel.
_WIDTH = {"cpu": 256, "cuda": 1024}
# Matrices of fewer elements may take as much memory again.
_LARGE = 2**20


class Range(NamedTuple):
    """Columns, or the reflectors of the same numbers, from start to before stop."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start


class Grid(NamedTuple):
    """The panels and blocks of a tall (m, n) matrix, in order. A block lies within one panel."""

    m: int
    n: int
    panels: list[Range]
    blocks: list[Range]

    def panel_of(self, column: int) -> int:
        """The number of the panel that a column is in."""
        width = self.panels[0].size
        return min(column // width, len(self.panels) - 1)


def grid_of(m: int, n: int, device_type: str, *, wide: bool) -> Grid:
    """Cuts a tall (m, n) matrix, m >= n >= 1, or the transpose of a wide one."""
    width, block = sizes(m, n, device_type, wide)
    return Grid(m, n, _cut(n, width), _cut(n, block))


def sizes(m: int, n: int, device_type: str, wide: bool) -> tuple[int, int]:
    """Columns of a panel, and reflectors of a block: a divisor of the former.

    Wide panels make fast products and few passes over the vectors; narrow ones can be shared by
    more threads. Many reflectors make fast products too, but beside a large matrix they are to take
    little memory: with the products of two threads at most 14.6% of it.
    """
    width = _WIDTH.get(device_type, _WIDTH["cpu"])
    large = m * n >= _LARGE
    block = 256 if large and not wide and n >= 2048 else 128
    while large and block > 2 and block * (m + 4 * min(width, n) + block) > 0.146 * m * n:
        block //= 2
    return width, block


def _cut(n: int, size: int) -> list[Range]:
    """Cuts columns into ranges of one size, and what is left; a little is left to the last.

    None is of one column: products with vectors round by where these lie in memory.
    """
    starts = list(range(0, n, size))
    if 0 < n % size < max(2, size // 8) and n > size:
        del starts[-1]
    return [Range(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)]
