"""Random orthogonal matrices without a factorisation: products of random Householder reflectors.

The Q of a Gaussian matrix's QR factorisation, with R's diagonal made positive, is uniform over the
orthogonal group (Mezzadri 2007). It is a product of Householder reflectors whose vectors are
themselves independent Gaussians of shrinking length (Stewart 1980, SIAM J. Numer. Anal. 17), so the
factorisation is skipped: the vectors are drawn, and Q is formed from them, a block of reflectors at
a time. A block is H_1 ... H_b = I - V T V^T, where the inverse of T is the upper triangle of V^T V
with half its diagonal (Puglisi 1992).

From the last block to the first, Q = (I - V T V^T) Q. A panel of Q's columns takes part from the
block on that its last columns are of, and needs no other panel: any of them can be formed alone.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.native import load
from torchinit.orthogonal import reflectors
from torchinit.orthogonal.panels import Grid, Range
from torchinit.orthogonal.sharing import Task, carry_out

# Is given the number of the thread.
_Run = Callable[[int], None]
# Draws (vectors, half_norms, signs) of the reflectors from a number on: see reflectors.py.
DrawReflectors = Callable[[Tensor, Tensor, Tensor, int], None]

# Parts that the vectors of a block are drawn in where threads share them out, which blocks of fewer
# elements are not worth: a thread that waits takes a tenth of a millisecond to go on.
_PARTS = 4
_WORTH_PARTS = 2**18
# From so many reflectors a block on V^T V is made in halves, which leaves out a quarter.
_WORTH_HALVES = 64
# From so many reflectors a block on it is worth writing them side by side.
_WORTH_COLUMNS = 16
# Rows that a product is subtracted from at a time: libraries copy the factor of these.
_ROWS = 1024


class Panel(NamedTuple):
    """Memory of some matrices' columns.

    Attributes:
        range: which columns.
        memory: (batch, m, columns); of a wide matrix's transpose, columns after columns.
        finish: called when they are formed.
    """

    range: Range
    memory: Tensor
    finish: Callable[[], None] | None = None


def form_panels(
    grid: Grid,
    panels: Sequence[Panel],
    draw: DrawReflectors,
    gain: float,
    *,
    wide: bool,
    threads: int = 1,
    at_once: bool = False,
    kept: dict[int, Tensor] | None = None,
) -> None:
    """Fills panels of products of the reflectors that are drawn, times gain.

    To be called in one_blas_thread and products_alone.

    Args:
        grid: of each of the matrices.
        panels: any of the grid's, all of one batch, dtype and device.
        draw: called once for each block, or, of one matrix, part of a block.
        gain: factor.
        wide: whether memory is columns after columns.
        threads: to share the work.
        at_once: whether blocks are to be drawn as a whole, one after the other.
        kept: triangles of blocks, kept for other panels of the same matrix: what is there is used.
    """
    forming = _Forming(grid, panels, draw, gain, wide, threads, at_once, kept)
    carry_out(forming.tasks(), threads)


class _Block(NamedTuple):
    """A block's reflectors, in memory that others have before and after it."""

    range: Range
    vectors: Tensor  # (b, m - first)
    half_norms: Tensor  # (b,)
    signs: Tensor  # (b,)
    triangle: Tensor  # (b, b): T's inverse, and T where it is multiplied with


