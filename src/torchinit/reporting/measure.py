"""The values of a tensor in numbers: moments, range, and how many lie far out.

Two passes, in pieces that stay in the cache and that torch does not share out among threads of its
own; the pieces are shared out among ours. Nothing is sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Values widened at a time: fewer than torch starts threads for (at::internal::GRAIN_SIZE).
CHUNK = 2**15 - 64
# Values that one task of a thread measures.
_TASK = 2**22
# The grid of the survival function, in standard deviations: 0, 1/16, ... 8.
STEPS = 16
BINS = 128
# Beyond these stds, and with the mean so many stds from 0, squares lose their digits.
_RANGES = {torch.float32: (1e-15, 1e15, 100.0), torch.float64: (1e-140, 1e140, math.inf)}


class Moments(NamedTuple):
    """What the values of a tensor came to. All but the counts are those of its finite values.

    Attributes:
        numel: how many values there are.
        mean: NaN where no value is finite, as are all the others.
        std: of the values themselves, not the estimate for a population; 0 where all are equal.
        skewness: third central moment over std^3; 0 where std is.
        kurtosis: fourth central moment over std^4; 0 where std is. A normal has 3.
        low, high: the smallest and the largest.
        zeros, nans, infinities: how many of each.
        beyond: how many values lie at least so many std from the mean, for each point of the grid.
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

    @property
    def finite(self) -> int:
        """How many values are finite."""
        return self.numel - self.nans - self.infinities

    @property
    def std_error(self) -> float:
        """The standard error of std over std; 0 where std is."""
        if not self.std > 0:
            return 0.0
        return math.sqrt(max(self.kurtosis - 1, 0.0) / (4 * self.finite))

    @property
    def extent(self) -> float:
        """The largest distance from the mean, in std; 0 where std is."""
        if not self.std > 0:
            return 0.0
        return max(self.high - self.mean, self.mean - self.low) / self.std


class _Sums(NamedTuple):
    """Of a share of the values: about a shift."""

    finite: int
    first: float
    second: float
    low: float
    high: float
    zeros: int
    nans: int
    infinities: int


def grid() -> Tensor:
    """The points of the survival function; made anew, as a mode may watch the import."""
    return torch.arange(BINS + 1, dtype=torch.float64, device="cpu") / STEPS


def measure(views: Sequence[Tensor], threads: Executor) -> Moments:
    """Measures tensors as one.

    Args:
        views: of one dtype, on any device; of complex ones real and imaginary parts are values.
        threads: that the work is shared out among.

    Raises:
        TypeError: for a dtype that torch cannot widen.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> found = measure([torch.tensor([1.0, 2.0, 3.0, 6.0])], ThreadPoolExecutor(1))
    >>> found.mean, found.low, found.high
    (3.0, 1.0, 6.0)
    """
    views = [torch.view_as_real(view) if view.is_complex() else view for view in views]
    tasks = [task for view in views if view.numel() for task in _tasks(view)]
    count = sum(view.numel() for view in views)
    if _is_narrow(views) and (found := _measured(tasks, threads, torch.float32, count)):
        return found
    if found := _measured(tasks, threads, torch.float64, count):
        return found
    return _rescaled(tasks, threads, count)


def _is_narrow(views: Sequence[Tensor]) -> bool:
    dtype = views[0].dtype if views else torch.float32
    return dtype.itemsize < 4 or dtype == torch.float32


def _rescaled(tasks: Sequence[Tensor], threads: Executor, count: int) -> Moments:
    """Of values whose squares are out of the range of float64: of them over the largest."""
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
    """Both passes; None where the dtype is too narrow for them."""
    shift = _first_finite(tasks)
    shares = each(lambda task: _sum_up(task, shift, dtype), tasks, threads)
    finite = sum(share.finite for share in shares)
    nans, infinities = (sum(getattr(s, name) for s in shares) for name in ("nans", "infinities"))
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
    powers = each(lambda task: _powers(task, mean, std, dtype), tasks, threads)
    sums = [math.fsum(share[0][k] for share in powers) / finite for k in range(4)]
    m1, m2, m3, m4 = sums
    variance = m2 - m1**2
    third = m3 - 3 * m1 * m2 + 2 * m1**3
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    counts = torch.stack([share[1] for share in powers]).sum(0).double()
    beyond = counts.flip(0).cumsum(0).flip(0)
    return Moments(
        count, mean, std * math.sqrt(variance), third / variance**1.5,
        fourth / variance**2, low, high, zeros, nans, infinities, beyond,
    )  # fmt: skip


