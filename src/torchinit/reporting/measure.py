"""Moments, range and tails of all values of a tensor, and norms of its matrices.

The values are read in two passes, in chunks that fit the cache and are too small for torch to use
threads of its own; our threads share the work. Nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Values converted at a time: fewer than torch uses threads for (at::internal::GRAIN_SIZE).
CHUNK = 2**15 - 64
# Values in a task of one thread.
_TASK = 2**22
# The grid of the survival function, in standard deviations: 0, 1/16, ... 8.
STEPS = 16
BINS = 128
# Smallest and largest std, and largest mean in std, for which squares keep their digits.
_RANGES = {torch.float32: (1e-15, 1e15, 100.0), torch.float64: (1e-140, 1e140, math.inf)}

# The norm of a matrix of independent values comes out 1% to 2.5% too small, as singular values are
# dense at the edge of the Marchenko-Pastur distribution; with one large singular value it is exact.
LANCZOS_STEPS = 8
_SEED = 20240607  # of the first vector
# The Gram matrix is always made up to so many multiplications; values converted at a time for it.
_CHEAP = 2**24
_WIDE = 2**20
# The largest ratio of the squared norm to that of an orthogonal matrix that is looked into.
_SUSPECT = 1.02
_NORM_TASK = 2**21


class Moments(NamedTuple):
    """Statistics of a tensor; all but the counts are of its finite values.

    Attributes:
        numel: the number of values.
        mean: NaN if no value is finite, as are the others.
        std: of the values, not an estimate for a population; 0 if all are equal.
        skewness: third central moment over std^3; 0 if std is 0.
        kurtosis: fourth central moment over std^4, 3 for a normal; 0 if std is 0.
        low, high: the smallest and the largest.
        zeros, nans, infinities: how many of each.
        beyond: for each point of the grid, how many values are at least so many std from the mean.
    """

    numel: int
    mean: float
    std: float
    skewness: float
    kurtosis: float
    low: float
    high: float
    zeros: int
    nans: int
    infinities: int
    beyond: Tensor

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        return self[:-1] == other[:-1] and torch.equal(self.beyond, other.beyond)

    def __hash__(self) -> int:
        return hash(self[:-1])

    def __repr__(self) -> str:
        fields = self._asdict().items()
        return f"Moments({', '.join(f'{name}={it}' for name, it in fields if name != 'beyond')})"

    @property
    def finite(self) -> int:
        """How many values are finite."""
        return self.numel - self.nans - self.infinities

    @property
    def std_error(self) -> float:
        """The standard error of std, over std; 0 if std is 0."""
        if not self.std > 0:
            return 0.0
        return math.sqrt(max(self.kurtosis - 1, 0.0) / (4 * self.finite))

    @property
    def extent(self) -> float:
        """The largest distance from the mean, in std; 0 if std is 0."""
        if not self.std > 0:
            return 0.0
        return max(self.high - self.mean, self.mean - self.low) / self.std


class _Sums(NamedTuple):
    """Sums of a task's values, less a shift."""

    finite: int
    first: float
    second: float
    low: float
    high: float
    zeros: int
    nans: int


def grid() -> Tensor:
    """The points of survival functions; made on each call, as an import may run under a mode."""
    return torch.arange(BINS + 1, dtype=torch.float64, device="cpu") / STEPS


def measure(views: Sequence[Tensor], threads: Executor) -> Moments:
    """Measures tensors as one.

    Args:
        views: of one dtype, on any device; real and imaginary parts of complex ones are values.
        threads: share the work.

    Raises:
        TypeError: for a dtype that torch cannot convert.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> found = measure([torch.tensor([1.0, 2.0, 3.0, 6.0])], ThreadPoolExecutor(1))
    >>> found.mean, found.low, found.high
    (3.0, 1.0, 6.0)
    """
    views = [torch.view_as_real(view) if view.is_complex() else view for view in views]
    tasks = [task for view in views for task in _pieces(view, _TASK)]
    count = sum(view.numel() for view in views)
    is_narrow = all(view.dtype.itemsize < 4 or view.dtype == torch.float32 for view in views)
    if is_narrow and (found := _measured(tasks, threads, torch.float32, count)):
        return found
    if found := _measured(tasks, threads, torch.float64, count):
        return found
    return _rescaled(tasks, threads, count)


