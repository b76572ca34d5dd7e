"""Tests fills against their exact distributions: p-values of about 10^8 draws each.

    python benchmarks/quality.py > benchmarks/results/quality.md

For every distribution and dtype: Kolmogorov-Smirnov and chi-square with bins out to five standard
deviations of the equivalent normal, moments to the sixth, correlation with the 1st to 8th next
element, and the dependence of elements 2i and 2i + 1 (the halves of a Box-Muller pair) and of the
same element under consecutive keys (0, 1, 2, ...). All null distributions are those of the rounded
values, so narrow dtypes are tested as sharply as the others.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch._ops import OpOverloadPacket
from tqdm import tqdm

import torchinit  # noqa: F401  # defines the operators
from report import table

ops = torch.ops.torchinit

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOMENTS = range(1, 7)
LAGS = range(1, 9)
GROUPS = 16  # rows and columns of the tables of pairs
LEAST_EXPECTED = 10.0  # of a chi-square bin
KEY = 7

Array = np.ndarray[Any, np.dtype[np.float64]]
# Chunk number -> values: consecutive ones of one stream, or the first ones of successive keys.
Source = Callable[[int], Tensor]
PValues = dict[str, float]


@dataclass(frozen=True)
class Law:
    """A fill and the distribution that its values should have."""

    title: str
    operator: OpOverloadPacket
    parameters: tuple[float, ...]
    distribution: Any  # of scipy.stats, frozen


LAWS = (
    Law("U[-1, 1)", ops.uniform_, (-1.0, 1.0), stats.uniform(-1, 2)),
    Law("U[0.3, 1)", ops.uniform_, (0.3, 1.0), stats.uniform(0.3, 0.7)),
    Law("N(0, 1)", ops.normal_, (0.0, 1.0), stats.norm()),
    Law("N(0, 1) in [-2, 2]", ops.trunc_normal_, (0.0, 1.0, -2.0, 2.0), stats.truncnorm(-2, 2)),
    Law("N(0, 1) in [-3, 1]", ops.trunc_normal_, (0.0, 1.0, -3.0, 1.0), stats.truncnorm(-3, 1)),
    Law("N(0, 1) in [-4, 4.5]", ops.trunc_normal_, (0.0, 1.0, -4.0, 4.5), stats.truncnorm(-4, 4.5)),
    Law("N(0, 1) in [8, 10]", ops.trunc_normal_, (0.0, 1.0, 8.0, 10.0), stats.truncnorm(8, 10)),
)  # fmt: skip


def stream(law: Law, dtype: torch.dtype, size: int) -> Source:
    """Successive pieces of one key's stream."""

    def piece(chunk: int) -> Tensor:
        values = torch.empty(size, dtype=dtype)
        law.operator(values, torch.tensor(KEY), *law.parameters, [2**62], [chunk * size])
        return values

    return piece


def successive_keys(law: Law, dtype: torch.dtype, size: int) -> Source:
    """The first elements of the streams of keys 0, 1, 2, ..."""

    def piece(chunk: int) -> Tensor:
        values = torch.empty(size, dtype=dtype)
        law.operator(values, torch.tensor(chunk), *law.parameters)
        return values

    return piece


class Bins:
    """Intervals whose probabilities are exact for the law rounded to a dtype.

    An edge is a value of the dtype; numbers rounded to it or above lie beyond the midpoint between
    it and its predecessor.
    """

    def __init__(self, law: Law, dtype: torch.dtype, draws: int) -> None:
        tail = stats.norm.sf(np.arange(3, 5.01, 0.25))
        levels = np.sort(np.concatenate([np.arange(1, 512) / 512, tail, 1 - tail]))
        edges = torch.tensor(law.distribution.ppf(levels)).to(dtype).unique()
        edges = edges[edges <= largest(law, dtype)]
        below = law.distribution.cdf(_boundaries(edges))
        # Bins too rare for chi-square join their neighbour towards the middle.
        keep = (below * draws >= LEAST_EXPECTED) & ((1 - below) * draws >= LEAST_EXPECTED)
        edges, below = edges[torch.from_numpy(keep)], below[keep]
        merged = [0]
        for i in range(1, len(below)):
            if (below[i] - below[merged[-1]]) * draws >= LEAST_EXPECTED:
                merged.append(i)
        self.edges = _widened(edges[merged])
        self.below = below[merged]
        self.probabilities = np.diff(self.below, prepend=0.0, append=1.0)
        centres = np.append(0.0, self.below) + self.probabilities / 2
        self.group = torch.from_numpy(np.minimum(centres * GROUPS, GROUPS - 1).astype(np.int64))
        self.group_probabilities = np.bincount(
            self.group.numpy(), weights=self.probabilities, minlength=GROUPS
        )

    def of(self, values: Tensor) -> Tensor:
        """The number of each value's bin."""
        return torch.bucketize(_widened(values), self.edges, right=True)


