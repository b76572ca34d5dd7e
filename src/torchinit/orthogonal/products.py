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
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchinit.native import load
from torchinit.orthogonal import reflectors
from torchinit.orthogonal.panels import Grid, Range
from torchinit.orthogonal.sharing import Task, carry_out

# Draws (vectors, half_norms, signs) of the reflectors from a number on: see reflectors.py.
DrawReflectors = Callable[[Tensor, Tensor, Tensor, int], None]

# Parts that the vectors of a block are drawn in where threads share them out.
_PARTS = 4
# From so many reflectors a block on, products are worth the copy that makes them fast.
_WORTH_COPY = 32


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
    """
    carry_out(_Forming(grid, panels, draw, gain, wide, threads, at_once).tasks(), threads)


class _Block(NamedTuple):
    """Memory for a block's reflectors."""

    vectors: Tensor
    half_norms: Tensor
    signs: Tensor
    gram: Tensor


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
    ) -> None:
        self.grid, self.panels, self.draw, self.gain, self.wide = grid, panels, draw, gain, wide
        like = panels[0].memory
        batch = len(like)
        # Products of two matrices are quicker than of batches of one.
        self.lead = (batch,) if batch > 1 else ()
        # torch solves the systems of a batch one by one.
        self.inverts = like.is_cpu and load.module is not None
        stop = max(panel.range.stop for panel in panels)
        self.blocks = [block for block in reversed(grid.blocks) if block.start < stop]
        size = max(block.size for block in grid.blocks)
        width = max(panel.range.size for panel in panels)
        # Where columns are contiguous, products with vectors that are not are faster.
        self.copies = wide and like.is_cpu and size >= _WORTH_COPY
        small = grid.m * grid.n < 2**20
        as_a_whole = at_once or batch > 1 or size < _WORTH_COPY or (small and threads == 1)
        parts = 1 if as_a_whole else _PARTS
        self.part = -(-size // parts)
        self.overlaps = threads > 1 and not at_once and (small or 28 * size <= grid.n)
        self.memory = [
            _Block(
                vectors=like.new_empty(batch * size * grid.m),
                half_norms=like.new_empty(batch * size),
                signs=like.new_empty(batch * size),
                gram=like.new_empty(batch * size * size),
            )
            for _ in range(2 if self.overlaps else 1)
        ]
        self.products = like.new_empty(threads, 2, batch * size * width)
        self.drawn = like.new_empty(
            threads, batch * self.part * grid.m if self.copies or parts > 1 else 0
        )

    def tasks(self) -> list[Task]:
        """What is to be done, in order: for each block its vectors, its triangle, the panels."""
        tasks: list[Task] = []
        uses: list[list[int]] = [[] for _ in self.memory]
        ready: dict[int, int] = {}
        latest: dict[int, int] = {}

        def add(run: Callable[[int], None], after: Sequence[int]) -> int:
            tasks.append(Task(run, after))
            return len(tasks) - 1

        def prepare(number: int) -> None:
            if number < len(self.blocks):
                slot = number % len(self.memory)
                starts = range(0, self.blocks[number].size, self.part)
                drawn = [add(partial(self._draw, number, start), uses[slot]) for start in starts]
                ready[number] = add(partial(self._make_triangle, number), drawn)
                uses[slot] = []

        prepare(0)
        for number, block in enumerate(self.blocks):
            if self.overlaps:
                prepare(number + 1)
            for i, panel in enumerate(self.panels):
                if panel.range.stop > block.start:
                    after = [ready[number], *([latest[i]] if i in latest else [])]
                    latest[i] = add(partial(self._multiply, number, panel), after)
                    uses[number % len(self.memory)].append(latest[i])
            if not self.overlaps:
                prepare(number + 1)
        return tasks

    def _views(self, number: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(b, m - first) vectors, (b,) half_norms and signs, (b, b) gram of a block."""
        b, length = self.blocks[number].size, self.grid.m - self.blocks[number].start
        memory = self.memory[number % len(self.memory)]
        vectors = (
            _view(memory.vectors, *self.lead, length, b).mT
            if self.copies
            else _view(memory.vectors, *self.lead, b, length)
        )
        return (
            vectors,
            _view(memory.half_norms, *self.lead, b),
            _view(memory.signs, *self.lead, b),
            _view(memory.gram, *self.lead, b, b),
        )

    def _draw(self, number: int, start: int, thread: int) -> None:
        """Draws the vectors of a block from one on."""
        vectors, half_norms, signs, _ = self._views(number)
        stop = min(vectors.shape[-2], start + self.part)
        whole = stop - start == vectors.shape[-2]
        count, length = stop - start, vectors.shape[-1] - start
        batch = self.lead or (1,)
        rows = (
            vectors
            if whole and not self.copies
            else _view(self.drawn[thread], *self.lead, count, length)
        )
        self.draw(
            rows.view(*batch, count, length),
            half_norms[..., start:stop].view(*batch, count),
            signs[..., start:stop].view(*batch, count),
            self.blocks[number].start + start,
        )
        if rows is not vectors:
            vectors[..., start:stop, :start].zero_()
            vectors[..., start:stop, start:].copy_(rows)

    def _make_triangle(self, number: int, _: int) -> None:
        """Makes T, or its inverse where triangular systems are solved."""
        vectors, half_norms, signs, gram = self._views(number)
        multiply(vectors, vectors.mT, gram)
        gram.diagonal(dim1=-2, dim2=-1).copy_(half_norms)  # more exact than the product's
        if self.inverts:
            reflectors.invert_triangles(gram if self.lead else gram.unsqueeze(0))
        signs.mul_(self.gain)

    def _multiply(self, number: int, panel: Panel, thread: int) -> None:
        """Multiplies a panel from the left by a block's reflectors."""
        vectors, _, signs, gram = self._views(number)
        block, columns = self.blocks[number], panel.memory if self.lead else panel.memory[0]
        if number == 0 or self.blocks[number - 1].start >= panel.range.stop:
            columns.zero_()
        start = max(block.start, panel.range.start)
        columns = columns[..., block.start :, start - panel.range.start :]
        b, count = block.size, columns.shape[-1]
        product, solved = (
            _view(memory, *self.lead, count, b).mT
            if self.wide
            else _view(memory, *self.lead, b, count)
            for memory in self.products[thread]
        )
        own = max(0, block.stop - start)
        if own:  # Q's upper rows are still those of the identity, times signs and gain
            columns[..., :b, :b].diagonal(dim1=-2, dim2=-1).copy_(signs)
            torch.mul(vectors[..., :b], signs.unsqueeze(-2), out=product[..., :b])
        if own < count:
            multiply(vectors[..., own:], columns[..., own:, own:], product[..., own:])
        if self.inverts:
            multiply(gram, product, solved)
        else:
            torch.linalg.solve_triangular(gram, product, upper=True, out=solved)
        subtract_product(columns, vectors.mT, solved)
        if block.start == 0 and panel.finish is not None:
            panel.finish()


def _view(memory: Tensor, *shape: int) -> Tensor:
    """The first elements of flat memory as a tensor of a shape."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.insert(0, strides[0] * size)
    return memory.as_strided(shape, strides)


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
        c.addmm_(a, b, alpha=-1)
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