def _rescaled(tasks: Sequence[Tensor], threads: Executor, count: int) -> Moments:
    """For values whose squares float64 cannot hold: measures them divided by the largest."""
    finite = [values for task in tasks if (values := task[task.isfinite()]).numel()]
    low, high = (
        float(of(torch.stack([of(values) for values in finite]))) for of in (torch.min, torch.max)
    )
    scale = max(-low, high, 1e-300)
    found = _measured([task.double() / scale for task in tasks], threads, torch.float64, count)
    assert found is not None, "values of which the largest is 1"
    return found._replace(mean=found.mean * scale, std=found.std * scale, low=low, high=high)


def _measured(
    tasks: Sequence[Tensor], threads: Executor, dtype: torch.dtype, count: int
) -> Moments | None:
    """Both passes; None if the dtype is too narrow."""
    # A value likely to be near the mean: sums less it keep their digits.
    shift = float(next(_chunks(tasks[0]))[0].double().item()) if tasks else 0.0
    shift = shift if math.isfinite(shift) else 0.0
    shares = _each(lambda task: _sum_up(task, shift, dtype), tasks, threads)
    finite, nans = (sum(getattr(share, name) for share in shares) for name in ("finite", "nans"))
    infinities = count - finite - nans
    none = torch.zeros(BINS + 1, dtype=torch.float64)
    if not finite:
        nan = math.nan
        return Moments(count, nan, nan, nan, nan, nan, nan, 0, nans, infinities, none)
    low = min(share.low for share in shares if share.finite)
    high = max(share.high for share in shares if share.finite)
    zeros = sum(share.zeros for share in shares)
    if low == high:
        return Moments(count, low, 0.0, 0.0, 0.0, low, high, zeros, nans, infinities, none)
    first = math.fsum(share.first for share in shares) / finite
    second = math.fsum(share.second for share in shares) / finite
    mean, std = shift + first, math.sqrt(max(second - first**2, 0.0))
    small, large, far = _RANGES[dtype]
    if not (small < std < large and abs(mean) < far * std and max(-low, high) < large):
        return None
    powers = _each(lambda task: _powers(task, mean, std, dtype), tasks, threads)
    m1, m2, m3, m4 = (math.fsum(share[0][k] for share in powers) / finite for k in range(4))
    variance = m2 - m1**2
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    counts = torch.stack([share[1] for share in powers]).sum(0).double()
    beyond = counts.flip(0).cumsum(0).flip(0)
    return Moments(
        count, mean, std * math.sqrt(variance), third / variance**1.5,
        fourth / variance**2, low, high, zeros, nans, infinities, beyond,
    )  # fmt: skip


def _each(function: Callable[[Tensor], T], tasks: Sequence[Tensor], threads: Executor) -> list[T]:
    """Maps a function over tasks; a single one runs here."""
    return list((map if len(tasks) == 1 else threads.map)(function, tasks))


