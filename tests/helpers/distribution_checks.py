"""Statistical checks for fixed keys: each raises AssertionError, and states its false-alarm rate.

On a true null hypothesis a check at level ``ALPHA`` fails for one key in 1 / ALPHA; the keys of the
tests are fixed, so a run never flakes: it either always passes or always fails.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats

ALPHA = 1e-6

Cdf = Callable[[np.ndarray], np.ndarray]


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().flatten().numpy()


def assert_distributed(tensor: torch.Tensor, cdf: Cdf, step: float = 0.0) -> None:
    """Kolmogorov-Smirnov at level ALPHA.

    ``step`` is the largest distance that rounding moves a value by, as a part of the range of the
    CDF: rounding to 16 bits makes ties that the exact test would take for a wrong distribution.
    """
    values = as_numpy(tensor)
    statistic = stats.ks_1samp(values, cdf).statistic
    limit = stats.kstwo.isf(ALPHA, len(values)) + step
    assert statistic <= limit, f"KS statistic {statistic:.2e} exceeds {limit:.2e}"


def assert_moments(tensor: torch.Tensor, mean: float, std: float, kurtosis: float = 3.0) -> None:
    """Mean and standard deviation within five standard errors (6e-7 two-sided, each)."""
    values = as_numpy(tensor)
    n = len(values)
    assert abs(values.mean() - mean) <= 5 * std / math.sqrt(n) + 1e-12
    assert abs(values.std() / std - 1) <= 5 * math.sqrt((kurtosis - 1) / (4 * n)) + 1e-12


def assert_tail_count(tensor: torch.Tensor, threshold: float, probability: float) -> None:
    """The number of values with |x| > threshold, by the exact binomial test at level ALPHA."""
    values = as_numpy(tensor)
    count = int((np.abs(values) > threshold).sum())
    assert stats.binomtest(count, len(values), probability).pvalue >= ALPHA, (
        f"{count} values beyond {threshold}, {probability * len(values):.1f} expected"
    )


def assert_bounded(tensor: torch.Tensor, low: float, high: float, *, open_above: bool) -> None:
    """No value below low, none above high, and none equal to high where that is excluded."""
    values = as_numpy(tensor)
    assert values.min() >= low
    assert values.max() < high if open_above else values.max() <= high


def truncated_normal_cdf(mean: float, std: float, a: float, b: float) -> Cdf:
    return stats.truncnorm((a - mean) / std, (b - mean) / std, loc=mean, scale=std).cdf