def largest(law: Law, dtype: torch.dtype) -> Tensor:
    """The largest value that a fill may have; U[a, b) excludes its upper bound."""
    high = torch.tensor(law.distribution.support()[1], dtype=dtype)
    if law.operator == ops.uniform_:
        high = torch.nextafter(high, torch.full_like(high, -math.inf))
    return high


def _widened(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _boundaries(values: Tensor) -> Array:
    """The boundaries of rounding between each value of a dtype and its predecessor."""
    before = torch.nextafter(values, torch.full_like(values, -math.inf))
    halves: Array = 0.5 * (values.double() + before.double()).numpy()
    return halves


def moments(law: Law, dtype: torch.dtype, degree: int) -> tuple[float, float, list[float]]:
    """Mean, standard deviation and the standardised moments 0 to ``degree``.

    Of the values rounded to the dtype, if rounding is visible.
    """
    exact = law.distribution
    if dtype.itemsize > 2:
        mean, std = float(exact.mean()), float(exact.std())
        powers = [
            float(exact.expect(lambda x, k=k: ((x - mean) / std) ** k)) for k in range(degree + 1)
        ]
        return mean, std, powers
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    inside = (patterns >= exact.support()[0]) & (patterns <= largest(law, dtype))
    values = patterns[inside & patterns.isfinite()].unique()
    probabilities = np.diff(exact.cdf(_boundaries(values[1:])), prepend=0.0, append=1.0)
    some = probabilities > 0  # the others' powers overflow
    points, probabilities = values.double().numpy()[some], probabilities[some]
    mean = float(probabilities @ points)
    std = math.sqrt(probabilities @ (points - mean) ** 2)
    return (
        mean,
        std,
        [float(probabilities @ ((points - mean) / std) ** k) for k in range(degree + 1)],
    )


def two_sided(z: float) -> float:
    """The p-value of a standard normal statistic."""
    return float(2 * stats.norm.sf(abs(z)))


class PairTest:
    """Whether two equally distributed values are independent: correlations, and a table."""

    def __init__(self, bins: Bins) -> None:
        self.bins = bins
        self.count = 0
        self.sums = np.zeros(2)
        self.table = np.zeros(GROUPS * GROUPS)

    def add(self, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> None:
        """Takes pairs, each side as standardised values and bin numbers."""
        (x, i), (y, j) = first, second
        self.count += len(x)
        self.sums += [float((x * y).sum()), float(((x * x - 1) * (y * y - 1)).sum())]
        cells = self.bins.group[i] * GROUPS + self.bins.group[j]
        self.table += torch.bincount(cells, minlength=GROUPS * GROUPS).numpy()

    def p_values(self, name: str, kurtosis: float) -> PValues:
        """Of the correlation of values and of squares, and of the table's chi-square."""
        expected = np.outer(self.bins.group_probabilities, self.bins.group_probabilities).ravel()
        some = expected > 0
        chi = float((self.table[some] ** 2 / expected[some]).sum() / self.count - self.count)
        correlation, squares = self.sums / math.sqrt(self.count)
        return {
            f"{name}, values": two_sided(correlation),
            f"{name}, squares": two_sided(squares / (kurtosis - 1)),
            f"{name}, table": float(stats.chi2.sf(chi, int(some.sum()) - 1)),
        }


def examine(
    law: Law, dtype: torch.dtype, chunks: int, values: Source, keys: Source, size: int
) -> PValues:
    """All p-values of a law in a dtype, from chunks of `size` values of either source."""
    draws = chunks * size
    bins = Bins(law, dtype, draws)
    mean, std, expected_moments = moments(law, dtype, 2 * MOMENTS[-1])

    def prepared(tensor: Tensor) -> tuple[Tensor, Tensor]:
        return (tensor.double() - mean) / std, bins.of(tensor)

    counts = np.zeros(len(bins.probabilities))
    powers = np.zeros(len(MOMENTS))
    lagged = np.zeros(len(LAGS))
    halves, neighbours = PairTest(bins), PairTest(bins)
    previous: tuple[Tensor, Tensor] | None = None
    for chunk in range(chunks):
        z, index = prepared(values(chunk))
        counts += torch.bincount(index, minlength=len(counts)).numpy()
        power = torch.ones_like(z)
        for k in range(len(MOMENTS)):
            power *= z
            powers[k] += float(power.sum())
        lagged += [float(z[:-lag] @ z[lag:]) for lag in LAGS]
        halves.add((z[::2], index[::2]), (z[1::2], index[1::2]))
        current = prepared(keys(chunk))
        if previous:
            neighbours.add(previous, current)
        previous = current

    distance = float(np.abs(np.cumsum(counts)[:-1] / draws - bins.below).max())
    expected = bins.probabilities * draws
    chi = float(((counts - expected) ** 2 / expected).sum())
    result = {
        "KS": float(stats.kstwobign.sf(distance * math.sqrt(draws))),
        "chi-square": float(stats.chi2.sf(chi, len(counts) - 1)),
    }
    for k, total in zip(MOMENTS, powers, strict=True):
        moment = expected_moments[k]
        error = math.sqrt((expected_moments[2 * k] - moment**2) / draws)
        result[f"moment {k}"] = two_sided((total / draws - moment) / error)
    for lag, total in zip(LAGS, lagged, strict=True):
        result[f"lag {lag}"] = two_sided(total / math.sqrt(chunks * (size - lag)))
    result |= halves.p_values("halves", expected_moments[4])
    return result | neighbours.p_values("keys", expected_moments[4])


def results(draws: int, size: int) -> Iterator[tuple[str, str, PValues]]:
    """Title, dtype and p-values of every law and dtype."""
    pairs = [(law, dtype) for law in LAWS for dtype in DTYPES]
    for law, dtype in tqdm(pairs, unit="law"):
        values, keys = stream(law, dtype, size), successive_keys(law, dtype, size)
        name = str(dtype).removeprefix("torch.")
        yield law.title, name, examine(law, dtype, draws // size, values, keys, size)


COLUMNS = ("KS", "chi-square", "moment", "lag", "halves", "keys")


def report(rows: list[tuple[str, str, PValues]], draws: int) -> str:
    """A table of p-values, the smallest of each family, and what to expect of so many."""
    cells = []
    for title, dtype, p_values in rows:
        least = [min(p for name, p in p_values.items() if name.startswith(c)) for c in COLUMNS]
        cells.append([title, dtype, *(f"{p:.2g}" for p in least)])
    every = [p for _, _, p_values in rows for p in p_values.values()]
    header = ["law", "dtype", *COLUMNS[:2], "moments 1-6", "lags 1-8", "halves (3)", "keys (3)"]
    return "\n".join(
        [
            "# Fills against their exact distributions",
            "",
            f"{draws:,} draws for each law and dtype. p-values; of a family the smallest. "
            "The dtypes but float64 share their random words, and so their luck.",
            "",
            table(header, cells),
            "",
            f"{len(every)} p-values; the smallest, {min(every):.2g}, times their number is "
            f"{min(every) * len(every):.2g}; {sum(p < 0.01 for p in every)} are below 0.01, "
            f"{len(every) / 100:.1f} expected.",
        ]
    )


def main() -> None:
    """Parses the command line, draws and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--draws", type=int, default=96 * 2**20)
    parser.add_argument("--chunk", type=int, default=2**20)
    options = parser.parse_args()
    rows = list(results(options.draws, options.chunk))
    print(report(rows, options.draws // options.chunk * options.chunk))


if __name__ == "__main__":
    main()