def _pieces(view: Tensor, size: int) -> Iterator[Tensor]:
    """Views of a tensor with at most so many values each."""
    if view.is_contiguous():
        yield from view.view(-1).split(size) if view.numel() else ()
    elif view.numel() <= size:
        yield view
    else:
        rows = max(size * view.shape[0] // view.numel(), 1)
        for share in view.split(rows):
            yield from _pieces(share[0], size) if len(share) == 1 else [share]


def _chunks(view: Tensor) -> Iterator[Tensor]:
    """The values of a tensor, flattened, at most CHUNK at a time; views if it is contiguous."""
    return (piece.reshape(-1) for piece in _pieces(view, CHUNK))


def _room(buffer: Tensor, like: Tensor) -> Tensor:
    """The rows of a buffer that another tensor needs: nearly always all, which takes no view."""
    return buffer if len(buffer) == len(like) else buffer[: len(like)]


def _sum_up(task: Tensor, shift: float, dtype: torch.dtype) -> _Sums:
    """The first pass."""
    wide, squares = torch.empty(2, CHUNK, dtype=dtype)
    finite = zeros = nans = 0
    firsts, seconds = [], []
    low, high = math.inf, -math.inf
    for chunk in _chunks(task):
        values = _room(wide, chunk).copy_(chunk)
        smallest, largest = (x.item() for x in torch.aminmax(values))
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            nans += int(values.isnan().sum())
            values = values[values.isfinite()]
            if not values.numel():
                continue
            smallest, largest = (x.item() for x in torch.aminmax(values))
        finite += values.numel()
        low, high = min(low, smallest), max(high, largest)
        if smallest <= 0 <= largest:
            zeros += values.numel() - int(values.count_nonzero())
        if shift:
            values -= shift
        firsts.append(values.sum().item())
        # Not torch.dot: BLAS would use threads.
        seconds.append(torch.mul(values, values, out=_room(squares, values)).sum().item())
    # fsum raises for infinities; the pass is repeated in float64.
    if not all(map(math.isfinite, seconds)):
        return _Sums(finite, 0.0, math.inf, low, high, zeros, nans)
    return _Sums(finite, math.fsum(firsts), math.fsum(seconds), low, high, zeros, nans)


def _powers(
    task: Tensor, mean: float, std: float, dtype: torch.dtype
) -> tuple[list[float], Tensor]:
    """The second pass: sums of powers of standardised values, and counts of their distances."""
    wide, products = torch.empty(2, CHUNK, dtype=dtype)
    numbers = torch.empty(CHUNK, dtype=torch.int32)
    # Standardises, in steps of the grid, in one operation.
    scale = STEPS / std
    offset = torch.tensor(-mean * scale, dtype=dtype)
    powers: list[list[float]] = []
    counts = torch.zeros(BINS + 1, dtype=torch.int64)
    for chunk in _chunks(task):
        values = _room(wide, chunk).copy_(chunk)
        torch.add(offset, values, alpha=scale, out=values)
        if not math.isfinite(one := values.sum().item()):
            values = values[values.isfinite()]
            one = values.sum().item()
        product = _room(products, values)
        two = torch.mul(values, values, out=product).sum().item()
        three = torch.mul(product, values, out=product).sum().item()
        four = torch.mul(product, values, out=product).sum().item()
        powers.append([one, two, three, four])
        values.abs_().clamp_(max=BINS)
        counts += _room(numbers, values).copy_(values).bincount(minlength=BINS + 1)
    return [math.fsum(p[k] for p in powers) / STEPS ** (k + 1) for k in range(4)], counts


# Matrices, each in blocks of rows.


def measure_matrix(
    blocks: Sequence[Tensor], scale: float, threads: Executor, *, is_orthogonal: bool
) -> tuple[float, float | None]:
    """The largest singular value, and the orthogonality error if it was computed.

    Args:
        blocks: of a matrix of finite values.
        scale: the root mean square of its values.
        threads: share the work.
        is_orthogonal: whether it is to be orthogonal. The error is computed then, and where it
            costs next to nothing or all singular values may be equal.
    """
    rows, columns = sum(map(len, blocks)), blocks[0].shape[1]
    is_cheap = min(rows, columns) ** 2 * max(rows, columns) <= _CHEAP
    if is_cheap:
        gram = gram_matrix(blocks, scale, torch.float64)
        norm = scale * math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))
        return norm, orthogonality_error(gram)
    norm = spectral_norm(blocks, scale, threads)
    if not is_orthogonal and (norm / scale) ** 2 > _SUSPECT * max(rows, columns):
        return norm, None
    return norm, orthogonality_error(gram_matrix(blocks, scale, _working_dtype(blocks, scale)))