def each(function: Callable[[Tensor], T], tasks: Sequence[Tensor], threads: Executor) -> list[T]:
    """What a function makes of each task; one alone is no work for a thread."""
    if len(tasks) == 1:
        return [function(tasks[0])]
    return list(threads.map(function, tasks))


def _tasks(view: Tensor) -> Iterator[Tensor]:
    """Shares of a tensor, views of it."""
    if view.numel() <= _TASK or not view.dim():
        yield view
    elif view.is_contiguous():
        yield from view.view(-1).split(_TASK)
    else:
        rows = max(_TASK * view.shape[0] // view.numel(), 1)
        for share in view.split(rows):
            yield from _tasks(share[0]) if len(share) == 1 else [share]


def chunks(view: Tensor) -> Iterator[Tensor]:
    """The values of a tensor, flat, a cacheful at a time; views where it is contiguous."""
    if view.is_contiguous():
        yield from view.view(-1).split(CHUNK)
    elif view.numel() <= CHUNK:
        yield view.reshape(-1)
    else:
        rows = max(CHUNK * view.shape[0] // view.numel(), 1)
        for share in view.split(rows):
            yield from chunks(share[0]) if len(share) == 1 else [share.reshape(-1)]


def room(buffer: Tensor, like: Tensor) -> Tensor:
    """As much of a buffer as another tensor has rows: all of it nearly always, which is quick."""
    return buffer if len(buffer) == len(like) else buffer[: len(like)]


def _first_finite(tasks: Sequence[Tensor]) -> float:
    """A value that the mean is likely to be near, about which sums keep their digits."""
    for task in tasks:
        for chunk in chunks(task):
            value = float(chunk[0].double().item())
            return value if math.isfinite(value) else 0.0
    return 0.0


def _sum_up(task: Tensor, shift: float, dtype: torch.dtype) -> _Sums:
    """The first pass."""
    wide, squares = torch.empty(2, CHUNK, dtype=dtype)
    finite = zeros = nans = infinities = 0
    firsts, seconds = [], []
    low, high = math.inf, -math.inf
    for chunk in chunks(task):
        values = room(wide, chunk).copy_(chunk)
        smallest, largest = (x.item() for x in torch.aminmax(values))
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            nan = int(values.isnan().sum())
            values = values[values.isfinite()]
            nans += nan
            infinities += chunk.numel() - nan - values.numel()
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
        # Not torch.dot, which is BLAS's, and starts threads for less than this.
        seconds.append(torch.mul(values, values, out=room(squares, values)).sum().item())
    # fsum has no sum of infinities: the pass is made again in float64 then.
    if not all(map(math.isfinite, seconds)):
        return _Sums(finite, 0.0, math.inf, low, high, zeros, nans, infinities)
    return _Sums(finite, math.fsum(firsts), math.fsum(seconds), low, high, zeros, nans, infinities)


def _powers(
    task: Tensor, mean: float, std: float, dtype: torch.dtype
) -> tuple[list[float], Tensor]:
    """The second pass: sums of powers of the standardised values, and their distances counted."""
    wide, products = torch.empty(2, CHUNK, dtype=dtype)
    numbers = torch.empty(CHUNK, dtype=torch.int32)
    # In steps of the grid, in one operation.
    scale = STEPS / std
    offset = torch.tensor(-mean * scale, dtype=dtype)
    powers: list[list[float]] = []
    counts = torch.zeros(BINS + 1, dtype=torch.int64)
    for chunk in chunks(task):
        values = room(wide, chunk).copy_(chunk)
        torch.add(offset, values, alpha=scale, out=values)
        if not math.isfinite(one := values.sum().item()):
            values = values[values.isfinite()]
            one = values.sum().item()
        product = room(products, values)
        two = torch.mul(values, values, out=product).sum().item()
        three = torch.mul(product, values, out=product).sum().item()
        four = torch.mul(product, values, out=product).sum().item()
        powers.append([one, two, three, four])
        values.abs_().clamp_(max=BINS)
        counts += room(numbers, values).copy_(values).bincount(minlength=BINS + 1)
    return [math.fsum(p[k] for p in powers) / STEPS ** (k + 1) for k in range(4)], counts