class _Forming:
    """The tasks of ``form_panels``, and their memory."""

    def __init__(
        self,
        grid: Grid,
        panels: Sequence[Panel],
        draw: DrawReflectors,
        gain: float,
        wide: bool,
        threads: int,
        at_once: bool,
        kept: dict[int, Tensor] | None,
    ) -> None:
        self.grid, self.panels, self.draw, self.gain, self.wide = grid, panels, draw, gain, wide
        self.kept = kept
        like = panels[0].memory
        batch = len(like)
        # Products of two matrices are quicker than of batches of one.
        self.lead = (batch,) if batch > 1 else ()
        # torch solves the systems of a batch one by one.
        self.inverts = like.is_cpu and load.module is not None
        size = max(block.size for block in grid.blocks)
        # Products with vectors side by side are faster.
        self.side_by_side = like.is_cpu and size >= _WORTH_COLUMNS and not at_once
        shared = threads > 1 and self.side_by_side and batch == 1
        self.shares_blocks = shared and size * grid.m >= _WORTH_PARTS
        self.part = -(-size // _PARTS) if self.shares_blocks else size
        small = grid.m * grid.n < 2**20
        self.overlaps = threads > 1 and not at_once and (small or 28 * size <= grid.n)
        self.slots = 2 if self.overlaps else 1
        self.blocks = self._make_blocks(like, batch, size)
        width = max(panel.range.size for panel in panels)
        self.products = like.new_empty(threads, 2, batch * size * width)

    def _make_blocks(self, like: Tensor, batch: int, size: int) -> list[_Block]:
        """The blocks that the panels need, from the last one on."""
        m, lead = self.grid.m, self.lead
        memory = [
            [like.new_empty(batch * count) for count in (size * m, size, size, size * size)]
            for _ in range(self.slots)
        ]
        stop = max(panel.range.stop for panel in self.panels)
        ranges = [block for block in reversed(self.grid.blocks) if block.start < stop]
        blocks = []
        for number, each in enumerate(ranges):
            vectors, half_norms, signs, triangle = memory[number % self.slots]
            b, length = each.size, m - each.start
            blocks.append(
                _Block(
                    each,
                    _matrix(vectors, lead, b, length, self.side_by_side),
                    _matrix(half_norms, lead, 1, b).squeeze(-2),
                    _matrix(signs, lead, 1, b).squeeze(-2),
                    _matrix(triangle, lead, b, b),
                )
            )
        return blocks

    def tasks(self) -> list[Task]:
        """What is to be done, in order: for each block its vectors, its triangle, the panels."""
        tasks: list[Task] = []
        uses: list[list[int]] = [[] for _ in range(self.slots)]
        ready: dict[int, int] = {}
        latest: dict[int, int] = {}

        def add(run: Callable[[int], None], after: Sequence[int]) -> int:
            tasks.append(Task(run, after))
            return len(tasks) - 1

        def prepare(number: int) -> None:
            if number < len(self.blocks):
                block, slot = self.blocks[number], number % self.slots
                before, uses[slot] = uses[slot], []
                draws, products, triangle = self._preparation(block)
                if not self.shares_blocks:
                    ready[number] = add(partial(_run_all, [*draws, *products, triangle]), before)
                    return
                drawn = [add(draw, before) for draw in draws]
                made = [add(product, drawn) for product in products]
                ready[number] = add(triangle, made or drawn)

        prepare(0)
        for number, block in enumerate(self.blocks):
            if self.overlaps:
                prepare(number + 1)
            for i, panel in enumerate(self.panels):
                if panel.range.stop > block.range.start:
                    if i in latest:
                        work, after = self._multiply, [ready[number], latest[i]]
                    else:
                        work, after = self._begin, [ready[number]]
                    latest[i] = add(partial(work, block, panel), after)
                    uses[number % self.slots].append(latest[i])
            if not self.overlaps:
                prepare(number + 1)
        return tasks

    def _preparation(self, block: _Block) -> tuple[list[_Run], list[_Run], _Run]:
        """What draws a block's vectors, then makes their products, then the triangle of these."""
        b = block.range.size
        cuts = [0, b // 2, b] if b >= _WORTH_HALVES else [0, b]
        draws: list[_Run] = [partial(self._draw, block, start) for start in range(0, b, self.part)]
        products: list[_Run] = [
            partial(self._make_products, block, *cut) for cut in itertools.pairwise(cuts)
        ]
        has = self._has(block)
        return draws, [] if has else products, partial(self._make_triangle, block)

    def _draw(self, block: _Block, start: int, _: int) -> None:
        """Draws the vectors of a block from one on."""
        stop = min(block.range.size, start + self.part)
        vectors = block.vectors[..., start:stop, start:]
        half_norms, signs = block.half_norms[..., start:stop], block.signs[..., start:stop]
        if start:
            block.vectors[..., start:stop, :start].zero_()
        if not self.lead:
            vectors, half_norms = vectors.unsqueeze(0), half_norms.unsqueeze(0)
            signs = signs.unsqueeze(0)
        self.draw(vectors, half_norms, signs, block.range.start + start)

    def _make_products(self, block: _Block, begin: int, stop: int, _: int) -> None:
        """Makes some columns of V^T V, down to the diagonal and not much further."""
        some = block.vectors[..., begin:stop, :]
        multiply(block.vectors[..., :stop, :], some.mT, block.triangle[..., :stop, begin:stop])

    def _make_triangle(self, block: _Block, _: int) -> None:
        """Makes T's inverse of V^T V, or T where it is multiplied with."""
        if self.gain != 1:
            block.signs.mul_(self.gain)
        triangle = block.triangle
        if self.kept is not None and self._has(block):
            triangle.copy_(self.kept[block.range.start])
            return
        # More exact than the products'.
        triangle.diagonal(dim1=-2, dim2=-1).copy_(block.half_norms)
        if self.inverts:
            reflectors.invert_triangles(triangle if self.lead else triangle.unsqueeze(0))
        if self.kept is not None:
            self.kept[block.range.start] = triangle.clone()

    def _has(self, block: _Block) -> bool:
        return self.kept is not None and block.range.start in self.kept

    def _begin(self, block: _Block, panel: Panel, thread: int) -> None:
        """Multiplies a panel of the identity by the first block that it needs."""
        panel.memory.zero_()
        self._multiply(block, panel, thread)

    def _multiply(self, block: _Block, panel: Panel, thread: int) -> None:
        """Multiplies a panel from the left by a block's reflectors."""
        start = max(block.range.start, panel.range.start)
        columns = panel.memory if self.lead else panel.memory[0]
        columns = columns[..., block.range.start :, start - panel.range.start :]
        b, count = block.range.size, columns.shape[-1]
        product, solved = (
            _matrix(memory, self.lead, b, count, self.wide) for memory in self.products[thread]
        )
        if start < block.range.stop:
            # Q's upper rows are still those of the identity, times signs and gain.
            columns[..., :b, :b].diagonal(dim1=-2, dim2=-1).copy_(block.signs)
            signs = block.signs.unsqueeze(-2)
            torch.mul(block.vectors[..., :b], signs, out=product[..., :b])
            if b < count:
                multiply(block.vectors[..., b:], columns[..., b:, b:], product[..., b:])
        else:
            multiply(block.vectors, columns, product)
        if self.inverts:
            multiply(block.triangle, product, solved)
        else:
            torch.linalg.solve_triangular(block.triangle, product, upper=True, out=solved)
        subtract_product(columns, block.vectors.mT, solved)
        if block is self.blocks[-1] and panel.finish is not None:
            panel.finish()


def _run_all(runs: Sequence[_Run], thread: int) -> None:
    for run in runs:
        run(thread)


def _matrix(
    memory: Tensor, lead: Sequence[int], rows: int, columns: int, down: bool = False
) -> Tensor:
    """Matrices in the first elements of flat memory, rows after rows, or columns after columns."""
    strides = (1, rows) if down else (columns, 1)
    return memory.as_strided((*lead, rows, columns), (*[rows * columns for _ in lead], *strides))


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """The product a b of matrices or of batches of them, written to out."""
    if out.dim() == 2:
        torch.mm(a, b, out=out)
        return
    if out.stride(-2) == 1:
        a, b, out = b.mT, a.mT, out.mT
    if out.is_contiguous():
        torch.bmm(a, b, out=out)
    else:
        out.copy_(torch.bmm(a, b))


def subtract_product(c: Tensor, a: Tensor, b: Tensor) -> None:
    """Subtracts the product a b from c."""
    if c.dim() == 2:
        parts = max(1, len(c) // _ROWS)  # none has fewer rows, or only one
        for rows, factor in zip(c.tensor_split(parts), a.tensor_split(parts), strict=True):
            rows.addmm_(factor, b, alpha=-1)
        return
    if c.stride(-2) == 1:
        a, b, c = b.mT, a.mT, c.mT
    if c.is_cuda or c.is_contiguous():
        c.baddbmm_(a, b, alpha=-1)
    else:
        c.sub_(torch.bmm(a, b))  # baddbmm_ would take these matrices one by one


@contextlib.contextmanager
def products_alone(device: torch.device) -> Iterator[None]:
    """Keeps products in their dtype, whatever autocast and ``allow_tf32`` say."""
    backends: Any = torch.backends
    backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
    precision = backend.fp32_precision
    with contextlib.ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if precision not in ("none", "ieee"):
            backend.fp32_precision = "ieee"
            stack.callback(setattr, backend, "fp32_precision", precision)
        yield