def spectral_norm(blocks: Sequence[Tensor], scale: float, threads: Executor) -> float:
    """The largest singular value, by Golub, Kahan and Lanczos with full reorthogonalisation.

    Args:
        blocks: of a matrix of finite values.
        scale: of its values, which are divided by it.
        threads: share the work.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> round(spectral_norm([torch.diag(torch.tensor([3.0, 1.0]))], 1.0, ThreadPoolExecutor(1)), 5)
    3.0
    """
    columns, dtype = blocks[0].shape[1], _working_dtype(blocks, scale)
    generator = torch.Generator().manual_seed(_SEED)
    vector = torch.randn(columns, dtype=torch.float64, generator=generator)
    vector /= vector.norm()
    shares = [share for block in blocks for share in block.split(_rows(block, _NORM_TASK))]

    def squared(vector: Tensor) -> Tensor:
        """W^T W v."""
        narrow = (vector / scale).to(dtype)
        found = _each(lambda share: _multiply(share, narrow, scale), shares, threads)
        return sum(found, start=torch.zeros(columns, dtype=torch.float64))

    return scale * math.sqrt(max(_largest_eigenvalue(squared, vector), 0.0))


def _largest_eigenvalue(multiply: Callable[[Tensor], Tensor], vector: Tensor) -> float:
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    for _ in range(min(LANCZOS_STEPS, len(vector))):
        basis.append(vector)
        image = multiply(vector)
        diagonal.append(float(vector @ image))
        known = torch.stack(basis)
        for _twice in range(2):
            image = image - known.T @ (known @ image)
        length = float(image.norm())
        if length <= 1e-6 * diagonal[0]:
            break
        beside.append(length)
        vector = image / length
    beside = beside[: len(diagonal) - 1]
    middle = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    upper = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
    return float(torch.linalg.eigvalsh(middle + upper + upper.T)[-1])


def _rows(block: Tensor, values: int) -> int:
    return max(values // max(block.shape[1], 1), 1)


def _multiply(share: Tensor, vector: Tensor, scale: float) -> Tensor:
    rows = _rows(share, CHUNK)
    wide = torch.empty(rows, len(vector), dtype=vector.dtype)
    total = torch.zeros_like(vector)
    for chunk in share.split(rows):
        matrix = _room(wide, chunk).copy_(chunk)
        total.addmv_(matrix.T, matrix @ vector)
    return total.double() / scale


def _working_dtype(blocks: Sequence[Tensor], scale: float) -> torch.dtype:
    """The dtype that values of this scale are multiplied in."""
    is_narrow = blocks[0].dtype != torch.float64 and 1e-30 < scale < 1e30
    return torch.float32 if is_narrow else torch.float64


def gram_matrix(blocks: Sequence[Tensor], scale: float, dtype: torch.dtype) -> Tensor:
    """W^T W of a matrix over scale, by products in a dtype; W W^T if it is wider than high."""
    rows, columns = sum(map(len, blocks)), blocks[0].shape[1]
    gram = torch.zeros(min(rows, columns), min(rows, columns), dtype=torch.float64)
    if rows >= columns:
        for block in blocks:
            for chunk in block.split(_rows(block, _WIDE)):
                wide = chunk.to("cpu", dtype) / scale
                gram += wide.T @ wide
        return gram
    width = max(_WIDE // rows, 1)
    for start in range(0, columns, width):
        wide = torch.cat([block[:, start : start + width].to("cpu", dtype) for block in blocks])
        wide /= scale
        gram += wide @ wide.T
    return gram


def orthogonality_error(gram: Tensor) -> float:
    """The largest entry of ``|Q^T Q - I|``, where Q is a matrix over its gain.

    The gain is the root mean square of the singular values. For a matrix that is wider than high
    it is ``|Q Q^T - I|``.

    Args:
        gram: of the matrix; the error is NaN where it is 0.

    >>> orthogonality_error(gram_matrix([2 * torch.eye(3)], 1.0, torch.float64))
    0.0
    """
    square = float(gram.trace()) / len(gram)
    if not square > 0:
        return math.nan
    return float((gram / square - torch.eye(len(gram), dtype=torch.float64)).abs().max())
